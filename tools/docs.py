"""Write the parts of docs/ that come from tables: statements, functions, diagnostics, rewritings, targets, commands.

    python tools/docs.py           # rewrite every generated part
    python tools/docs.py --check   # write nothing, fail if one is stale

A generated part stands between `<!-- generated: KIND NAME -->` and `<!-- end of generated -->`; everything outside is
written by hand. Before/after listings are made by `qimeng_attention.schedule.steps` on docs/schedule/sample.tl, and
diagnostics by the checker on that program with one edit.

Not here: the figure and the README's table (benchmarks/plot.py).
"""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from qimeng_attention import errors, targets
from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import REWRITINGS, Step, steps
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.functions import CONSTANTS, FUNCTIONS, WORD_OPERATORS
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.tl.statements import TABLE, Rule
from qimeng_attention.translate import sm75, sm80, sm90

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "qimeng_attention"
PART = re.compile(r"(<!-- generated: ([\w-]+)(?: ([^>]*?))? -->\n).*?(<!-- end of generated -->)", re.DOTALL)
CODE = re.compile(r"TL\d{3}")

# What a page shows of the grammar: the productions of each statement, by the statement's name in the table.
PRODUCTIONS = {
    "Size": ("size", "size_entry"),
    "Scalar": ("scalar",),
    "Tile": ("tile", "tile_entry"),
    "Grid": ("grid", "grid_dim"),
    "Warps": ("warps",),
    "Let": ("let",),
    "Find": ("find",),
    "Allocate": ("allocate", "?allocate_option"),
    "Copy": ("copy", "?copy_option", "coordinate"),
    "GEMM": ("gemm", "operand", "origin"),
    "Mask": ("mask",),
    "Compute": ("compute",),
    "Apply": ("apply", "params", "define_head"),
    "Reshape": ("reshape", "roles"),
    "for": ("for_head",),
    "if": ("if_head", "else_head"),
    "Choose": ("choose",),
    "role": ("role_head",),
    "Wait": ("wait",),
    "Release": ("release",),
    "Pass": ("pass_turn",),
    "Commit": ("commit",),
    "Barrier": ("barrier",),
    "Fence": ("fence",),
}

# The Schedule with which the sample program shows each rewriting, or a form of one: the choices it builds on, and its
# own.
_RING = ["ring K stages 2, V stages 2"]
_ROLES = [*_RING, "guard Mask of loop i where it is all true",
          "roles producer (24 registers), consumer (2 along q, 240 registers)"]  # fmt: skip
_OVERLAP = [*_ROLES, "overlap GEMM P, V of the previous tile with the row statistics of this one"]
_PERSISTENT = "grid persistent"
SCHEDULES = {
    "explicit": [],
    "approximate": ["approximate tanh"],
    "ring": _RING,
    "prefetch": [*_RING, "prefetch K 1 ahead, V 1 ahead"],
    "hold": ["hold Q in register"],
    "sums": ["sums per lane"],
    "threshold": ["threshold 8"],
    "store": ["store O through shared over Q"],
    "copies": [*_RING, "prefetch K 1 ahead, V 1 ahead", "copies async"],
    "split": ["split loop i where Mask is not all true"],
    "guard": ["guard Mask of loop i where it is all true"],
    "roles": [*_ROLES, _PERSISTENT],
    "carry": ["prefetch K 1 ahead", "carry K, V through register"],
    "overlap": [*_OVERLAP, _PERSISTENT],
    "rescale": [*_OVERLAP, "rescale O under GEMM Q, K.T of the next tile", _PERSISTENT],
    "unswitch": [*_OVERLAP, "unswitch loop i", _PERSISTENT],
    "pingpong": [*_OVERLAP, "pingpong consumer", _PERSISTENT],
    "ahead": [*_ROLES, "ahead Q stages 2", _PERSISTENT],
    "unroll": ["unroll loop i by 2"],
    "stage": [*_ROLES, "stage O through shared by tma", _PERSISTENT],
    "warps": ["warps 4 along q, 2 blocks an SM"],
    "skip": ["skip blocks past the end"],
    "grid": ["grid longest first"],
    "grid persistent": [*_ROLES, "grid persistent by counter"],
    "group": [*_ROLES, _PERSISTENT, "group head by 4 around block"],
}
# What a rewriting needs that the sample program has not: an edit of it.
SAMPLE_EDITS = {
    "approximate": (
        "    Compute OnlineSoftmax S, O, m, l with scale * log2e",
        "    Compute 30 * tanh(S * (scale / 30)) and get new S\n    Compute OnlineSoftmax S, O, m, l with log2e",
    ),
}
WRAPS = ("skip",)  # that put what stands there under a condition: lines that only move are not shown
ROLES_TARGET = "H200"  # that a Schedule with roles is shown for; the sample program names an A100

# One edit of the sample program that breaks a rule of the language; the page shows what the checker says.
BROKEN = {
    "rule-1": ("ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)", "Sk / BN"),
    "rule-2": ("[batch, q = block * BM, head] from register", "[batch, k = block * BM, head] from register"),
    "rule-3": ("k = i * BN, head_k] from global to shared", "k = i * BN, L = i] from global to shared"),
    "rule-4": (" and k < Sk", " or k >= Sk"),
    "rule-5": ("where k <= q + Sk - Sq and k < Sk", "where S + q"),
    "rule-6": (" as bf16 and get P", " as fp16 and get P"),
    "rule-7": (
        "Copy O (BM, D) in coordinate [batch, q = block * BM, head] from register to global Out",
        "Copy O from register to shared Staged",
    ),
    "rule-8": ("Let head_k = head // (Hq // Hk)", "Let head_k = Lse[batch, head, 0]"),
    "rule-9": ("    Compute OnlineSoftmax", "    if S > 0\n        Compute m and get new m\n    Compute OnlineSoftmax"),
    "rule-10": ("Compute OnlineSoftmax S, O, m, l with scale * log2e", "Compute Softmax S"),
    "schedule": ("", "Schedule\n    prefetsch K 1 ahead\n"),
    "copy-tile": ("and get P", "and get V"),
}

Render = Callable[[str], str]


# ------------------------------------------------------------------ the sample program


@cache
def sample() -> str:
    """Give the program that the listings are made from."""
    return (DOCS / "schedule" / "sample.tl").read_text("utf-8")


@cache
def step_of(name: str) -> Step:
    """Apply the schedule that shows a rewriting, or a form of one, and give its step."""
    block = "\nSchedule\n" + "".join(f"    {line}\n" for line in SCHEDULES[name])
    old, new = SAMPLE_EDITS.get(name, ("", ""))
    assert old in sample(), old
    program = parse(sample().replace(old, new, 1) + (block if SCHEDULES[name] else ""))
    target = ROLES_TARGET if of_roles(name) else None
    words = tuple(name.split())
    return next(
        step
        for step in steps(program, target=target)
        if step.rewriting.name == words[0] and step.choice.words[1 : len(words)] == words[1:]
    )


def of_roles(name: str) -> bool:
    """Tell whether the schedule that shows a rewriting makes roles."""
    return any(line.startswith("roles ") for line in SCHEDULES[name])


def changes(step: Step, context: int, *, indented: bool = True) -> list[str]:
    """Give what a step changes as the lines of a diff, without the Schedule block; `...` where lines are left out.

    Args:
        step: of `step_of`.
        context: lines shown around each change.
        indented: whether a line that has only moved to the right counts as changed.
    """
    texts = []
    for program in (step.before, step.after):
        bare = replace(program, kernels=tuple(replace(k, schedule=(), schedule_comment="") for k in program.kernels))
        texts.append(print_program(bare).splitlines())
    keys = [text if indented else [line.strip() for line in text] for text in texts]
    lines = []
    for group in difflib.SequenceMatcher(a=keys[0], b=keys[1]).get_grouped_opcodes(context):
        lines.append("  ...")
        for tag, i, i_end, j, j_end in group:
            if tag == "equal":
                lines += [f" {line}" for line in texts[1][j:j_end]]
            else:
                lines += [f"-{line}" for line in texts[0][i:i_end]] + [f"+{line}" for line in texts[1][j:j_end]]
    return lines


def fenced(lines: list[str] | str, language: str) -> str:
    """Give a fenced block."""
    text = lines if isinstance(lines, str) else "\n".join(lines)
    return f"```{language}\n{text.rstrip()}\n```"


# ------------------------------------------------------------------ statements and functions


def rule_of(name: str) -> Rule:
    """Find a statement by its name in the table."""
    return next(rule for rule in TABLE.values() if rule.name == name)


@cache
def productions() -> dict[str, str]:
    """Give the productions of the grammar by name, each with its alternatives."""
    text = resources.files("qimeng_attention.tl").joinpath("grammar.lark").read_text("utf-8")
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"(\??\w+)(\.\d+)?: ", line):
            name = match[1]
            found[name] = line
        elif name and line.startswith("    | "):
            found[name] += "\n" + line
        else:
            name = ""
    return found


def statement(name: str) -> str:
    """Render form, level, meaning and example of a statement."""
    rule = rule_of(name)
    facts = [
        f"{rule.doc.strip()}\n",
        f"- first level at which it may stand: {rule.level}",
        f"- lowering: {lowered(name)}",
        "\nExample:\n",
        fenced(rule.example, "tl"),
        "\nForm (an excerpt of `tl/grammar.lark`):\n",
        fenced([productions()[p] for p in PRODUCTIONS[name]], "lark"),
    ]
    return "\n".join(facts)


def lowered(name: str) -> str:
    """Say which generations' instructions a statement is lowered to."""
    if name == "Apply":
        return "none needed: macros are written out first"
    plain = "sm_75 and sm_80 instructions" if name in sm75.LOWERINGS else "sm_80 instructions"
    if name not in sm90.LOWERINGS:
        return plain if name in sm80.LOWERINGS else "none yet: refused by name (TL701)"
    if name in sm80.LOWERINGS:
        return f"{plain}; those of sm_90a in a program of roles"
    return "sm_90a instructions, in a program of roles; elsewhere refused by name (TL701)"


def all_statements(_: str) -> str:
    """Render the table of statements."""
    rows = ["| statement | level | example |", "| --- | --- | --- |"]
    for rule in TABLE.values():
        example = rule.example.replace("|", "\\|")
        rows.append(f"| [{rule.name}]({rule.name.lower()}.md) | {rule.level} | `{example}` |")
    return "\n".join(rows)


def touched(name: str) -> str:
    """Render the lines of a statement that each rewriting changes in the sample program."""
    parts = []
    for shows in sorted(SCHEDULES, key=lambda n: list(REWRITINGS).index(n.split()[0])):
        changed = changes(step_of(shows), 0, indented=not of_roles(shows) and shows not in WRAPS)
        lines = [x for x in changed if x[:1] in "+-" and _is(name, x[1:].strip())]
        if lines:
            listed = lines[:8] + (["  ..."] if len(lines) > 8 else [])
            parts.append(f"[{shows}](../schedule/{shows.split()[0]}.md):\n\n{fenced(listed, 'diff')}")
    return "\n\n".join(parts) or "No rewriting touches this statement in the sample program."


def _is(name: str, line: str) -> bool:
    word, _, rest = line.partition(" ")
    second = rest.split(" ")[0]
    if name in ("GEMM", "Mask"):
        return word == "Compute" and second == name
    if name == "Compute":
        return word == "Compute" and second not in ("GEMM", "Mask", "OnlineSoftmax")
    if name == "Apply":
        return word == "Compute" and second == "OnlineSoftmax"
    return word == rule_of(name).keyword


def functions(_: str) -> str:
    """Render functions, constants and word operators."""
    lines = []
    for f in FUNCTIONS.values():
        least, most = f.arity
        count = str(least) if least == most else f"{least} to {most}"
        result = {
            "float": "f32",
            "int": "an integer, of integers",
            "same": "the type of its arguments",
            "bool": "a condition",
        }[f.result]
        lines.append(f"### {f.name}\n\nGives: {f.doc}.\nArguments: {count}; result: {result}.\n")
    constants = "\n".join(f"- `{name}` = {value:.9g}" for name, value in CONSTANTS.items())
    words = "\n".join(
        f"- `Compute {word} A, x and get new A` is `Compute A {sign} x and get new A`"
        for word, sign in WORD_OPERATORS.items()
    )
    return "\n".join(lines) + f"\n## Constants\n\n{constants}\n\n## Word operators\n\n{words}"


# ------------------------------------------------------------------ diagnostics


@cache
def messages() -> dict[str, list[tuple[str, str]]]:
    """Collect message and mend of every finding in the source, by code; what is filled in is shown as `…`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for scope in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
            assigned = _codes_by_name(scope)
            for call in [n for n in ast.walk(scope) if isinstance(n, ast.Call) and n.args]:
                for position, argument in enumerate(call.args):
                    codes = _codes(argument) or (
                        assigned.get(argument.id, []) if isinstance(argument, ast.Name) else []
                    )
                    texts = [_text(a) for a in call.args[position + 1 :]]
                    said = [t for t in texts if t]
                    for code in codes:
                        entry = (said[0] if said else "", said[1] if len(said) > 1 else "")
                        if entry[0].strip("… ") and entry not in found.setdefault(code, []):
                            found[code].append(entry)
    return dict(sorted(found.items()))


def _codes(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
        return [node.value]
    return [*_codes(node.body), *_codes(node.orelse)] if isinstance(node, ast.IfExp) else []


def _codes_by_name(scope: ast.FunctionDef) -> dict[str, list[str]]:
    """Follow `code = "TL105" if ... else "TL106"` and `code, why = ("TL202", ...) if ... else ("TL203", ...)`."""
    found: dict[str, list[str]] = {}
    for n in ast.walk(scope):
        if isinstance(n, ast.Assign):
            name = n.targets[0].elts[0] if isinstance(n.targets[0], ast.Tuple) else n.targets[0]
            codes = [c.value for c in ast.walk(n.value) if isinstance(c, ast.Constant) and _codes(c)]
            if isinstance(name, ast.Name) and codes:
                found.setdefault(name.id, []).extend(str(c) for c in codes)
    return found


def _text(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values):
            return "".join(_text(v) if isinstance(v, ast.Constant) else "…" for v in values)
        case ast.IfExp(_, body, orelse):
            return " / ".join(filter(None, (_text(body), _text(orelse))))
        case ast.BinOp(left, ast.Add(), right):
            return (_text(left) or "…") + (_text(right) or "…")
        case ast.Call(func=ast.Name(id="str")) | ast.Name(id="message" | "hint") | ast.Attribute(attr="message"):
            return "…"
    return ""


def codes() -> list[str]:
    """Give every code that stands in the source."""
    texts = (path.read_text("utf-8") for path in SOURCE.rglob("*.py"))
    return sorted({code for text in texts for code in re.findall(r'"(TL\d{3})"', text)})


def diagnostic(code: str) -> str:
    """Render what a code says, with the mend of each message."""
    said = messages().get(code, [])
    lines = [f"- {_escaped(message)}" + (f"<br>mend: {_escaped(hint)}" if hint else "") for message, hint in said]
    return "\n".join(lines) or "- the message is made where it is found"


def _escaped(text: str) -> str:
    """Escape what Markdown would read, outside of code."""
    parts = " ".join(text.split()).split("`")
    return "`".join(re.sub(r"([*_<>\[\]|])", r"\\\1", x) if n % 2 == 0 else x for n, x in enumerate(parts))


def broken(name: str) -> str:
    """Render what the checker says of the sample program with one edit."""
    old, new = BROKEN[name]
    text = sample().replace(old, new, 1) if old else f"{sample()}\n{new}"
    if text == sample():
        raise SystemExit(f"the edit {name} changes nothing: {old!r} is not in docs/schedule/sample.tl")
    try:
        if name == "schedule":
            list(steps(parse(text)))
        else:
            check_text(text, file="sample.tl")
    except DiagnosticError as error:
        first = next(d for d in error.diagnostics if d.severity == "error")
        return fenced(first.render(text, "sample.tl"), "text")
    raise SystemExit(f"the edit {name} is accepted: it breaks no rule")


# ------------------------------------------------------------------ rewritings, targets, commands


def rewriting(name: str) -> str:
    """Render form, class and a real before/after of a rewriting."""
    r = REWRITINGS[name]
    applied = "always, first" if name == "explicit" else f"`{r.form}`"
    facts = f"- form: {applied}\n- example: `{r.example}`\n- class: {r.kind}"
    return f"{r.doc}\n\n{facts}\n\n## Before and after\n\n{shown(name, indented=name not in WRAPS)}"


def shown(name: str, *, indented: bool = True) -> str:
    """Render the Schedule that shows a rewriting, or a form of one, and what its step changes."""
    schedule = (
        f"With this Schedule:\n\n{fenced(['Schedule', *('    ' + x for x in SCHEDULES[name])], 'tl')}\n\n"
        if SCHEDULES[name]
        else ""
    )
    where = f"[sample.tl](sample.tl){f', for an {ROLES_TARGET}' if of_roles(name) else ''}"
    left_out = "" if indented else "; lines that only move to the right are left out"
    listing = fenced(changes(step_of(name), 1, indented=indented), "diff")
    return f"{schedule}What this step changes in {where}{left_out}:\n\n{listing}"


def form_of_rewriting(name: str) -> str:
    """Render a before/after of another form of a rewriting."""
    return shown(name, indented=False)


def all_rewritings(_: str) -> str:
    """Render the table of rewritings, in the order in which they are applied."""
    rows = ["| rewriting | form | class | what it does |", "| --- | --- | --- | --- |"]
    for name, r in REWRITINGS.items():
        form = r.form.replace("|", "\\|")
        rows.append(f"| [{name}]({name}.md) | `{form}` | {r.kind} | {r.doc} |")
    return "\n".join(rows)


def all_targets(_: str) -> str:
    """Render the table of GPUs."""
    head = [
        "name",
        "architecture",
        "SMs",
        "shared memory a block",
        "clock, MHz",
        "bandwidth, GB/s",
        "16-bit TFLOP/s, dense",
        "types",
    ]
    rows = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * 6 + " --- |"]
    for t in (targets.get(n) for n in targets.names()):
        rate = max(t.tensor_tflops.get("bf16", 0), t.tensor_tflops.get("fp16", 0))
        cells = [t.name, t.arch, t.sms, f"{t.shared_per_block_bytes:,}", t.clock_mhz]
        cells += [f"{t.bandwidth_bytes_per_s / 1e9:.0f}", f"{rate:g}", ", ".join(t.dtypes)]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def capabilities(_: str) -> str:
    """Render every capability and the targets that have it."""
    rows = ["| capability | meaning | targets |", "| --- | --- | --- |"]
    for name, meaning in targets.capabilities().items():
        able = [t.name for t in (targets.get(n) for n in targets.names()) if name in t.capabilities]
        rows.append(f"| {name} | {meaning.replace('|', '/')} | {', '.join(able)} |")
    return "\n".join(rows)


def commands(_: str) -> str:
    """Render every command with its arguments and options."""
    parts = []
    for name, command in typer_commands().items():
        rows = ["| argument or option | meaning |", "| --- | --- |"]
        for p in command.params:
            if p.name != "help":
                shown = (
                    ", ".join(f"`{o}`" for o in [*p.opts, *p.secondary_opts])
                    if p.param_type_name == "option"
                    else f"`{p.name.upper()}`"
                )
                rows.append(f"| {shown} | {(getattr(p, 'help', '') or '').replace('|', '/')} |")
        example = (command.epilog or "").removeprefix("Example: ")
        text = f"## qimeng {name}\n\n{(command.help or '').strip()}\n\n" + "\n".join(rows)
        parts.append(
            text + (f"\n\n{fenced([x.strip() for x in re.split(r' +or: ', example)], 'sh')}" if example else "")
        )
    return "\n\n".join(parts)


@cache
def typer_commands() -> dict[str, Any]:
    """Ask typer for the commands of `qimeng`."""
    from typer.main import get_command

    from qimeng_attention.cli import app

    found: dict[str, Any] = {}
    for name, command in getattr(get_command(app), "commands", {}).items():
        below = getattr(command, "commands", None)  # a group: its commands stand under its name
        found |= {name: command} if below is None else {f"{name} {n}": c for n, c in below.items()}
    return found


def exit_codes(_: str) -> str:
    """Render the errors a user can meet."""
    rows = ["| error | code | exit code | meaning |", "| --- | --- | ---: | --- |"]
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.QimengError)]
    for c in sorted((c for c in classes if c is not errors.QimengError), key=lambda c: c.code):
        meaning = (c.__doc__ or "").split(";")[0].strip().rstrip(".")
        rows.append(f"| {c.__name__} | {c.code} | {c.exit_code} | {meaning} |")
    return "\n".join(rows)


def families(_: str) -> str:
    """Render the judge's families of values and its properties."""
    from qimeng_attention.judge.families import FAMILIES
    from qimeng_attention.judge.properties import PROPERTIES

    values = ", ".join(FAMILIES)
    held = "\n".join(f"- {p.name}{' (bit for bit)' if p.exact else ''}" for p in PROPERTIES)
    return f"Families of values: {values}.\n\nProperties:\n\n{held}"


def weights(_: str) -> str:
    """Render the words of `weights`."""
    from qimeng_attention.weights import WEIGHTS

    rows = ["| `weights` | P | LSE | who uses it |", "| --- | --- | --- | --- |"]
    for w in WEIGHTS.values():
        lse = f"`{w.lse_formula.format(over='sum')}`" if w.summed else "none"
        rows.append(f"| `{w.name}` | `{w.formula.format(over='sum')}` | {lse} | {w.source or 'the default'} |")
    return "\n".join(rows)


KINDS: dict[str, Render] = {
    "statement": statement,
    "statements": all_statements,
    "touched": touched,
    "functions": functions,
    "diagnostic": diagnostic,
    "broken": broken,
    "rewriting": rewriting,
    "rewritings": all_rewritings,
    "form": form_of_rewriting,
    "targets": all_targets,
    "capabilities": capabilities,
    "commands": commands,
    "exit-codes": exit_codes,
    "families": families,
    "weights": weights,
}


# ------------------------------------------------------------------ files


def pages() -> Iterator[Path]:
    """Give every page of docs/ that may hold generated parts."""
    yield from sorted(DOCS.rglob("*.md"))


def rendered(text: str) -> str:
    """Give a page with its generated parts made anew."""
    return PART.sub(lambda m: f"{m[1]}{KINDS[m[2]]((m[3] or '').strip())}\n{m[4]}", text)


def main() -> None:
    """Write, or check, every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a part is stale")
    args = parser.parse_args()
    stale = []
    for page in pages():
        text = page.read_text("utf-8")
        made = rendered(text)
        if made != text:
            stale.append(page.relative_to(ROOT))
            if not args.check:
                page.write_text(made, "utf-8")
    for name in stale:
        print(f"{'stale' if args.check else 'written'}: {name}")
    if args.check and stale:
        sys.exit("run `python tools/docs.py`")


if __name__ == "__main__":
    main()

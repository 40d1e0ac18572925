"""The language reference, from the tables of the language: statements, functions, schedule choices, macros.

Not here: the pages of docs/ (tools/docs.py).
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from typing import Any

from qimeng_attention.errors import SpecError
from qimeng_attention.schedule import REWRITINGS
from qimeng_attention.tl.functions import CONSTANTS, FUNCTIONS, WORD_OPERATORS
from qimeng_attention.tl.statements import TABLE

LEVELS = (
    "sketch: which data moves, what is computed, in what order; no numbers",
    "code: sizes, tiles, memories, types, coordinates, bounds, Reshape, and a Schedule block of named choices",
    "scheduled: what the Schedule's rewritings make of code: slots, asynchronous copies, waits, barriers, roles",
)
RULES = (
    "A program is line by line; blocks are given by indentation, and may be closed by `end`; `#` starts a comment.",
    "`a : b` leaves b out; `for i = a : b down` runs backwards; `//`, `%` and `ceildiv` are for integers, `/` for "
    "floating values.",
    "Axes are named: a tile's rows and columns carry the name and origin that its Copy's coordinate gave them, as "
    "`q = block * BM`. In expressions q and k are global indices, and a vector along k broadcasts along q by its name.",
    "`[L = i]` counts tiles of the Copy's shape along the first axis; any other name counts elements.",
    "A Copy past its tensor's end reads 0 and never writes there. A tile that may be ragged along k is masked "
    "(`k < Sk`) before a row reduction or a second GEMM.",
    "`Mask S where cond` fills with -inf, with `else x` with x; conditions use and, or, not, comparisons and named "
    "tensors.",
    "Only Reshape (with `as`) and a Copy from register to global change a type; between two fused GEMMs the first's "
    "accumulator must be reshaped from MMA_C to MMA_A.",
    "`.T` is symbolic: it says which index a GEMM contracts, K.T for scores. How a tile lies in memory is not its "
    "business: V stands in `GEMM P, V` without it.",
    "What a Compute or Reshape introduces is allocated by it; a Copy to shared allocates a tile of that name, and the "
    "name means it from there on.",
    "A coordinate or bound may use a loaded value if it is the same for the whole block; so may an `if`.",
    "A macro is TL: `Define NAME ...`, then `Compute NAME ...`; a new recurrence is a program, no new statement.",
    "The Schedule changes how a program runs, never what it computes, within the class of each choice: exact, "
    "reassociating, or approximate with a stated bound.",
)
_GRAMMAR, _MACROS = "grammar.lark", "macros.tl"


def grammar() -> str:
    """Give the grammar."""
    return resources.files("qimeng_attention.tl").joinpath(_GRAMMAR).read_text("utf-8")


@cache
def macros() -> dict[str, str]:
    """Give the macros that every program may apply, by name."""
    text = resources.files("qimeng_attention.tl").joinpath("library", _MACROS).read_text("utf-8")
    parts = text.split("\nDefine ")[1:]
    return {part.split()[0]: "Define " + part.partition("\n\n")[0].rstrip() for part in parts}


@cache
def entries() -> dict[str, dict[str, Any]]:
    """Give everything that has a name: what it is, its form, meaning and example."""
    found: dict[str, dict[str, Any]] = {}
    for rule in TABLE.values():
        found[rule.name] = {"kind": "statement", "doc": rule.doc.strip(), "example": rule.example, "level": rule.level}
    for f in FUNCTIONS.values():
        found[f.name] = {"kind": "function", "doc": f"{f.doc}", "arguments": list(f.arity), "result": f.result}
    for name, value in CONSTANTS.items():
        found[name] = {"kind": "constant", "doc": f"{value:.9g}"}
    for name, text in macros().items():
        found[name] = {"kind": "macro", "doc": "Applied by `Compute`; defined in TL.", "definition": text}
    for r in REWRITINGS.values():
        shown = {"form": r.form, "example": r.example, "class": r.kind}
        found[f"{r.name} (Schedule)" if r.name in found else r.name] = {"kind": "schedule", "doc": r.doc, **shown}
    for word, sign in WORD_OPERATORS.items():
        found[word] = {"kind": "operator", "doc": f"`Compute {word} A, x and get new A` is `A {sign} x`"}
    return found


def entry(name: str) -> dict[str, Any]:
    """Give what there is to know of one name.

    Raises:
        SpecError: there is nothing of that name.
    """
    known = {n.casefold(): n for n in entries()}
    found = known.get(name.strip().casefold())
    if found is None:
        near = difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.4)
        words = ", ".join(known[n] for n in near)
        hint = f"did you mean {words}?" if near else "call it without a name: it lists all"
        raise SpecError(f"the language has nothing named {name!r}", hint=hint, field="name", value=name)
    return {"name": found, **entries()[found]}


def overview() -> dict[str, Any]:
    """Give levels and rules, and every name in short."""
    kinds: dict[str, dict[str, str]] = {}
    for name, of in entries().items():
        kinds.setdefault(of["kind"], {})[name] = of.get("example") or of["doc"]
    return {"levels": LEVELS, "rules": RULES, "names": kinds}


def page() -> str:
    """Give the whole reference as one text."""
    lines = ["# TL", "", "Three levels:", "", *(f"- {level}" for level in LEVELS), "", "## Rules", ""]
    lines += [f"{number}. {rule}" for number, rule in enumerate(RULES, 1)]
    for kind, title in (
        ("statement", "Statements"),
        ("function", "Functions"),
        ("constant", "Constants"),
        ("operator", "Word operators"),
        ("macro", "Macros"),
        ("schedule", "Choices of a Schedule, in the order they are applied"),
    ):
        lines += ["", f"## {title}", ""]
        for name, of in entries().items():
            if of["kind"] == kind:
                lines += _lines(name, of)
    return "\n".join(lines) + "\n"


def _lines(name: str, of: dict[str, Any]) -> list[str]:
    if "definition" in of:
        return [f"```tl\n{of['definition']}\n```"]
    extra = f" ({of['level']})" if "level" in of else f" ({of['class']})" if "class" in of else ""
    form = f" Form: `{of['form']}`." if "form" in of else ""
    example = f" Example: `{of['example']}`" if "example" in of else ""
    return [f"- **{name}**{extra}: {of['doc'].rstrip('.')}.{form}{example}"]

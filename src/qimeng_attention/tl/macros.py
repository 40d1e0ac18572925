"""Macros written out: `Compute OnlineSoftmax S, O, m, l with c` becomes the statements of its definition.

Word operators (`Multiply A, x`) become expressions. Nothing after this step knows a macro's name.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import resources

from qimeng_attention.errors import Diagnostic, Span
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import WORD_OPERATORS
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.traverse import map_blocks, rename_tiles, statements, substitute

MAX_DEPTH = 8  # macros within macros


@cache
def library() -> dict[str, s.Define]:
    """Give the macros that every program may use."""
    text = resources.files("qimeng_attention.tl").joinpath("library", "macros.tl").read_text("utf-8")
    return {d.name: d for d in parse(text, "macros.tl").defines}


def expand(kernel: s.Kernel, defines: tuple[s.Define, ...]) -> tuple[s.Kernel, list[Diagnostic]]:
    """Write out the macros of a kernel; those it cannot are left in place for the checker to name."""
    known = library() | {d.name: d for d in defines}
    findings: list[Diagnostic] = []
    body = kernel.body
    for _ in range(MAX_DEPTH):
        if not any(isinstance(n, s.Apply) for n in statements(body)):
            break
        taken = _names(body)
        body = map_blocks(body, lambda n, taken=taken: _written_out(n, known, taken, findings))  # type: ignore[misc]
        if findings:
            break
    return replace(kernel, body=body), findings


def _names(body: tuple[s.Statement, ...]) -> set[str]:
    names: set[str] = set()
    for n in statements(body):
        match n:
            case s.Compute() | s.Gemm() | s.Reshape():
                names.add(n.out or "")
            case s.Allocate() | s.Copy():
                names.add(n.name)
            case s.Apply():
                names |= {a.id for a in n.args if isinstance(a, s.Name)}
    return names


def _written_out(n: s.Statement, known: dict[str, s.Define], taken: set[str], findings: list[Diagnostic]
                 ) -> s.Statement | tuple[s.Statement, ...]:  # fmt: skip
    if not isinstance(n, s.Apply):
        return n
    if n.operator in WORD_OPERATORS and n.operator not in known:
        return _word_operator(n, findings)
    define = known.get(n.operator)
    if define is None:
        return n
    if (len(n.args), len(n.params)) != (len(define.args), len(define.params)):
        form = f"Compute {define.name} {', '.join(define.args)}" + (
            f" with {', '.join(define.params)}" if define.params else ""
        )
        findings.append(
            Diagnostic(
                "TL108",
                f"{define.name} takes {len(define.args)} tile(s) and "
                f"{len(define.params)} value(s), "
                f"found {len(n.args)} and {len(n.params)}",
                f"write `{form}`",
                n.span,
            )
        )
        return ()
    tiles = {}
    for formal, actual in zip(define.args, n.args, strict=True):
        if not isinstance(actual, s.Name):
            findings.append(
                Diagnostic(
                    "TL108",
                    f"{define.name} takes the name of a tile for {formal}",
                    "compute it into a tile first",
                    n.span,
                )
            )
            return ()
        tiles[formal] = actual.id
    tiles |= {name: _fresh(name, taken, set(tiles.values())) for name in sorted(_locals(define))}
    values = dict(zip(define.params, n.params, strict=True))
    body = tuple(_placed(rename_tiles(substitute(x, values), tiles), n.span) for x in define.body)
    if body and (n.above or n.comment):
        body = (replace(body[0], above=(*n.above, *([n.comment] if n.comment else []))), *body[1:])
    return body


def _locals(define: s.Define) -> set[str]:
    made = {n.out for n in statements(define.body) if isinstance(n, s.Compute | s.Gemm | s.Reshape) and n.out}
    return made - set(define.args)


def _fresh(name: str, taken: set[str], arguments: set[str]) -> str:
    """A macro's own names are its own: rename one that the program uses for something else."""
    if name not in arguments and name not in taken:
        return name
    return name if name not in arguments and _same_macro_local(name, taken) else f"{name}_"


def _same_macro_local(name: str, taken: set[str]) -> bool:
    return name not in taken


def _placed(n: s.Statement, span: Span) -> s.Statement:
    """Findings in a macro's statements speak of the line that uses it."""
    if isinstance(n, s.For | s.If | s.Role):
        n = replace(n, body=tuple(_placed(x, span) for x in n.body))
    return replace(n, span=span)


def _word_operator(n: s.Apply, findings: list[Diagnostic]) -> s.Statement | tuple[s.Statement, ...]:
    if len(n.args) != 2 or n.params:
        findings.append(Diagnostic("TL108", f"{n.operator} takes two operands, found {len(n.args)}",
                                   f"write `Compute {n.operator} A, x and get new A`", n.span))  # fmt: skip
        return ()
    if n.out is None:
        findings.append(
            Diagnostic("TL108", f"{n.operator} gives its result to nothing", "add `and get new A`", n.span)
        )
        return ()
    value = s.Binary(WORD_OPERATORS[n.operator], n.args[0], n.args[1], span=n.span)
    return s.Compute(value, n.out, n.new, span=n.span, above=n.above, comment=n.comment)

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
from qimeng_attention.tl.traverse import (
    depth,
    expressions,
    map_blocks,
    rename_tiles,
    statements,
    substitute,
    with_span,
    words_in,
)

MAX_DEPTH = 8  # macros within macros
MAX_NODES = 12_000  # written out in one kernel, about a second's work: bounds macros that use each other many times
MAX_EXPRESSION = 120  # depth of an expression once values are put in


@cache
def library() -> dict[str, s.Define]:
    """Give the macros that every program may use."""
    text = resources.files("qimeng_attention.tl").joinpath("library", "macros.tl").read_text("utf-8")
    return {d.name: d for d in parse(text, "macros.tl").defines}


def expand(kernel: s.Kernel, defines: tuple[s.Define, ...]) -> tuple[s.Kernel, list[Diagnostic]]:
    """Write out the macros of a kernel; an operator that has no definition is left for the checker to name."""
    work = _Expansion(library() | {d.name: d for d in defines}, words_in(kernel))
    work.check_defines(defines)
    body = kernel.body
    for _ in range(MAX_DEPTH):
        if not any(isinstance(n, s.Apply) and work.knows(n) for n in statements(body)):
            break
        body = map_blocks(body, work.written_out)
    return replace(kernel, body=map_blocks(body, work.refused)), work.findings


class _Expansion:
    """The writing out of one kernel's macros: the words in use, what was found wrong, and how much was written."""

    def __init__(self, known: dict[str, s.Define], taken: set[str]) -> None:
        self.known, self.taken = known, taken
        self.findings: list[Diagnostic] = []
        self.left = MAX_NODES

    def report(self, code: str, message: str, hint: str, span: Span) -> None:
        self.findings.append(Diagnostic(code, message, hint, span))

    def knows(self, n: s.Apply) -> bool:
        return n.operator in self.known or n.operator in WORD_OPERATORS

    def check_defines(self, defines: tuple[s.Define, ...]) -> None:
        """Report names that a definition gives twice."""
        seen: set[str] = set()
        for d in defines:
            if d.name in seen:
                self.report("TL102", f"{d.name} is defined twice", "keep one definition", d.span)
            seen.add(d.name)
            formal = (*d.args, *d.params)
            if len(set(formal)) != len(formal):
                self.report("TL102", f"two operands of {d.name} have the same name", "name them apart", d.span)

    def refused(self, n: s.Statement) -> s.Statement | tuple[s.Statement, ...]:
        """Report the use of a macro that is still there: it uses itself."""
        if not isinstance(n, s.Apply) or not self.knows(n):
            return n
        self.report(
            "TL109",
            f"{n.operator} uses itself, or lies in more than {MAX_DEPTH} macros",
            "a macro may use only macros that end",
            n.span,
        )
        return ()

    def written_out(self, n: s.Statement) -> s.Statement | tuple[s.Statement, ...]:
        """Give the statements that a use of a macro stands for."""
        if not isinstance(n, s.Apply) or not self.knows(n):
            return n
        define = self.known.get(n.operator)
        if define is None:
            return _word_operator(n, self.findings)
        if not self._fits(n, define) or not self._affordable(n, define):
            return ()
        tiles = {formal: a.id for formal, a in zip(define.args, n.args, strict=True) if isinstance(a, s.Name)}
        tiles |= {name: self._fresh(name) for name in _locals(define)}
        body = _put_in(with_span(define.body, n.span), tiles, dict(zip(define.params, n.params, strict=True)))
        if depth(body) > MAX_EXPRESSION:
            self.report(
                "TL005",
                f"an expression that {n.operator} writes out is more than {MAX_EXPRESSION} operations deep",
                "compute a part of it first",
                n.span,
            )
            return ()
        if body and (n.above or n.comment):
            body = (replace(body[0], above=(*n.above, *([n.comment] if n.comment else []))), *body[1:])
        return body

    def _fits(self, n: s.Apply, define: s.Define) -> bool:
        form = f"Compute {define.name} {', '.join(define.args)}"
        form += f" with {', '.join(define.params)}" if define.params else ""
        if (len(n.args), len(n.params)) != (len(define.args), len(define.params)):
            self.report(
                "TL108",
                f"{define.name} takes {len(define.args)} tile(s) and {len(define.params)} value(s) behind `with`, "
                f"found {len(n.args)} and {len(n.params)}",
                f"write `{form}`",
                n.span,
            )
            return False
        if n.out is not None:
            self.report(
                "TL108", f"{define.name} changes its tiles in place, found `and get {n.out}`", f"write `{form}`", n.span
            )
            return False
        for formal, actual in zip(define.args, n.args, strict=True):
            if not isinstance(actual, s.Name):
                self.report(
                    "TL108",
                    f"{define.name} takes the name of a tile for {formal}, found an expression",
                    "compute it into a tile first, and name that",
                    n.span,
                )
                return False
        return True

    def _affordable(self, n: s.Apply, define: s.Define) -> bool:
        values = sum(1 for _ in expressions(n.params))
        self.left -= sum(4 + values * sum(1 for _ in expressions(x)) for x in statements(define.body))
        if self.left < 0 and not any(f.code == "TL005" for f in self.findings):
            self.report(
                "TL005", "the kernel is too long once its macros are written out", "use fewer or smaller macros", n.span
            )
        return self.left >= 0

    def _fresh(self, name: str) -> str:
        """A macro's own names are its own, at every use: take one that nothing else has."""
        fresh, number = name, 1
        while fresh in self.taken:
            number += 1
            fresh = f"{name}_{number}"
        self.taken.add(fresh)
        return fresh


def _locals(define: s.Define) -> list[str]:
    """Give the names that a macro makes, in order."""
    made: dict[str, None] = {}
    for n in statements(define.body):
        match n:
            case s.Compute(out=str(name)) | s.Gemm(out=str(name)) | s.Reshape(out=str(name)) | s.Apply(out=str(name)):
                made[name] = None
            case s.Let(name=name) | s.Find(name=name) | s.Allocate(name=name) | s.Copy(to_name=str(name)):
                made[name] = None
            case s.For(var=name):
                made[name] = None
    return [name for name in made if name not in define.args]


def _put_in(body: tuple[s.Statement, ...], tiles: dict[str, str], values: dict[str, s.Expr]) -> tuple[s.Statement, ...]:
    """Rename tiles and put in values at once: neither is looked for in what the other put in."""
    marked = {name: s.Name(f"{name}'") for name in values}  # no program can write such a name
    behind = {f"{name}'": e for name, e in values.items()}

    def each(n: s.Statement) -> s.Statement:
        return substitute(rename_tiles(substitute(n, marked), tiles), behind)

    return map_blocks(body, each)


def _word_operator(n: s.Apply, findings: list[Diagnostic]) -> s.Statement | tuple[s.Statement, ...]:
    if len(n.args) != 2 or n.params:
        findings.append(
            Diagnostic(
                "TL108",
                f"{n.operator} takes two operands, found {len(n.args)}",
                f"write `Compute {n.operator} A, x and get new A`",
                n.span,
            )
        )
        return ()
    if n.out is None:
        findings.append(Diagnostic("TL108", f"{n.operator} gives its result to nothing", "add `and get new A`", n.span))
        return ()
    value = s.Binary(WORD_OPERATORS[n.operator], n.args[0], n.args[1], span=n.span)
    return s.Compute(value, n.out, n.new, span=n.span, above=n.above, comment=n.comment)

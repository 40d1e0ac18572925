"""Small faults planted in a TL program, one at a time: what a slip of a person or a model would look like.

Semantic operators change what is computed: statements deleted, duplicated or exchanged, operands swapped, `.T` toggled,
coordinates and bounds off by one, comparisons and arithmetic changed, constants and names exchanged, initial values
changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.printer import head
from qimeng_attention.tl.traverse import add, num, sub

_EXPRESSIONS = (s.Num, s.Name, s.Unary, s.Binary, s.Compare, s.Call, s.Index, s.Scan)
_DECLARATIONS = (s.Size, s.Scalar, s.Tile, s.Allocate, s.Grid, s.Let)
_OTHER_COMPARISON = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
_OTHER_OPERATOR = {"+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "//", "and": "or", "or": "and"}
_OTHER_NAME = {
    "batch": "head",
    "head": "batch",
    "head_k": "head",
    "block": "batch",
    "Sq": "Sk",
    "Sk": "Sq",
    "BM": "BN",
    "BN": "BM",
    "q": "k",
    "k": "q",
    "m": "l",
    "l": "m",
    "m_new": "m",
    "m_safe": "m_new",
    "alpha": "m_safe",
    "scale": "log2e",
    "log2e": "ln2",
}
_VALUES = {"S", "O", "m", "l", "m_new", "m_safe", "alpha", "scale", "log2e"}  # floating: may be doubled or negated


@dataclass(frozen=True)
class Mutant:
    """A program with one fault."""

    name: str
    family: str
    program: s.Program


def semantic(program: s.Program) -> Iterator[Mutant]:
    """Give every mutant of the first kernel; the same text twice is given once."""
    seen = {program}
    for mutant in _all(program):
        if mutant.program not in seen:
            seen.add(mutant.program)
            yield mutant


def _all(program: s.Program) -> Iterator[Mutant]:
    kernel = program.kernels[0]

    def made(name: str, family: str, body: tuple[s.Statement, ...]) -> Mutant:
        return Mutant(name, family, replace(program, kernels=(replace(kernel, body=body),)))

    for path, n in _paths(kernel.body):
        where = f"{head(n)}"
        if not isinstance(n, _DECLARATIONS):
            yield made(f"delete: {where}", "delete", _edit(kernel.body, path, ()))
            if not isinstance(n, s.For):
                yield made(f"duplicate: {where}", "duplicate", _edit(kernel.body, path, (n, n)))
        after = _next(kernel.body, path)
        if after is not None and not isinstance(n, _DECLARATIONS) and not isinstance(after, _DECLARATIONS):
            swapped = _edit(_edit(kernel.body, (*path[:-1], path[-1] + 1), (n,)), path, (after,))
            yield made(f"exchange: {where} <-> {head(after)}", "exchange", swapped)
        for family, description, changed in _changes(n):
            yield made(f"{family}: {where} -> {description}", family, _edit(kernel.body, path, (changed,)))


# ------------------------------------------------------------------ places


def _paths(
    body: tuple[s.Statement, ...], prefix: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], s.Statement]]:
    for i, n in enumerate(body):
        yield (*prefix, i), n
        if isinstance(n, s.For | s.If):
            yield from _paths(n.body, (*prefix, i))


def _edit(
    body: tuple[s.Statement, ...], path: tuple[int, ...], new: tuple[s.Statement, ...]
) -> tuple[s.Statement, ...]:
    i, *rest = path
    if not rest:
        return (*body[:i], *new, *body[i + 1 :])
    inner: Any = body[i]
    return (*body[:i], replace(inner, body=_edit(inner.body, tuple(rest), new)), *body[i + 1 :])


def _next(body: tuple[s.Statement, ...], path: tuple[int, ...]) -> s.Statement | None:
    for i in path[:-1]:
        inner: Any = body[i]
        body = inner.body
    return body[path[-1] + 1] if path[-1] + 1 < len(body) else None


# ------------------------------------------------------------------ changes inside a statement


def _changes(n: s.Statement) -> Iterator[tuple[str, str, s.Statement]]:
    if isinstance(n, s.Size | s.Tile | s.Scalar):
        return
    if isinstance(n, s.Gemm):
        yield from _gemm(n)
    if isinstance(n, s.Copy):
        yield from _copy(n)
    if isinstance(n, s.Allocate) and n.space == "register":
        yield from _initial(n)
    if isinstance(n, s.For):
        yield from _loop(n)
    if isinstance(n, s.Grid):
        for i, d in enumerate(n.dims):
            for stop in (add(d.stop, num(1)), sub(d.stop, num(1))):
                changed = replace(n, dims=(*n.dims[:i], replace(d, stop=stop), *n.dims[i + 1 :]))
                yield "bound", head(changed), changed
    elif not isinstance(n, s.Allocate):
        for description, changed in _inside(n):
            yield "expression", description, changed


def _loop(n: s.For) -> Iterator[tuple[str, str, s.Statement]]:
    for r in n.ranges:
        for end in ("start", "stop"):
            for changed_end in _expression_changes(getattr(r, end)):
                moved = replace(n, ranges=tuple(replace(x, **{end: changed_end}) if x is r else x for x in n.ranges))
                yield "bound", head(moved), moved
    for r, other in ((x, y) for x in n.ranges for y in _off_by_one(x)):
        changed = replace(n, ranges=tuple(other if x is r else x for x in n.ranges))
        yield "bound", head(changed), changed


def _off_by_one(r: s.Range) -> Iterator[s.Range]:
    for delta in (1, -1):
        yield replace(r, stop=add(r.stop, num(1)) if delta > 0 else sub(r.stop, num(1)))
        yield replace(r, start=add(r.start, num(1)) if delta > 0 else sub(r.start, num(1)))


def _gemm(n: s.Gemm) -> Iterator[tuple[str, str, s.Statement]]:
    options = [
        replace(n, a=replace(n.a, transposed=not n.a.transposed)),
        replace(n, b=replace(n.b, transposed=not n.b.transposed)),
        replace(n, a=n.b, b=n.a),
        replace(n, accumulate=not n.accumulate),
    ]
    for changed in options:
        yield "gemm", head(changed), changed


def _copy(n: s.Copy) -> Iterator[tuple[str, str, s.Statement]]:
    for i, c in enumerate(n.coordinate):
        for start in (add(c.start, num(1)), sub(c.start, num(1))):
            changed = replace(n, coordinate=(*n.coordinate[:i], replace(c, start=start), *n.coordinate[i + 1 :]))
            yield "coordinate", head(changed), changed
        for inner in _expression_changes(c.start):
            changed = replace(n, coordinate=(*n.coordinate[:i], replace(c, start=inner), *n.coordinate[i + 1 :]))
            yield "coordinate", head(changed), changed
    if n.source == "global":
        for other in ("Q", "K", "V"):
            if other != n.name:
                changed = replace(n, name=other, to_name=n.to_name or n.name)
                yield "source", head(changed), changed


def _initial(n: s.Allocate) -> Iterator[tuple[str, str, s.Statement]]:
    infinity = s.Unary("-", s.Name("inf"))
    for value in (None, num(0), num(1), infinity):
        if value != n.init:
            changed = replace(n, init=value)
            yield "initial", head(changed), changed


def _inside(n: s.Statement) -> Iterator[tuple[str, s.Statement]]:
    """Change one expression of a statement in one place."""
    for f in fields(n):
        if f.name in ("span", "body", "orelse", "above", "comment", "ranges", "dims", "coordinate", "a", "b"):
            continue
        value = getattr(n, f.name)
        if isinstance(value, _EXPRESSIONS):
            for changed in _expression_changes(value):
                new = replace(n, **{f.name: changed})
                yield head(new), new
        elif isinstance(value, tuple) and value and isinstance(value[0], _EXPRESSIONS):
            for i, item in enumerate(value):
                for changed in _expression_changes(item):
                    new = replace(n, **{f.name: (*value[:i], changed, *value[i + 1 :])})
                    yield head(new), new


def _expression_changes(e: s.Expr) -> Iterator[s.Expr]:
    yield from _here(e)
    if not is_dataclass(e):
        return
    for f in fields(e):
        value = getattr(e, f.name)
        if isinstance(value, _EXPRESSIONS):
            yield from (replace(e, **{f.name: changed}) for changed in _expression_changes(value))  # type: ignore[type-var]
        elif isinstance(value, tuple) and value and isinstance(value[0], _EXPRESSIONS):
            for i, item in enumerate(value):
                for changed in _expression_changes(item):
                    yield replace(e, **{f.name: (*value[:i], changed, *value[i + 1 :])})  # type: ignore[type-var]


def _here(e: s.Expr) -> Iterator[s.Expr]:
    match e:
        case s.Num(value):
            yield s.Num(value + 1)
            if isinstance(value, int):
                yield s.Num(value - 1)
        case s.Name(id):
            if id in _OTHER_NAME:
                yield s.Name(_OTHER_NAME[id])
            if id in _VALUES:
                yield s.Binary("*", e, s.Num(2.0))
                yield s.Unary("-", e)
        case s.Unary(_, x):
            yield x
        case s.Binary(op, a, b):
            yield s.Binary(_OTHER_OPERATOR[op], a, b)
            if op in ("-", "/", "//", "%"):
                yield s.Binary(op, b, a)
            if op in ("and", "or"):
                yield a
                yield b
        case s.Compare((a, b), (op,)):
            yield s.Compare((a, b), (_OTHER_COMPARISON[op],))
            yield s.Compare((b, a), (op,))
            yield s.Compare((a, add(b, num(1))), (op,))
            yield s.Compare((a, sub(b, num(1))), (op,))
        case s.Call(function, args):
            yield from _other_call(e, function, args)


def _other_call(e: s.Call, function: str, args: tuple[s.Expr, ...]) -> Iterator[s.Expr]:
    exchanged = {
        "max": "min",
        "min": "max",
        "RowMax": "RowSum",
        "RowSum": "RowMax",
        "exp2": "exp",
        "ln": "log2",
    }
    if function in exchanged:
        yield replace(e, function=exchanged[function])
    if function == "where":
        yield replace(e, args=(args[0], args[2], args[1]))
    if function == "clamp":
        yield args[0]
    if function in ("max", "min"):
        yield from args

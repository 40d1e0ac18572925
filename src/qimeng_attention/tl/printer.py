"""Syntax tree to TL text, canonically: `parse(print_program(p)) == p`, whatever the level.

Four columns an indentation, two spaces before a comment, brackets only where precedence asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from qimeng_attention.tl import syntax as s

_PRECEDENCE = {
    "or": 1,
    "and": 2,
    "not": 3,
    "compare": 4,
    "+": 5,
    "-": 5,
    "*": 6,
    "/": 6,
    "//": 6,
    "%": 6,
    "neg": 7,
}
_ATOM = 9


def expression(e: s.Expr) -> str:
    """Print an expression."""
    return _expr(e)[0]


def _expr(e: s.Expr) -> tuple[str, int]:
    match e:
        case s.Num(value):
            text = repr(value) if isinstance(value, float) else str(value)
            return text, _ATOM if not text.startswith("-") else _PRECEDENCE["neg"]
        case s.Name(id):
            return id, _ATOM
        case s.Unary("not", x):
            return f"not {_wrap(x, _PRECEDENCE['not'])}", _PRECEDENCE["not"]
        case s.Unary(_, x):
            inner = _wrap(x, _PRECEDENCE["neg"])
            return (f"-({inner})" if inner[0].isdigit() and inner[0] != "0" else f"-{inner}"), _PRECEDENCE["neg"]
        case s.Binary(op, left, right):
            level = _PRECEDENCE[op]
            return f"{_wrap(left, level)} {op} {_wrap(right, level + 1)}", level
        case s.Compare(operands, ops):
            parts = [_wrap(operands[0], 5)]
            for op, x in zip(ops, operands[1:], strict=True):
                parts += [op, _wrap(x, 5)]
            return " ".join(parts), _PRECEDENCE["compare"]
        case s.Call(function, args):
            return f"{function}({', '.join(expression(a) for a in args)})", _ATOM
        case s.Index(tensor, indices):
            return f"{tensor}[{', '.join(expression(a) for a in indices)}]", _ATOM
        case s.Scan(tile, axis, reverse, exclusive):
            return f"Scan {tile} along {axis}" + " reverse" * reverse + " exclusive" * exclusive, _PRECEDENCE["compare"]
    raise TypeError(f"not an expression: {e!r}")


def _wrap(e: s.Expr, level: int) -> str:
    text, own = _expr(e)
    return text if own >= level else f"({text})"


def dims(entries: Iterable[s.Dim]) -> str:
    """Print a shape, e.g. `(BM q, BN k)`."""
    return "(" + ", ".join(_dim(d) for d in entries) + ")"


def _dim(d: s.Dim) -> str:
    axis = f" {d.axis}" if d.axis else ""
    return expression(d.size) + axis + (f" = {expression(d.start)}" if d.start is not None else "")


def coordinate(c: s.Coordinate) -> str:
    """Print one entry of `in coordinate [...]`."""
    if c.axis is None:
        return expression(c.start)
    text = f"{c.axis} = {expression(c.start)}"
    if c.stop is not None:
        text += f" : {expression(c.stop)}"
    return text + (f" at {expression(c.at)}" if c.at is not None else "")


def _range(r: s.Range) -> str:
    return f"{expression(r.start)} : {expression(r.stop)}"


def operand(o: s.Operand) -> str:
    """Print an operand of GEMM."""
    text = o.name + (f"[{_range(o.rows)}]" if o.rows else "") + (".T" if o.transposed else "")
    if o.slot is not None:
        text += f" slot {expression(o.slot)}"
    if o.at:
        text += " at [" + ", ".join(f"{axis} = {expression(e)}" for axis, e in o.at) + "]"
    return text


def _get(out: str, new: bool) -> str:
    return f" and get {'new ' if new else ''}{out}"


def _size(n: s.Size) -> str:
    return "Size " + ", ".join(k if v is None else f"{k} = {expression(v)}" for k, v in n.entries)


def _grid(n: s.Grid) -> str:
    entries = [f"{d.name} = {expression(d.start)} : {expression(d.stop)}{' down' * d.down}" for d in n.dims]
    return "Grid " + ", ".join(entries) + " persistent" * n.persistent + " by counter" * n.counter


def _warps(n: s.Warps) -> str:
    return f"Warps {expression(n.count)} along {n.axis}" + (
        f", {expression(n.blocks)} blocks an SM" if n.blocks else ""
    )


def _allocate(n: s.Allocate) -> str:
    text = f"Allocate {n.name} in {n.space} {dims(n.dims)}" + (f" {n.dtype}" if n.dtype else "")
    text += f" = {expression(n.init)}" if n.init is not None else ""
    text += f" with offset {expression(n.offset)}" if n.offset is not None else ""
    text += f" stages {expression(n.stages)}" if n.stages is not None else ""
    text += f" swizzle {n.swizzle}" if n.swizzle is not None else ""
    text += (f" view {n.view}" if n.view else "") + (f" over {n.over}" if n.over else "")
    return text + (f" contiguous {n.contiguous}" if n.contiguous else "")


def _copy(n: s.Copy) -> str:
    text = f"Copy {n.name}" + (f" {dims(n.dims)}" if n.dims else "")
    if n.coordinate:
        text += f" in coordinate [{', '.join(coordinate(c) for c in n.coordinate)}]"
    text += f" from {n.source} to {n.target}" + (f" {n.to_name}" if n.to_name else "")
    text += f" slot {expression(n.slot)}" if n.slot is not None else ""
    text += " async" * n.asynchronous + (f" signals {n.signals}" if n.signals else "")
    return text + " accumulate" * n.accumulate


def _gemm(n: s.Gemm) -> str:
    mode = "accumulate" if n.accumulate else "get"
    return f"Compute GEMM {operand(n.a)}, {operand(n.b)} and {mode} {n.out}" + " async" * n.asynchronous


def _mask(n: s.Mask) -> str:
    text = f"Compute Mask {n.tile} where {expression(n.condition)}"
    return text + (f" else {expression(n.fill)}" if n.fill is not None else "")


def _apply(n: s.Apply) -> str:
    text = f"Compute {n.operator} {', '.join(expression(a) for a in n.args)}"
    text += f" with {', '.join(expression(p) for p in n.params)}" if n.params else ""
    return text + (_get(n.out, n.new) if n.out else "")


def _reshape(n: s.Reshape) -> str:
    text = f"Reshape {n.name} from ({', '.join(n.source)}) to ({', '.join(n.target)})"
    return text + (f" as {n.dtype}" if n.dtype else "") + (f" and get {n.out}" if n.out else "")


def _for(n: s.For) -> str:
    if not n.ranges:
        return f"for {n.var} in tiles"
    unroll = f" unroll {n.unroll}" if n.unroll > 1 else ""
    return f"for {n.var} = {', '.join(_range(r) for r in n.ranges)}{' down' * n.down}{unroll}"


def _role(n: s.Role) -> str:
    text = f"role {n.name}" + (f" {n.var} = {_range(n.range)}" if n.range else "")
    return text + (f" registers {expression(n.registers)}" if n.registers is not None else "")


def _wait(n: s.Wait) -> str:
    if n.kind in ("full", "empty"):
        return f"Wait {n.ring}.{n.kind}"
    assert n.count is not None
    return f"Wait {n.kind}{' ' if n.kind == 'turn' else ' pending '}{expression(n.count)}"


def _find(n: s.Find) -> str:
    span = f"{expression(n.range.start)} : {expression(n.range.stop)}"
    return f"Find {n.name} = {span} where {expression(n.condition)}"


_FORMS: dict[type, Callable[[Any], str]] = {
    s.Size: _size,
    s.Scalar: lambda n: f"Scalar {n.name} {n.dtype}" + (f" {n.op} {expression(n.bound)}" if n.op else ""),
    s.Tile: lambda n: "Tile " + ", ".join(f"{k} = {expression(v)}" for k, v in n.entries),
    s.Grid: _grid,
    s.Warps: _warps,
    s.Let: lambda n: f"Let {n.name} = {expression(n.value)}",
    s.Find: _find,
    s.Choose: lambda n: f"Choose {n.name} = {expression(n.value)}",
    s.Allocate: _allocate,
    s.Copy: _copy,
    s.Gemm: _gemm,
    s.Mask: _mask,
    s.Compute: lambda n: f"Compute {expression(n.value)}{_get(n.out, n.new)}",
    s.Apply: _apply,
    s.Reshape: _reshape,
    s.For: _for,
    s.If: lambda n: f"if {expression(n.condition)}",
    s.Role: _role,
    s.Wait: _wait,
    s.Release: lambda n: f"Release {n.ring}",
    s.PassTurn: lambda n: "Pass turn",
    s.Commit: lambda n: "Commit",
    s.Barrier: lambda n: "Barrier",
    s.Fence: lambda n: f"Fence {n.kind}",
}


def head(statement: s.Statement) -> str:
    """Print a statement's own line, without its body and comments."""
    return _FORMS[type(statement)](statement)


def _with_comments(text: str, indent: int, above: tuple[str, ...], comment: str) -> list[str]:
    pad = " " * indent
    lines = [f"{pad}# {c}" for c in above]
    return [*lines, f"{pad}{text}" + (f"  # {comment}" if comment else "")]


def statement_lines(n: s.Statement, indent: int = 0) -> list[str]:
    """Print a statement with its comments and its body."""
    lines = _with_comments(head(n), indent, n.above, n.comment)
    if isinstance(n, s.For | s.If | s.Role):
        for child in n.body:
            lines += statement_lines(child, indent + 4)
    if isinstance(n, s.If) and n.orelse:
        lines.append(" " * indent + "else")
        for child in n.orelse:
            lines += statement_lines(child, indent + 4)
    if isinstance(n, s.For):
        lines.append(" " * indent + "end")
    return lines


def _define(d: s.Define) -> list[str]:
    text = f"Define {d.name} {', '.join(d.args)}" + (f" with {', '.join(d.params)}" if d.params else "")
    lines = _with_comments(text, 0, d.above, d.comment)
    for child in d.body:
        lines += statement_lines(child, 4)
    return lines


def _kernel(k: s.Kernel) -> list[str]:
    lines: list[str] = []
    if k.name:
        lines += _with_comments(f"Kernel {k.name}" + (f" for {k.target}" if k.target else ""), 0, k.above, k.comment)
    for child in k.body:
        lines += statement_lines(child)
    if k.schedule:
        lines += ["", *_with_comments("Schedule", 0, (), k.schedule_comment)]
        for choice in k.schedule:
            lines += _with_comments(choice_text(choice), 4, choice.above, choice.comment)
    return lines


def choice_text(c: s.Choice) -> str:
    """Print a line of the Schedule block; words that a bracket or comma touches stay touched.

    A dot touches names only: beside a number it would be read as the number's own.
    """
    text, last = "", ""
    for word in c.words:
        glue = last in ("", "(") or word in (",", ")", "]", ".T")
        glue |= (last == "." and not word[0].isdigit()) or (word == "." and not last[:1].isdigit())
        text += word if glue else f" {word}"
        last = word
    return text


def print_program(p: s.Program) -> str:
    """Print a whole program; kernels and macros are set apart by an empty line."""
    parts = ["\n".join(_define(d)) for d in p.defines] + ["\n".join(_kernel(k)) for k in p.kernels]
    text = "\n\n".join(parts)
    return text + "".join(f"\n# {c}" for c in p.below) + "\n"

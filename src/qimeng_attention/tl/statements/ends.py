"""Along which axes the value of an expression still holds something past the end of a tensor.

An operand's columns past the end stay in a value computed from it, unless `where(k < Sk, S, x)` takes x there: that
is a Mask written as an expression.

Not here: what a Mask removes (mask.py), who may not read such columns (compute.py, gemm.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qimeng_attention.errors import Span
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import align
from qimeng_attention.tl.machine import Outside, Register, Strand
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.types import TileType

Ends = dict[str, Outside]


def ends_of(e: s.Expr, t: Strand, span: Span) -> Ends:
    """Give the ends that the register tiles of an expression leave in its value."""
    held = [t.registers[n].ends for n in sorted(t.machine.names(e) & t.registers.keys())]
    if not any(held):
        return {}
    if isinstance(e, s.Call) and e.function == "where":
        return _of_where(e, t, span)
    operands = _operands(e)
    return _union(*(ends_of(x, t, span) for x in operands)) if operands else _union(*held)


def _of_where(e: s.Call, t: Strand, span: Span) -> Ends:
    condition, taken, other = e.args
    ends, rest = ends_of(taken, t, span), ends_of(other, t, span)
    if t.machine.names(condition) & t.machine.checked.tiles.keys():  # it depends on values: not decided here
        return _union(ends, rest, ends_of(condition, t, span))
    kind = _widest(e, t)
    if kind is None or not (ends or rest):
        return _union(ends, rest)
    t.machine.spend(kind.elements)
    tiles = t.machine.names(e) & t.registers.keys()
    value = t.evaluate(condition, t.environment(set(tiles), span), span)
    if not set(value.axes) <= set(kind.axis_names):
        return _union(ends, rest)
    keep = align(value, kind.axis_names, tuple(a.size for a in kind.axes))
    origin = {a: o for n in sorted(tiles) for a, o in t.registers[n].origin.items()}
    left = (still_ragged(k, Register(None, origin, of), kind) for k, of in ((keep, ends), (~keep, rest)))
    return _union(*left)


def _operands(e: s.Expr) -> list[s.Expr]:
    match e:
        case s.Unary(_, x):
            return [x]
        case s.Binary(_, a, b):
            return [a, b]
        case s.Call(_, args):
            return list(args)
        case s.Compare(operands, _):
            return list(operands)
    return []


def _union(*ends: Mapping[str, Outside]) -> Ends:
    return {a: end for of in ends for a, end in of.items()}


def _widest(e: s.Expr, t: Strand) -> TileType | None:
    """Give the shape of an expression, as its widest tile has it; None where it has no tile."""
    kinds = [t.machine.checked.tiles[n] for n in sorted(t.machine.names(e) & t.registers.keys())]
    return max(kinds, key=lambda k: len(k.axes), default=None)


def still_ragged(keep: Array, register: Register, kind: TileType) -> Ends:
    """Give the axes along which something is kept past the end, in a row or column that exists."""
    beyond = [
        np.isin(np.arange(a.size) + register.origin.get(a.name, 0), list(register.ends.get(a.name, ())))
        for a in kind.axes
    ]
    left: Ends = {}
    for d, a in enumerate(kind.axes):
        exists = keep
        for e, past in enumerate(beyond):
            wanted = past if e == d else ~past
            exists = exists & wanted.reshape([-1 if x == e else 1 for x in range(len(beyond))])
        if a.name in register.ends and np.any(exists):
            left[a.name] = register.ends[a.name]
    # a mask on columns leaves a tile's rows as ragged as they were; a vector's one axis is what the mask decides on
    rows = {a.name for a in kind.axes[:-1]} & register.ends.keys()
    return left | {name: register.ends[name] for name in rows}

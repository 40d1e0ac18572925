"""Expressions evaluated in NumPy: integers of the whole block, and values over a tile's named axes.

Not here: typing (scope.py). An element outside a named tensor reads 0, never memory (rule 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.emitted import EMITTED, divide
from qimeng_attention.tl.functions import CONSTANTS, FUNCTIONS, LANES_A_ROW, REDUCTIONS
from qimeng_attention.tl.numerics import BOOL, INTEGER_TYPES, Array


@dataclass(frozen=True, slots=True)
class Value:
    """Numbers over named axes; a scalar has none."""

    data: Any  # an array of len(axes) dimensions, or a Python or NumPy scalar
    axes: tuple[str, ...] = ()


MOST = 1 << 62  # no size, index or product of them is as large


class TooLarge(ValueError):
    """An integer beyond what a 64-bit register holds."""


def integer(e: s.Expr, ints: Mapping[str, int]) -> int:
    """Evaluate an integer expression.

    Raises:
        KeyError: a name that `ints` lacks.
        ValueError: something that is no integer expression; `TooLarge` for a value that no register holds.
        ZeroDivisionError: division by zero.
    """
    match e:
        case s.Num(value) if isinstance(value, int):
            return value
        case s.Name(id):
            return ints[id]
        case s.Unary("-", x):
            return -integer(x, ints)
        case s.Binary(op, left, right) if op in _INTEGER_OPS:
            return _in_range(_INTEGER_OPS[op](integer(left, ints), integer(right, ints)))
        case s.Call(function, args) if function in _INTEGER_CALLS and _takes(function, args):
            return _in_range(_INTEGER_CALLS[function](*[integer(a, ints) for a in args]))
        case s.Call("where", (condition, a, b)):
            return integer(a, ints) if boolean(condition, ints) else integer(b, ints)
    raise ValueError(f"not an integer expression: {e}")


def _in_range(value: int) -> int:
    if abs(value) >= MOST:
        raise TooLarge("an integer is too large, expected less than 2^62")
    return value


def _takes(function: str, args: tuple[s.Expr, ...]) -> bool:
    least, most = FUNCTIONS[function].arity
    return least <= len(args) <= most


def boolean(e: s.Expr, ints: Mapping[str, int]) -> bool:
    """Evaluate a condition on integers; errors as of `integer`."""
    match e:
        case s.Unary("not", x):
            return not boolean(x, ints)
        case s.Binary("and", left, right):
            return boolean(left, ints) and boolean(right, ints)
        case s.Binary("or", left, right):
            return boolean(left, ints) or boolean(right, ints)
        case s.Compare(operands, ops):
            values = [integer(x, ints) for x in operands]
            return all(_COMPARISONS[op](a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
    raise ValueError(f"not a condition on integers: {e}")


_INTEGER_OPS: dict[str, Any] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}
_INTEGER_CALLS: dict[str, Any] = {
    "min": min,
    "max": max,
    "clamp": lambda x, a, b: min(max(x, a), b),
    "ceildiv": lambda a, b: -(-a // b),
    "abs": abs,
}
_COMPARISONS: dict[str, Any] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


class Environment:
    """What an expression may read: numbers of the block, tiles with their axes, index ranges, named tensors.

    `double` evaluates floating arithmetic in float64, as the judge's reference does; else it is float32, as in
    registers. `emitted` computes functions and quotients by the steps of the generated code, as the interpreter does.
    """

    def __init__(
        self,
        ints: Mapping[str, int],
        scalars: Mapping[str, float] | None = None,
        tiles: Mapping[str, Value] | None = None,
        indices: Mapping[str, Array] | None = None,
        tensors: Mapping[str, tuple[Array, str]] | None = None,
        *,
        double: bool = False,
        emitted: bool = False,
    ) -> None:
        self.ints, self.scalars, self.tiles = ints, scalars or {}, tiles or {}
        self.indices, self.tensors = indices or {}, tensors or {}
        self.orders: Mapping[frozenset[str], tuple[str, ...]] = {}
        self.float: Any = np.float64 if double else np.float32
        self.functions: Mapping[str, Any] = EMITTED if emitted else {}
        self.divide: Any = divide if emitted else np.divide

    def evaluate(self, e: s.Expr) -> Value:
        """Evaluate to numbers over the axes that the expression's operands have."""
        match e:
            case s.Num(value):
                return Value(value if isinstance(value, int) else self.float(value))
            case s.Name(id):
                return self._name(id)
            case s.Unary(op, x):
                v = self.evaluate(x)
                return Value(np.logical_not(v.data) if op == "not" else -v.data, v.axes)
            case s.Binary(op, left, right):
                return self._binary(op, self.evaluate(left), self.evaluate(right))
            case s.Compare(operands, ops):
                values = [self.evaluate(x) for x in operands]
                result = None
                for op, a, b in zip(ops, values, values[1:], strict=False):
                    link = self._apply(_COMPARISONS[op], a, b)
                    result = link if result is None else self._apply(np.logical_and, result, link)
                assert result is not None
                return result
            case s.Call(function, args):
                return self._call(function, [self.evaluate(a) for a in args])
            case s.Index(tensor, indices):
                return self._index(tensor, [self.evaluate(i) for i in indices])
            case s.Scan(tile, axis, reverse, exclusive):
                return _scan(self.tiles[tile], axis, reverse, exclusive)
        raise TypeError(e)

    def _name(self, name: str) -> Value:
        if name in self.tiles:
            return self.tiles[name]
        if name in self.ints:
            return Value(self.ints[name])
        if name in self.indices:
            return Value(self.indices[name], (name,))
        if name in self.scalars:
            return Value(self.float(self.scalars[name]))
        if name in CONSTANTS:
            return Value(self.float(CONSTANTS[name]))
        raise KeyError(name)

    def _binary(self, op: str, a: Value, b: Value) -> Value:
        if op == "and":
            return self._apply(np.logical_and, a, b)
        if op == "or":
            return self._apply(np.logical_or, a, b)
        if op in ("//", "%"):
            return self._apply(_safe_division(op), a, b)
        if op == "/":
            return self._apply(self.divide, self._floating(a), self._floating(b))
        if _is_float(a) or _is_float(b):
            a, b = self._floating(a), self._floating(b)
        return self._apply(_INTEGER_OPS[op], a, b)

    def _floating(self, v: Value) -> Value:
        return Value(np.asarray(v.data, self.float), v.axes)

    def _call(self, function: str, args: list[Value]) -> Value:
        f = FUNCTIONS[function]
        if function in REDUCTIONS:
            return _reduce(function, args[0])
        if f.result == "float":
            args = [self._floating(a) for a in args]
            if self.float is np.float64:
                return Value(_double(function, args[0].data), args[0].axes)
        elif f.result == "same":
            values = args[1:] if function == "where" else args
            if any(_is_float(v) for v in values):
                args = [*([args[0]] if function == "where" else []), *[self._floating(v) for v in values]]
        return self._apply(self.functions.get(function, f.meaning), *args)

    def _apply(self, f: Any, *values: Value) -> Value:
        axes = self._joined(values)
        with np.errstate(all="ignore"):
            return Value(f(*[_align(v, axes) for v in values]), axes)

    def _joined(self, values: Sequence[Value]) -> tuple[str, ...]:
        """Join axes; two vectors that meet take the order that the program's tiles give their axes."""
        axes = _join_axes(values)
        if len(axes) == 2 and all(len(v.axes) < 2 for v in values):
            return self.orders.get(frozenset(axes), axes)
        return axes

    def _index(self, tensor: str, indices: list[Value]) -> Value:
        data, dtype = self.tensors[tensor]
        axes = self._joined(indices)
        aligned = np.broadcast_arrays(*[_align(v, axes) for v in indices])
        inside = np.ones(aligned[0].shape, bool)
        for i, extent in zip(aligned, data.shape, strict=True):
            inside &= (i >= 0) & (i < extent)
        if 0 in data.shape:
            found = np.zeros(inside.shape)
        else:
            found = data[tuple(np.where(inside, i, 0) for i in aligned)]
        zero = np.where(inside, found, 0)
        kind = np.int64 if dtype in INTEGER_TYPES else np.bool_ if dtype == BOOL else self.float
        return Value(zero.astype(kind), axes)


def _is_float(v: Value) -> bool:
    return isinstance(v.data, float) or (hasattr(v.data, "dtype") and np.issubdtype(v.data.dtype, np.floating))


def _safe_division(op: str) -> Any:
    f = np.floor_divide if op == "//" else np.mod
    return lambda a, b: f(a, b)


def _join_axes(values: Any) -> tuple[str, ...]:
    order: dict[str, None] = {}
    for v in sorted(values, key=lambda v: -len(v.axes)):
        order.update(dict.fromkeys(v.axes))
    return tuple(order)


def _align(v: Value, axes: tuple[str, ...]) -> Any:
    """Give the data with one dimension for each of `axes`, of extent 1 where the value has no such axis."""
    if not v.axes:
        return v.data
    data = np.asarray(v.data)
    present = [a for a in axes if a in v.axes]
    data = np.transpose(data, [v.axes.index(a) for a in present])
    shape = iter(data.shape)
    return data.reshape([next(shape) if a in v.axes else 1 for a in axes])


def align(v: Value, axes: tuple[str, ...], shape: tuple[int, ...]) -> Array:
    """Broadcast a value to a tile's axes and shape."""
    return np.broadcast_to(_align(v, axes), shape)


def _reduce(function: str, v: Value) -> Value:
    data = np.asarray(v.data)
    if function == "LaneSum":
        # Column c of an accumulator fragment lies in lane (c % 8) // 2 of the four that share the row.
        split = data.reshape(data.shape[0], -1, LANES_A_ROW, 2)
        return Value(split.sum(axis=(1, 3), dtype=data.dtype), (v.axes[0], "lane"))
    return Value(data.max(axis=1) if function == "RowMax" else data.sum(axis=1, dtype=data.dtype), v.axes[:1])


def _scan(v: Value, axis: str, reverse: bool, exclusive: bool) -> Value:
    n = v.axes.index(axis)
    data = np.flip(v.data, n) if reverse else np.asarray(v.data)
    total = np.cumsum(data, axis=n, dtype=data.dtype)
    if exclusive:
        total = total - data
    return Value(np.flip(total, n) if reverse else total, v.axes)


def _double(function: str, x: Array) -> Array:
    """Evaluate a function in float64, for the reference."""
    with np.errstate(all="ignore"):
        meanings: dict[str, Any] = {
            "exp": np.exp,
            "exp2": np.exp2,
            "ln": np.log,
            "log2": np.log2,
            "tanh": np.tanh,
            "sqrt": np.sqrt,
            "sigmoid": lambda t: np.where(
                t >= 0, 1 / (1 + np.exp(-np.abs(t))), np.exp(-np.abs(t)) / (1 + np.exp(-np.abs(t)))
            ),
            "softplus": lambda t: np.logaddexp(0, t),
            "rsqrt": lambda t: 1 / np.sqrt(t),
        }
        result: Array = meanings[function](x)
    return result

"""Between which numbers does an integer expression of a spec lie, whatever the call?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from qimeng_attention.tl import syntax as s

Range: TypeAlias = tuple[int | None, int | None]  # the least and the greatest number; None: not known

_NAMES = {"b", "h", "q_idx", "kv_idx", "B", "Hq", "Hk", "Sq", "Sk"}  # from 0 on
UNKNOWN: Range = (None, None)


def range_of(e: s.Expr, least: Mapping[str, int]) -> Range:
    """Bound an integer expression; `least` has the least element of tensors, by name."""

    def of(x: s.Expr) -> Range:
        return range_of(x, least)

    match e:
        case s.Index(tensor, _):
            return least.get(tensor), None
        case s.Num(value) if isinstance(value, int):
            return value, value
        case s.Name(id) if id in _NAMES:
            return 0, None
        case s.Unary("-", x):
            low, high = of(x)
            return _minus(high), _minus(low)
        case s.Binary(op, left, right):
            return _binary(op, of(left), of(right))
        case s.Call("where", (_, a, b)):
            return _hull(of(a), of(b))
        case s.Call("abs", (x,)):
            low, high = of(x)
            both = None if low is None or high is None else max(abs(low), abs(high))
            return (low, high) if low is not None and low >= 0 else (0, both)
        case s.Call("clamp", (x, a, b)):
            return of(s.Call("min", (s.Call("max", (x, a)), b)))
        case s.Call("max" | "min" as f, (a, b)):
            return _extreme(f, of(a), of(b))
    return UNKNOWN


def _minus(x: int | None) -> int | None:
    return None if x is None else -x


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _hull(a: Range, b: Range) -> Range:
    low = None if a[0] is None or b[0] is None else min(a[0], b[0])
    return low, None if a[1] is None or b[1] is None else max(a[1], b[1])


def _extreme(f: str, a: Range, b: Range) -> Range:
    lows, highs = [x for x in (a[0], b[0]) if x is not None], [x for x in (a[1], b[1]) if x is not None]
    if f == "max":
        return max(lows, default=None), max(highs) if len(highs) == 2 else None
    return min(lows) if len(lows) == 2 else None, min(highs, default=None)


def _binary(op: str, a: Range, b: Range) -> Range:
    if op == "+":
        return _sum(a[0], b[0]), _sum(a[1], b[1])
    if op == "-":
        return _sum(a[0], _minus(b[1])), _sum(a[1], _minus(b[0]))
    if op == "%" and b[0] is not None and b[0] > 0:
        return 0, None if b[1] is None else b[1] - 1
    if a[0] is None or a[0] < 0 or b[0] is None or b[0] < 0:
        return UNKNOWN
    if op == "*":
        return a[0] * b[0], None if a[1] is None or b[1] is None else a[1] * b[1]
    if op == "//" and b[0] > 0:
        return (0 if b[1] is None else a[0] // b[1]), None if a[1] is None else a[1] // b[0]
    return UNKNOWN

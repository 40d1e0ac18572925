"""Integer expressions of sizes, as a manifest writes them: 128, "Sq", ["ceildiv", "Sq", 128].

Arithmetic is exact. `//` and `%` round down, `ceildiv` up; `clamp` is (value, low, high), and high wins.

Not here: where sizes come from (checks.py).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, TypeAlias

Expression: TypeAlias = "int | str | tuple[Any, ...]"  # a tuple is (operator, argument, ...)

_DEEPEST = 32
_OPERATORS: dict[str, tuple[int, int, Callable[..., int]]] = {  # fewest and most arguments, meaning
    "+": (2, 8, lambda *values: sum(values)),
    "-": (2, 2, operator.sub),
    "*": (2, 8, lambda *values: math.prod(values)),
    "//": (2, 2, operator.floordiv),
    "%": (2, 2, operator.mod),
    "min": (2, 8, min),
    "max": (2, 8, max),
    "clamp": (3, 3, lambda value, low, high: min(max(value, low), high)),
    "ceildiv": (2, 2, lambda value, by: -(-value // by)),
}
_INFIX = ("+", "-", "*", "//", "%")


def parse(value: object, *, depth: int = 0) -> Expression:
    """Turn a JSON value into an expression.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if depth == _DEEPEST:
        raise ValueError("an expression is nested too deeply")
    if not isinstance(value, list) or not value or not isinstance(value[0], str) or value[0] not in _OPERATORS:
        raise ValueError(f"an integer, a size or [operator, ...] with one of {', '.join(_OPERATORS)} is expected")
    fewest, most, _ = _OPERATORS[value[0]]
    if not fewest <= len(value) - 1 <= most:
        raise ValueError(f"'{value[0]}' takes {fewest if fewest == most else f'{fewest} to {most}'} arguments")
    return (value[0], *(parse(argument, depth=depth + 1) for argument in value[1:]))


def plain(expression: Expression) -> Any:
    """Give the JSON value."""
    if isinstance(expression, tuple):
        return [expression[0], *(plain(argument) for argument in expression[1:])]
    return expression


def names(expression: Expression) -> Iterator[str]:
    """Give every size that the expression needs."""
    if isinstance(expression, str):
        yield expression
    elif isinstance(expression, tuple):
        for argument in expression[1:]:
            yield from names(argument)


def told_by(expression: Expression) -> tuple[str, int] | None:
    """Give the size that a dimension tells, and what is to be taken off: `Sq` and `B + 1` do, `Hk * G` does not."""
    match expression:
        case str(name):
            return name, 0
        case ("+", str(name), int(more)) | ("+", int(more), str(name)):
            return name, more
    return None


def evaluate(expression: Expression, sizes: Mapping[str, int]) -> int:
    """Compute the value.

    Raises:
        ZeroDivisionError: a divisor is 0.
    """
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return sizes[expression]
    return _OPERATORS[expression[0]][2](*(evaluate(argument, sizes) for argument in expression[1:]))


def show(expression: Expression, *, inner: bool = False) -> str:
    """Write the expression as TL does: ceildiv(Sq, 128), (Sk - Sq) // 2."""
    if not isinstance(expression, tuple):
        return str(expression)
    name, *arguments = expression
    if name not in _INFIX:
        return f"{name}({', '.join(show(argument) for argument in arguments)})"
    text = reduce(lambda left, right: f"{left} {name} {right}", (show(argument, inner=True) for argument in arguments))
    return f"({text})" if inner else text

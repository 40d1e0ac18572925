"""Checks of the plain values of a call: scalars, sizes, names.

Not here: checks of tensors (plan.py).
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime.manifest import Scalar

_FLOAT = struct.Struct("<f")
INT32_MAX = 2**31 - 1
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def check_scalar(scalar: Scalar, value: object) -> float:
    """Give a scalar as the float32 that the kernel gets.

    Raises:
        LaunchError: no number, not finite, or out of its bound.
    """
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise LaunchError(
            f"{scalar.name} is a {type(value).__name__}, no number", hint="pass a float", argument=scalar.name
        )
    try:
        rounded: float = _FLOAT.unpack(_FLOAT.pack(float(value)))[0]
    except OverflowError:
        rounded = math.inf
    if not math.isfinite(rounded):
        raise LaunchError(
            f"{scalar.name} = {value} is not finite in float32",
            hint="pass a finite number",
            argument=scalar.name,
        )
    if scalar.op is not None and not COMPARE[scalar.op](rounded, scalar.bound):
        raise LaunchError(
            f"{scalar.name} = {value}, but the kernel needs {scalar.name} {scalar.op} {scalar.bound:g}",
            hint=f"pass another {scalar.name}, or generate the kernel without this bound",
            argument=scalar.name,
        )
    return rounded


def check_sizes(names: Sequence[str], given: Mapping[str, int]) -> dict[str, int]:
    """Give the sizes in the order of their names.

    Raises:
        LaunchError: one is missing, unknown, or no int32.
    """
    check_names(given, names, "size")
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INT32_MAX:
            hint = f"pass an integer from 0 to {INT32_MAX}"
            raise LaunchError(f"{name} = {value!r} is no size", hint=hint, argument=name)
    return {name: given[name] for name in names}


def check_names(given: Mapping[str, Any], expected: Sequence[str], kind: str) -> None:
    """Check that exactly the expected names are given.

    Raises:
        LaunchError: one is missing or unknown.
    """
    for name in expected:
        if name not in given:
            raise LaunchError(f"the {kind} {name} is missing", hint=f"{kind}s are {', '.join(expected)}", argument=name)
    for name in given:
        if name not in expected:
            raise LaunchError(
                f"the {kind} {name} is not known",
                hint=f"{kind}s are {', '.join(expected) or 'none'}",
                argument=name,
            )


def named_arguments(
    expected: Sequence[str], tensors: Mapping[str, Any] | None, keywords: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Give a call's named tensors in the order of the kernel's names, from a mapping and from keywords.

    Raises:
        LaunchError: one is missing, unknown, or given twice.
    """
    given = dict(tensors or {})
    for name, tensor in keywords.items():
        if name in given:
            raise LaunchError(f"{name} is given twice", hint="leave it out of `tensors`", argument=name)
        given[name] = tensor
    for name in given:
        if name not in expected:
            near = difflib.get_close_matches(str(name), expected, n=1, cutoff=0.5)
            known = f"named tensors are {', '.join(expected)}" if expected else "the kernel takes no named tensors"
            hint = f"did you mean {near[0]}?" if near else known
            raise LaunchError(f"{name} is no tensor of the kernel", hint=hint, argument=str(name))
    for name in expected:
        if name not in given:
            raise LaunchError(f"the tensor {name} is missing", hint=f"pass {name}=...", argument=name)
    return tuple(given[name] for name in expected)

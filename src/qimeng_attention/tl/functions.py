"""The one table of functions and constants: arity, meaning, and a sentence for the reference and the prompts.

A generation's folder holds the lowering of each under the same name; a test demands that the keys agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qimeng_attention.tl.numerics import Array


def _quiet(f: Callable[..., Any]) -> Callable[..., Any]:
    """Let infinities and NaN arise without a warning, as on the device."""

    def call(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            return f(*args)

    return call


def _f32(f: Callable[[Array], Array]) -> Callable[..., Any]:
    return _quiet(lambda x: np.asarray(f(np.asarray(x, np.float32)), np.float32))


def _tanh(x: Array) -> Array:
    return np.tanh(x)


APPROXIMATIONS: dict[str, tuple[str, float]] = {"tanh": ("tanh_approx", 2.0**-11), "exp2": ("exp2_fma", 2.0**-13)}
"""What may stand for a function, and its largest relative error; a schedule's choice.

tanh.approx.f32: PTX ISA. The polynomial of exp2: 8.6e-5, found by fitting (below)."""

# 1 + c1 f + c2 f^2 + c3 f^3 for 2^f, f in [0, 1): the least largest relative error with a first coefficient of 1,
# by iteratively reweighted least squares; with it 2^-127 rounds to 0 exactly. sm80.cuh has the same numbers.
EXP2_COEFFICIENTS = (0.69511679, 0.22764496, 0.07706707)


def _exp2_fma(x: Array) -> Array:
    """Compute 2^x by a polynomial and the exponent's bits, as the device does.

    Below 2^-126 the exponent's bits are 0, which make the fraction stand alone: at most 2^-126, and 0 at 2^-127.
    """
    held = np.maximum(np.asarray(x, np.float32), np.float32(-127))
    whole = np.floor(held)
    f = held - whole
    p = np.zeros_like(f)
    for c in reversed(EXP2_COEFFICIENTS):
        p = (p + np.float32(c)) * f
    p = p + np.float32(1)
    below = whole < -126
    return np.ldexp(np.where(below, p - 1, p), np.where(below, -126, whole).astype(np.int32))


def _tanh_approx(x: Array) -> Array:
    """Round to the significant bits that the instruction's bound leaves."""
    fraction, exponent = np.frexp(np.tanh(np.asarray(x, np.float64)))
    return np.ldexp(np.round(fraction * 2.0**11) / 2.0**11, exponent)


def _softplus(x: Array) -> Array:
    return np.logaddexp(np.float32(0), x)


@dataclass(frozen=True)
class Function:
    """One function of TL expressions."""

    name: str
    arity: tuple[int, int]  # least and most arguments
    meaning: Callable[..., Any]
    result: str  # "float", "int" (integers only), "same" (as its arguments), "bool"
    doc: str


def _ceildiv(a: Any, b: Any) -> Any:
    return -((-a) // b)


_TABLE = [
    Function("exp", (1, 1), _f32(np.exp), "float", "e to the x"),
    Function("exp2", (1, 1), _f32(np.exp2), "float", "2 to the x: one instruction of the special-function unit"),
    Function(
        "exp2_fma",
        (1, 1),
        _f32(_exp2_fma),
        "float",
        "2 to the x, x below 128, by a polynomial without the special-function unit, off by at most 2^-13 of its "
        "value; what `approximate exp2` puts for exp2",
    ),
    Function("ln", (1, 1), _f32(np.log), "float", "natural logarithm; -inf at 0"),
    Function("log2", (1, 1), _f32(np.log2), "float", "logarithm to base 2; -inf at 0"),
    Function("tanh", (1, 1), _f32(_tanh), "float", "hyperbolic tangent"),
    Function(
        "tanh_approx",
        (1, 1),
        _f32(_tanh_approx),
        "float",
        "tanh x by one instruction, off by at most 2^-11 of its value; what `approximate tanh` puts for tanh",
    ),
    Function("sigmoid", (1, 1), _f32(lambda x: 1 / (1 + np.exp(-x))), "float", "1 / (1 + exp(-x))"),
    Function("softplus", (1, 1), _f32(_softplus), "float", "ln(1 + exp(x))"),
    Function("sqrt", (1, 1), _f32(np.sqrt), "float", "square root"),
    Function("rsqrt", (1, 1), _f32(lambda x: 1 / np.sqrt(x)), "float", "1 / sqrt(x)"),
    Function("abs", (1, 1), np.abs, "same", "absolute value"),
    Function("min", (2, 8), lambda *a: _fold(np.minimum, a), "same", "least of its arguments"),
    Function("max", (2, 8), lambda *a: _fold(np.maximum, a), "same", "greatest of its arguments"),
    Function(
        "clamp",
        (3, 3),
        lambda x, a, b: np.minimum(np.maximum(x, a), b),
        "same",
        "x held within [a, b]; b wins",
    ),
    Function("where", (3, 3), np.where, "same", "its second argument where the first holds, else its third"),
    Function("ceildiv", (2, 2), _ceildiv, "int", "integer division rounded up"),
    Function("RowMax", (1, 1), np.max, "float", "greatest element of each row of a tile"),
    Function("RowSum", (1, 1), np.sum, "float", "sum of each row of a tile"),
    Function(
        "LaneSum",
        (1, 1),
        np.sum,
        "float",
        "sum of the elements of each row that one lane holds: four partial sums a row",
    ),
]


def _fold(f: Callable[[Any, Any], Any], values: tuple[Any, ...]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = f(result, value)
    return result


FUNCTIONS: dict[str, Function] = {f.name: f for f in _TABLE}
REDUCTIONS = frozenset({"RowMax", "RowSum", "LaneSum"})
CONSTANTS: dict[str, float] = {"log2e": float(np.log2(np.e)), "ln2": float(np.log(2.0)), "inf": float("inf")}
WORD_OPERATORS = {"Add": "+", "Subtract": "-", "Multiply": "*", "Divide": "/"}  # the paper's word forms
LANES_A_ROW = 4  # lanes of a warp that share a row of an MMA accumulator (PTX ISA, mma.m16n8 and wgmma fragments)

"""What the generated code makes of a function, step by step: which steps flush, and which cancel.

The interpreter computes so; the judge's reference and baseline keep to a function's own meaning (functions.py).
Nothing is compiled with --ftz=true or --use_fast_math: sums and products, roundings, sqrtf, rsqrtf and tanh.approx
keep numbers below 2^-126. Three instructions are named with .ftz and do not: ex2, lg2 and rcp take such an operand for
0 of its sign and give 0 of its sign for such a result (PTX ISA, "ex2", "lg2", "rcp").

INSTRUCTIONS and FORMULAS quote the headers of translate/prelude; a test reads them there.

Not here: the last places of an instruction's result, which the judge's bounds know of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qimeng_attention.tl.numerics import Array

INSTRUCTIONS = {
    "exp2": "ex2.approx.ftz.f32",
    "log2": "lg2.approx.ftz.f32",
    "reciprocal": "rcp.approx.ftz.f32",
    "tanh_approx": "tanh.approx.f32",
}
"""Functions of the prelude that are one instruction written out."""

FORMULAS = {
    "exp": "exp2(x * 1.4426950408889634f)",
    "log": "log2(x) * 0.6931471805599453f",
    "tanh": "fmaf(-2.0f, reciprocal(1.0f + exp2(x * 2.8853900817779268f)), 1.0f)",
    "sigmoid": "reciprocal(1.0f + exp(-x))",
    "softplus": "fmaxf(x, 0.0f) + log(1.0f + exp(-fabsf(x)))",
    "abs": "fabsf(x)",
    "sqrt": "sqrtf(x)",
    "rsqrt": "rsqrtf(x)",
}
"""Functions of the prelude that are made of others."""

LEAST_NORMAL = np.float32(2.0**-126)
_ONE = np.float32(1)
_LOG2E, _TWO_LOG2E, _LN2 = np.float32(np.log2(np.e)), np.float32(2 * np.log2(np.e)), np.float32(np.log(2.0))


def flush(x: Array) -> Array:
    """Give 0 of the same sign for numbers below 2^-126."""
    return np.where(np.abs(x) < LEAST_NORMAL, np.copysign(np.float32(0), x), x)


def exp2(x: Array) -> Array:
    """ex2.approx.ftz.f32: an operand that it flushes gives 1 all the same."""
    y = np.asarray(np.exp2(x))
    y[y < LEAST_NORMAL] = 0  # no result is negative
    return y


def log2(x: Array) -> Array:
    """lg2.approx.ftz.f32: -inf below 2^-126; no result is small enough to be flushed."""
    return np.log2(flush(x))


def reciprocal(x: Array) -> Array:
    """rcp.approx.ftz.f32: an infinity below 2^-126, 0 above 2^126."""
    return flush(_ONE / flush(x))


def divide(a: Array, b: Array) -> Array:
    """`a / b`, emitted as `a * reciprocal(b)`."""
    return np.asarray(a * reciprocal(b))


def exp(x: Array) -> Array:
    """The product is rounded: 2^-24 of the exponent, whole places of the result far from 0."""
    return exp2(x * _LOG2E)


def ln(x: Array) -> Array:
    """Natural logarithm, by log2."""
    return np.asarray(log2(x) * _LN2)


def tanh(x: Array) -> Array:
    """Exact in the absolute sense alone: 0 for |x| under 2^-25."""
    return np.asarray(_ONE - np.float32(2) * reciprocal(_ONE + exp2(x * _TWO_LOG2E)))


def sigmoid(x: Array) -> Array:
    """0 for x under -87.3, where the sum passes 2^126."""
    return reciprocal(_ONE + exp(-x))


def softplus(x: Array) -> Array:
    """The sum rounds exp(x) to a multiple of 2^-23: a single digit is left at -16, and 0 for x under -16.7."""
    return np.asarray(np.maximum(x, np.float32(0)) + ln(_ONE + exp(-np.abs(x))))


EMITTED: dict[str, Callable[..., Any]] = {
    "exp": exp,
    "exp2": exp2,
    "ln": ln,
    "log2": log2,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "softplus": softplus,
}
"""By the names of TL; what is missing here is emitted as functions.py computes it."""

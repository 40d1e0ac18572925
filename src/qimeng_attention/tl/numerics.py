"""The declared types' rounding, on NumPy float32 arrays.

fp16 and bf16 values are kept in float32 arrays that hold only values of the narrow type, so that arithmetic on them is
what the tensor cores and the float32 lanes do.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

FLOAT_TYPES = {"f32": 4, "fp16": 2, "bf16": 2, "e4m3": 1, "e5m2": 1}  # bytes an element
INTEGER_TYPES = {"i32": 4, "i64": 8, "u8": 1}
BOOL = "bool"  # an element is a condition
BYTES = FLOAT_TYPES | INTEGER_TYPES | {BOOL: 1}


def round_to(values: Array, dtype: str) -> Array:
    """Round to nearest even in `dtype`; the result stays float32 (integers become int64, conditions bool).

    Source for bf16: truncation of binary32 after adding half of the last place kept, ties to even (IEEE 754).
    """
    if dtype in INTEGER_TYPES:
        return np.asarray(values, np.int64)
    if dtype == BOOL:
        return np.asarray(values, np.bool_)
    x = np.asarray(values, np.float32)
    if dtype == "fp16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = x.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(x), x, rounded.astype(np.uint32).view(np.float32))
    if dtype in ("e4m3", "e5m2"):
        return _round_fp8(x, dtype)
    return x


def _round_fp8(x: Array, dtype: str) -> Array:
    """Round to an 8-bit float of the OCP formats, saturating; e4m3 has 3 fraction bits, e5m2 has 2."""
    bits, least, most = (3, -6, 448.0) if dtype == "e4m3" else (2, -14, 57344.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(x))), least)
        step = np.exp2(np.where(np.isfinite(exponent), exponent, least) - bits)
        rounded = np.clip(np.rint(x / step) * step, -most, most)
    return np.where(np.isnan(x), x, rounded).astype(np.float32)


def empty_of(dtype: str, shape: tuple[int, ...]) -> Array:
    """Give zeros as `round_to` would hold them."""
    return np.zeros(shape, np.int64 if dtype in INTEGER_TYPES else np.bool_ if dtype == BOOL else np.float32)


def unit_roundoff(dtype: str) -> float:
    """Give half of the distance from 1 to the next value: fp16 2^-11, bf16 2^-8."""
    return {"f32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8, "e4m3": 2.0**-4, "e5m2": 2.0**-3}[dtype]

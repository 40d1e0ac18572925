"""Rounding against exact definitions: every value of a format is listed, and the nearest is found by search."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from qimeng_attention.tl.numerics import round_to, unit_roundoff

# format: exponent bits, fraction bits, bias, greatest finite value
FORMATS = {
    "fp16": (5, 10, 15, 65504.0),
    "bf16": (8, 7, 127, float.fromhex("0x1.fep127")),
    "e4m3": (4, 3, 7, 448.0),  # OCP FP8: one NaN, no infinity
    "e5m2": (5, 2, 15, 57344.0),
}
SATURATING = ("e4m3", "e5m2")


@cache
def values(dtype: str) -> np.ndarray:
    """List the non-negative finite values of a format, in order; their place in the list is their bit pattern."""
    exponent_bits, fraction_bits, bias, most = FORMATS[dtype]
    listed = []
    for exponent in range(1 << exponent_bits):
        for fraction in range(1 << fraction_bits):
            if exponent == 0:
                value = np.ldexp(fraction, 1 - bias - fraction_bits)
            else:
                value = np.ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits)
            listed.append(float(value))
    return np.array([v for v in listed if v <= most])


def nearest(x: float, dtype: str) -> float:
    """Round to nearest, ties to the value with an even bit pattern; beyond the greatest as the format does."""
    listed, most = values(dtype), FORMATS[dtype][3]
    size = abs(x)
    if size > most:
        half_step = (listed[-1] - listed[-2]) / 2
        rounded = most if dtype in SATURATING or size < most + half_step else np.inf
    else:
        above = int(np.searchsorted(listed, size))
        below = max(0, above - 1)
        low, high = size - listed[below], listed[above] - size
        even = below if below % 2 == 0 else above
        rounded = listed[below] if low < high else listed[above] if high < low else listed[even]
    return float(np.copysign(rounded, x))


@cache
def samples(dtype: str) -> np.ndarray:
    """Give all values, the points halfway between two, their neighbours in float32, and random numbers."""
    listed = values(dtype)
    step = max(1, len(listed) // 4000)
    some = np.concatenate([listed[::step], listed[:600], listed[-600:]])
    halfway = (listed[1:] + listed[:-1])[:: max(1, len(listed) // 4000)] / 2
    rng = np.random.default_rng(7)
    random = np.ldexp(rng.standard_normal(2000), rng.integers(-30, 20, 2000))
    points = np.concatenate([some, halfway, random]).astype(np.float32)
    around = np.concatenate(
        [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    )
    return np.concatenate([around, -around])


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounds_to_nearest_even(dtype: str) -> None:
    x = samples(dtype)

    rounded = round_to(x, dtype)

    wanted = np.array([nearest(float(v), dtype) for v in x], np.float32)
    np.testing.assert_array_equal(rounded, wanted)
    np.testing.assert_array_equal(np.signbit(rounded[x != 0]), np.signbit(x[x != 0]))


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounding_twice_changes_nothing(dtype: str) -> None:
    once = round_to(samples(dtype), dtype)

    np.testing.assert_array_equal(round_to(once, dtype), once)


@pytest.mark.parametrize("dtype", [*FORMATS, "f32"])
def test_nan_stays_nan_and_infinity_goes_where_the_format_sends_it(dtype: str) -> None:
    rounded = round_to(np.array([np.nan, np.inf, -np.inf], np.float32), dtype)

    assert np.isnan(rounded[0])
    most = FORMATS[dtype][3] if dtype in SATURATING else np.inf
    assert rounded[1:].tolist() == [most, -most]


def test_fp16_agrees_with_numpy() -> None:
    x = samples("fp16")

    with np.errstate(over="ignore"):
        wanted = x.astype(np.float16).astype(np.float32)

    np.testing.assert_array_equal(round_to(x, "fp16"), wanted)


@pytest.mark.parametrize("dtype", FORMATS)
def test_unit_roundoff_is_half_a_step_at_one(dtype: str) -> None:
    listed = values(dtype)
    one = int(np.searchsorted(listed, 1.0))

    assert unit_roundoff(dtype) == (listed[one + 1] - 1.0) / 2


def test_f32_and_integers_are_kept() -> None:
    assert round_to(np.array([1 / 3], np.float32), "f32")[0] == np.float32(1 / 3)
    assert round_to(np.array([2**40 + 1]), "i64").dtype == np.int64
    assert round_to(np.array([2**40 + 1]), "i64")[0] == 2**40 + 1

"""The acceptance rule alone: what no tolerance may let pass, and what a right kernel may be off by."""

from __future__ import annotations

import numpy as np
import pytest

from qimeng_attention.judge import Call, Operator, Truth, baseline, rule, truth
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import Array, round_to


def one_head(keys: int, rows: int = 64, dtype: str = "fp16", **fields: object) -> tuple[Operator, Call]:
    spec = AttentionSpec.make(Hq=1, Dqk=64, dtype=dtype, **fields)
    return Operator.of(spec), Call(1, rows, keys, 1, 1, 64, 64, spec.default_scale)


def drawn(call: Call, dtype: str, factor: float = 1.0) -> list[Array]:
    random = np.random.default_rng(5)
    shapes = call.shapes()
    q, k, v = (round_to(random.standard_normal(shapes[n], np.float32), dtype) for n in ("Q", "K", "V"))
    return [round_to(q * np.float32(factor), dtype), k, v]


def limits(operator: Operator, call: Call, x: list[Array], dtype: str) -> tuple[Truth, rule.Limits]:
    want = truth(operator, call, *x)
    return want, rule.out_limits(want, baseline(operator, call, *x, dtype), dtype)


def tiled(call: Call, x: list[Array], dtype: str, tile: int = 64, skip: int = -1, accumulator: str = "f32") -> Array:
    """Compute attention tile by tile as a kernel does: scores and accumulators in float32, P rounded."""
    q, k, v = (a[0, :, 0] for a in x)
    top, total = np.full((len(q), 1), -np.inf, np.float32), np.zeros((len(q), 1), np.float32)
    out = np.zeros((len(q), v.shape[1]), np.float32)
    for number, start in enumerate(range(0, len(k), tile)):
        if number == skip:
            continue
        scores = (q @ k[start : start + tile].T) * np.float32(call.scale)
        new = np.maximum(top, scores.max(axis=1, keepdims=True))
        weights, rescale = np.exp(scores - new), np.exp(top - new)
        total = total * rescale + weights.sum(axis=1, keepdims=True)
        out = round_to(out * rescale + round_to(weights, dtype) @ v[start : start + tile], accumulator)
        top = new
    return round_to(out / total, dtype)[None, :, None]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("factor", [0.0, 1.0, 8.0, 60.0])
@pytest.mark.parametrize("keys", [1, 2, 65, 1000, 8192])
def test_a_right_kernel_passes(dtype: str, factor: float, keys: int) -> None:
    operator, call = one_head(keys, dtype=dtype)
    x = drawn(call, dtype, factor)

    want, bounds = limits(operator, call, x, dtype)

    found = rule.compare("Out", tiled(call, x, dtype), want.out, bounds)
    assert found.passed, found.reason


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("keys", [1000, 8192])
def test_a_skipped_tile_is_rejected_where_a_fixed_tolerance_of_1e_2_accepts_it(dtype: str, keys: int) -> None:
    operator, call = one_head(keys, dtype=dtype)
    x = drawn(call, dtype)
    want, bounds = limits(operator, call, x, dtype)

    lacking = tiled(call, x, dtype, skip=3)

    assert keys < 8000 or np.allclose(lacking, want.out, rtol=1e-2, atol=1e-2)
    assert not rule.compare("Out", lacking, want.out, bounds).passed


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_zeros_are_rejected_on_a_long_sequence(dtype: str) -> None:
    operator, call = one_head(65_536, rows=1, dtype=dtype)
    x = drawn(call, dtype)
    want, bounds = limits(operator, call, x, dtype)

    assert np.allclose(0, want.out, rtol=2e-2, atol=2e-2)
    assert not rule.compare("Out", np.zeros(want.out.shape), want.out, bounds).passed


def test_an_accumulator_in_fp16_is_rejected() -> None:
    operator, call = one_head(8192)
    x = drawn(call, "fp16")
    x[2] = x[2] + 4
    want, bounds = limits(operator, call, x, "fp16")

    assert rule.compare("Out", tiled(call, x, "fp16"), want.out, bounds).passed
    assert not rule.compare("Out", tiled(call, x, "fp16", accumulator="fp16"), want.out, bounds).passed


def test_a_bias_within_the_maximum_is_rejected_by_the_mean() -> None:
    operator, call = one_head(512, dtype="bf16")
    x = drawn(call, "bf16")
    want, bounds = limits(operator, call, x, "bf16")

    found = rule.compare("Out", want.out + 0.9 * bounds.element.min(), want.out, bounds)

    assert not found.passed
    assert "in the mean" in found.reason


def test_a_candidate_that_writes_nothing_is_rejected() -> None:
    operator, call = one_head(100)
    x = drawn(call, "fp16")
    want, bounds = limits(operator, call, x, "fp16")

    found = rule.compare("Out", np.full(want.out.shape, np.nan, np.float32), want.out, bounds)

    assert not found.passed
    assert "never written" in found.reason


def test_one_element_that_was_never_written_is_found() -> None:
    want = np.ones((1, 1000, 10, 1000))
    got = want.copy()
    got[0, 999, 9, 999] = np.nan

    found = rule.compare("Out", got, want, rule.Limits(np.array(1e9), 1e9))

    assert not found.passed
    assert "Out[0, 999, 9, 999]" in found.reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values_match_themselves_only(value: float) -> None:
    want = np.array([1.0, value])
    bounds = rule.Limits(np.array(1e9), 1e9)

    assert rule.compare("Lse", want.copy(), want, bounds).passed
    for other in (np.nan, np.inf, -np.inf, -1e30, 0.0):
        if not np.array_equal([other], [value], equal_nan=True):
            assert not rule.compare("Lse", np.array([1.0, other]), want, bounds).passed
    assert not rule.compare("Lse", np.array([value, value]), want, bounds).passed


def test_an_output_of_another_shape_is_rejected() -> None:
    found = rule.compare("Out", np.ones((2, 3)), np.ones((3, 2)), rule.Limits(np.array(1e9), 1e9))

    assert not found.passed
    assert "shape" in found.reason


def test_a_row_whose_value_is_nearly_0_has_a_floor() -> None:
    operator, call = one_head(2, rows=1, dtype="bf16")
    x = [np.zeros((1, 1, 1, 64), np.float32), np.zeros((1, 2, 1, 64), np.float32)]
    v = np.ones((1, 2, 1, 64), np.float32)
    v[:, 1] = -1
    want, bounds = limits(operator, call, [*x, v], "bf16")

    assert np.all(want.out == 0)
    assert rule.compare("Out", want.out + 1e-3, want.out, rule.Limits(bounds.element, 1.0)).passed
    assert not rule.compare("Out", want.out + 2e-2, want.out, bounds).passed


def test_a_row_that_sees_nothing_must_be_0() -> None:
    operator, call = one_head(3, rows=5, dtype="bf16", mask="causal")
    x = drawn(call, "bf16")
    want, bounds = limits(operator, call, x, "bf16")
    got = want.out.copy()
    got[0, 0] = 1e-20

    assert not rule.compare("Out", got, want.out, bounds).passed


def test_the_cap_holds_where_the_baseline_degrades() -> None:
    operator, call = one_head(1000, dtype="bf16")
    x = drawn(call, "bf16", 60.0)
    want, bounds = limits(operator, call, x, "bf16")
    errors = np.abs(baseline(operator, call, *x, "bf16") - want.out)

    assert 2 * errors.max() > 4 * bounds.element.max()


def test_lse_is_float32_throughout() -> None:
    operator, call = one_head(1000, dtype="bf16")
    x = drawn(call, "bf16", 8.0)
    want = truth(operator, call, *x)
    scores = round_to(np.einsum("qd,kd->qk", x[0][0, :, 0], x[1][0, :, 0]) * np.float32(call.scale), "bf16")
    rounded = np.log(np.exp(scores.astype(np.float64)).sum(axis=1))[None, None]

    assert rule.compare("Lse", want.lse.astype(np.float32), want.lse, rule.lse_limits(want)).passed
    assert not rule.compare("Lse", rounded, want.lse, rule.lse_limits(want)).passed


def test_rows_that_see_nothing_leave_the_mean_bound_of_lse_as_it_is() -> None:
    operator, call = one_head(10, rows=1000, mask="causal")
    want = truth(operator, call, *drawn(call, "fp16", 1e4))
    seen = np.isfinite(want.lse)
    assert np.count_nonzero(seen) == 10

    rounded, biased = (np.where(seen, want.lse * (1 + share), want.lse) for share in (8e-6, 4e-5))

    assert rule.compare("Lse", rounded, want.lse, rule.lse_limits(want)).passed
    assert not rule.compare("Lse", biased, want.lse, rule.lse_limits(want)).passed

"""The acceptance rule, with every constant of it; a change here re-runs the planted-bug tests.

For each output, against a reference in float64:
1. NaN and infinities stand exactly where the reference has them; an element never written holds poison.
2. |o - r| <= min(2 E + 2 u size, (4 u + 2 slack) magnitude) + floor, for every element. E is the largest
   error of the same-precision baseline, or the largest relative to size, whichever allows less; u is the
   type's unit roundoff; size is |r| + spread; spread, slack and magnitude belong to the row. The first arm is
   FlashAttention's rule, its last-place term made relative; the second caps it where the baseline itself
   degrades. Magnitude is the row's sum of |w| |v|: for softmax at most max |V|, for others whatever it is.
3. mean |o - r| <= 1.5 mean of the baseline's error + u / 2 * mean of size: finds bias, which 2 misses.
   A function that the program computes with a stated error moves scores by up to d more: slack has d, the first
   arm 2 d size, the mean of rule 3 half of that.
   Weights that are each made of one score have slack 0; instead both arms grow by 2 drift + tiny seen: drift is
   what float32 and approximations may move the row's weights by, times |V|, tiny half the type's subnormal step (P
   may fall below the type's normal numbers, where no largest weight is 1), seen the sum of |V| over seen keys.
4. |lse - r| <= 1e-5 |r| + 2^-13 + slack: float32 throughout, with exponentials good to 2^-13.
5. Every element counts: no share of them may fail.

Not here: where reference and baseline come from (reference.py, function.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from qimeng_attention.judge.reference import Truth
from qimeng_attention.tl.numerics import Array, unit_roundoff

BASELINE_MAX = 2.0  # FlashAttention's tests: at most twice the error of the same-precision path
LAST_PLACES = 2.0  # roundings of the result and of P
CAP = 4.0  # roundings that a correct kernel makes of each weight and of the result, with a margin of two
CAP_SLACK = 2.0  # a score off by d changes a softmax weight by the factor e^2d at most
BASELINE_MEAN = 1.5  # FlashAttention-3's KV-cache test
MEAN_LAST_PLACES = 0.5  # the mean error of rounding once is u |r| / 3
SUBNORMAL = {"fp16": 2.0**-25, "bf16": 2.0**-134, "f32": 2.0**-150}  # what rounding to a subnormal is off by
LSE_RELATIVE = 1e-5
LSE_EXPONENTIAL = 2.0**-13  # relative error allowed to an exponential, emulated ones included
FLOOR = {
    "fp16": 2.0**-23,
    "bf16": 2.0**-120,
    "f32": 2.0**-120,
}  # fp16 has subnormals; below the others a kernel may flush
MEAN_APPROXIMATE = 0.5  # an error that is spread evenly up to its largest is half of it in the mean
MEAN_FLOOR = 1.0  # of FLOOR
_EXPECTED = re.compile(r"(\] is \S+(?: \(never written, or not a number\))?), expected \S+")


@dataclass(frozen=True)
class Limits:
    """What an output may be off by: each element, and in the mean."""

    element: Array  # broadcasts to the output's shape
    mean: float


@dataclass(frozen=True)
class Finding:
    """One output of one call, compared."""

    output: str
    passed: bool
    worst_error: float  # at the element nearest to, or furthest beyond, its bound
    bound: float  # of that element
    mean_error: float
    mean_bound: float
    reason: str = ""


def out_limits(truth: Truth, baseline: Array, dtype: str) -> Limits:
    """Give the limits of O (rules 2 and 3)."""
    u = unit_roundoff(dtype)
    # NOTE: a baseline that overflowed allows nothing: an infinite bound would accept whatever it is asked of.
    errors = np.abs(np.where(np.isfinite(baseline), baseline, truth.out) - truth.out)
    size = np.abs(truth.out) + truth.spread[..., None]
    share = float(np.divide(errors, size, where=size > 0, out=np.zeros_like(size)).max(initial=0))
    worst = np.minimum(float(errors.max(initial=0)), share * size)
    moved = CAP_SLACK * truth.approximate[..., None] * size  # 0 where nothing is approximated
    relative = BASELINE_MAX * worst + LAST_PLACES * u * size + moved
    cap = ((CAP * u + CAP_SLACK * truth.slack) * truth.magnitude)[..., None]
    mean = BASELINE_MEAN * _mean(errors) + MEAN_LAST_PLACES * u * _mean(size) + MEAN_FLOOR * FLOOR[dtype]
    own = (CAP_SLACK * truth.drift + SUBNORMAL[dtype] * truth.seen)[..., None]  # 0 for softmax
    moved = moved + CAP_SLACK * truth.approximate_drift[..., None]
    return Limits(np.minimum(relative, cap) + own + FLOOR[dtype], mean + MEAN_APPROXIMATE * _mean(moved))


def lse_limits(truth: Truth) -> Limits:
    """Give the limits of LSE (rule 4)."""
    finite = np.isfinite(truth.lse)
    size = np.where(finite, np.abs(truth.lse), 0)
    moved = np.swapaxes(truth.approximate, 1, 2)  # 0 where nothing is approximated
    element = LSE_RELATIVE * size + LSE_EXPONENTIAL + np.swapaxes(truth.slack - truth.approximate, 1, 2)
    return Limits(element + moved, _mean(element[finite]) + _mean(moved[finite]))  # as `compare` takes the error's mean


def sampled_limits(want: Array, changes: Array, magnitude: Array | None, dtype: str, inner: str) -> Limits:
    """Give the limits of an output of which only a reference function is known.

    Args:
        want: the reference's output.
        changes: how far it moves when the inputs are rounded once more, (draws, *shape).
        magnitude: the sum of |terms| of each element, if known; else the output's own size stands for it.
        dtype: the output's type.
        inner: the narrowest type inside the program.
    """
    u = max(unit_roundoff(dtype), unit_roundoff(inner))
    moved = np.abs(changes)
    largest = float(moved.max(initial=0))
    size = np.abs(want)
    spread = np.sqrt((moved**2).mean(axis=0)) / u
    local = size + (spread.max(axis=-1, initial=0, keepdims=True) if spread.ndim else spread)
    share = float(np.divide(moved, local, where=local > 0, out=np.zeros_like(moved)).max(initial=0))
    relative = BASELINE_MAX * np.minimum(largest, share * local) + LAST_PLACES * unit_roundoff(dtype) * size
    known = magnitude if magnitude is not None else np.full(want.shape, max(float(size.max(initial=0)), largest / u))
    mean = BASELINE_MEAN * _mean(moved) + MEAN_LAST_PLACES * u * _mean(size) + MEAN_FLOOR * FLOOR[dtype]
    return Limits(np.minimum(relative, CAP * u * known) + FLOOR[dtype], mean)


def compare(output: str, got: Array, want: Array, limits: Limits) -> Finding:
    """Compare an output with its reference, element by element.

    Args:
        output: its name.
        got: what the candidate gave; elements it never wrote hold NaN.
        want: the reference.
        limits: from the functions above.
    """
    if got.shape != want.shape:
        return Finding(
            output,
            False,
            np.inf,
            0.0,
            np.inf,
            limits.mean,
            f"{output} has the shape {got.shape}, expected {want.shape}",
        )
    if not want.size:
        return Finding(output, True, 0.0, 0.0, 0.0, limits.mean)
    got = np.asarray(got, np.float64)
    if special := _special(output, got, want):
        return Finding(output, False, np.inf, float(np.max(limits.element)), np.inf, limits.mean, special)
    finite = np.isfinite(want)
    error = np.where(finite, np.abs(np.where(finite, got, 0) - np.where(finite, want, 0)), 0)
    bound = np.broadcast_to(limits.element, want.shape)
    furthest = np.argmax(error - bound) if np.any(error > bound) else np.argmax(error / bound)
    place = tuple(int(i) for i in np.unravel_index(int(furthest), want.shape))
    mean = _mean(error[finite])
    reason = _reason(output, got, want, error, bound, place, mean, limits)
    return Finding(output, not reason, float(error[place]), float(bound[place]), mean, limits.mean, reason)


def _special(output: str, got: Array, want: Array) -> str:
    """Say where NaN or an infinity stands that should not, or is missing."""
    for name, test in (("NaN", np.isnan), ("inf", np.isposinf), ("-inf", np.isneginf)):
        found, expected = test(got), test(want)
        if wrong := int(np.count_nonzero(found != expected)):
            place = tuple(int(i) for i in np.argwhere(found != expected)[0])
            never = " (never written, or not a number)" if name == "NaN" and found[place] else ""
            return (
                f"{output}{list(place)} is {got[place]:.6g}{never}, expected {want[place]:.6g} "
                f"({wrong} of {want.size} elements)"
            )
    return ""


def _reason(
    output: str,
    got: Array,
    want: Array,
    error: Array,
    bound: Array,
    place: tuple[int, ...],
    mean: float,
    limits: Limits,
) -> str:
    if beyond := int(np.count_nonzero(error > bound)):
        return (
            f"{output}{list(place)} is {got[place]:.6g}, expected {want[place]:.6g} "
            f"within {bound[place]:.3g} ({beyond} of {want.size} elements are beyond)"
        )
    if mean > limits.mean:
        return f"{output} is off by {mean:.3g} in the mean, allowed {limits.mean:.3g}"
    return ""


def without_values(reason: str) -> str:
    """Give a reason without the value that was expected: an author must not fit a program to the judge's numbers."""
    return _EXPECTED.sub(r"\1, not what it should be", reason)


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else 0.0

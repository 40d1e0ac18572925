from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Scalar
from qimeng_attention.runtime.checks import check_names, check_scalar, check_sizes

POSITIVE = Scalar("scale", op=">", bound=0.0)


def test_a_scalar_is_given_as_the_kernel_gets_it() -> None:
    assert check_scalar(POSITIVE, 0.1) == pytest.approx(0.1, abs=1e-8)
    assert check_scalar(POSITIVE, 0.1) != 0.1
    assert check_scalar(POSITIVE, 2) == 2.0
    assert check_scalar(POSITIVE, Fraction(1, 4)) == 0.25


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, 10**400])
def test_a_scalar_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(LaunchError, match="not finite in float32"):
        check_scalar(POSITIVE, value)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, 1e-60])
def test_a_scalar_out_of_its_bound_is_refused_after_rounding(value: float) -> None:
    with pytest.raises(LaunchError, match="the kernel needs scale > 0"):
        check_scalar(POSITIVE, value)


@pytest.mark.parametrize(
    ("op", "good", "bad"), [("<", 1, 2), ("<=", 2, 3), (">", 3, 2), (">=", 2, 1), ("==", 2, 1), ("!=", 1, 2)]
)
def test_each_comparison_is_kept(op: str, good: float, bad: float) -> None:
    scalar = Scalar("a", op=op, bound=2.0)

    assert check_scalar(scalar, good) == good
    with pytest.raises(LaunchError):
        check_scalar(scalar, bad)


@pytest.mark.parametrize("value", ["1", None, True, [1.0], 1j, object()])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(LaunchError, match="no number"):
        check_scalar(Scalar("a"), value)


@pytest.mark.parametrize("value", [-1, 2**31, 1.0, True, "1", [1], None])
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(LaunchError, match="is no size"):
        check_sizes(["B"], {"B": value})


def test_sizes_come_in_the_order_of_their_names() -> None:
    assert list(check_sizes(["B", "S"], {"S": 2, "B": 1}).items()) == [("B", 1), ("S", 2)]


def test_missing_and_unknown_names_are_named() -> None:
    with pytest.raises(LaunchError, match="the tensor K is missing"):
        check_names({"Q": 1}, ["Q", "K"], "tensor")
    with pytest.raises(LaunchError, match="the tensor X is not known"):
        check_names({"Q": 1, "X": 1}, ["Q"], "tensor")

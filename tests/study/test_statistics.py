"""pass@k: what it estimates, and the interval around it."""

from __future__ import annotations

from itertools import combinations, product
from math import isclose
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qimeng_attention.study.statistics import estimate, mean_pass_at_k, pass_at_k, wilson

COUNTS = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
SHARES = st.floats(0, 1, allow_nan=False)


@given(COUNTS)
def test_pass_at_1_is_the_share_that_passed(counts: tuple[int, int]) -> None:
    n, c = counts

    assert isclose(pass_at_k(n, c, 1), c / n, abs_tol=1e-12)


@given(COUNTS)
def test_it_grows_with_k_and_with_what_passed_and_stays_a_probability(counts: tuple[int, int]) -> None:
    n, c = counts
    values = [pass_at_k(n, c, k) for k in range(1, n + 1)]

    assert values == sorted(values)
    assert all(0 <= v <= 1 for v in values)
    assert values[-1] == (c > 0)  # all samples are drawn: one that passed is among them
    if c < n:
        assert all(pass_at_k(n, c + 1, k) >= v for k, v in enumerate(values, 1))


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_it_is_the_share_of_choices_that_hold_one_that_passed(counts: tuple[int, int, int]) -> None:
    n, c, k = counts
    choices = list(combinations([True] * c + [False] * (n - c), k))

    assert isclose(pass_at_k(n, c, k), fmean(map(any, choices)), abs_tol=1e-12)


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("n", "k"), [(4, 2), (6, 3), (5, 5)])
def test_it_has_no_bias(chance: float, n: int, k: int) -> None:
    expected = 0.0
    for passed in product([True, False], repeat=n):
        c = sum(passed)
        expected += chance**c * (1 - chance) ** (n - c) * pass_at_k(n, c, k)

    assert isclose(expected, 1 - (1 - chance) ** k)


def test_known_values() -> None:
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(3, 0, 3) == 0
    assert pass_at_k(3, 3, 1) == 1


@pytest.mark.parametrize(("n", "c", "k"), [(2, 3, 1), (2, -1, 1), (2, 1, 3), (2, 1, 0), (0, 0, 1)])
def test_counts_that_make_no_sense_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"samples|pass@"):
        pass_at_k(n, c, k)


def test_a_request_weighs_the_same_however_many_samples_it_has() -> None:
    assert mean_pass_at_k([(10, 10), (1, 0)], 1).value == 0.5
    with pytest.raises(ValueError, match="pass@2"):
        mean_pass_at_k([(10, 10), (1, 0)], 2)
    with pytest.raises(ValueError, match="no request"):
        mean_pass_at_k([], 1)


@given(SHARES, st.integers(1, 500))
def test_the_interval_holds_the_share_within_0_and_1_and_narrows(share: float, trials: int) -> None:
    low, high = wilson(share, trials)
    narrow = wilson(share, 4 * trials)

    assert 0 <= low <= share <= high <= 1
    assert high > low
    assert narrow[1] - narrow[0] < high - low
    mirrored = wilson(1 - share, trials)
    assert isclose(mirrored[0], 1 - high, abs_tol=1e-9)


def test_the_interval_is_wilsons() -> None:
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # 8 of 10
    assert wilson(1.0, 8) == pytest.approx((0.6756, 1.0), abs=1e-4)  # 8 of 8: still a width


def test_the_trials_are_the_requests_not_their_samples() -> None:
    few = mean_pass_at_k([(2, 2), (2, 1), (2, 0)], 1)
    many = mean_pass_at_k([(20, 20), (20, 10), (20, 0)], 1)

    assert (few.low, few.high, few.requests) == (many.low, many.high, 3)
    assert estimate([1.0, 0.5, 0.0]) == few

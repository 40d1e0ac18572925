"""The rule by which a kernel counts as faster: never by noise, and by what is more than it."""

from __future__ import annotations

import random

import pytest

from qimeng_attention.bench.gain import LEAST, gain, interval


def samples(middle: float, spread: float, seed: int, rounds: int = 61) -> list[float]:
    draw = random.Random(seed)
    return [middle * (1 + spread * draw.gauss(0, 1)) for _ in range(rounds)]


def test_an_interval_holds_the_median_as_often_as_it_says() -> None:
    missed = sum(not low <= 1 <= high for _, low, high in (interval(samples(1, 0.01, n)) for n in range(2000)))

    assert missed / 2000 < 0.015
    assert interval(list(range(61))) == (30, 20, 40)
    assert interval([1.0]) == (1.0, 1.0, 1.0)


def test_the_same_kernel_is_kept_by_no_seed() -> None:
    assert not any(gain(samples(1, 0.02, n), samples(1, 0.02, n + 10_000)).kept for n in range(1000))


@pytest.mark.parametrize("seed", range(20))
def test_three_percent_show_at_half_a_percent_of_spread(seed: int) -> None:
    found = gain(samples(1.03, 0.005, seed), samples(1, 0.005, seed + 100))

    assert found.kept
    assert found.low < 1.03 < found.high or abs(found.ratio - 1.03) < 0.003


def test_what_a_race_shows_of_one_kernel_against_itself_is_asked_for_on_top() -> None:
    same = samples(1.02, 0.001, 1)  # the second run of one kernel is 2 percent off
    assert gain(samples(1.03, 0.001, 2), same).kept
    assert not gain(samples(1.02, 0.001, 2), same).kept
    assert gain(samples(1.02, 0.001, 2), samples(0.98, 0.001, 3)).needed > 1.02
    assert not gain([1 + LEAST] * 61, [1.0] * 61).kept

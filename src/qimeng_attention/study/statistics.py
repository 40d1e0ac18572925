"""Estimates from samples: pass@k without bias, and an interval that knows how few requests there are.

`pass_at_k` is the estimator of Chen et al. 2021 (arXiv 2107.03374, equation 1): of n samples of a request c passed, and
1 - C(n - c, k) / C(n, k) is the share of all choices of k among them that hold one that passed. A study's pass@k is its
mean over requests, so that a request with more samples weighs no more than another.

The interval is Wilson's, with the number of *requests* as the number of trials. Samples of one request are alike, and
what a reader wants to know is how the method does on other requests; counted as independent, samples would make the
interval too narrow. The requests' values lie in [0, 1], where a mean p allows a variance of at most p (1 - p): that of
the trials that Wilson's interval is made for, so it is, if anything, too wide. Unlike a bootstrap it needs no random
numbers, and has a width where every request passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist, fmean

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over requests, with its interval."""

    value: float
    low: float
    high: float
    requests: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate without bias how likely one of k samples passes, from n samples of which c passed.

    Raises:
        ValueError: there are fewer than k samples, or the counts make no sense.
    """
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples cannot have passed")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n, found n = {n}")
    return 1 - comb(n - c, k) / comb(n, k)


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> Estimate:
    """Estimate pass@k over requests from (n, c) of each.

    Raises:
        ValueError: there is no request, or one of them has fewer than k samples.
    """
    values = [pass_at_k(n, c, k) for n, c in counts]
    if not values:
        raise ValueError("there is no request to estimate from")
    return estimate(values)


def estimate(values: Sequence[float]) -> Estimate:
    """Give the mean of the requests' values, each in [0, 1], and its interval."""
    mean = fmean(values)
    low, high = wilson(mean, len(values))
    return Estimate(mean, low, high, len(values))


def wilson(share: float, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Give Wilson's score interval (Wilson 1927) of a share of so many trials."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    shrunk = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrunk
    half = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / shrunk
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))

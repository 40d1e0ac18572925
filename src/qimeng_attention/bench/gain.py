"""Whether one kernel is faster than another by more than the noise: the rule, and the interval it rests on.

Both run in every round, next to each other in time, so each round gives one ratio of their times; a third runner is the
first kernel once more, and its ratios are what the same race shows where there is no difference at all. A median's
interval is taken from the order of the samples alone: nothing is assumed of how times are spread.

Kept is what is faster for sure: the low end of its interval lies above 1 by more than `LEAST`, and by more than the far
end of the interval of the kernel against itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.99
LEAST = 0.005  # a smaller gain is not worth another program; kernels laid elsewhere in memory may differ by as much
FEWEST = 20  # rounds: fewer give no interval worth the name


@dataclass(frozen=True, slots=True)
class Gain:
    """How much faster a kernel is than another: the median of the rounds' ratios, its interval, and the noise."""

    ratio: float
    low: float
    high: float
    noise: float  # how far from 1 the same kernel may be from itself

    @property
    def needed(self) -> float:
        """Give what the low end must lie above."""
        return 1 + max(LEAST, self.noise)

    @property
    def kept(self) -> bool:
        """Tell whether the gain is more than the noise."""
        return self.low > self.needed


def gain(ratios: Sequence[float], same: Sequence[float]) -> Gain:
    """Weigh a race: the ratios of the rounds, and those of the first kernel against itself."""
    ratio, low, high = interval(ratios)
    _, least, most = interval(same)
    return Gain(ratio, low, high, max(most - 1, 1 - least))


def interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Give the median of samples and an interval that holds the median of all with that confidence.

    The number of samples below the true median is binomial, whatever they are: so the interval is from one sample, in
    order, to its counterpart from the end.
    """
    ordered, n = sorted(samples), len(samples)
    tail, below, rank = (1 - confidence) / 2 * 2**n, 0, 0
    while rank < n // 2 and below + math.comb(n, rank) <= tail:
        below += math.comb(n, rank)
        rank += 1
    first = max(rank - 1, 0)
    return statistics.median(ordered), ordered[first], ordered[n - 1 - first]

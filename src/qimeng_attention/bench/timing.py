"""Times of kernels on a GPU: graph replay, interleaved with the peers, over inputs larger than the L2 cache.

Protocol: every callable is captured in a CUDA graph that runs it over a rotation of input sets; rounds of replays take
turns between the callables, so that clocks and neighbours drift for all alike; the median of all rounds counts. The
order is drawn anew for each round: the chip's clock follows its power, so what runs before a kernel changes its time,
and in a fixed order each callable would always have the same one before it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TARGET_MS = 8.0  # of one replay: long enough that its events' granularity does not matter
LEAST_REPETITIONS = 100


@dataclass(frozen=True)
class Times:
    """Milliseconds a call: the median over all rounds, and the spread of rounds around it."""

    median_ms: float
    spread: float  # (largest - least) / median over rounds
    repetitions: int
    samples: tuple[float, ...] = ()  # of each round, in order: what is compared round by round


def time_graphs(calls: Mapping[str, Sequence[Callable[[], Any]]], rounds: int = 25) -> dict[str, Times]:
    """Time callables against each other.

    Args:
        calls: for each name the same call over several input sets, which are taken in turn.
        rounds: how often each takes its turn.
    """
    import torch

    graphs: dict[str, tuple[Any, int]] = {}
    stream = torch.cuda.Stream()
    for name, variants in calls.items():
        graphs[name] = _capture(variants, stream, rounds)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    draw = random.Random(0)
    for _ in range(rounds):
        for name in draw.sample(list(graphs), len(graphs)):
            samples[name].append(_replay(*graphs[name], stream))
    return {
        name: Times(statistics.median(s), (max(s) - min(s)) / statistics.median(s), graphs[name][1] * rounds, tuple(s))
        for name, s in samples.items()
    }


def _capture(variants: Sequence[Callable[[], Any]], stream: Any, rounds: int) -> tuple[Any, int]:
    """Capture enough calls for one replay to last; they take the input sets in turn."""
    import torch

    with torch.cuda.stream(stream):
        for call in variants:
            call()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for call in variants:
            call()
        end.record()
        end.synchronize()
        one = max(start.elapsed_time(end) / len(variants), 1e-3)
        count = max(-(-LEAST_REPETITIONS // rounds), min(200, int(TARGET_MS / one)), len(variants))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for n in range(count):
                variants[n % len(variants)]()
        graph.replay()
    stream.synchronize()
    return graph, count


def _replay(graph: Any, count: int, stream: Any) -> float:
    import torch

    with torch.cuda.stream(stream):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) / count


def time_eager(call: Callable[[], Any], repetitions: int = 50) -> float:
    """Time a call from Python, with its host cost: the median in milliseconds."""
    import torch

    for _ in range(5):
        call()
    torch.cuda.synchronize()
    samples = []
    for _ in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        samples.append(float(start.elapsed_time(end)))
    return statistics.median(samples)

"""Sizes, scalars and values for programs of which nothing is known but their declarations.

Not here: the inputs of an `AttentionSpec` (inputs.py, families.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from qimeng_attention.tl.numerics import INTEGER_TYPES, Array
from qimeng_attention.tl.small_model import small_sizes, tile_of_size
from qimeng_attention.tl.types import Checked

Family: TypeAlias = Callable[[np.random.Generator, str, tuple[int, ...], str], Array]
TRIES = 6  # combinations of lengths
HEADS = {
    "B": 2,
    "Hq": 4,
    "Hk": 2,
}  # sizes that no tile steps along and that divide each other in every program
OTHER = 2
GROUPS = (  # query heads a key head: 2, 1, 3, 4
    {"Hq": 4, "Hk": 2},
    {"Hq": 2, "Hk": 2},
    {"Hq": 3, "Hk": 1},
    {"Hq": 8, "Hk": 2},
)
NEGATIVE = 0.5  # of the scalars that may have either sign


def _real(make: Callable[[np.random.Generator, str, tuple[int, ...]], Array]) -> Family:
    """Draw integers below the tensor's shortest extent where integers are asked for."""

    def family(random: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str) -> Array:
        if dtype in INTEGER_TYPES:
            return random.integers(0, max(1, min(shape, default=1)), shape)
        return np.asarray(make(random, name, shape), np.float32)

    return family


def _along(random: np.random.Generator, shape: tuple[int, ...], profile: Callable[[Array], Array]) -> Array:
    """Let values follow a profile along the second axis, where sequences lie."""
    axis = 1 if len(shape) > 1 else 0
    t = profile(np.arange(shape[axis]) / max(1, shape[axis])) if shape else np.zeros(())
    return random.standard_normal(shape) * 0.5 + t.reshape([-1 if a == axis else 1 for a in range(len(shape))])


FAMILIES: dict[str, Family] = {
    "normal": _real(lambda r, n, shape: r.standard_normal(shape)),
    "large first input": _real(lambda r, n, shape: r.standard_normal(shape) * (8 if n in ("Q", "A", "X") else 1)),
    "growing": _real(lambda r, n, shape: _along(r, shape, lambda t: 2 * t)),
    "offset": _real(lambda r, n, shape: r.standard_normal(shape) + (8 if n == "V" else 0)),
    "outliers": _real(lambda r, n, shape: r.standard_normal(shape) + 10 * (r.random(shape) < 1e-3)),
}


@dataclass(frozen=True)
class Declared:
    """A scalar, and what must be true of it: any finite value if `op` is empty."""

    name: str
    op: str = ""
    bound: float = 0.0


def sizes_to_try(kernels: Sequence[Checked]) -> list[dict[str, int]]:
    """Choose lengths around the tiles, from 1 up, and few of everything else."""
    names = list(dict.fromkeys(n for k in kernels for n in k.sizes))
    tried = [sizes for k in kernels for sizes in small_sizes(k)]
    stepped = {n for n in names if len({sizes.get(n, 1) for sizes in tried}) > 1}
    widest = [tile_of_size(k) for k in kernels]
    return sizes_around(names, {n: max(t.get(n, 1) for t in widest) for n in stepped})


def sizes_around(names: Sequence[str], tiles: Mapping[str, int]) -> list[dict[str, int]]:
    """Choose lengths around the tiles that step along some sizes, and few of the others."""
    rest = {n: HEADS.get(n, OTHER) for n in names if n not in tiles}
    steps: list[Callable[[int], int]] = [
        lambda t: t + 1,
        lambda t: 2 * t + 1,
        lambda t: max(1, t - 1),
        lambda t: 1,
        lambda t: t,
    ]
    found = []
    for number in range(TRIES):
        lengths = {
            n: steps[(number + i * (1 + number // len(steps))) % len(steps)](tiles[n])
            for i, n in enumerate(sorted(tiles))
        }
        groups = GROUPS[number % len(GROUPS)] if set(HEADS) <= set(rest) else {}
        found.append({**rest, **groups, **lengths})
    found.append({**rest, **{n: t + 1 for n, t in tiles.items()}})
    return [dict(t) for t in dict.fromkeys(tuple(sizes.items()) for sizes in found)]


def scalar_values(random: np.random.Generator, scalars: Sequence[Declared]) -> dict[str, float]:
    """Draw a value for each scalar that its declaration admits."""
    found = {}
    for declared in scalars:
        name = declared.name
        value = float(np.float32(random.uniform(0.05, 0.2) if name == "scale" else random.uniform(0.5, 2)))
        if declared.op in (">", ">="):
            value = declared.bound + value
        elif declared.op in ("<", "<="):
            value = declared.bound - value
        elif declared.op == "==":
            value = declared.bound
        elif random.random() < NEGATIVE:  # nothing forbids it
            value = -value
        found[name] = value
    return found

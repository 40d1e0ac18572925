"""What named tensors hold in the judge's calls: documents of many lengths, ids in no order, positions outside.

A kernel that takes a tensor for sorted, for short ids or for indices within bounds gives itself away on one of them.

Not here: which case gets which (inputs.py), the values of Q, K and V (families.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from qimeng_attention.named_tensors import Dims, kernel_name
from qimeng_attention.tl.numerics import BOOL, INTEGER_TYPES, Array, round_to

Contents: TypeAlias = dict[str, Array]  # by the names that programs give
KINDS = ("documents", "random", "same", "alone", "unsorted", "large")
SEQUENCE = 16  # elements from which on a last dimension counts as a sequence
WIDE = 1 << 32  # ids that differ by it are one and the same in 32 bits


def shape_of(tensor: Dims, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Give a tensor's shape in a call."""
    return tuple(d if isinstance(d, int) else sizes[d] for d in tensor.dims)


def draw(
    random: np.random.Generator,
    tensors: Mapping[str, Dims],
    sizes: Mapping[str, int],
    kind: str,
    sink: str | None = None,
) -> Contents:
    """Draw the contents of all tensors, values of their types; `sink` is the one that holds sinks."""
    found = {}
    for name, tensor in tensors.items():
        shape = shape_of(tensor, sizes)
        if name == sink:
            values = _sinks(random, shape, kind)
        elif tensor.dtype == BOOL:
            values = _conditions(random, shape, kind)
        elif tensor.dtype not in INTEGER_TYPES:
            values = _numbers(random, shape, kind)
        elif tensor.dims[-1] in ("Sq", "Sk") or shape[-1] >= SEQUENCE:
            values = _ids(random, shape, kind)
            if tensor.dtype == "i64" and kind == "unsorted":
                values = values % 2 + WIDE * (values // 2)
        else:
            values = _positions(random, shape, kind, max(sizes["Sq"], sizes["Sk"]))
        found[kernel_name(name)] = round_to(values, tensor.dtype)
    return found


def _numbers(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    """Draw floating values, none of them 0, so that an element that is read shows."""
    drawn = random.standard_normal(shape)
    if kind == "documents":
        return 0.1 * drawn
    if kind == "same":
        return np.full(shape, 0.5)
    if kind == "alone":
        return np.where(drawn < 0, -1.0, 1.0)
    return 6 * drawn if kind == "large" else drawn


def _sinks(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    """Draw logits beside which the keys keep a share of the weight, and such as take all of it or none."""
    drawn = random.standard_normal(shape)
    if kind == "documents":
        return 3 + 2 * drawn
    if kind == "same":
        return np.full(shape, 4.0)
    if kind == "alone":
        return np.where(drawn < 0, -np.inf, 6.0)
    if kind == "unsorted":
        return np.where(drawn < 0, 5.0, 12 * drawn)
    if kind == "large":
        return np.choose(random.integers(0, 4, shape), [drawn, np.full(shape, 6e4), np.full(shape, -6e4), 5 + drawn])
    return 4 * drawn


def _conditions(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    share = {"documents": 0.9, "same": 1.0, "alone": 0.1, "large": 0.02}.get(kind, 0.5)
    return random.random(shape) < share


def _ids(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    """Draw an id for each place of sequences: those of a document are equal."""
    if kind == "documents":  # of random lengths, some of them 1; long ones leave tiles whole, and hide whole tiles
        share = random.choice([0.0, 0.005, 0.02, 0.1, 0.5], (*shape[:-1], 1))  # no two entries need be alike
        ids = np.cumsum(random.random(shape) < share, axis=-1)
        # 0 is what lies outside, too: half of the times it is the last document, else the first
        return ids - ids[..., -1:] if random.random() < 0.5 else ids
    if kind == "same":
        return np.full(shape, 1)
    if kind == "alone":
        return np.broadcast_to(np.arange(shape[-1]), shape)
    if kind == "unsorted":
        return random.integers(0, 4, shape)
    if kind == "large":
        return random.integers(0, 3, shape) - (1 << 30)
    return random.integers(-2, shape[-1] + 3, shape)


def _positions(random: np.random.Generator, shape: tuple[int, ...], kind: str, most: int) -> Array:
    """Draw a number for each batch entry or head: a length, a place in a sequence, or something outside of it."""
    if kind == "same":
        return np.full(shape, most)
    if kind == "alone":
        return random.integers(0, 2, shape)
    if kind == "unsorted":
        return random.integers(-3, most + 4, shape)
    return random.integers(1, max(2, most + 1), shape)

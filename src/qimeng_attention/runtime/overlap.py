"""Which elements of tensors share memory, from shapes and strides (both in elements)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

View: TypeAlias = tuple[Sequence[int], Sequence[int]]  # shape, strides


def may_overlap(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Tell whether two elements may have one address: some stride is shorter than what lies within it."""
    if 0 in shape:
        return False
    within = 1
    for stride, extent in sorted(zip(strides, shape, strict=True)):
        if extent > 1:
            if stride < within:
                return True
            within += stride * (extent - 1)
    return False


def extent_of(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Count elements from the first to the end of the last."""
    if 0 in shape:
        return 0
    return 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))


def interleaved(one: View, other: View, distance: int) -> bool:
    """Tell whether two views that lie within each other, as slices of one packed tensor do, share no element.

    They share none if, modulo a stride that divides every longer stride of both, their inner parts lie apart.
    """
    parts = [[(n, s) for n, s in zip(shape, strides, strict=True) if n > 1] for shape, strides in (one, other)]
    for stride in set(one[1]) & set(other[1]):
        if stride < 2 or any(s % stride for part in parts for _, s in part if s >= stride):
            continue
        inner = [1 + sum((n - 1) * s for n, s in part if s < stride) for part in parts]
        offset = distance % stride
        if inner[0] <= offset and offset + inner[1] <= stride:
            return True
    return False

"""What the coordinate of a Copy says, dimension by dimension of the global tensor (rules 2 to 4).

Shared by the checker, the interpreter and the compilers, so that all three read a coordinate alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import mul, names_in, num

TILE_INDEX = "L"  # reserved: `[L = i]` counts tiles of the Copy's shape along the first axis


class CoordinateError(ValueError):
    """A coordinate that does not fit its tensor; `hint` says how to mend it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Place:
    """What a Copy takes of one dimension: a single index, a stretch along a named axis, or the whole."""

    kind: str  # "index", "axis" or "whole"
    start: s.Expr  # the index, or the logical index of the first element
    axis: str = ""
    size: int = 1
    stop: s.Expr | None = None  # where the valid part ends, if before the tensor's end
    at: s.Expr | None = None  # the memory index, where storage and logical index differ
    along: str = ""  # of an index that differs from row to row: the axis whose `at` it goes with


def places(copy: s.Copy, extents: Sequence[int], dims: Sequence[str]) -> list[Place]:
    """Read a coordinate: one place for each dimension of the tensor.

    Args:
        copy: the statement; without a coordinate it takes the whole tensor.
        extents: the tile's extents, in numbers.
        dims: the names of the tensor's dimensions.

    Raises:
        CoordinateError: more entries than dimensions, or extents that match no axis.
    """
    entries = list(copy.coordinate)
    if len(entries) == 1 and entries[0].axis == TILE_INDEX:
        start = mul(entries[0].start, copy.dims[0].size) if copy.dims else entries[0].start
        entries = [s.Coordinate(start, dims[0], entries[0].stop, entries[0].at)] if dims else entries
    elif any(entry.axis == TILE_INDEX for entry in entries):
        raise CoordinateError(
            "`L` counts tiles along the first axis and stands alone: `[L = i]`",
            "name the axis and count elements, as `k = i * BN`",
        )
    if len(entries) > len(dims):
        raise CoordinateError(
            f"the coordinate has {len(entries)} entries, {copy_tensor(copy)} has {len(dims)} dimension(s)",
            "write one entry for each dimension, leave out trailing ones that are taken whole",
        )
    left = list(extents)
    found: list[Place] = []
    for n, dim in enumerate(dims):
        entry = entries[n] if n < len(entries) else None
        if entry is not None and entry.axis is None:
            found.append(Place("index", entry.start))
            continue
        if not left:
            raise CoordinateError(
                f"the shape has {len(extents)} extent(s), the coordinate asks for more",
                "give one extent for each named or whole dimension",
            )
        size = left.pop(0)
        if entry is None:
            found.append(Place("whole", num(0), dim, size))
        else:
            found.append(Place("axis", entry.start, entry.axis or dim, size, entry.stop, entry.at))
    if left:
        raise CoordinateError(
            f"the shape has {len(extents)} extents, the coordinate names {len(extents) - len(left)}",
            "name each axis of the tile in the coordinate, as `q = block * BM`; a single number needs no Copy: "
            f"`{copy_tensor(copy)}[head]` in an expression reads it",
        )
    gathered = {p.axis: p.size for p in found if p.at is not None}
    return [_along(p, gathered) if p.kind == "index" and gathered else p for p in found]


def _along(place: Place, gathered: Mapping[str, int]) -> Place:
    """Say which axis an index varies along: `[Table[batch, k // Page], k = i * BN at k % Page]`."""
    axes = sorted(names_in(place.start) & gathered.keys())
    return replace(place, along=axes[0], size=gathered[axes[0]]) if axes else place


def copy_tensor(copy: s.Copy) -> str:
    """Give the name of the global tensor a Copy touches."""
    return copy.name if copy.source == "global" else copy.to_name or copy.name


def copy_target(copy: s.Copy) -> str:
    """Give the name of what a Copy fills."""
    return copy.to_name or copy.name

"""How wide a tile is for a head dim: whole steps of the tensor cores; what lies past the head dim reads as 0 (rule 4).

Padding is in the tile alone, never in memory. A head dim that is whole steps needs none, and its axis is taken whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_attention.author.planner.reason import Reason
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.layout import PIECES, UNIT_BYTES, completed, swizzle_for

HEAD_DIMS = range(32, 257, 8)  # 8 elements are 16 bytes, the unit of copies; a tile of 256 columns is wgmma's widest
MMA_STEP = 16  # summed elements of mma m16n8k16 and of wgmma
ELEMENT_BYTES = 2
CHUNK_BYTES = 16  # of cp.async and ldmatrix
MOST_LANES = PIECES[0] // CHUNK_BYTES


@dataclass(frozen=True)
class Width:
    """A head dim as the program names it: `D = 40`, in tiles `BD = 48` wide."""

    size: str  # "D", "Dqk" or "Dv"
    elements: int

    @property
    def padded(self) -> int:
        """Give the tile's columns."""
        return padded(self.elements)

    @property
    def whole(self) -> bool:
        """Tell whether the tile is as wide as the tensor."""
        return self.padded == self.elements

    @property
    def tile(self) -> str:
        """Name the tile's columns."""
        return self.size if self.whole else f"B{self.size}"

    @property
    def dim(self) -> s.Dim:
        """Give the columns of a Copy's shape."""
        return s.Dim(s.Name(self.tile))

    @property
    def register_dim(self) -> s.Dim:
        """Give the columns of an Allocate, with the name of their axis."""
        return s.Dim(s.Name(self.tile), None if self.whole else self.axis)

    @property
    def axis(self) -> str:
        """Name the axis of the columns, as `d` for D."""
        return self.size.lower()

    @property
    def coordinate(self) -> tuple[s.Coordinate, ...]:
        """Give what a Copy's coordinate says of the columns: nothing where they are taken whole."""
        return () if self.whole else (s.Coordinate(s.Num(0), self.axis),)


def padded(head_dim: int) -> int:
    """Give the columns of a tile for a head dim."""
    return -(-head_dim // MMA_STEP) * MMA_STEP


def row_elements(head_dim: int) -> int:
    """Give the elements that a tile's row takes in shared memory: whole swizzled pieces."""
    row = padded(head_dim) * ELEMENT_BYTES
    return completed(row, swizzle_for(row)) // ELEMENT_BYTES


def copying_lanes(head_dim: int) -> int:
    """Count the threads that copy a row side by side: one for each 16 bytes of a swizzled piece."""
    return (swizzle_for(padded(head_dim) * ELEMENT_BYTES) or UNIT_BYTES) // CHUNK_BYTES


def widths(spec: AttentionSpec) -> tuple[Width, Width]:
    """Give the widths of queries and keys, and of values; one and the same where both head dims are equal."""
    if spec.Dqk == spec.Dv:
        return (Width("D", spec.Dqk),) * 2
    return Width("Dqk", spec.Dqk), Width("Dv", spec.Dv)


def nearest_head_dims(value: int) -> tuple[int, int]:
    """Give the head dims next to one that is not supported, below and above; twice the same beyond the ends."""
    held = min(max(value, HEAD_DIMS[0]), HEAD_DIMS[-1])
    below = held // HEAD_DIMS.step * HEAD_DIMS.step
    return below, below if below == held else below + HEAD_DIMS.step


def reasons_for(spec: AttentionSpec) -> list[Reason]:
    """Give the reason for each tile that is wider than its tensor."""
    return [
        Reason(w.tile, str(w.padded), _why(w), {"columns": w.elements, "padding": w.padded - w.elements})
        for w in dict.fromkeys(widths(spec))
        if not w.whole
    ]


def tile_line(w: Width) -> str:
    """Write the Tile statement of a width."""
    return f"Tile {w.tile} = {w.padded}  # {_why(w)}"


def _why(w: Width) -> str:
    return f"{w.size} in whole MMA steps of {MMA_STEP}; the tile holds 0 from column {w.elements} on, memory no padding"

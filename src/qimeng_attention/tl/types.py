"""What the checker knows of a program: the types of its tensors and tiles, and the checked program itself.

Only a `Checked` program is scheduled, interpreted as a kernel or translated: every size, space and layout is in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.layout import completed
from qimeng_attention.tl.numerics import BYTES

# The role of a register tile that no MMA reads: rows in pieces of 16 bytes, on their way to shared memory.
PIECES = "PIECES"


@dataclass(frozen=True, slots=True)
class Axis:
    """A tile's axis: what it counts, and how many elements of it the tile holds."""

    name: str
    size: int


def same_axes(a: tuple[Axis, ...], b: tuple[Axis, ...]) -> bool:
    """Tell whether axes agree in name and size; an extent of 0 is one that a finding speaks of already."""
    return [x.name for x in a] == [x.name for x in b] and same_sizes(a, b)


def same_sizes(a: tuple[Axis, ...], b: tuple[Axis, ...]) -> bool:
    """Tell whether axes of one number agree in size."""
    return len(a) == len(b) and all(0 in (x.size, y.size) or x.size == y.size for x, y in zip(a, b, strict=True))


@dataclass(frozen=True, slots=True)
class TileType:
    """A tile in shared memory or registers; a register tile has the role of an MMA fragment (C until Reshape), or lies
    in PIECES."""

    name: str
    space: str
    dtype: str
    axes: tuple[Axis, ...]
    role: str = "MMA_C"
    stages: int = 1
    swizzle: int | None = None
    view: str | None = None
    over: str | None = None
    init: s.Expr | None = None
    contiguous: str | None = None  # the axis whose elements lie side by side; None: the last

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Give the names of the axes in order."""
        return tuple(a.name for a in self.axes)

    @property
    def elements(self) -> int:
        """Count the elements of one stage."""
        count = 1
        for a in self.axes:
            count *= a.size
        return count

    @property
    def bytes(self) -> int:
        """Count the bytes of all stages; a swizzled row takes whole pieces."""
        row = self.row_elements * BYTES[self.dtype]
        if self.swizzle is None or not row:
            return self.elements * self.stages * BYTES[self.dtype]
        return self.elements // self.row_elements * completed(row, self.swizzle) * self.stages

    @property
    def row_elements(self) -> int:
        """Count the elements that lie side by side."""
        return next((a.size for a in self.axes if a.name == self.contiguous), self.axes[-1].size)

    def describe(self) -> str:
        """Write the type as a diagnostic shows it."""
        return f"({', '.join(f'{a.size} {a.name}' for a in self.axes)}) {self.dtype}"


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor in global memory; `dims` are expressions of sizes, strides come with each call (the last is 1)."""

    name: str
    dtype: str
    dims: tuple[s.Expr, ...]
    axis_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tile's axis begins (a global index), and where its valid part ends, if anywhere."""

    start: s.Expr
    limit: s.Expr | None = None


@dataclass(frozen=True)
class Checked:
    """A program that the checker has passed, with all it inferred.

    `kernel` has macros and word operators written out; `fixed` maps sizes and tile sizes to numbers.
    """

    kernel: s.Kernel
    level: str  # "code" or "scheduled"
    sizes: tuple[str, ...]  # run-time sizes, in order of declaration
    fixed: dict[str, int]
    scalars: dict[str, s.Scalar]
    tensors: dict[str, TensorType]
    tiles: dict[str, TileType]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    grid: s.Grid
    target: str | None = None
    warps: int = 4
    warp_axis: str = ""
    blocks_per_sm: int | None = None
    warnings: tuple[object, ...] = field(default=())

    @property
    def chosen(self) -> dict[str, s.Expr]:
        """Give the run-time sizes that a launcher works out, each with its expression of other sizes."""
        return {n.name: n.value for n in self.kernel.body if isinstance(n, s.Choose)}

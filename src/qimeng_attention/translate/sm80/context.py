"""What the lowerings share while one kernel is emitted: types in C++, places of tiles, and the lines so far."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from qimeng_attention.errors import Diagnostic, Span
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.budget import THREADS_A_WARP
from qimeng_attention.tl.layout import swizzle_for
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.origins import Places, origins_at
from qimeng_attention.tl.printer import head
from qimeng_attention.tl.scope import LANE
from qimeng_attention.tl.traverse import statements
from qimeng_attention.tl.types import PIECES, Checked, TileType
from qimeng_attention.translate import names
from qimeng_attention.translate.expressions import Cpp, NoLowering
from qimeng_attention.translate.writer import Writer

ALIGNMENT = 1024  # bytes; eight rows of 128, the unit that a swizzle over 128 bytes permutes
ROWS_A_FRAGMENT = 16
WIDEST_SWIZZLE = 128  # bytes
CHUNK_BYTES = 16  # of each exchange, and of each copy by a thread
FUNCTIONS = {
    "exp": "tl::exp",
    "exp2": "tl::exp2",
    "exp2_fma": "tl::exp2_fma",
    "ln": "tl::log",
    "log2": "tl::log2",
    "tanh": "tl::tanh",
    "tanh_approx": "tl::tanh_approx",
    "sigmoid": "tl::sigmoid",
    "softplus": "tl::softplus",
    "sqrt": "tl::sqrt",
    "rsqrt": "tl::rsqrt",
    "abs": "tl::abs",
    "min": "tl::min",
    "max": "tl::max",
    "clamp": "tl::clamp",
    "ceildiv": "tl::ceildiv",
    "where": "? :",
    "RowMax": "tl::quad_max",
    "RowSum": "tl::quad_sum",
    "LaneSum": "",
}
INTERNAL = {"reciprocal": "tl::reciprocal"}  # what lowerings make of `/`


class Refused(Exception):
    """A statement in a form that this generation has no lowering for."""

    def __init__(self, n: s.Statement, message: str, hint: str) -> None:
        super().__init__(message)
        self.diagnostic = Diagnostic("TL701", message, hint, n.span if n.span.line else Span(1, 1, 1))


class Lowering:
    """The state of one emission."""

    header = "memory.cuh"  # of the prelude
    depth = ""  # the template argument of products that are not made of m16n8k16

    def __init__(self, checked: Checked, target: Target, lower: Callable[[s.Statement, Lowering], None]) -> None:
        self.checked, self.target, self._lower = checked, target, lower
        self.out = Writer()
        self.threads = checked.warps * THREADS_A_WARP
        trace = origins_at(checked)
        self._places = {id(n): trace[i] for i, n in enumerate(statements(checked.kernel.body))}
        self.declared: set[str] = set()
        self.lets: set[str] = set()  # of the block, so far
        self.held: dict[tuple[object, ...], str] = {}  # elements of tensors that registers hold here (loads.py)
        self.loads = 0  # held so far
        self.inside: frozenset[tuple[s.Expr, s.Expr]] = frozenset()  # loop variables and dimensions they never leave
        self.behind: tuple[s.Statement, ...] = ()  # what stands behind the present statement in its body
        self.views: dict[tuple[object, ...], str] = {}  # a tensor at fixed indices: the name of its pointer

    # -------------------------------------------------------------- statements
    def body(
        self, body: tuple[s.Statement, ...], before: Callable[[s.Statement, Lowering], None] | None = None
    ) -> None:
        """Emit statements, each under the mark of its line; a tile is declared where its uses begin."""
        held = dict(self.held)
        for position, n in enumerate(body):
            if before is not None:
                before(n, self)
            for name in self.first_uses(body, position):
                self.out.line(f"{self.register_type(name, n)} {names.register(name)};")
                self.declared.add(name)
            if not isinstance(n, s.Size | s.Choose | s.Tile | s.Scalar | s.Grid | s.Warps | s.Allocate):
                self.out.mark(n.span.line, head(n))
            self.behind = body[position + 1 :]
            self._lower(n, self)
        self.held = held

    def first_uses(self, body: tuple[s.Statement, ...], position: int) -> list[str]:
        """Give the register tiles whose uses all lie in this body and begin at this statement."""
        touched = [_touched(x) for x in body]
        earlier = set().union(*touched[:position]) if position else set()
        here = touched[position] - earlier - self.declared
        tiles = {n for n in here if n in self.checked.tiles and self.checked.tiles[n].space == "register"}
        return sorted(n for n in tiles if self._belongs(n, body, position, touched))

    def _belongs(self, name: str, body: tuple[s.Statement, ...], position: int, touched: list[set[str]]) -> bool:
        """A tile used by one block only is declared inside of it; one used by several statements here, here."""
        n = body[position]
        single = sum(name in t for t in touched) == 1
        return not (single and isinstance(n, s.For | s.If))

    def places(self, n: s.Statement) -> Places:
        """Give where every tile lies before a statement."""
        return self._places[id(n)]

    # -------------------------------------------------------------- types
    @cached_property
    def row_axis(self) -> str:
        """Name the axis that the warps divide."""
        return self.checked.warp_axis

    def warp_rows(self, tile: TileType, n: s.Statement) -> int:
        """Give the rows of a register tile that one warp owns."""
        rows = tile.axes[0]
        if not self.row_axis:
            raise self._undivided(tile, n)
        if rows.name != self.row_axis:
            raise Refused(
                n,
                f"the rows of {tile.name} run along {rows.name}, the warps divide {self.row_axis}",
                "let all accumulators have the same rows",
            )
        if rows.size % (self.checked.warps * ROWS_A_FRAGMENT):
            raise Refused(
                n,
                f"{rows.size} rows do not divide into {self.checked.warps} "
                f"warps of a multiple of {ROWS_A_FRAGMENT} rows",
                "take fewer warps, or a taller tile",
            )
        return rows.size // self.checked.warps

    def _undivided(self, tile: TileType, n: s.Statement) -> Refused:
        """Make the refusal of a program that no schedule line gave warps."""
        axis = tile.axes[0].name
        roles = f"`roles producer (24 registers), consumer (2 along {axis}, 240 registers)` or "
        return Refused(
            n,
            f"the rows of {tile.name} run along {axis}, which no line of the Schedule divides",
            f"add {roles if 'wgmma' in self.target.capabilities else ''}`warps 4 along {axis}` to the Schedule",
        )

    def row_at(self, tile: TileType, n: s.Statement) -> str:
        """Write the row of the block's tile that holds fragment row r."""
        return f"tl::tile_row<{self.warp_rows(tile, n)}>(r)"

    def register_type(self, name: str, n: s.Statement) -> str:
        """Write the C++ type of a register tile."""
        tile = self.checked.tiles[name]
        if tile.role == PIECES:
            rows, columns = (a.size for a in tile.axes)
            span = swizzle_for(columns * BYTES[tile.dtype])
            swizzle = "" if span in (None, WIDEST_SWIZZLE) else f", {span}"
            return f"tl::Pieces<{names.ELEMENTS[tile.dtype]}, kThreads, {rows}, {columns}{swizzle}>"
        if len(tile.axes) == 1 and tile.axes[0].name != self.row_axis:
            return f"tl::ColVector<{tile.axes[0].size}>"
        rows = self.warp_rows(tile, n)
        if len(tile.axes) == 1 or tile.axis_names[1] == LANE:
            return f"tl::RowVector<{rows}>"
        columns = tile.axes[1].size
        if columns % ROWS_A_FRAGMENT:
            raise Refused(n, f"{columns} columns of {name} are no multiple of {ROWS_A_FRAGMENT}", "take a wider tile")
        if tile.role == "MMA_A":
            return f"tl::Operand<{names.ELEMENTS[tile.dtype]}, {rows}, {columns}>"
        return f"tl::Accumulator<{rows}, {columns}>"

    def shared_type(self, tile: TileType) -> str:
        """Write the C++ type of a tile in shared memory."""
        return f"tl::SharedTile<{self.shared_parameters(tile)}>"

    @staticmethod
    def shared_parameters(tile: TileType) -> str:
        """Write the template arguments of a tile in shared memory; its rows are swizzled over 128 bytes unless said."""
        rows, columns = (a.size for a in tile.axes)
        swizzle = "" if tile.swizzle == WIDEST_SWIZZLE else f", {tile.swizzle}"
        return f"{names.ELEMENTS[tile.dtype]}, {rows}, {columns}{swizzle}"

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Give the byte offset of every tile in shared memory; a tile over another begins where that one does."""
        offsets: dict[str, int] = {}
        end = 0
        for tile in self.checked.tiles.values():
            if tile.space == "shared" and tile.over is None and tile.view is None:
                offsets[tile.name] = end
                end += -(-tile.bytes // ALIGNMENT) * ALIGNMENT
        for tile in self.checked.tiles.values():
            if tile.space == "shared" and tile.over is not None:
                offsets[tile.name] = offsets[tile.over]
        self._shared_end = end
        return offsets

    @property
    def shared_bytes(self) -> int:
        """Count the bytes of shared memory that a launch must ask for."""
        _ = self.offsets
        return self._shared_end

    # -------------------------------------------------------------- expressions
    def integer(self, e: s.Expr, n: s.Statement) -> str:
        """Write an integer expression of the block."""
        return self.expression(Cpp(self.checked, FUNCTIONS), e, n)

    def expression(self, cpp: Cpp, e: s.Expr, n: s.Statement) -> str:
        """Write an expression, or refuse the statement it belongs to."""
        cpp.inside = self.inside
        try:
            return cpp(e)
        except NoLowering as missing:
            raise Refused(
                n, f"{self.target.arch} has no lowering of {missing} here", "write it with other functions"
            ) from None

    def shared_at(self, name: str, slot: s.Expr | None, n: s.Statement) -> str:
        """Name a stage of a shared tile."""
        if slot is None:
            return names.shared(name)
        return f"tl::stage({names.shared(name)}, {self.integer(slot, n)})"


Lowerings = dict[str, Callable[[Any, Lowering], None]]


def _touched(n: s.Statement) -> set[str]:
    """Give every tile a statement reads or writes, inside its block too."""
    from qimeng_attention.tl.traverse import names_in

    found: set[str] = set()
    for x in statements((n,)):
        found |= names_in(x)
        match x:
            case s.Gemm():
                found |= {x.a.name, x.b.name, x.out}
            case s.Mask():
                found.add(x.tile)
            case s.Compute():
                found.add(x.out)
            case s.Reshape():
                found |= {x.name, x.out or x.name}
            case s.Copy():
                found |= {x.name, x.to_name or x.name}
    return found

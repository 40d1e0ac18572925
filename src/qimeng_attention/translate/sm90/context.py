"""What the lowerings for roles share: tiles of warpgroups, the use of rings, and GEMMs under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.budget import THREADS_A_WARP
from qimeng_attention.tl.coordinates import Place, copy_target, copy_tensor, places
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.traverse import add, map_expressions, mul, names_in, num, statements, sub
from qimeng_attention.tl.types import Checked, TensorType, TileType
from qimeng_attention.translate import names
from qimeng_attention.translate.abi import TensorMap
from qimeng_attention.translate.sm80.context import WIDEST_SWIZZLE, Lowering, Refused
from qimeng_attention.translate.sm80.copy import nonnegative, reaches_past

GROUP_THREADS = 4 * THREADS_A_WARP
MOST_GROUPS = 7  # named barriers 9 to 15 (sm90.cuh); PTX has 16
GROUP_ROWS = 64  # of a register tile: wgmma's m
MOST_BOX_ROWS = 256  # of a box; CUDA driver API, cuTensorMapEncodeTiled
RANK = 4
QUEUE_BYTES = 24  # of the tile queue: two barriers and the tile
RING_BYTES = 16  # of a stage: the barriers that say full and empty


@dataclass(frozen=True)
class RoleGroups:
    """A role, and the warpgroups of a block that run it."""

    role: s.Role
    first: int  # the role's first warpgroup
    count: int


class GroupLowering(Lowering):
    """The state of one emission of a kernel made of roles."""

    def __init__(self, checked: Checked, target: Target, lower: Callable[[s.Statement, Lowering], None]) -> None:
        super().__init__(checked, target, lower)
        self.roles = list(self._roles())
        self.threads = GROUP_THREADS * sum(r.count for r in self.roles)
        self.role: RoleGroups | None = None
        self.in_flight: list[str] = []  # results of asynchronous GEMMs, oldest first
        self.openings: dict[int, str] = {}  # a line at the start of a body, by the body's identity
        self.latest: str | None = None  # the row vector computed last while GEMMs are under way

    def body(
        self, body: tuple[s.Statement, ...], before: Callable[[s.Statement, Lowering], None] | None = None
    ) -> None:
        """Emit statements, behind the line that opens them if there is one."""
        if id(body) in self.openings:
            self.out.line(self.openings[id(body)])
        super().body(body, before)

    def _roles(self) -> Iterator[RoleGroups]:
        first = 0
        for n in self.checked.kernel.body:
            if isinstance(n, s.Role):
                ends = (
                    (0, 1)
                    if n.range is None
                    else tuple(integer(e, self.checked.fixed) for e in (n.range.start, n.range.stop))
                )
                yield RoleGroups(n, first, ends[1] - ends[0])
                first += ends[1] - ends[0]

    # -------------------------------------------------------------- tiles
    @cached_property
    def row_axis(self) -> str:
        """Name the axis of the accumulators' rows."""
        for n in statements(self.checked.kernel.body):
            if isinstance(n, s.Gemm):
                return self.checked.tiles[n.out].axes[0].name
        return ""

    def warp_rows(self, tile: TileType, n: s.Statement) -> int:
        """Give the rows of a warpgroup's tile that one warp owns."""
        rows = tile.axes[0]
        if rows.name != self.row_axis or rows.size != GROUP_ROWS:
            raise Refused(
                n,
                f"{tile.name} has {rows.size} rows along {rows.name}, a warpgroup's tile has {GROUP_ROWS} "
                f"along {self.row_axis}",
                f"let each instance of a role own {GROUP_ROWS} rows",
            )
        return GROUP_ROWS // 4

    def row_at(self, tile: TileType, n: s.Statement) -> str:
        """Write the row of the group's tile that holds fragment row r."""
        self.warp_rows(tile, n)
        return "tl::group_row(r)"

    def shared_type(self, tile: TileType) -> str:
        """Write the C++ type of a tile in shared memory."""
        return f"tl::PanelTile<{self.shared_parameters(tile)}>"

    def shared_at(self, name: str, slot: s.Expr | None, n: s.Statement) -> str:
        """Name a stage of a shared tile: the one said, or that of the ring's present use."""
        if slot is None and name in self.rings and self.checked.tiles[name].stages > 1:
            return f"tl::stage({names.shared(name)}, {ring(name)}.slot({uses(name)}))"
        return super().shared_at(name, slot, n)

    # -------------------------------------------------------------- rings
    @cached_property
    def rings(self) -> dict[str, int]:
        """Give the rings, in order of their tiles, with the number of warpgroups that release each."""
        copies = [n for n in statements(self.checked.kernel.body) if isinstance(n, s.Copy)]
        signalled = {n.signals.split(".")[0] for n in copies if n.signals is not None}
        found = {}
        for tile in self.checked.tiles:
            if tile in signalled:
                found[tile] = sum(
                    r.count
                    for r in self.roles
                    if any(isinstance(n, s.Release) and n.ring == tile for n in statements(r.role.body))
                )
        return found

    @property
    def barriers_at(self) -> int:
        """Give the byte offset of the rings' barriers."""
        return super().shared_bytes

    @property
    def shared_bytes(self) -> int:
        """Count the bytes of shared memory that a launch must ask for: the tiles, then the barriers."""
        stages = sum(self.checked.tiles[r].stages for r in self.rings)
        queue = QUEUE_BYTES if self.checked.grid.counter else 0
        return self.barriers_at + RING_BYTES * stages + queue

    # -------------------------------------------------------------- the copy engine
    @cached_property
    def maps(self) -> list[TensorMap]:
        """Give the tensor maps that the kernel takes, in order of first use."""
        found: dict[TensorMap, None] = {}
        for n in statements(self.checked.kernel.body):
            if isinstance(n, s.Copy) and is_bulk(n):
                found[self.map_of(n)] = None
        return list(found)

    def map_of(self, n: s.Copy) -> TensorMap:
        """Give the tensor map of a Copy by the copy engine, or refuse what the engine cannot move."""
        tensor = self.checked.tensors[copy_tensor(n)]
        found = places(n, [integer(d.size, self.checked.fixed) for d in n.dims], tensor.axis_names)
        moving = [d for d, p in enumerate(found) if p.kind != "index"]
        last = len(tensor.dims) - 1
        ragged = self.ragged_place(n, found) is not None
        if (
            len(tensor.dims) != RANK - ragged
            or len(moving) != 2
            or moving[1] != last
            or not self._whole_rows(found, tensor)
        ):
            raise Refused(
                n,
                f"the copy engine takes whole rows of a tensor with {RANK - ragged} dimensions here",
                "tile one dimension and take the last one whole, or from 0 on to its end and past it",
            )
        if found[moving[0]].size > MOST_BOX_ROWS:
            raise Refused(
                n, f"a tile of {found[moving[0]].size} rows is more than {MOST_BOX_ROWS}", "take a lower tile"
            )
        box = [1] * len(tensor.dims)
        tile = self.checked.tiles[n.name if n.target == "global" else copy_target(n)]
        box[moving[0]], box[last] = found[moving[0]].size, (tile.swizzle or WIDEST_SWIZZLE) // BYTES[tile.dtype]
        if ragged:
            return TensorMap(tensor.name, tuple(box), moving[0], ragged=True)
        if found[moving[0]].stop is None:
            return TensorMap(tensor.name, tuple(box))
        return TensorMap(tensor.name, tuple(box), moving[0], self._group(n, tensor, moving[0], found[moving[0]])[1])

    def ragged_place(self, n: s.Copy, found: list[Place]) -> Place | None:
        """Give the rows of a Copy whose place in memory stands behind `at`, and which end where it says."""
        placed = [p for p in found if p.at is not None]
        if not placed:
            return None
        at, stop = placed[0].at, placed[0].stop
        assert at is not None
        least = map_expressions(at, lambda e: num(0) if e in self._counted_down.get(id(n), ()) else e)
        if len(placed) > 1 or placed[0].axis in names_in(at) or stop is None or not nonnegative(least, self):
            raise Refused(
                n,
                "the copy engine takes rows behind `at` where they lie side by side, begin within the tensor, and end "
                "where the coordinate says",
                "write `k = i * BN : Sk at start + i * BN`, with a start that is never negative: clamp(start, 0, T)",
            )
        return placed[0]

    @cached_property
    def _counted_down(self) -> dict[int, tuple[s.Expr, ...]]:
        """Give for each statement under `if i > first`, of a first that is never negative, the `i - 1` that is none."""
        found: dict[int, tuple[s.Expr, ...]] = {}
        for n in statements(self.checked.kernel.body):
            match n:
                case s.If(s.Compare((s.Name() as i, first), (">",)), body) if nonnegative(first, self):
                    for x in statements(body):
                        found[id(x)] = (*found.get(id(x), ()), sub(i, num(1)))
        return found

    def group_index(self, n: s.Copy) -> s.Expr | None:
        """Give which group of rows a Copy takes, None where it has no end of its own."""
        tensor = self.checked.tensors[copy_tensor(n)]
        found = places(n, [integer(d.size, self.checked.fixed) for d in n.dims], tensor.axis_names)
        bounded = [(d, p) for d, p in enumerate(found) if p.stop is not None]
        return self._group(n, tensor, *bounded[0])[0] if bounded else None

    def _group(self, n: s.Copy, tensor: TensorType, dimension: int, place: Place) -> tuple[s.Expr, int]:
        """Match `x * G : (x + 1) * G` along a dimension of groups of G rows: the group x, and G."""
        match place.start, tensor.dims[dimension]:
            case s.Binary("*", x, s.Name(size)), s.Binary("*", _, s.Name(grouped)) if (
                size == grouped and place.stop == mul(add(x, num(1)), s.Name(size)) and size in self.checked.fixed
            ):
                return x, self.checked.fixed[size]
        raise Refused(
            n,
            "the copy engine ends a tile within a tensor only where groups of rows do",
            "write `x * G : (x + 1) * G` along a dimension `N * G`, with G compiled in",
        )

    def _whole_rows(self, found: list[Place], tensor: TensorType) -> bool:
        return found[-1].kind == "whole" or reaches_past(found[-1], tensor, self)


def is_bulk(n: s.Copy) -> bool:
    """Tell whether a Copy is one of the copy engine's."""
    return n.signals is not None or (n.asynchronous and n.target == "global")


def ring(name: str) -> str:
    """Name a ring."""
    return f"{name}_ring"


def uses(name: str) -> str:
    """Name the count of a role's uses of a ring."""
    return f"{name}_uses"

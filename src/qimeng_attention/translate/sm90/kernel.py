"""The frame of a kernel made of roles: arguments, the grid, tiles and barriers in shared memory, one branch a role."""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.printer import head
from qimeng_attention.translate.sm80 import kernel as frame
from qimeng_attention.translate.sm80.context import Lowerings, Refused
from qimeng_attention.translate.sm90.context import GROUP_THREADS, MOST_GROUPS, GroupLowering, ring
from qimeng_attention.translate.sm90.roles import emit_role, issues


def emit(low: GroupLowering, digest: str) -> None:
    """Emit the whole kernel."""
    checked, out = low.checked, low.out
    if low.threads > MOST_GROUPS * GROUP_THREADS:
        raise Refused(
            low.roles[-1].role,
            f"{low.threads // GROUP_THREADS} warpgroups need more named barriers than a block has",
            f"take at most {MOST_GROUPS}",
        )
    frame.title(low, digest, "sm90.cuh")
    out.line(f'extern "C" __global__ void __launch_bounds__({low.threads}, 1) {checked.kernel.name}(')
    frame.arguments(low, _more_arguments(low))
    with out.block(")"):
        frame.fixed_sizes(low)
        _grid(low)
        frame.shared_tiles(low)
        _rings(low)
        out.line("int const group = tl::group_index();")
        rest = tuple(n for n in checked.kernel.body if not isinstance(n, s.Role))
        low.body(rest)
        for number, instance in enumerate(low.roles):
            out.line()
            emit_role(low, instance, first=number == 0)


def _more_arguments(low: GroupLowering) -> list[str]:
    maps = [f"__grid_constant__ tl::TensorMap const {m.name}" for m in low.maps]
    return [*maps, *(["int* __restrict__ const tile_counter"] if low.checked.grid.counter else [])]


def _grid(low: GroupLowering) -> None:
    """Count the tiles of a persistent grid; each block takes them in turn."""
    grid, out = low.checked.grid, low.out
    if not grid.persistent:
        frame.block_indices(low)
        return
    out.mark(grid.span.line, head(grid))
    for d in grid.dims:
        start = low.integer(d.start, grid)
        count = low.integer(d.stop, grid) + ("" if start == "0" else f" - ({start})")
        out.line(f"int const {d.name}_count = {count};")
    for d in grid.dims[:-1]:
        out.line(f"tl::Divisor const {d.name}_divisor({d.name}_count);")
    out.line(f"int const tiles = {' * '.join(f'{d.name}_count' for d in grid.dims)};")


def _rings(low: GroupLowering) -> None:
    out, at = low.out, low.barriers_at
    out.line("// the rings' barriers: full by one copy, empty when every warpgroup that reads has released")
    out.line(f"uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared_memory + {at});")
    passed = 0
    for name in low.rings:
        stages = low.checked.tiles[name].stages
        out.line(f"tl::Ring<{stages}> const {ring(name)}{{barriers + {passed}}};")
        passed += 2 * stages
    readers = 4 * sum(r.count for r in low.roles if not issues(r.role))  # each warp says that it has read
    if low.checked.grid.counter:
        if sum(issues(r.role) for r in low.roles) != 1:
            raise Refused(
                low.checked.grid,
                "tiles by counter are handed out by the one role that only starts copies",
                "let one role start all copies, or write `persistent` alone",
            )
        out.line(f"int volatile* const tile_slot = reinterpret_cast<int volatile*>(barriers + {passed + 2});")
        out.line(f"tl::TileQueue const tile_queue{{barriers + {passed}, tile_slot, tile_counter}};")
    with out.block("if (threadIdx.x == 0)"):
        if low.checked.grid.counter:
            out.line(f"tile_queue.init({readers});")
        for name, consumers in low.rings.items():
            out.line(f"{ring(name)}.init({consumers});")
    out.line("tl::rings_are_ready();")


def _nothing(n: s.Statement, low: object) -> None:
    """Roles are emitted by the frame."""


LOWERINGS: Lowerings = {**frame.LOWERINGS, "role": _nothing}

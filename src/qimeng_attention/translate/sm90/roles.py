"""Roles, the tiles of a persistent block, rings, turns and barriers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.functions import LANES_A_ROW
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.printer import head
from qimeng_attention.tl.traverse import names_in, statements
from qimeng_attention.translate import names
from qimeng_attention.translate.sm80 import control
from qimeng_attention.translate.sm80.context import Lowering, Lowerings, Refused
from qimeng_attention.translate.sm80.kernel import find_line
from qimeng_attention.translate.sm80.loads import hold_columns
from qimeng_attention.translate.sm90.context import GROUP_THREADS, GroupLowering, RoleGroups, ring, uses

_REGISTERS = 65_536  # of a multiprocessor; each role's share is a multiple of 8
_OTHER_REGISTERS = 40  # addresses, row values, what is computed: with 16 fewer, ptxas spilled 32 bytes
_ITERATIONS_TO_ASK = 3  # one waits for a stage longer than an answer takes, about a microsecond
_ISSUING = (s.For, s.If, s.Let, s.Find, s.Copy, s.Wait)  # what one thread can do alone


def emit_role(low: GroupLowering, instance: RoleGroups, first: bool) -> None:
    """Emit one role: a branch that its warpgroups take."""
    role, out = instance.role, low.out
    out.mark(role.span.line, head(role))
    low.role, low.in_flight = instance, []
    condition = f"group < {instance.first + instance.count}"
    last = instance.first + instance.count == low.threads // GROUP_THREADS
    opening = "else" if last and not first else f"{'' if first else 'else '}if ({condition})"
    with out.block(opening):
        _registers(low, role)
        if role.var is not None and role.range is not None:
            start = integer(role.range.start, low.checked.fixed) - instance.first
            offset = "" if start == 0 else f" {'+' if start > 0 else '-'} {abs(start)}"
            out.line(f"int const {names.variable(role.var)} = {_group(low, role)}{offset};")
        _counters(low, role)
        if any(isinstance(n, s.PassTurn) for n in statements(role.body)):
            out.line(f"tl::open_turns<{instance.count}>({_number(instance)});")
        before = set(low.declared)
        if issues(role):
            out.line("// one thread waits and starts copies")
            with out.block("if (tl::leads_group())"):
                low.body(role.body)
        else:
            low.body(role.body)
        low.declared = before
    low.role = None


def _group(low: GroupLowering, role: s.Role) -> str:
    """Write a warpgroup's index. Where a role loads its bounds it is worked out from the thread's at each use: held, it
    was the value that ptxas kept in memory (documents, D = 128: 4 bytes), at the same speed."""
    loads = any(isinstance(n, s.Let) and names_in(n.value) & low.checked.tensors.keys() for n in statements(role.body))
    return f"int(threadIdx.x) / {GROUP_THREADS}" if loads else "group"


def _number(instance: RoleGroups) -> str:
    """Write which instance of its role a warpgroup is, from 0."""
    return "group" if instance.first == 0 else f"group - {instance.first}"


def issues(role: s.Role) -> bool:
    """Tell whether a role only waits and starts copies by the copy engine: one thread does that."""
    inside = list(statements(role.body))
    return all(isinstance(n, _ISSUING) for n in inside) and all(
        n.signals is not None for n in inside if isinstance(n, s.Copy)
    )


def _registers(low: GroupLowering, role: s.Role) -> None:
    if role.registers is None:
        return
    wanted = integer(role.registers, low.checked.fixed)
    had = _REGISTERS // low.threads // 8 * 8
    if wanted != had:
        low.out.line(f"tl::{'give' if wanted < had else 'take'}_registers<{wanted}>();")


def _counters(low: GroupLowering, role: s.Role) -> None:
    """Declare how often this role has used each ring: from it follow the stage and the barrier's phase."""
    inside = list(statements(role.body))
    touched = {n.ring for n in inside if isinstance(n, s.Wait | s.Release) and n.ring is not None}
    for name in low.rings:
        if name in touched:
            low.out.line(f"int {uses(name)} = 0;")


# ------------------------------------------------------------------ statements


def _for(n: s.For, low: Lowering) -> None:
    if n.ranges:
        _settled(n, low, control.LOWERINGS["for"])
        return
    assert isinstance(low, GroupLowering)
    assert low.role is not None
    before, var = set(low.declared), names.variable(n.var)
    if not low.checked.grid.counter:
        head = f"int {var}_round = 0, {var} = int(blockIdx.x); {var} < tiles; {var} = tl::tile_of_round(++{var}_round)"
        with low.out.block(f"for ({head})"):
            _tile(n, var, low)
    elif issues(low.role.role):
        low.out.line(f"int {var} = int(blockIdx.x);")
        with low.out.block(f"for (int {var}_uses = 0;; ++{var}_uses)"):
            low.out.line(f"tile_queue.publish({var}, {var}_uses);")
            low.out.line(f"if ({var} >= tiles) break;")
            late = _ask_late(n, var, low)
            _tile(n, var, low)
            asked = f"({var}_taken < 0 ? tile_queue.take() : {var}_taken)" if late else "tile_queue.take()"
            low.out.line(f"{var} = int(gridDim.x) + {asked};")
        low.out.line("tile_queue.close();")
    else:
        with low.out.block(f"for (int {var}_uses = 0;; ++{var}_uses)"):
            low.out.line(f"int const {var} = tile_queue.read({var}_uses);")
            low.out.line(f"if ({var} >= tiles) break;")
            _tile(n, var, low)
    low.declared = before


def _ask_late(n: s.For, var: str, low: GroupLowering) -> bool:
    """Ask for the next tile a few iterations before the tile's last loop ends, so that the answer is there then.

    Whoever asks later gets a tile that fits better: blocks that are behind take fewer.
    """
    last = n.body[-1]
    while isinstance(last, s.If) and not last.orelse and last.body:  # a block that is skipped asks at its end
        last = last.body[-1]
    if not isinstance(last, s.For) or len(last.ranges) != 1 or last.down:
        return False
    low.out.line(f"int {var}_taken = -1;")
    stop = low.integer(s.Binary("-", last.ranges[0].stop, s.Num(_ITERATIONS_TO_ASK)), n)
    condition = f"{var}_taken < 0 && {names.variable(last.var)} >= {stop}"
    low.openings[id(last.body)] = f"if ({condition}) {var}_taken = tile_queue.take();"
    return True


def _tile(n: s.For, var: str, low: Lowering) -> None:
    """Emit the indices of one tile, the first of the grid fastest, and what is done with it."""
    out, grid, rest = low.out, low.checked.grid, f"{var}_rest"
    out.line(f"uint32_t {rest} = {var};")
    for d in grid.dims:
        index = f"int({rest})" if d is grid.dims[-1] else f"{d.name}_divisor.split({rest})"
        index = f"{d.name}_count - 1 - {index}" if d.down else index
        start = "" if d.start == s.Num(0) else f"{low.integer(d.start, n)} + "
        out.line(f"int const {names.variable(d.name)} = {start}{index};")
    low.body(n.body)


def _find(n: s.Find, low: Lowering) -> None:
    """A role of one thread searches alone; both find the same."""
    assert isinstance(low, GroupLowering)
    alone = low.role is not None and issues(low.role.role)
    low.out.line(find_line(n, low, "find_alone" if alone else "find"))


def _wait(n: s.Wait, low: Lowering) -> None:
    assert isinstance(low, GroupLowering)
    if n.ring is not None:
        low.out.line(f"{ring(n.ring)}.wait_{n.kind}({uses(n.ring)});")
        return
    if n.kind == "turn":
        low.out.line(f"tl::wait_turn({low.integer(n.count or s.Num(0), n)});")
        return
    if n.kind == "copies":
        raise Refused(n, "roles have no groups of copies", "let copies signal a ring")
    try:
        pending = integer(n.count or s.Num(0), low.checked.fixed)
    except (KeyError, ValueError):
        raise Refused(n, "how many may be left pending must be known at compile time", "write a number") from None
    if n.kind == "gemm":
        _load_ahead(low)
        low.out.line(_wait_gemm(low, pending))
        _landed(low, pending)
    else:
        low.out.line(f"tl::wait_{n.kind}<{pending}>();")


def _load_ahead(low: GroupLowering) -> None:
    """Load what the mask behind the wait reads of tensors: it needs no product, and arrives meanwhile.

    Each column takes a register, which a role without room for them would spill.
    """
    for n in low.behind:
        inside = n.body[0] if isinstance(n, s.If) and len(n.body) == 1 and not n.orelse else n
        if isinstance(inside, s.Mask):
            if _room(inside, low):
                hold_columns(inside, low)
            return
        if not isinstance(n, s.Release):
            return


def _room(n: s.Mask, low: GroupLowering) -> bool:
    """Tell whether the role's registers hold a column's element each beside the tiles, and all else."""
    assert low.role is not None
    registers = low.role.role.registers
    if registers is None:
        return False
    tiles = [t for t in low.checked.tiles.values() if t.space == "register" and len(t.axes) == 2]
    bits = sum(t.axes[0].size * t.axes[1].size * BYTES[t.dtype] for t in tiles)
    columns = low.checked.tiles[n.tile].axes[-1].size // LANES_A_ROW
    return bits // (4 * GROUP_THREADS) + columns + _OTHER_REGISTERS <= integer(registers, low.checked.fixed)


def _wait_gemm(low: GroupLowering, pending: int) -> str:
    """Wait where the program says: behind the row values that it computes first, while the product is under way."""
    if low.latest is None:
        return f"tl::wait_gemm<{pending}>();"
    register, low.latest = names.register(low.latest), None
    return f"tl::wait_gemm_behind<{pending}>({register}({register}.kR - 1));"


def _landed(low: GroupLowering, pending: int) -> None:
    """Keep uses of the results that are there now behind the wait."""
    done = low.in_flight[: len(low.in_flight) - pending]
    low.in_flight = low.in_flight[len(done) :]
    for name in dict.fromkeys(done):
        low.out.line(f"tl::landed({names.register(name)});")


def _if(n: s.If, low: Lowering) -> None:
    _settled(n, low, control.LOWERINGS["if"])


def _settled(n: s.For | s.If, low: Lowering, lower: Callable[[Any, Lowering], None]) -> None:
    """A block waits for the GEMMs that it starts, so that what is under way is the same on every path."""
    assert isinstance(low, GroupLowering)
    before, latest = list(low.in_flight), low.latest
    lower(n, low)
    low.latest = latest  # what the block computed may be its own
    if low.in_flight != before:
        raise Refused(n, "asynchronous GEMMs are started in this block and waited for outside", "wait in the block")


def _release(n: s.Release, low: Lowering) -> None:
    low.out.line(f"{ring(n.ring)}.release({uses(n.ring)}++);")


def _pass(n: s.PassTurn, low: Lowering) -> None:
    assert isinstance(low, GroupLowering)
    assert low.role is not None
    low.out.line(f"tl::pass_turn<{low.role.count}>({_number(low.role)});")


def _barrier(n: s.Barrier, low: Lowering) -> None:
    low.out.line("tl::group_sync(group);")


def _fence(n: s.Fence, low: Lowering) -> None:
    low.out.line("tl::fence_async();")


LOWERINGS: Lowerings = {
    "for": _for,
    "if": _if,
    "Find": _find,
    "Wait": _wait,
    "Release": _release,
    "Pass": _pass,
    "Barrier": _barrier,
    "Fence": _fence,
}

"""Shared memory and registers of a block, against the target's budget.

Shared memory is exact. Registers are a lower bound: fragments only, spread over the block's threads, at the statement
where most are held; a vector along the rows is held by every lane that shares a row. What addresses and temporaries
take is left to ptxas, whose report counts.
"""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import LANES_A_ROW
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.scope import LANE, Scope
from qimeng_attention.tl.traverse import statements, words_in
from qimeng_attention.tl.types import PIECES, TileType

THREADS_A_WARP = 32
ROWS_AN_ACCUMULATOR = 8  # rows of an MMA fragment between which a column vector is repeated


def shared_bytes(tiles: dict[str, TileType]) -> int:
    """Count the bytes of shared memory: views and tiles that lie over others take none of their own."""
    return sum(t.bytes for t in tiles.values() if t.space == "shared" and t.view is None and t.over is None)


def registers_a_thread(tiles: dict[str, TileType], threads: int) -> int:
    """Estimate the registers a thread needs to hold all register tiles at once."""
    return sum(_registers(t, threads) for t in tiles.values() if t.space == "register")


def _registers(tile: TileType, threads: int) -> int:
    words = -(-tile.elements * BYTES[tile.dtype] // 4)
    if len(tile.axes) == 1:
        words *= LANES_A_ROW
    elif tile.axis_names[1] == LANE:
        words = tile.elements
    return -(-words // threads)


def check_budget(kernel: s.Kernel, scope: Scope, threads: int) -> None:
    """Report TL501 and TL502 where the block does not fit the target."""
    if scope.target is None:
        return
    span = kernel.span
    used = shared_bytes(scope.tiles)
    if used > scope.target.shared_per_block_bytes:
        largest = max((t for t in scope.tiles.values() if t.space == "shared"), key=lambda t: t.bytes)
        scope.report(
            "TL501",
            span,
            f"the block needs {used:,} bytes of shared memory, "
            f"{scope.target.name} "
            "has "
            f"{scope.target.shared_per_block_bytes:,}",
            f"{largest.name} takes {largest.bytes:,}: fewer stages or a smaller tile",
        )
    held = most_held(kernel, _accumulators(scope), threads)
    needed = registers_a_thread(held, threads)
    if needed > scope.target.max_registers_per_thread:
        heaviest = sorted(held, key=lambda n: -_registers(held[n], threads))[:4]
        counts = ", ".join(f"{n} {_registers(held[n], threads)}" for n in heaviest)
        scope.report(
            "TL502",
            span,
            f"the register tiles held at once take {needed} registers a thread ({counts}), "
            f"{scope.target.name} has {scope.target.max_registers_per_thread}",
            "take smaller tiles or more warps; `and get new S` puts a tile in the place of the old one",
        )


def _accumulators(scope: Scope) -> dict[str, TileType]:
    """Give the f32 accumulators and vectors, and tiles in pieces: an operand made by Reshape takes the place of what it
    was made from."""
    tiles = scope.tiles.items()
    return {n: t for n, t in tiles if t.space == "register" and (t.dtype == "f32" or t.role == PIECES)}


def most_held(kernel: s.Kernel, tiles: dict[str, TileType], threads: int) -> dict[str, TileType]:
    """Give the tiles that are held where most registers are.

    A tile is held from behind the statement that makes it up to the last one that reads it, and through a whole loop
    if it is made before the loop and named in it. What no statement names (a macro's own tiles) is held throughout.
    """
    lives = _lives(kernel, set(tiles))
    last = max((end for _, end in lives.values()), default=0)

    def held(place: int) -> dict[str, TileType]:
        always = (0, last + 1)
        return {n: t for n, t in tiles.items() if lives.get(n, always)[0] <= place < lives.get(n, always)[1]}

    return max((held(p) for p in range(last + 1)), key=lambda h: registers_a_thread(h, threads), default=tiles)


def _lives(kernel: s.Kernel, tiles: set[str]) -> dict[str, tuple[int, int]]:
    """Tell for each tile the first and the last statement that needs it, by their places in the program."""
    lives: dict[str, tuple[int, int]] = {}
    loops: list[tuple[int, int]] = []
    for at, n in enumerate(statements(kernel.body)):
        if isinstance(n, s.For | s.If | s.Role):
            loops += [(at, at + sum(1 for _ in statements(n.body)))] if isinstance(n, s.For) else []
            continue
        for name in words_in(n) & tiles:
            lives[name] = (lives.get(name, (at, at))[0], at)
    for start, end in loops:
        for name, (first, last) in lives.items():
            if first < start <= last:
                lives[name] = (first, max(last, end + 1))
    return lives


def check_role_registers(kernel: s.Kernel, scope: Scope, threads: int) -> None:
    """Report TL502 where the roles together ask for more registers than the multiprocessor has."""
    roles = [n for n in kernel.body if isinstance(n, s.Role)]
    if scope.target is None or not roles or any(n.registers is None for n in roles):
        return
    asked = sum(_instances(n, scope) * threads * (scope.constant(n.registers or s.Num(0)) or 0) for n in roles)
    if asked > scope.target.registers_per_sm:
        most = f"{scope.target.name} has {scope.target.registers_per_sm:,}"
        scope.report(
            "TL502",
            roles[-1].span,
            f"the roles ask for {asked:,} registers, {most}",
            "give a role fewer registers, or fewer instances",
        )


def _instances(role: s.Role, scope: Scope) -> int:
    if role.range is None:
        return 1
    start, stop = scope.constant(role.range.start), scope.constant(role.range.stop)
    return max(1, (stop or 0) - (start or 0))

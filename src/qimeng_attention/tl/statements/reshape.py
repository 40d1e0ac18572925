"""Reshape: a register tile changes from one role in the MMA to another, and with `as` its type, between fused GEMMs."""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.machine import Strand
from qimeng_attention.tl.numerics import FLOAT_TYPES
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.rule import Rule
from qimeng_attention.tl.types import TileType, same_axes

ROLES = ("MMA_A", "MMA_B", "MMA_C")


def _check(n: s.Reshape, scope: Scope) -> None:
    tile = scope.tiles.get(n.name)
    if tile is None or tile.space != "register":
        scope.unknown(n.name, n.span, [t.name for t in scope.tiles.values() if t.space == "register"], "register tile")
        if n.out is not None and n.out not in scope.tiles:
            scope.broken.add(n.out)
        return
    if n.name not in scope.filled:
        scope.report("TL204", n.span, f"tile {n.name} is read before anything fills it", "compute it before this line")
    for role in (n.source[0], n.target[0]):
        if role not in ROLES:
            scope.unknown(role, n.span, list(ROLES), "role")
            return
    if n.source[0] != tile.role:
        scope.report(
            "TL201",
            n.span,
            f"{n.name} has the role {tile.role}, this Reshape expects {n.source[0]}",
            f"write `from ({tile.role}, ...)`",
        )
    if n.target[0] != "MMA_A":
        scope.report(
            "TL503",
            n.span,
            f"registers hold operand A or the accumulator C, no target reads the role {n.target[0]} from them",
            "Reshape to (MMA_A, MMA_M, MMA_N_new)",
        )
    dtype = n.dtype or tile.dtype
    if dtype not in FLOAT_TYPES:
        scope.unknown(dtype, n.span, list(FLOAT_TYPES), "floating type")
        dtype = tile.dtype
    if FLOAT_TYPES.get(dtype, 4) > 2:
        scope.report(
            "TL104",
            n.span,
            f"an operand of GEMM has a 16-bit type, found {dtype}",
            "write `as bf16` or `as fp16`",
        )
    out = n.out or n.name
    known = scope.tiles.get(out)
    made = TileType(out, "register", dtype, tile.axes, "MMA_A")
    if (
        known is not None
        and out != n.name
        and (not same_axes(known.axes, made.axes) or (known.dtype, known.role) != (made.dtype, made.role))
    ):
        scope.report("TL102", n.span, f"{out} is already a tile {known.describe()}", "choose another name")
    if out == n.name:
        scope.report(
            "TL102",
            n.span,
            f"{out} would change its type in place",
            f"write `and get P` and multiply P instead of {out}",
        )
        made = replace(tile, role="MMA_A", dtype=dtype)
    scope.tiles[out] = made
    scope.origins[out] = dict(scope.origins.get(n.name, {}))
    scope.filled.add(out)


def _run(n: s.Reshape, t: Strand) -> None:
    register = t.read_register(n.name, n.span)
    t.write_register(n.out or n.name, register.data, dict(register.origin), n.span, dict(register.ends))


RULES = {
    s.Reshape: Rule(
        "Reshape",
        "Reshape",
        "Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P",
        "Turns an accumulator into the first operand of the next GEMM; with `as` it rounds to nearest even.",
        _check,
        _run,
    ),
}

"""Declarations: sizes, scalars, tile sizes, the grid, the block's warps, and integers of the block."""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import CONSTANTS
from qimeng_attention.tl.machine import Strand, no_value
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.rule import Rule

LEGAL_WARPS = (1, 2, 4, 8, 16)


def declare(scope: Scope, name: str, n: s.Statement) -> bool:
    """Report TL102 if a name is taken; a tensor and the tile copied from it may share one."""
    taken = name in scope.fixed or name in scope.sizes or name in scope.scalars or name in scope.ints
    if taken:
        scope.report("TL102", n.span, f"'{name}' is declared twice", "choose another name")
    elif name in scope.tiles or name in scope.tensors or name in CONSTANTS:
        what = "constant" if name in CONSTANTS else "tile" if name in scope.tiles else "tensor"
        scope.report("TL102", n.span, f"'{name}' is a {what} already, it cannot be a number too", "choose another name")
    return not taken


def _check_size(n: s.Size, scope: Scope) -> None:
    scope.at_top(n, "Size")
    for name, value in n.entries:
        if not declare(scope, name, n):
            continue
        if value is None:
            scope.sizes.append(name)
        else:
            scope.fixed[name] = scope.extent(value, n.span, f"size {name}")


def _check_tile(n: s.Tile, scope: Scope) -> None:
    scope.at_top(n, "Tile")
    for name, value in n.entries:
        if declare(scope, name, n):
            scope.fixed[name] = scope.extent(value, n.span, f"tile size {name}")


def _check_scalar(n: s.Scalar, scope: Scope) -> None:
    scope.at_top(n, "Scalar")
    if n.bound is not None and scope.constant(n.bound) is None and not isinstance(n.bound, s.Num):
        scope.of_sizes(n.bound, n.span, f"the bound of {n.name}")
    if n.dtype not in BYTES:
        scope.unknown(n.dtype, n.span, list(BYTES), "type")
    if declare(scope, n.name, n):
        scope.scalars[n.name] = n


def _check_grid(n: s.Grid, scope: Scope) -> None:
    if scope.grid is not None:
        scope.report("TL102", n.span, "the kernel has two Grid statements", "keep one")
    if len(n.dims) > 3 and not n.persistent:
        scope.report("TL110", n.span, f"the grid has {len(n.dims)} indices, expected at most three", "join two of them")
    scope.at_top(n, "Grid")
    for d in n.dims:
        for e in (d.start, d.stop):
            scope.of_sizes(e, n.span, f"the range of {d.name}")
        if declare(scope, d.name, n):
            scope.ints.add(d.name)
    scope.grid = n


def _check_warps(n: s.Warps, scope: Scope) -> None:
    scope.at_top(n, "Warps")
    count = scope.extent(n.count, n.span, "the number of warps")
    if count not in LEGAL_WARPS:
        allowed = ", ".join(str(w) for w in LEGAL_WARPS)
        scope.report("TL506", n.span, f"{count} warps cannot divide a tile, expected one of {allowed}", "take 4 or 8")
    if n.blocks is not None:
        scope.extent(n.blocks, n.span, "the number of blocks an SM")
    scope.warps = n


def _check_let(n: s.Let, scope: Scope) -> None:
    scope.uniform_integer(n.value, n.span, f"the value of {n.name}")
    if declare(scope, n.name, n):
        scope.ints.add(n.name)


def _run_let(n: s.Let, t: Strand) -> None:
    t.ints[n.name] = t.integer(n.value, n.span)


RULES = {
    s.Size: Rule(
        "Size",
        "Size",
        "Size B, Sq, Sk, D = 128",
        "Names sizes. One without a value is an argument of each call.",
        _check_size,
        no_value,
    ),
    s.Tile: Rule(
        "Tile",
        "Tile",
        "Tile BM = 128, BN = 64",
        "Names the tile sizes that the author reasoned.",
        _check_tile,
        no_value,
    ),
    s.Scalar: Rule(
        "Scalar",
        "Scalar",
        "Scalar scale f32 > 0",
        "Names a number given at each call, and what the launcher must find true of it.",
        _check_scalar,
        no_value,
    ),
    s.Grid: Rule(
        "Grid",
        "Grid",
        "Grid block = 0 : ceildiv(Sq, BM), head = 0 : Hq, batch = 0 : B",
        "Gives each block of threads its indices; the first varies fastest, `down` counts backwards.",
        _check_grid,
        no_value,
    ),
    s.Warps: Rule(
        "Warps",
        "Warps",
        "Warps 4 along q, 2 blocks an SM",
        "Divides the rows of the register tiles among warps, and says how many blocks an SM should hold.",
        _check_warps,
        no_value,
        "scheduled",
    ),
    s.Let: Rule(
        "Let",
        "Let",
        "Let last = ceildiv(Sk, BN)",
        "Names an integer that the whole block agrees on.",
        _check_let,
        _run_let,
    ),
}

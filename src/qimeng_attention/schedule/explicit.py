"""Always first: macros written out, and every tile in shared memory allocated with the layout inferred for it (exact).

A row lies in swizzled pieces of 128 or 64 bytes, so that the eight rows an ldmatrix reads lie in different banks; which
pieces leave less of the last one empty follows from its length (tl/layout.py).
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.layout import swizzle_for
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.types import Checked, TileType


def swizzle_of(tile: TileType) -> int | None:
    """Give the bytes over which a tile's rows are swizzled."""
    if len(tile.axes) < 2:
        return None
    return swizzle_for(tile.axes[-1].size * BYTES[tile.dtype])


def _allocate(tile: TileType) -> s.Allocate:
    dims = tuple(s.Dim(s.Num(a.size), a.name) for a in tile.axes)
    return s.Allocate(tile.name, "shared", dims, tile.dtype, swizzle=swizzle_of(tile))


def _named(kernel: s.Kernel, made: s.Allocate) -> s.Allocate:
    """Write the extents as the first Copy into the tile writes them, so that the names of tile sizes stay."""
    copy = next(
        n
        for n in _walk(kernel.body)
        if isinstance(n, s.Copy) and n.target == "shared" and (n.to_name or n.name) == made.name
    )
    dims = tuple(
        s.Dim(d.size, m.axis if m.axis != _text(d.size) else None) for d, m in zip(copy.dims, made.dims, strict=True)
    )
    return replace(made, dims=dims)


def _text(e: s.Expr) -> str:
    from qimeng_attention.tl.printer import expression

    return expression(e)


def _walk(body: tuple[s.Statement, ...]) -> list[s.Statement]:
    from qimeng_attention.tl.traverse import statements

    return list(statements(body))


def apply(kernel: s.Kernel, _: s.Choice, checked: Checked) -> s.Kernel:
    """Write out what the checker inferred: `checked.kernel` has the macros written out already."""
    body = list(checked.kernel.body)
    declared = {n.name for n in _walk(tuple(body)) if isinstance(n, s.Allocate) and n.space == "shared"}
    body = [
        replace(n, swizzle=swizzle_of(checked.tiles[n.name]))
        if isinstance(n, s.Allocate) and n.space == "shared" and n.swizzle is None and n.view is None
        else n
        for n in body
    ]
    missing = [t for t in checked.tiles.values() if t.space == "shared" and t.name not in declared]
    after = max((i for i, n in enumerate(body) if isinstance(n, s.Allocate) and n.space == "global"), default=-1) + 1
    body[after:after] = [_named(checked.kernel, _allocate(t)) for t in missing]
    return with_body(kernel, body)


REWRITING = Rewriting(
    "explicit",
    "explicit",
    "explicit",
    "Writes out macros, and the layout of every tile in shared memory.",
    "exact",
    apply,
)

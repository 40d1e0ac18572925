"""Allocate: tensors in global memory, tiles in shared memory and registers."""

from __future__ import annotations

import numpy as np

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.machine import Register, Strand
from qimeng_attention.tl.numerics import BYTES, FLOAT_TYPES, round_to
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.rule import Rule
from qimeng_attention.tl.types import PIECES, Axis, Origin, TensorType, TileType, same_axes

MOST_STAGES = 16  # more never fit into shared memory
SWIZZLES = (32, 64, 128)  # bytes of a row over which 16-byte pieces are exchanged


def axis_name(d: s.Dim) -> str:
    """Give the axis a dimension carries: the one written, else the dimension's own name."""
    return d.axis or expression(d.size)


def _check(n: s.Allocate, scope: Scope) -> None:
    dtype = n.dtype
    if dtype is None:
        scope.report("TL104", n.span, f"{n.name} has no type", f"write one behind its shape: {', '.join(BYTES)}")
        dtype = "f32" if n.space == "register" else "bf16"  # the likely one, so that the rest can be checked
    elif dtype not in BYTES:
        scope.unknown(dtype, n.span, list(BYTES), "type")
        dtype = "f32" if n.space == "register" else "bf16"  # the likely one, so that the rest can be checked
    if n.space == "global":
        _check_tensor(n, dtype, scope)
    else:
        _check_tile(n, dtype, scope)


def _check_tensor(n: s.Allocate, dtype: str, scope: Scope) -> None:
    if n.name in scope.tensors:
        scope.report("TL102", n.span, f"tensor {n.name} is allocated twice", "choose another name")
    scope.claim(n.name, n.span)
    for d in n.dims:
        scope.of_sizes(d.size, n.span, f"the dimension {expression(d.size)} of {n.name}")
    if n.offset is not None:
        scope.report(
            "TL110",
            n.span,
            f"{n.name} has an offset, expected the whole tensor with all its dimensions",
            "write `(B, Sq, Hq, D)`; the Copy's coordinate selects: `[batch, q = block * BM, head]`",
        )
    if n.init is not None:
        scope.report(
            "TL207",
            n.span,
            f"{n.name} lies in global memory, which takes no initial value",
            "give the value to a register tile and store it with Copy",
        )
    if n.stages or n.swizzle or n.view or n.over or n.contiguous:
        scope.report(
            "TL207",
            n.span,
            f"{n.name} lies in global memory, which has no stages, swizzle or views",
            "stages belong to tiles in shared memory",
        )
    if not n.dims:
        scope.report("TL110", n.span, f"tensor {n.name} has no dimension", "use Scalar for a single number")
    dims = tuple(d.size for d in n.dims)
    scope.tensors[n.name] = TensorType(n.name, dtype, dims, tuple(axis_name(d) for d in n.dims))


def _check_tile(n: s.Allocate, dtype: str, scope: Scope) -> None:
    axes = tuple(
        Axis(axis_name(d), scope.extent(d.size, n.span, f"extent {expression(d.size)} of {n.name}")) for d in n.dims
    )
    scope.claim(n.name, n.span)
    if len({a.name for a in axes}) != len(axes):
        scope.report("TL105", n.span, f"two axes of {n.name} have the same name", "name each: `(BM q, BN k)`")
    if not 1 <= len(axes) <= 2:
        scope.report(
            "TL106", n.span, f"tile {n.name} has {len(axes)} axes, expected one or two", "make it a vector or a matrix"
        )
        return
    known = scope.tiles.get(n.name)
    what = f"the number of stages of {n.name}"
    stages = 1 if n.stages is None else scope.extent(n.stages, n.span, what, MOST_STAGES)
    if n.space == "register" and (n.stages or n.swizzle or n.view or n.over):
        scope.report(
            "TL207",
            n.span,
            f"{n.name} lies in registers, which have no stages, swizzle or views",
            "remove them, or allocate it in shared",
        )
    if n.offset is not None:
        scope.report("TL207", n.span, f"{n.name} is a tile, only a tensor in global memory has an offset", "remove it")
    if n.swizzle is not None and n.swizzle not in SWIZZLES:
        scope.report("TL503", n.span, f"swizzle {n.swizzle} is unknown, expected one of {SWIZZLES}", "take 128")
    bases = [
        t.name for t in scope.tiles.values() if t.space == "shared" and not (t.view or t.over) and t.name != n.name
    ]
    for other in (n.view, n.over):
        if other is not None and other not in bases:
            scope.unknown(other, n.span, bases, "shared tile with memory of its own")
            return
    role = PIECES if _in_pieces(n, axes, dtype, scope) else "MMA_C"
    tile = TileType(n.name, n.space, dtype, axes, role, stages, n.swizzle, n.view, n.over, n.init, n.contiguous)
    if known is not None and (
        (known.space, known.dtype) != (tile.space, tile.dtype) or not same_axes(known.axes, tile.axes)
    ):
        scope.report(
            "TL102",
            n.span,
            f"{n.name} is already a tile {known.describe()} in {known.space} memory",
            "choose another name",
        )
    scope.tiles[n.name] = tile
    scope.filled.discard(n.name)
    _check_places(n, scope)
    _check_init(n, dtype, scope)
    if n.view is not None:
        _check_view(n, tile, scope.tiles[n.view], scope)
    if n.over is not None:
        _check_over(n, tile, scope.tiles[n.over], scope)


def _check_places(n: s.Allocate, scope: Scope) -> None:
    """Note where a register tile begins; memory is placed by the copies that fill it."""
    placed = {axis_name(d): d.start for d in n.dims if d.start is not None}
    for axis, start in placed.items():
        scope.uniform_integer(start, n.span, f"the place of {n.name} along {axis}")
    if placed and n.space != "register":
        scope.report(
            "TL207",
            n.span,
            f"{n.name} lies in {n.space} memory, whose tiles begin where a Copy says",
            "leave the place out, and give it in the Copy's coordinate",
        )
    if placed:
        scope.origins[n.name] = {axis: Origin(start) for axis, start in placed.items()}


def _in_pieces(n: s.Allocate, axes: tuple[Axis, ...], dtype: str, scope: Scope) -> bool:
    """Tell whether a register tile holds rows in pieces, and report an axis that is none or a tile that cannot."""
    if n.contiguous is not None and n.contiguous not in {a.name for a in axes}:
        scope.report(
            "TL503",
            n.span,
            f"{n.name} has no axis {n.contiguous} to lie along",
            "name an axis of the tile, as `contiguous k`",
        )
    in_pieces = n.space == "register" and n.contiguous is not None
    if in_pieces and (len(axes) != 2 or n.contiguous != axes[-1].name or BYTES[dtype] > 2 or n.init is not None):
        scope.report(
            "TL503",
            n.span,
            f"{n.name} is no 16-bit matrix whose rows registers could hold in pieces",
            "give it two axes, the last behind `contiguous`, a 16-bit type and no initial value",
        )
    return in_pieces


def _check_over(n: s.Allocate, tile: TileType, under: TileType, scope: Scope) -> None:
    if tile.bytes > under.bytes:
        scope.report(
            "TL106",
            n.span,
            f"{n.name} takes {tile.bytes:,} bytes, expected at most the {under.bytes:,} of {n.over}",
            "put it over a larger tile",
        )


def _check_init(n: s.Allocate, dtype: str, scope: Scope) -> None:
    if n.init is None:
        return
    t = scope.type_of(n.init, n.span)
    if t.axes or t.kind == "bool":
        scope.report(
            "TL106",
            n.span,
            f"the initial value of {n.name} must be one number, found {expression(n.init)}",
            "compute the tile instead",
        )
    if n.space != "register" or dtype not in FLOAT_TYPES:
        scope.report(
            "TL207",
            n.span,
            f"only floating register tiles take an initial value, {n.name} is {dtype} in {n.space} memory",
            "fill it with Copy",
        )
    scope.filled.add(n.name)


def _check_view(n: s.Allocate, tile: TileType, whole: TileType, scope: Scope) -> None:
    fits = len(tile.axes) == len(whole.axes) and all(
        a.size <= b.size or not b.size for a, b in zip(tile.axes, whole.axes, strict=True)
    )
    if not fits or tile.dtype != whole.dtype:
        scope.report(
            "TL106",
            n.span,
            f"{n.name} {tile.describe()} is no part of {n.view} {whole.describe()}",
            "a view takes the first rows and columns, in the same type",
        )
    if n.view in scope.filled:
        scope.filled.add(n.name)


def _run(n: s.Allocate, t: Strand) -> None:
    if n.space != "register":
        return
    kind = t.machine.checked.tiles[n.name]
    t.check_free(n.name, n.span)
    origin = {axis_name(d): t.integer(d.start, n.span) for d in n.dims if d.start is not None}
    if not t.machine.numeric:
        t.registers[n.name] = Register(None, origin)
        return
    value = float("nan") if n.init is None else float(t.environment().evaluate(n.init).data)
    data = round_to(np.full([a.size for a in kind.axes], value, np.float32), kind.dtype)
    t.registers[n.name] = Register(data, origin)


RULES = {
    s.Allocate: Rule(
        "Allocate",
        "Allocate",
        "Allocate K in global (B, Sk, Hk, D) bf16",
        "Names a tensor in global memory, or a tile in shared memory (with stages, swizzle, the axis that lies "
        "contiguous) or in registers (with an initial value, or contiguous: on its way to shared memory).",
        _check,
        _run,
    ),
}

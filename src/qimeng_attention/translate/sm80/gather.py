"""Copies through an index tensor: each row of a tile lies where its own index says, as in a cache of pages.

    Copy K (BN, D) in coordinate [Table[batch, k // Page], k = i * BN : length at k % Page, g] from global to shared

A thread looks a row up and copies its chunks of it. A row past the end that the coordinate gives, or whose place lies
outside of the tensor, is filled with zeros and never read.

Not here: tiles whose rows lie together (copy.py, pieces.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import Place, copy_target, copy_tensor, places
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.traverse import names_in
from qimeng_attention.tl.types import PIECES, TensorType
from qimeng_attention.translate import names
from qimeng_attention.translate.expressions import Cpp
from qimeng_attention.translate.sm80 import copy, pieces
from qimeng_attention.translate.sm80.context import FUNCTIONS, Lowering, Lowerings, Refused

HEADER = "gather.cuh"  # of the prelude


def gathers(n: s.Statement, low: Lowering) -> bool:
    """Tell whether a statement is a Copy whose rows have places of their own."""
    if not isinstance(n, s.Copy) or n.source != "global" or not any(c.at is not None for c in n.coordinate):
        return False
    found = _places(n, low)
    return any(p.along for p in found) or any(p.at is not None and p.axis in names_in(p.at) for p in found)


def _copy(n: s.Copy, low: Lowering) -> None:
    """Lower a Copy that gathers; any other is pieces.py's."""
    if not gathers(n, low):
        pieces.LOWERINGS["Copy"](n, low)
        return
    tile, found = low.checked.tiles[copy_target(n)], _places(n, low)
    tensor = low.checked.tensors[copy_tensor(n)]
    moving = [(d, p) for d, p in enumerate(found) if p.kind != "index"]
    if len(moving) != 2 or moving[0][1].at is None or moving[1][0] != len(found) - 1 or moving[1][1].at is not None:
        raise Refused(
            n,
            "only the rows of a matrix have places of their own, its columns lie together",
            f"write `at` for one dimension of {tensor.name}, and take its last dimension whole",
        )
    columns = moving[1][1]
    beyond = copy.reaches_past(columns, tensor, low)
    if not (beyond or copy.columns_exist(columns, tensor, low)):
        raise Refused(
            n,
            f"the columns of the tile must run along the last dimension of {tensor.name}, and divide it or hold it all",
            f"take tiles that divide the last dimension, a multiple of {copy.UNIT}, or begin at 0 and end past it",
        )
    width = [low.integer(tensor.dims[-1], n)] if beyond else []
    if n.target == "shared":
        function = "gather_async" if n.asynchronous else "gather"
        target, template = low.shared_at(tile.name, n.slot, n), ["kThreads", *width]
        copy.refuse_uneven(n, tile, low)
    elif tile.role == PIECES:
        function, target, template = "gather_pieces", names.register(tile.name), width
    else:
        raise Refused(n, f"{tile.name} {tile.describe()} would be gathered into registers", "copy it to shared memory")
    arguments = f"<{', '.join(template)}>" if template else ""
    with low.out.block(f"tl::{function}{arguments}({target}, [&](int row)", "});"):
        _source(n, tensor, found, low)


def _source(n: s.Copy, tensor: TensorType, found: Sequence[Place], low: Lowering) -> None:
    """Emit the body of the function that says where a row lies, and whether it exists."""
    dimension, place = next((d, p) for d, p in enumerate(found) if p.at is not None)
    axis, out = place.axis, low.out
    index = names.variable(axis)
    cpp = Cpp(low.checked, FUNCTIONS, indices={axis: index})
    start = low.integer(place.start, n)
    out.line(f"int const {index} = {'' if start == '0' else f'{start} + '}row;")
    guards = [] if copy.nonnegative(place.start, low) else [f"{index} >= 0"]
    if place.stop is not None:
        guards.append(f"{index} < {low.integer(place.stop, n)}")
    terms = [names.tensor(tensor.name)]
    for d, (p, dim) in enumerate(zip(found, tensor.dims, strict=True)):
        if p.kind != "index" and d != dimension:
            terms.append(_scaled(tensor, d, low.integer(p.start, n)))
            continue
        at, kind = _written(p, n, cpp, low)
        if p.along or d == dimension:
            name = f"at_{tensor.axis_names[d] if tensor.axis_names[d].isidentifier() else d}"
            out.line(f"{kind} const {name} = {at};")
            at = name
        if not _inside(p, dim, low):
            guards.append(f"tl::inside({at}, {low.integer(dim, n)})")
        terms.append(_scaled(tensor, d, at))
    pointer = " + ".join(t for t in terms if t)
    out.line(f"return tl::row_if({' && '.join(guards) or 'true'}, {pointer});")


def _written(p: Place, n: s.Copy, cpp: Cpp, low: Lowering) -> tuple[str, str]:
    """Write the memory index of a row along one dimension, and its type."""
    e = p.start if p.at is None else p.at
    text, kind = low.expression(cpp, e, n), "int64_t" if cpp.is_wide(e) else "int"
    return (text if p.at is None or p.axis in names_in(e) else f"{text} + row"), kind


def _inside(p: Place, dim: s.Expr, low: Lowering) -> bool:
    """Tell whether an index lies within its dimension for sure: a rest of it does, and a grid's that runs over it."""
    e = p.at if p.at is not None else p.start
    return (isinstance(e, s.Binary) and e.op == "%" and e.right == dim) or copy.within(e, dim, low)


def _scaled(tensor: TensorType, dimension: int, index: str) -> str:
    if index == "0":
        return ""
    if dimension == len(tensor.dims) - 1:
        return f"int64_t({index})"
    return f"int64_t({index}) * {names.stride(tensor.name, dimension)}"


def _places(n: s.Copy, low: Lowering) -> list[Place]:
    tensor = low.checked.tensors[copy_tensor(n)]
    return places(n, [integer(d.size, low.checked.fixed) for d in n.dims], tensor.axis_names)


LOWERINGS: Lowerings = {"Copy": _copy}

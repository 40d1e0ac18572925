"""Copies: between global and shared memory by the copy engine, from registers by the threads of a warpgroup."""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import Place, copy_target, copy_tensor, places
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.traverse import call, sub
from qimeng_attention.tl.types import TensorType
from qimeng_attention.translate import names
from qimeng_attention.translate.sm80.context import Lowering, Lowerings, Refused
from qimeng_attention.translate.sm80.copy import access
from qimeng_attention.translate.sm90.context import GroupLowering, is_bulk, ring, uses


def _copy(n: s.Copy, low: Lowering) -> None:
    assert isinstance(low, GroupLowering)
    if n.accumulate:
        raise Refused(n, "this generation's lowering has no copy that accumulates", "store the tile")
    if is_bulk(n):
        _bulk(n, low)
    elif (n.source, n.target) == ("register", "shared"):
        low.out.line(f"tl::stage_rows({low.shared_at(copy_target(n), n.slot, n)}, {names.register(n.name)});")
    elif "global" in (n.source, n.target) and "register" in (n.source, n.target):
        _direct(n, low)
    else:
        raise Refused(
            n,
            f"roles have no copy from {n.source} to {n.target} memory that signals nothing",
            "write `async signals ring.full`",
        )


def _bulk(n: s.Copy, low: GroupLowering) -> None:
    """The box's coordinates, innermost first; columns are counted by the function."""
    tensor = low.checked.tensors[copy_tensor(n)]
    found = places(n, [integer(d.size, low.checked.fixed) for d in n.dims], tensor.axis_names)
    box = low.map_of(n).name
    ragged = low.ragged_place(n, found)
    if ragged is not None:
        with low.out.block(""):
            low.out.line(f"int const rows = {_rows(ragged, tensor, found, n, low)};")
            _move(n, box, found, low)
        return
    _move(n, box, found, low)


def _rows(place: Place, tensor: TensorType, found: list[Place], n: s.Copy, low: GroupLowering) -> str:
    """Write how many rows of the box there are: up to the end that the coordinate gives, and to the tensor's."""
    assert place.at is not None
    assert place.stop is not None
    left = low.integer(call("min", sub(place.stop, place.start), sub(tensor.dims[found.index(place)], place.at)), n)
    return f"tl::clamp({left}, 0, {place.size})"


def _move(n: s.Copy, box: str, found: list[Place], low: GroupLowering) -> None:
    at = ", ".join(x for p in reversed(found[:-1]) for x in _indices(p, n, low))
    if n.signals is None:
        low.out.line(f"tl::store_tile({low.shared_at(n.name, n.slot, n)}, {box}, {at});")
        return
    name = copy_target(n)
    full = f"{ring(name)}.full({uses(name)})"
    low.out.line(f"tl::load_tile({low.shared_at(name, n.slot, n)}, {box}, {full}, {at});")
    low.out.line(f"++{uses(name)};")


def _indices(place: Place, n: s.Copy, low: GroupLowering) -> list[str]:
    """Give the indices along one dimension, innermost first: of a group, its first row and its number.

    Of rows behind `at`: how many of the box do not exist, and where those that do end.
    """
    if place.at is not None:
        return [f"{place.size} - rows", f"{low.integer(place.at, n)} + rows"]
    if place.stop is None:
        return [low.integer(place.start, n)]
    group = low.group_index(n)
    assert group is not None
    return ["0", low.integer(group, n)]


def _direct(n: s.Copy, low: GroupLowering) -> None:
    """Between global memory and registers: vectors both ways, results on their way out."""
    tile = low.checked.tiles[copy_target(n) if n.source == "global" else n.name]
    matrix = len(tile.axes) != 1
    if matrix and n.source == "global":
        raise Refused(
            n,
            f"{tile.name} {tile.describe()} would go between global memory and registers",
            "stage it in shared memory",
        )
    a = access(n, low, vector=not matrix)
    register = names.register(tile.name)
    if n.source == "register":
        if a.first != "0":
            raise Refused(
                n, "a store may begin before the tensor's first row", "begin at a coordinate that is never negative"
            )
        wide = BYTES[low.checked.tensors[copy_tensor(n)].dtype] == 4
        function = ("store_group_float" if wide else "store_group_rows") if matrix else "store_group_vector"
        low.out.line(f"tl::{function}{a.template()}({a.pointer}, {a.stride}, {register}, {a.rows});")
        return
    function = "load_group_rows" if tile.axes[0].name == low.row_axis else "load_columns"
    low.out.line(f"tl::{function}({register}, {a.pointer}, {a.stride}, {a.first}, {a.rows});")


LOWERINGS: Lowerings = {"Copy": _copy}

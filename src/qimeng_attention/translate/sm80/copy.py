"""Copies. What lies outside of the tensor is filled with zeros and never read; past its end nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import Place, copy_target, copy_tensor, places
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.traverse import names_in, num, statements, sub
from qimeng_attention.tl.types import TensorType, TileType
from qimeng_attention.translate import names
from qimeng_attention.translate.sm80.context import CHUNK_BYTES, WIDEST_SWIZZLE, Lowering, Lowerings, Refused

UNIT = 8  # 16-bit elements in 16 bytes, which a thread copies or stores at a time


@dataclass(frozen=True)
class Access:
    """Where a Copy touches a tensor: the first element, the step between rows, and which rows exist."""

    pointer: str
    stride: str
    first: str  # rows before it do not exist; "0" where none can
    rows: str  # rows from it on do not exist
    columns: str = ""  # columns from it on do not exist; "" where the tile has none of them

    def template(self, *more: str) -> str:
        """Write the template arguments of a copy: those given, then the columns that exist where the tile has more."""
        given = [*more, *([self.columns] if self.columns else [])]
        return f"<{', '.join(given)}>" if given else ""


def access(n: s.Copy, low: Lowering, vector: bool) -> Access:
    """Give where a Copy between global memory and registers, or a tile of whole rows, touches its tensor."""
    tensor = low.checked.tensors[copy_tensor(n)]
    found = places(n, [integer(d.size, low.checked.fixed) for d in n.dims], tensor.axis_names)
    moving = [(d, p) for d, p in enumerate(found) if p.kind != "index"]
    if any(p.at is not None and p.axis in names_in(p.at) for _, p in moving):
        raise Refused(
            n,
            "this generation's lowering has no copy that gathers rows (`at` differs from row to row)",
            "give each tile one place in memory, or a plain coordinate",
        )
    if not vector and (
        len(moving) != 2
        or moving[1][0] != len(tensor.dims) - 1
        or not (columns_exist(moving[1][1], tensor, low) or reaches_past(moving[1][1], tensor, low))
    ):
        raise Refused(
            n,
            f"the columns of the tile must run along the last dimension of {tensor.name}, and divide it or hold it all",
            f"take tiles that divide the last dimension, a multiple of {UNIT}, or begin at 0 and end past it",
        )
    row, place = moving[0]
    base = low.views.get(view_key(tensor.name, found)) or _pointer(tensor, found, n, low)
    offset = _term(tensor, row, place, n, low)
    limit = low.views.get((*view_key(tensor.name, found), "rows")) or _rows(tensor, found, n, low)
    memory = memory_start(place)
    start = low.integer(memory, n)
    rows = limit if start == "0" else f"{limit} - {_product(memory, start)}"
    if place.stop is not None:
        rows = f"tl::min({rows}, {low.integer(sub(place.stop, place.start), n)})"
    first = "0" if nonnegative(memory, low) else low.integer(sub(num(0), memory), n)
    columns = "" if vector else _term(tensor, *moving[1], n, low)
    pointer = " + ".join(x for x in (base, offset, columns) if x)
    stride = "1" if row == len(tensor.dims) - 1 else names.stride(tensor.name, row)
    beyond = not vector and reaches_past(moving[1][1], tensor, low)
    return Access(pointer, stride, first, rows, low.integer(tensor.dims[-1], n) if beyond else "")


def reaches_past(columns: Place, tensor: TensorType, low: Lowering) -> bool:
    """Tell whether a tile begins with the tensor's first column and ends behind its last one, a whole copy's unit."""
    extent = _extent(tensor, low)
    return (
        extent is not None
        and (columns.start, columns.stop, columns.at) == (s.Num(0), None, None)
        and extent < columns.size
        and extent % UNIT == 0
    )


def _extent(tensor: TensorType, low: Lowering) -> int | None:
    """Give the length of the rows where it is compiled in."""
    try:
        return integer(tensor.dims[-1], low.checked.fixed)
    except (KeyError, ValueError):
        return None


def columns_exist(columns: Place, tensor: TensorType, low: Lowering) -> bool:
    """Tell whether no tile can reach past the end of the rows: the columns are whole, or their tiles divide the row."""
    if columns.kind == "whole":
        return True
    stepped = (
        isinstance(columns.start, s.Binary)
        and columns.start.op == "*"
        and _is_extent(columns.start.right, columns.size, low)
    )
    return (
        _divides(columns.size, tensor, low)
        and columns.stop is None
        and (stepped or columns.start == s.Num(0))
        and nonnegative(columns.start, low)
    )


def _divides(columns: int, tensor: TensorType, low: Lowering) -> bool:
    """Tell whether rows are whole tiles: by their length, or by how it is written, `ceildiv(n, BJ) * BJ`."""
    extent, dim = _extent(tensor, low), tensor.dims[-1]
    if extent is not None:
        return extent % columns == 0
    return isinstance(dim, s.Binary) and dim.op == "*" and _is_extent(dim.right, columns, low)


def _is_extent(e: s.Expr, size: int, low: Lowering) -> bool:
    try:
        return integer(e, low.checked.fixed) == size
    except (KeyError, ValueError):
        return False


def _product(e: s.Expr, text: str) -> str:
    return text if isinstance(e, s.Name | s.Num) or (isinstance(e, s.Binary) and e.op == "*") else f"({text})"


def view_key(tensor: str, found: list[Place]) -> tuple[object, ...]:
    """Name a tensor at fixed indices: the part of a coordinate that stays while the tile's rows move on."""
    return (tensor, *[p.start if p.kind == "index" else None for p in found])


def _pointer(tensor: TensorType, found: list[Place], n: s.Copy, low: Lowering) -> str:
    terms = [_term(tensor, d, p, n, low) for d, p in enumerate(found) if p.kind == "index"]
    return " + ".join([names.tensor(tensor.name), *[t for t in terms if t]])


def _rows(tensor: TensorType, found: list[Place], n: s.Copy, low: Lowering) -> str:
    """Give the extent along the rows, or 0 where an index lies outside of the tensor."""
    row = next(d for d, p in enumerate(found) if p.kind != "index")
    extent = low.integer(tensor.dims[row], n)
    guards = [
        f"tl::inside({low.integer(p.start, n)}, {low.integer(d, n)})"
        for p, d in zip(found, tensor.dims, strict=True)
        if p.kind == "index" and not within(p.start, d, low)
    ]
    return f"({' && '.join(guards)} ? {extent} : 0)" if guards else extent


def memory_start(place: Place) -> s.Expr:
    """Give where a tile begins in memory: where its coordinate says, or the place behind `at`."""
    return place.start if place.at is None else place.at


def _term(tensor: TensorType, dimension: int, place: Place, n: s.Copy, low: Lowering) -> str:
    if memory_start(place) == s.Num(0):
        return ""
    start = low.integer(memory_start(place), n)
    if dimension == len(tensor.dims) - 1:
        return f"int64_t({start})"
    return f"int64_t({start}) * {names.stride(tensor.name, dimension)}"


def declare_views(n: s.Statement, low: Lowering) -> None:
    """Before a top-level statement: point at each tensor it copies from or to, at the indices that stay fixed in it."""
    known = {*low.checked.fixed, *low.checked.sizes, *[d.name for d in low.checked.grid.dims], *low.lets}
    for copy in statements((n,)):
        if not isinstance(copy, s.Copy) or "global" not in (copy.source, copy.target):
            continue
        tensor = low.checked.tensors[copy_tensor(copy)]
        found = places(copy, [integer(d.size, low.checked.fixed) for d in copy.dims], tensor.axis_names)
        key = view_key(tensor.name, found)
        if key in low.views or not names_in(tuple(p.start for p in found if p.kind == "index")) <= known:
            continue
        number = sum(k[0] == tensor.name and "rows" not in k for k in low.views)
        name = f"{names.tensor(tensor.name)}_at" + (f"_{number}" if number else "")
        constant = " const" if tensor.name not in low.checked.outputs else ""
        low.out.line(f"{names.ELEMENTS[tensor.dtype]}{constant}* const {name} = {_pointer(tensor, found, copy, low)};")
        rows = _rows(tensor, found, copy, low)
        if "?" in rows:
            low.out.line(f"int const {name}_rows = {rows};")
            low.views[(*key, "rows")] = f"{name}_rows"
        low.views[key] = name


def within(index: s.Expr, dim: s.Expr, low: Lowering) -> bool:
    """Tell whether an index is one of the grid that runs over just this dimension."""
    return any(index == s.Name(d.name) and d.start == s.Num(0) and d.stop == dim for d in low.checked.grid.dims)


def nonnegative(e: s.Expr, low: Lowering) -> bool:
    """Prove an integer expression to be at least 0, from how its names are made."""
    match e:
        case s.Num(value):
            return value >= 0
        case s.Name(id):
            return _nonnegative_name(id, low)
        case s.Binary("+" | "*" | "//" | "%", a, b):
            return nonnegative(a, low) and nonnegative(b, low)
        case s.Call("max", args):
            return any(nonnegative(a, low) for a in args)
        case s.Call("min" | "ceildiv", args):
            return all(nonnegative(a, low) for a in args)
        case s.Call("clamp", (_, a, b)):
            return nonnegative(a, low) and nonnegative(b, low)
    return False


def _nonnegative_name(name: str, low: Lowering) -> bool:
    if name in low.checked.fixed or name in low.checked.sizes:
        return True
    starts = [d.start for d in low.checked.grid.dims if d.name == name]
    for n in statements(low.checked.kernel.body):
        if isinstance(n, s.Let) and n.name == name:
            starts.append(n.value)
        if isinstance(n, s.Find) and n.name == name:
            starts.append(n.range.start)
        if isinstance(n, s.For) and n.var == name:
            starts += [r.start for r in n.ranges]
        if isinstance(n, s.Role) and n.var == name and n.range is not None:
            starts.append(n.range.start)
    return bool(starts) and all(name not in names_in(e) and nonnegative(e, low) for e in starts)


def _copy(n: s.Copy, low: Lowering) -> None:
    if n.signals is not None or n.accumulate:
        raise Refused(
            n,
            f"{low.target.arch} has no copy that signals a ring or accumulates here",
            "use `async` with Commit and Wait copies",
        )
    if n.source == "global":
        _load(n, low)
    elif n.target == "global":
        _store(n, low)
    elif n.source == "register":
        low.out.line(f"tl::stage_rows({low.shared_at(copy_target(n), n.slot, n)}, {names.register(n.name)});")
    else:
        low.out.line(f"tl::load_operand({names.register(copy_target(n))}, {low.shared_at(n.name, n.slot, n)});")


def _load(n: s.Copy, low: Lowering) -> None:
    tile = low.checked.tiles[copy_target(n)]
    if n.target == "register":
        if len(tile.axes) != 1:
            _load_matrix(n, tile, low)
            return
        a = access(n, low, vector=True)
        function = "load_rows" if tile.axes[0].name == low.row_axis else "load_columns"
        low.out.line(f"tl::{function}({names.register(tile.name)}, {a.pointer}, {a.stride}, {a.first}, {a.rows});")
        return
    a = access(n, low, vector=False)
    refuse_uneven(n, tile, low)
    where, template = low.shared_at(tile.name, n.slot, n), a.template("kThreads")
    if not n.asynchronous:
        low.out.line(f"tl::copy{template}({where}, {a.pointer}, {a.stride}, {a.first}, {a.rows});")
    elif a.first == "0":
        low.out.line(f"tl::copy_async_bounded{template}({where}, {a.pointer}, {a.stride}, {a.rows});")
    else:
        low.out.line(f"tl::copy_async_between{template}({where}, {a.pointer}, {a.stride}, {a.first}, {a.rows});")


def refuse_uneven(n: s.Copy, tile: TileType, low: Lowering) -> None:
    """Refuse a tile in shared memory that the threads do not fill in whole passes."""
    lanes = (tile.swizzle or WIDEST_SWIZZLE) // CHUNK_BYTES  # that copy a row side by side
    if tile.axes[0].size % (low.threads // lanes):
        raise Refused(
            n,
            f"{tile.axes[0].size} rows of {tile.name} do not divide among {low.threads} threads",
            "take fewer warps, or a taller tile",
        )


def _load_matrix(n: s.Copy, tile: TileType, low: Lowering) -> None:
    """Into the registers of an accumulator: fp32 only, of which four lanes read 32 bytes together."""
    if BYTES[low.checked.tensors[copy_tensor(n)].dtype] != 4:
        raise Refused(
            n,
            f"{tile.name} {tile.describe()} would go from global memory straight to registers",
            "copy matrices of 16-bit types to shared memory",
        )
    a = access(n, low, vector=False)
    low.out.line(
        f"tl::load_float{a.template()}({names.register(tile.name)}, {a.pointer}, {a.stride}, {a.first}, {a.rows});"
    )


def _store(n: s.Copy, low: Lowering) -> None:
    tile, tensor = low.checked.tiles[n.name], low.checked.tensors[copy_tensor(n)]
    vector = len(tile.axes) == 1
    a = access(n, low, vector=vector)
    if a.first != "0":
        raise Refused(
            n,
            "a store may begin before the tensor's first row",
            "begin at a coordinate that is never negative",
        )
    if vector:
        low.out.line(f"tl::store_vector({a.pointer}, {a.stride}, {names.register(n.name)}, {a.rows});")
    elif n.source == "shared":
        where = low.shared_at(n.name, n.slot, n)
        low.out.line(f"tl::store_tile{a.template('kThreads')}({a.pointer}, {a.stride}, {where}, {a.rows});")
    else:
        function = "store_float" if BYTES[tensor.dtype] == 4 else "store_direct"
        low.out.line(f"tl::{function}{a.template()}({a.pointer}, {a.stride}, {names.register(n.name)}, {a.rows});")


LOWERINGS: Lowerings = {"Copy": _copy}

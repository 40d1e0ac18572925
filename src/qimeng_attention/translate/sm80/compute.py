"""Elementwise expressions, masks and row reductions on fragments: loops over the rows and columns that a lane holds."""

from __future__ import annotations

from contextlib import ExitStack
from functools import reduce

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import REDUCTIONS
from qimeng_attention.tl.scope import LANE
from qimeng_attention.tl.traverse import conjuncts, expressions, map_expressions, names_in
from qimeng_attention.tl.types import TileType
from qimeng_attention.translate import names
from qimeng_attention.translate.expressions import Cpp
from qimeng_attention.translate.sm80.context import FUNCTIONS, INTERNAL, Lowering, Lowerings, Refused
from qimeng_attention.translate.sm80.loads import (
    column_loads,
    hold,
    hold_origins,
    index_line,
    load_column,
    reads_columns,
    without,
)

_START = {"RowMax": "tl::negative_infinity()", "RowSum": "0.0f", "LaneSum": "0.0f"}


class _Element:
    """How tiles and indices are called at one element (r, c) of the statement's loops."""

    def __init__(self, low: Lowering, n: s.Statement, tiles: set[str], rows: str | None, columns: str | None) -> None:
        self.low, self.n, self.rows, self.columns = low, n, rows, columns
        self.tiles = {t for t in tiles if t in low.checked.tiles}

    def tile(self, name: str) -> str:
        kind, register = self.low.checked.tiles[name], names.register(name)
        if len(kind.axes) == 2 and kind.axis_names[1] != LANE:
            if self.rows is None or self.columns is None:
                raise Refused(self.n, f"{name} has columns, the result has none", "reduce it with RowMax or RowSum")
            return f"{register}({self.rows}, {self.columns})"
        if kind.axes[0].name == self.low.row_axis:
            return f"{register}({self.rows})"
        return f"{register}({self.columns})"

    def indices(self) -> dict[str, str]:
        """Give the global indices that an expression over these tiles may use."""
        places = self.low.places(self.n)
        known: dict[str, str] = {}
        for name in sorted(self.tiles):
            for axis in self.low.checked.tiles[name].axes:
                if axis.name != LANE and any(axis.name in axes for axes in places.values()):
                    known[axis.name] = axis.name
        return known


def _used_axes(e: object, low: Lowering, tiles: set[str]) -> list[tuple[str, bool]]:
    """Give the axes whose global index an expression reads, and whether each runs along the rows."""
    read = names_in(e) - set(low.checked.fixed) - set(low.checked.sizes)
    axes = {a.name for t in tiles if t in low.checked.tiles for a in low.checked.tiles[t].axes}
    return [(a, a == low.row_axis) for a in sorted(axes & read)]


def _compute(n: s.Compute, low: Lowering) -> None:
    out, kind = low.out, low.checked.tiles[n.out]
    tiles = names_in(n.value) | {n.out}
    reductions = [e for e in expressions(n.value) if isinstance(e, s.Call) and e.function in REDUCTIONS]
    has_rows = kind.axes[0].name == low.row_axis
    has_columns = (len(kind.axes) == 2 and kind.axis_names[1] != LANE) or not has_rows
    hold_origins(n, low, tiles)
    held = hold(n, low, columns=bool(reductions))
    if not reductions and (loads := column_loads(n, low)):
        _by_columns(n, low, held, loads, has_rows)
        return
    used = _used_axes(without(n.value, held), low, tiles)
    with ExitStack() as stack:
        if has_rows and has_columns:
            _skip(stack, n, low)
        if has_rows:
            _open(stack, low, f"for (int r = 0; r < {names.register(n.out)}.kR; ++r)")
            _index_lines(low, n, tiles, [u for u in used if u[1]])
        found: dict[s.Expr, str] = held | (
            _added_to(n, low)
            or {e: _reduce(e, number, n, low, held) for number, e in enumerate(dict.fromkeys(reductions))}
        )
        meaning = _without_division(n.value, low)
        if has_columns:
            found |= _hoist(meaning, n, low, found, has_rows)
            _open(stack, low, f"for (int c = 0; c < {names.register(n.out)}.kC; ++c)")
            _index_lines(low, n, tiles, [u for u in used if not u[1]])
        element = _Element(low, n, tiles, "r" if has_rows else None, "c" if has_columns else None)
        cpp = Cpp(low.checked, FUNCTIONS | INTERNAL, element.tile, _variables(element.indices()), found)
        value = low.expression(cpp, meaning, n)
        out.line(f"{element.tile(n.out)} = {_as_float(cpp, meaning, value)};")


def _by_columns(n: s.Compute, low: Lowering, held: dict[s.Expr, str], loads: dict[s.Expr, str], has_rows: bool) -> None:
    """Compute column by column, where elements of tensors differ by the column alone."""
    tiles, found, register = names_in(n.value) | {n.out}, held | loads, names.register(n.out)
    meaning = _without_division(n.value, low)
    with ExitStack() as stack:
        _open_columns(stack, low, n, tiles, register, loads)
        if has_rows:
            _open(stack, low, f"for (int r = 0; r < {register}.kR; ++r)")
            _index_lines(low, n, tiles, [u for u in _used_axes(without(n.value, found), low, tiles) if u[1]])
        element = _Element(low, n, tiles, "r" if has_rows else None, "c")
        cpp = Cpp(low.checked, FUNCTIONS | INTERNAL, element.tile, _variables(element.indices()), found)
        value = low.expression(cpp, meaning, n)
        low.out.line(f"{element.tile(n.out)} = {_as_float(cpp, meaning, value)};")


def _open_columns(
    stack: ExitStack,
    low: Lowering,
    n: s.Compute | s.Mask,
    tiles: set[str],
    register: str,
    loads: dict[s.Expr, str],
) -> None:
    _open(stack, low, f"for (int c = 0; c < {register}.kC; ++c)")
    values = (n.condition, n.fill) if isinstance(n, s.Mask) else (n.value,)
    _index_lines(low, n, tiles, [u for u in _used_axes(tuple(v for v in values if v), low, tiles) if not u[1]])
    load_column(loads, n, low)


def _skip(stack: ExitStack, n: s.Compute, low: Lowering) -> None:
    """A tile that keeps its elements where a condition of its rows fails is left alone if it fails for a whole warp."""
    match n.value:
        case s.Call("where", (condition, _, s.Name(kept))) if kept == n.out:
            read = names_in(condition)
        case _:
            return
    vectors = {t for t in read if t in low.checked.tiles}
    if not vectors or any(_columns(t, low) == 2 or low.checked.tiles[t].axes[0].name != low.row_axis for t in vectors):
        return
    if read - vectors - set(low.checked.scalars) - {"inf"}:
        return  # indices of rows would have to be written out
    element = _Element(low, n, vectors, "r", None)
    text = low.expression(Cpp(low.checked, FUNCTIONS | INTERNAL, element.tile), condition, n)
    register, out = names.register(n.out), low.out
    stack.enter_context(out.block(""))
    out.line("bool touched = false;")
    out.line("#pragma unroll")
    out.line(f"for (int r = 0; r < {register}.kR; ++r) touched |= {text};")
    stack.enter_context(out.block("if (tl::any_lane(touched))"))


def _without_division(e: s.Expr, low: Lowering) -> s.Expr:
    """Write a quotient as a product with the reciprocal, which may then be computed once a row."""

    def turn(x: s.Expr) -> s.Expr:
        if isinstance(x, s.Binary) and x.op == "/":
            return s.Binary("*", _floating(x.left, low), s.Call("reciprocal", (x.right,)))
        return x

    return map_expressions(e, turn)


def _floating(e: s.Expr, low: Lowering) -> s.Expr:
    return s.Num(float(e.value)) if isinstance(e, s.Num) else e


def _hoist(e: s.Expr, n: s.Compute, low: Lowering, known: dict[s.Expr, str], has_rows: bool) -> dict[s.Expr, str]:
    """Compute what is the same for all columns before the loop over them."""
    columns = {a.name for t in low.checked.tiles.values() if t.space == "register" for a in t.axes} - {
        low.row_axis,
        LANE,
    }
    columns -= set(low.checked.fixed) | set(low.checked.sizes)
    found: dict[s.Expr, str] = {}
    element = _Element(low, n, names_in(e) | {n.out}, "r" if has_rows else None, None)

    def wide(x: s.Expr) -> bool:
        read = names_in(x)
        tiles = {t for t in read if t in low.checked.tiles}
        return bool(read & columns) or any(
            _columns(t, low) == 2 or low.checked.tiles[t].axes[0].name != low.row_axis for t in tiles
        )

    def visit(x: s.Expr) -> None:
        if x in known or x in found or isinstance(x, s.Num | s.Name | s.Index | s.Scan):
            return
        cpp = Cpp(low.checked, FUNCTIONS | INTERNAL, element.tile, _variables(element.indices()), known | found)
        if (
            not wide(x)
            and isinstance(x, s.Binary | s.Call | s.Unary)
            and not cpp.is_int(x)
            and not _is_condition(x)
            and names_in(x) - {"inf"}
        ):
            name = f"row_{len(found)}" if names_in(x) & set(low.checked.tiles) else f"factor_{len(found)}"
            low.out.line(f"float const {name} = {low.expression(cpp, x, n)};")
            found[x] = name
            return
        for child in _children(x):
            visit(child)

    visit(e)
    return found


def _is_condition(e: s.Expr) -> bool:
    return (
        isinstance(e, s.Compare)
        or (isinstance(e, s.Binary) and e.op in ("and", "or"))
        or (isinstance(e, s.Unary) and e.op == "not")
    )


def _children(e: s.Expr) -> tuple[s.Expr, ...]:
    match e:
        case s.Unary(_, x):
            return (x,)
        case s.Binary(_, a, b):
            return (a, b)
        case s.Call(_, args) | s.Compare(args, _):
            return args
    return ()


def _as_float(cpp: Cpp, e: s.Expr, text: str) -> str:
    return (
        f"float({text})"
        if cpp.is_int(e) and not isinstance(e, s.Num)
        else f"{text}.0f"
        if isinstance(e, s.Num) and isinstance(e.value, int)
        else text
    )


def _variables(axes: dict[str, str]) -> dict[str, str]:
    return {k: names.variable(v) for k, v in axes.items()}


def _open(stack: ExitStack, low: Lowering, head: str) -> None:
    low.out.line("#pragma unroll")
    stack.enter_context(low.out.block(head))


def _index_lines(low: Lowering, n: s.Statement, tiles: set[str], axes: list[tuple[str, bool]]) -> None:
    for axis, along_rows in axes:
        low.out.line(index_line(low, n, tiles, axis, along_rows))


def _added_to(n: s.Compute, low: Lowering) -> dict[s.Expr, str]:
    """Match `x + LaneSum(T)`: the elements are added to x one by one."""
    match n.value:
        case s.Binary("+", s.Name(x), s.Call("LaneSum", (s.Name(tile),))) if (
            x in low.checked.tiles and _columns(tile, low) == 2
        ):
            return {n.value: f"tl::lane_sum({names.register(tile)}, r, {names.register(x)}(r))"}
    return {}


def _reduce(e: s.Call, number: int, n: s.Compute, low: Lowering, held: dict[s.Expr, str]) -> str:
    """Reduce a row; the part a lane holds first, then across the four lanes that share the row."""
    (inside,) = e.args
    if isinstance(inside, s.Name) and _columns(inside.id, low) == 2:
        function = {"RowMax": "tl::row_max", "RowSum": "tl::row_sum", "LaneSum": "tl::lane_sum"}[e.function]
        return f"{function}({names.register(inside.id)}, r)"
    if isinstance(inside, s.Name):
        if e.function == "RowMax":
            raise Refused(n, "RowMax of partial sums means nothing", "use RowSum")
        return f"tl::quad_sum({names.register(inside.id)}(r))"
    return _reduce_expression(e, f"row_{number}", n, low, held)


def _columns(name: str, low: Lowering) -> int:
    """Count a tile's axes; partial sums along the lanes have one value a row."""
    tile: TileType = low.checked.tiles[name]
    return 1 if len(tile.axes) == 2 and tile.axis_names[1] == LANE else len(tile.axes)


def _reduce_expression(e: s.Call, name: str, n: s.Compute, low: Lowering, held: dict[s.Expr, str]) -> str:
    (inside,) = e.args
    tiles = names_in(inside)
    wide = next(t for t in sorted(tiles) if t in low.checked.tiles and _columns(t, low) == 2)
    low.out.line(f"float {name} = {_START[e.function]};")
    low.out.line("#pragma unroll")
    with low.out.block(f"for (int c = 0; c < {names.register(wide)}.kC; ++c)"):
        _index_lines(low, n, tiles, [u for u in _used_axes(without(inside, held), low, tiles) if not u[1]])
        element = _Element(low, n, tiles, "r", "c")
        cpp = Cpp(low.checked, FUNCTIONS, element.tile, _variables(element.indices()), held)
        value = low.expression(cpp, inside, n)
        low.out.line(f"{name} = tl::max({name}, {value});" if e.function == "RowMax" else f"{name} += {value};")
    return name if e.function == "LaneSum" else f"{FUNCTIONS[e.function]}({name})"


def _mask(n: s.Mask, low: Lowering) -> None:
    tiles = names_in(n.condition) | names_in(n.fill) | {n.tile}
    rows_only = _columns(n.tile, low) == 1
    hold_origins(n, low, tiles)
    loads = {} if rows_only else column_loads(n, low)
    held = hold(n, low, columns=False) | loads
    used = _used_axes(tuple(without(e, held) for e in (n.condition, n.fill) if e is not None), low, tiles)
    register = names.register(n.tile)
    by_columns = not rows_only and reads_columns(n, low)
    condition_left, common = n.condition, ""
    with ExitStack() as stack:
        if by_columns:
            _open_columns(stack, low, n, tiles, register, loads)
            condition_left, common = _column_part(n, low, held)
        _open(stack, low, f"for (int r = 0; r < {register}.kR; ++r)")
        _index_lines(low, n, tiles, [u for u in used if u[1]])
        if not rows_only and not by_columns:
            _open(stack, low, f"for (int c = 0; c < {register}.kC; ++c)")
            _index_lines(low, n, tiles, [u for u in used if not u[1]])
        element = _Element(low, n, tiles, "r", None if rows_only else "c")
        cpp = Cpp(low.checked, FUNCTIONS, element.tile, _variables(element.indices()), held)
        condition = common + low.expression(cpp, condition_left, n)
        fill = "tl::negative_infinity()" if n.fill is None else cpp.floating(n.fill)
        low.out.line(f"{element.tile(n.tile)} = {condition} ? {element.tile(n.tile)} : {fill};")


def _column_part(n: s.Mask, low: Lowering, held: dict[s.Expr, str]) -> tuple[s.Expr, str]:
    """Decide once a column what the column alone decides; give what is left of the condition, and what to put before
    it."""
    axes = {a.name for a in low.checked.tiles[n.tile].axes} - {low.row_axis}
    parts = conjuncts(n.condition)
    alone = [e for e in parts if names_in(e) & axes and not names_in(e) & {low.row_axis, *low.checked.tiles}]
    left = [e for e in parts if e not in alone]
    if not alone or not left:
        return n.condition, ""
    element = _Element(low, n, names_in(n.condition) | {n.tile}, None, "c")
    cpp = Cpp(low.checked, FUNCTIONS, element.tile, _variables(element.indices()), held)
    low.out.line(f"bool const kept = {low.expression(cpp, _all(alone), n)};")
    joined = _all(left)
    return joined, "kept && "


def _all(parts: list[s.Expr]) -> s.Expr:
    return reduce(lambda a, b: s.Binary("and", a, b), parts)


LOWERINGS: Lowerings = {"Compute": _compute, "Mask": _mask}

"""Elements of named tensors in expressions, loaded as seldom as their indices allow.

What no index of a fragment's rows or columns reaches is loaded once, what only rows reach once for each row, both into
registers before the loops that do not change them. What only columns reach is loaded once for each column, in a loop
over columns around that over rows: a value is needed no longer than its column. What both reach is loaded where it is
used.

Not here: an element as an expression, with its test of being inside (expressions.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.numerics import BOOL, INTEGER_TYPES
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.scope import LANE
from qimeng_attention.tl.traverse import expressions, map_expressions, names_in, statements
from qimeng_attention.tl.types import TileType
from qimeng_attention.translate import names
from qimeng_attention.translate.expressions import Cpp
from qimeng_attention.translate.sm80.context import FUNCTIONS, INTERNAL, Lowering, Refused

Reader = s.Mask | s.Compute


def origin(low: Lowering, n: s.Statement, tiles: set[str], axis: str) -> s.Expr:
    """Give where an axis begins at a statement: a tile of the statement first, else one that lies along the same."""
    places = low.places(n)
    for t in [*sorted(tiles), *sorted(places)]:
        if axis in places.get(t, {}):
            return places[t][axis].start
    raise Refused(n, f"the axis {axis} has no place here", "Copy a tile along it before this line")


def index_line(low: Lowering, n: s.Statement, tiles: set[str], axis: str, along_rows: bool) -> str:
    """Write the global index of row r or column c."""
    start = _start(origin(low, n, tiles, axis), low, n)
    at = low.row_at(_rows_of(low, tiles), n) if along_rows else "tl::tile_col(c)"
    return f"int const {names.variable(axis)} = {'' if start == '0' else f'{start} + '}{at};"


def _start(e: s.Expr, low: Lowering, n: s.Statement) -> str:
    """Write where an axis begins; a place that is loaded is held."""
    held = low.held.get(("origin", e))
    return low.integer(e, n) if held is None else held


def hold_origins(n: Reader, low: Lowering, tiles: set[str]) -> None:
    """Load once, before a statement's loops, where the axes begin whose place is an element of a tensor."""
    values = tuple(e for e in ((n.condition, n.fill) if isinstance(n, s.Mask) else (n.value,)) if e is not None)
    for axis in sorted(_axis_names(tiles, low) & names_in(values)):
        start = origin(low, n, tiles, axis)
        if ("origin", start) not in low.held and any(isinstance(e, s.Index) for e in expressions(start)):
            name = f"{names.variable(axis)}_first_{low.loads}"
            low.loads += 1
            low.out.line(f"int const {name} = {low.integer(start, n)};")
            low.held["origin", start] = name


def _rows_of(low: Lowering, tiles: set[str]) -> TileType:
    known = [low.checked.tiles[t] for t in sorted(tiles) if t in low.checked.tiles]
    return next(t for t in known if t.axes[0].name == low.row_axis)


def hold(n: Reader, low: Lowering, *, columns: bool) -> dict[s.Expr, str]:
    """Load what a statement reads of tensors before its loops; give how each is called at (r, c).

    With `columns` those of the columns too, all at once, which takes a register each.
    """
    found: dict[s.Expr, str] = {}
    for e in _loads(n, low):
        if columns or _reach(e, n, low) != "columns" or _key(e, n, low) in low.held:
            found[e] = _held(e, n, low)
    return found


def hold_columns(n: s.Mask, low: Lowering) -> None:
    """Load what a mask reads column by column, each into a register, where there is any such element."""
    if reads_columns(n, low):
        hold_origins(n, low, _tiles(n))
        hold(n, low, columns=True)


def reads_columns(n: s.Mask, low: Lowering) -> bool:
    """Tell whether a mask reads elements that differ by the column alone."""
    return any(_reach(e, n, low) == "columns" for e in _loads(n, low))


def column_loads(n: Reader, low: Lowering) -> dict[s.Expr, str]:
    """Name what a statement reads of tensors column by column: the loop over columns is then the outer one."""
    columns = (e for e in _loads(n, low) if _reach(e, n, low) == "columns" and _key(e, n, low) not in low.held)
    found = dict.fromkeys(columns)
    return {e: f"{names.register(e.tensor)}_{low.loads + number}" for number, e in enumerate(found)}


def load_column(loads: dict[s.Expr, str], n: Reader, low: Lowering) -> None:
    """Load them, within the loop over columns and behind its index."""
    for e, name in loads.items():
        assert isinstance(e, s.Index)
        low.loads += 1
        low.out.line(f"{_kind(e, low)} const {name} = {_element(e, n, low)};")


def hold_before(block: s.For | s.If, low: Lowering) -> None:
    """Load what the statements of a block read at indices that the block does not change."""
    made = _made_in(block, low)
    for n in statements((block,)):
        if not isinstance(n, s.Mask | s.Compute):
            continue
        for e in _loads(n, low):
            reach = _reach(e, n, low)
            if reach == "elements" or (reach == "columns" and not _turns(block)):
                continue
            axes = _axis_names(_tiles(n), low) & names_in(e)
            read = names_in(e) - axes
            for axis in axes:
                read |= names_in(origin(low, n, _tiles(n), axis))
            if not read & made:
                _held(e, n, low)


def _turns(block: s.For | s.If) -> bool:
    """Tell whether a block is a loop over one range: what its columns share is worth a register each."""
    return isinstance(block, s.For) and len(block.ranges) == 1


def without(e: s.Expr, held: dict[s.Expr, str]) -> s.Expr:
    """Give what is left to compute of an expression: its loads count as numbers."""
    return map_expressions(e, lambda x: s.Num(0) if x in held else x)


def _made_in(block: s.For | s.If, low: Lowering) -> set[str]:
    made = {n.var for n in statements((block,)) if isinstance(n, s.For)}
    made |= {n.name for n in statements((block,)) if isinstance(n, s.Let | s.Find)}
    if any(isinstance(n, s.For) and not n.ranges for n in statements((block,))):
        made |= {d.name for d in low.checked.grid.dims}  # the tiles of a persistent block
    return made


def _tiles(n: Reader) -> set[str]:
    return names_in(n) | {n.tile if isinstance(n, s.Mask) else n.out}


def _loads(n: Reader, low: Lowering) -> Iterator[s.Index]:
    """Give the elements that a statement reads and may hold, outer before inner where the outer one is not held."""
    values = (n.condition, n.fill) if isinstance(n, s.Mask) else (n.value,)
    for value in values:
        yield from _outermost(value, n, low)


def _outermost(e: s.Expr | None, n: Reader, low: Lowering) -> Iterator[s.Index]:
    match e:
        case s.Index(tensor, indices):
            constant = tensor in low.checked.inputs  # else a store may change it
            if constant and _reach(e, n, low) != "elements":
                yield e
                return
            inside: tuple[s.Expr, ...] = indices
        case s.Unary(_, x):
            inside = (x,)
        case s.Binary(_, a, b):
            inside = (a, b)
        case s.Call(_, args) | s.Compare(args, _):
            inside = args
        case _:
            return
    for x in inside:
        yield from _outermost(x, n, low)


def _reach(e: s.Index, n: Reader, low: Lowering) -> str:
    """Tell what an element differs by: nothing in the `block`, `rows`, `columns`, or both, as `elements` do."""
    read = names_in(e)
    if any(low.checked.tiles[t].space == "register" for t in read & set(low.checked.tiles)):
        return "elements"
    axes = {a.name for t in _tiles(n) & set(low.checked.tiles) for a in low.checked.tiles[t].axes} - {LANE}
    reached = (axes & read) - set(low.checked.fixed) - set(low.checked.sizes)
    if low.row_axis in reached:
        return "rows" if len(reached) == 1 else "elements"
    return "columns" if reached else "block"


def _held(e: s.Index, n: Reader, low: Lowering) -> str:
    """Name the registers that hold an element, loading it first if nothing here has."""
    reach, key = _reach(e, n, low), _key(e, n, low)
    if key not in low.held:
        name = f"{names.register(e.tensor)}_{low.loads}"
        low.loads += 1
        low.held[key] = _load(e, name, reach, n, low)
    return low.held[key]


def _key(e: s.Index, n: Reader, low: Lowering) -> tuple[object, ...]:
    """Name an element at the place of a statement."""
    tiles = _tiles(n)
    axes = sorted(a for a in names_in(e) if _reach(e, n, low) != "block" and a in _axis_names(tiles, low))
    return e, tuple(origin(low, n, tiles, a) for a in axes)


def _axis_names(tiles: set[str], low: Lowering) -> set[str]:
    known = {a.name for t in tiles & set(low.checked.tiles) for a in low.checked.tiles[t].axes}
    return known - set(low.checked.fixed) - set(low.checked.sizes)


def _load(e: s.Index, name: str, reach: str, n: Reader, low: Lowering) -> str:
    tiles, out, kind, value = _tiles(n), low.out, _kind(e, low), _element(e, n, low)
    axes = sorted(_axis_names(tiles, low) & names_in(e))
    out.line(f"// {expression(e)}: once for {_WORDS[reach]}")
    if reach == "block":
        out.line(f"{kind} const {name} = {value};")
        return name
    rows = reach == "rows"
    if rows:
        count = f"tl::RowVector<{low.warp_rows(_rows_of(low, tiles), n)}>::kR"
    else:
        (axis,) = axes
        count = f"tl::ColVector<{_extent(axis, tiles, low)}>::kC"
    at = "r" if rows else "c"
    out.line(f"{kind} {name}[{count}];")
    out.line("#pragma unroll")
    with out.block(f"for (int {at} = 0; {at} < {count}; ++{at})"):
        for axis in axes:
            out.line(index_line(low, n, tiles, axis, rows))
        out.line(f"{name}[{at}] = {value};")
    return f"{name}[{at}]"


def _kind(e: s.Index, low: Lowering) -> str:
    dtype = low.checked.tensors[e.tensor].dtype
    return names.ELEMENTS[dtype] if dtype in INTEGER_TYPES or dtype == BOOL else "float"


def _element(e: s.Index, n: Reader, low: Lowering) -> str:
    axes = {a: names.variable(a) for a in _axis_names(_tiles(n), low) & names_in(e)}
    return low.expression(Cpp(low.checked, FUNCTIONS | INTERNAL, indices=axes), e, n)


_WORDS = {"block": "all elements", "rows": "each row", "columns": "each column"}


def _extent(axis: str, tiles: set[str], low: Lowering) -> int:
    found = [a.size for t in tiles & set(low.checked.tiles) for a in low.checked.tiles[t].axes if a.name == axis]
    return found[0]

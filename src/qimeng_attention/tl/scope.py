"""What is in scope while the checker walks a program: names, types, fills, and the findings so far.

Also the typing of expressions, which needs nothing else. Not here: the rules of each statement (statements/).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from qimeng_attention.errors import Diagnostic, Span
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import CONSTANTS, FUNCTIONS, LANES_A_ROW, REDUCTIONS
from qimeng_attention.tl.numerics import BOOL, INTEGER_TYPES
from qimeng_attention.tl.types import Axis, Origin, TensorType, TileType

LANE = "lane"  # the axis of LaneSum's partial sums


@dataclass(frozen=True, slots=True)
class Type:
    """The type of an expression: its kind, its axes in order, and whether the whole block agrees on its value."""

    kind: str  # "int", "float", "bool", or "any" where a finding has been reported
    axes: tuple[Axis, ...] = ()
    uniform: bool = True


UNKNOWN = Type("any")  # of what has been reported already: it fits everywhere
LARGEST = 1 << 20  # of sizes and tile sizes with a value


@dataclass
class Scope:
    """Names in scope and findings; mutable, one for each kernel checked."""

    target: Target | None = None
    findings: list[Diagnostic] = field(default_factory=list)
    fixed: dict[str, int] = field(default_factory=dict)  # sizes and tile sizes with a value
    sizes: list[str] = field(default_factory=list)  # run-time sizes
    scalars: dict[str, s.Scalar] = field(default_factory=dict)
    ints: set[str] = field(default_factory=set)  # grid, loop and Let variables: uniform integers
    tensors: dict[str, TensorType] = field(default_factory=dict)
    tiles: dict[str, TileType] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)  # tiles that hold a value
    origins: dict[str, dict[str, Origin]] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)  # tensors that are stored to
    read: list[str] = field(default_factory=list)  # tensors that are loaded from or indexed
    grid: s.Grid | None = None
    warps: s.Warps | None = None
    roles: int = 0
    depth: int = 0  # of the blocks around the statement
    macros: list[str] = field(default_factory=list)  # operators that the program or the library defines
    rings: set[str] = field(default_factory=set)
    undeclared: set[tuple[str, str]] = field(default_factory=set)  # what TL101 has been reported for
    broken: set[str] = field(default_factory=set)  # tiles whose making has a finding: what follows from it is not told
    trace: list[dict[str, dict[str, Origin]]] | None = None  # origins before each statement, if asked for

    # -------------------------------------------------------------- findings
    def report(self, code: str, span: Span, message: str, hint: str, severity: str = "error") -> None:
        """Add a finding, once for each place and code."""
        finding = Diagnostic(code, message, hint, span, severity)
        if not any(f.code == code and f.span == span for f in self.findings):
            self.findings.append(finding)

    def known_names(self) -> list[str]:
        """Give every name an expression may use here."""
        return [*self.fixed, *self.sizes, *self.scalars, *self.ints, *self.tiles, *self.tensors, *CONSTANTS]

    def unknown(self, name: str, span: Span, candidates: list[str] | None = None, what: str = "name") -> None:
        """Report TL101 with the nearest known name."""
        candidates = [c for c in (self.known_names() if candidates is None else candidates) if c != name]
        if name in self.broken:
            return
        near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5 if len(name) > 2 else 0.8)
        if not near and (what, name) in self.undeclared:
            return  # one declaration mends them all
        self.undeclared.add((what, name))
        hint = f"did you mean '{near[0]}'?" if near else f"declare '{name}' before this line"
        if what == "name" and any(axis.name == name for tile in self.tiles.values() for axis in tile.axes):
            hint = f"'{name}' is an axis: write it in an expression with a register tile that has this axis"
        self.report("TL101", span, f"unknown {what} '{name}'", hint)

    def require(self, capability: str, span: Span, what: str, hint: str) -> None:
        """Report TL504 where the target lacks what a statement needs; it is never emulated silently."""
        if self.target is not None and capability not in self.target.capabilities:
            self.report("TL504", span, f"{self.target.name} has no {capability}, which {what} needs", hint)

    # -------------------------------------------------------------- numbers known at compile time
    def constant(self, e: s.Expr) -> int | None:
        """Evaluate an integer expression of fixed sizes, or give None."""
        from qimeng_attention.tl.evaluate import integer

        try:
            return integer(e, self.fixed)
        except (KeyError, ValueError, ZeroDivisionError, TypeError, OverflowError):
            return None

    def extent(self, e: s.Expr, span: Span, what: str, most: int = LARGEST) -> int:
        """Give a number between 1 and `most` that is known at compile time, or report TL103 and give 0."""
        place = _at(e, span)
        if self.type_of(e, span).kind == UNKNOWN.kind:
            return 0
        value = self.constant(e)
        if value is None or not 1 <= value <= most:
            found = f"found {_text(e)}, which is not known at compile time" if value is None else f"found {value}"
            self.report(
                "TL103",
                place,
                f"{what} must be a number from 1 to {most:,} known at compile time, {found}",
                "use numbers, and names that Tile or Size gives a value",
            )
            return 0
        return value

    def uniform_integer(self, e: s.Expr, span: Span, what: str) -> None:
        """Report an expression that is no integer, or on which the threads of the block do not agree."""
        t = self.type_of(e, span)
        if t.kind not in ("int", UNKNOWN.kind):
            self.report(
                "TL107",
                _at(e, span),
                f"{what} must be an integer, found {_text(e)}",
                "use sizes, indices, `//` and ceildiv",
            )
        elif not t.uniform or t.axes:
            self.report(
                "TL208",
                _at(e, span),
                f"{what} differs within the block: {_text(e)}",
                "use an integer that the whole block agrees on",
            )

    def at_top(self, n: s.Statement, what: str) -> None:
        """Report a declaration inside a block."""
        if self.depth:
            self.report("TL209", n.span, f"{what} stands inside a block", "move it to the kernel's top level")

    def of_sizes(self, e: s.Expr, span: Span, what: str) -> None:
        """Report an expression that is no integer, or made of anything but sizes: it is needed before the launch."""
        t = self.type_of(e, span)
        if t.kind not in ("int", UNKNOWN.kind):
            self.report("TL107", _at(e, span), f"{what} is no integer: {_text(e)}", "use `//` or ceildiv")
            return
        names = sorted(_names(e) - set(self.sizes) - set(self.fixed) - set(CONSTANTS))
        if names and t.kind != UNKNOWN.kind:
            self.report(
                "TL103", _at(e, span), f"{what} must be made of sizes, found {names[0]}", "declare it with Size"
            )

    def claim(self, name: str, span: Span) -> None:
        """Report a tile or tensor whose name means a number already."""
        if name in self.fixed or name in self.sizes or name in self.scalars or name in self.ints or name in CONSTANTS:
            self.report(
                "TL102",
                span,
                f"'{name}' is a number already, it cannot name a tile or tensor too",
                "choose another name",
            )

    # -------------------------------------------------------------- types of expressions
    def type_of(self, e: s.Expr, span: Span, axes: dict[str, int] | None = None) -> Type:
        """Type an expression; `axes` are the axis names that may be used as global indices, with their extents."""
        axes = axes or {}
        place = _at(e, span)
        match e:
            case s.Num(value):
                return Type("int" if isinstance(value, int) else "float")
            case s.Name(id):
                return self._name(id, place, axes)
            case s.Unary(op, x):
                return self._unary(op, self.type_of(x, span, axes), place)
            case s.Binary():
                return self._binary(e, span, axes)
            case s.Compare(operands, _):
                types = [self.type_of(x, span, axes) for x in operands]
                self._numbers("a comparison", types, place)
                return self._join("bool", types, place)
            case s.Call():
                return self._call(e, span, axes)
            case s.Index():
                return self._index(e, span, axes)
            case s.Scan():
                return self._scan(e, place)
        raise TypeError(e)

    def _numbers(self, what: str, types: list[Type], place: Span) -> None:
        if any(t.kind == "bool" for t in types):
            self.report("TL104", place, f"{what} takes numbers, found a condition", "use where(condition, a, b)")

    def _conditions(self, what: str, types: list[Type], place: Span) -> None:
        if any(t.kind in ("int", "float") for t in types):
            self.report("TL104", place, f"{what} takes conditions, found a number", "compare the number, as `x > 0`")

    def _integers(self, what: str, types: list[Type], place: Span) -> None:
        if any(t.kind == "float" for t in types):
            self.report(
                "TL107", place, f"{what} is for integers, found a floating value", "use '/' for floating values"
            )

    def _unary(self, op: str, t: Type, place: Span) -> Type:
        if op == "not":
            self._conditions("'not'", [t], place)
            return Type("bool", t.axes, t.uniform)
        self._numbers("a sign", [t], place)
        return t

    def _scan(self, e: s.Scan, place: Span) -> Type:
        t = self._name(e.tile, place, {}) if e.tile in self.tiles else UNKNOWN
        if e.tile not in self.tiles:
            self.unknown(e.tile, place, list(self.tiles), "tile")
        elif e.axis not in self.tiles[e.tile].axis_names:
            kind = self.tiles[e.tile]
            self.report(
                "TL105",
                place,
                f"tile {e.tile} is {kind.describe()}, it has no axis '{e.axis}'",
                f"scan along one of {', '.join(kind.axis_names)}",
            )
        return t

    def _name(self, name: str, span: Span, axes: dict[str, int]) -> Type:
        if name in axes and name not in self.tiles:
            return Type("int", (Axis(name, axes[name]),), False)
        if name in self.tiles:
            tile = self.tiles[name]
            if tile.space != "register":
                self.report(
                    "TL207",
                    span,
                    f"tile {name} lies in {tile.space} memory, expected a register tile",
                    "Compute works on registers: Copy the tile to register first (GEMM reads shared memory)",
                )
            elif name not in self.filled:
                self.report(
                    "TL204",
                    span,
                    f"tile {name} is read before anything fills it",
                    f"give {name} an initial value in its Allocate, or compute it first",
                )
            return Type("float", tile.axes, False)
        if name in self.fixed or name in self.sizes or name in self.ints:
            return Type("int")
        if name in self.scalars:
            return Type("float" if self.scalars[name].dtype not in INTEGER_TYPES else "int")
        if name in CONSTANTS:
            return Type("float")
        if name in self.tensors:
            self.report(
                "TL207",
                span,
                f"{name} lies in global memory, expected a tile or a number",
                f"Copy a tile of {name} to register first, or read one element as {name}[...]",
            )
            return UNKNOWN
        self.unknown(name, span, [*self.known_names(), *axes])
        return UNKNOWN

    def _binary(self, e: s.Binary, span: Span, axes: dict[str, int]) -> Type:
        types = [self.type_of(x, span, axes) for x in (e.left, e.right)]
        place = _at(e, span)
        if e.op in ("and", "or"):
            self._conditions(f"'{e.op}'", types, place)
            return self._join("bool", types, place)
        self._numbers(f"'{e.op}'", types, place)
        if e.op in ("//", "%"):
            self._integers(f"'{e.op}'", types, place)
            return self._join("int", types, place)
        return self._join("float" if e.op == "/" else _kind(types), types, place)

    def _call(self, e: s.Call, span: Span, axes: dict[str, int]) -> Type:
        place = _at(e, span)
        if e.function not in FUNCTIONS:
            self.unknown(e.function, place, list(FUNCTIONS), "function")
            return UNKNOWN
        f = FUNCTIONS[e.function]
        if not f.arity[0] <= len(e.args) <= f.arity[1]:
            wanted = str(f.arity[0]) if f.arity[0] == f.arity[1] else f"{f.arity[0]} to {f.arity[1]}"
            self.report(
                "TL108", place, f"{f.name} takes {wanted} argument(s), found {len(e.args)}", f"{f.name} gives {f.doc}"
            )
            return UNKNOWN
        types = [self.type_of(a, span, axes) for a in e.args]
        values = types[1:] if f.name == "where" else types
        self._numbers(f.name, values, place)
        if f.name in REDUCTIONS:
            return self._reduction(e, types[0], place)
        if f.name == "where":
            self._conditions("the first argument of where", types[:1], place)
        if f.result == "int":
            self._integers(f.name, types, place)
        return self._join(f.result if f.result != "same" else _kind(values), types, place)

    def _reduction(self, e: s.Call, t: Type, place: Span) -> Type:
        if t.kind == UNKNOWN.kind:
            return UNKNOWN
        if len(t.axes) != 2:
            self.report(
                "TL106",
                place,
                f"{e.function} reduces the rows of a tile with two axes, found {len(t.axes)}",
                "give it a matrix; a vector needs no row reduction",
            )
            return Type("float", t.axes[:1], False)
        if e.function == "LaneSum" and t.axes[1].size % (2 * LANES_A_ROW):
            self.report(
                "TL106",
                place,
                f"LaneSum spreads a row over {LANES_A_ROW} lanes in pairs, found a row of {t.axes[1].size} elements",
                f"take a multiple of {2 * LANES_A_ROW}, or use RowSum",
            )
        kept = (t.axes[0], Axis(LANE, LANES_A_ROW)) if e.function == "LaneSum" else (t.axes[0],)
        return Type("float", kept, False)

    def _index(self, e: s.Index, span: Span, axes: dict[str, int]) -> Type:
        place = _at(e, span)
        if e.tensor not in self.tensors:
            self.unknown(e.tensor, place, list(self.tensors), "tensor")
            return UNKNOWN
        tensor = self.tensors[e.tensor]
        if e.tensor not in self.read:
            self.read.append(e.tensor)
        if len(e.indices) != len(tensor.dims):
            self.report(
                "TL110",
                place,
                f"{e.tensor} has {len(tensor.dims)} dimension(s), found {len(e.indices)} indices",
                f"index it as declared: {e.tensor}[{', '.join(_text(d) for d in tensor.dims)}]",
            )
        types = [self.type_of(i, span, axes) for i in e.indices]
        for index, t in zip(e.indices, types, strict=True):
            if t.kind not in ("int", UNKNOWN.kind):
                self.report(
                    "TL107",
                    _at(index, place),
                    f"an index of {e.tensor} must be an integer, found {_text(index)}",
                    "use sizes, indices and `//`",
                )
        kind = "int" if tensor.dtype in INTEGER_TYPES else "bool" if tensor.dtype == BOOL else "float"
        return self._join(kind, types, place)

    def _join(self, kind: str, types: list[Type], span: Span) -> Type:
        """Broadcast by axis name; the operand with most axes gives the order."""
        order: dict[str, Axis] = {}
        for t in sorted(types, key=lambda t: -len(t.axes)):
            for a in t.axes:
                known = order.setdefault(a.name, a)
                if 0 not in (known.size, a.size) and known.size != a.size:
                    self.report(
                        "TL106",
                        span,
                        f"axis {a.name} has {known.size} elements in one operand and {a.size} in another",
                        "give both tiles the same extent along it",
                    )
        if len(order) > 2:
            names = ", ".join(order)
            self.report(
                "TL105",
                span,
                f"the operands' axes clash: together they have the axes {names}, a tile has two",
                "check the axes that each operand's Copy or Allocate gave it",
            )
        if kind != "bool" and any(t.kind == UNKNOWN.kind for t in types):
            kind = UNKNOWN.kind
        axes = list(order.values())[:2]
        if len(axes) == 2 and all(len(t.axes) < 2 for t in types):
            axes = self._as_tiles_lie(axes)
        return Type(kind, tuple(axes), all(t.uniform for t in types))

    def _as_tiles_lie(self, axes: list[Axis]) -> list[Axis]:
        """Order two axes that met in an expression as the register tiles have them: rows first."""
        names = {a.name for a in axes}
        for tile in self.tiles.values():
            if tile.space == "register" and set(tile.axis_names) == names:
                return sorted(axes, key=lambda a: tile.axis_names.index(a.name))
        return axes

    # -------------------------------------------------------------- tiles
    def axes_of_tiles(self, names: set[str]) -> dict[str, int]:
        """Give the axes of the named register tiles, usable as global indices in an expression over them."""
        sizes = {
            LANE,
            *self.fixed,
            *self.sizes,
        }  # an axis named after a size is whole: the name means the size
        return {
            a.name: a.size for n in sorted(names) if n in self.tiles for a in self.tiles[n].axes if a.name not in sizes
        }

    def merge_origins(self, out: str, names: set[str]) -> None:
        """Let a computed tile begin where its operands begin."""
        kept = {a.name for a in self.tiles[out].axes} if out in self.tiles else set()
        self.origins[out] = {a: o for n in sorted(names) for a, o in self.origins.get(n, {}).items() if a in kept}


def _kind(types: list[Type]) -> str:
    return "int" if all(t.kind == "int" for t in types) else "float"


def _at(e: s.Expr, span: Span) -> Span:
    return e.span if e.span.line else span


def _names(e: s.Expr) -> set[str]:
    from qimeng_attention.tl.traverse import names_in

    return names_in(e)


def _text(e: s.Expr) -> str:
    from qimeng_attention.tl.printer import expression

    return expression(e)

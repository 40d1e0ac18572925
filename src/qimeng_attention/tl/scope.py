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
from qimeng_attention.tl.numerics import INTEGER_TYPES
from qimeng_attention.tl.types import Axis, Origin, TensorType, TileType

LANE = "lane"  # the axis of LaneSum's partial sums


@dataclass(frozen=True, slots=True)
class Type:
    """The type of an expression: its kind, its axes in order, and whether the whole block agrees on its value."""

    kind: str  # "int", "float", "bool"
    axes: tuple[Axis, ...] = ()
    uniform: bool = True


UNKNOWN = Type("float")


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
    rings: set[str] = field(default_factory=set)
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
        near = difflib.get_close_matches(
            name, candidates if candidates is not None else self.known_names(), n=1, cutoff=0.4
        )
        hint = f"did you mean '{near[0]}'?" if near else f"declare '{name}' before this line"
        self.report("TL101", span, f"unknown {what} '{name}'", hint)

    # -------------------------------------------------------------- numbers known at compile time
    def constant(self, e: s.Expr) -> int | None:
        """Evaluate an integer expression of fixed sizes, or give None."""
        from qimeng_attention.tl.evaluate import integer

        try:
            return integer(e, self.fixed)
        except (KeyError, ValueError, ZeroDivisionError, TypeError, OverflowError):
            return None

    def extent(self, e: s.Expr, span: Span, what: str) -> int:
        """Give a tile extent, or report TL103 and give 1."""
        for name in _names(e):
            if name not in self.known_names():
                self.unknown(name, span)
                return 1
        value = self.constant(e)
        if value is None or not 1 <= value <= 1 << 20:
            found = "not known at compile time" if value is None else str(value)
            self.report("TL103", span, f"{what} must be a positive number known at compile time, found " f"{found}",
                        "give its names a value with Tile or Size")  # fmt: skip
            return 1
        return value

    # -------------------------------------------------------------- types of expressions
    def type_of(self, e: s.Expr, span: Span, axes: dict[str, int] | None = None) -> Type:
        """Type an expression; `axes` are the axis names that may be used as global indices, with their extents."""
        axes = axes or {}
        match e:
            case s.Num(value):
                return Type("int" if isinstance(value, int) else "float")
            case s.Name(id):
                return self._name(id, _at(e, span), axes)
            case s.Unary(op, x):
                t = self.type_of(x, span, axes)
                return Type("bool" if op == "not" else t.kind, t.axes, t.uniform)
            case s.Binary():
                return self._binary(e, span, axes)
            case s.Compare(operands, _):
                types = [self.type_of(x, span, axes) for x in operands]
                return self._join("bool", types, _at(e, span))
            case s.Call():
                return self._call(e, span, axes)
            case s.Index():
                return self._index(e, span, axes)
            case s.Scan(tile, axis):
                if tile not in self.tiles:
                    self.unknown(tile, _at(e, span), list(self.tiles), "tile")
                    return UNKNOWN
                if axis not in self.tiles[tile].axis_names:
                    self.report(
                        "TL105",
                        _at(e, span),
                        f"tile {tile} has no axis '{axis}'",
                        f"it has {self.tiles[tile].describe()}",
                    )
                return Type("float", self.tiles[tile].axes, False)
        raise TypeError(e)

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
                    "elementwise Compute works on registers: GEMM reads shared memory, or Copy "
                    "the tile to register first",
                )
            if name not in self.filled:
                self.report("TL204", span, f"tile {name} is read before anything fills it",
                            f"give {name} an initial value in its Allocate, or compute it first")  # fmt: skip
            return Type("float", tile.axes, False)
        if name in self.fixed or name in self.sizes or name in self.ints:
            return Type("int")
        if name in self.scalars:
            return Type("float" if self.scalars[name].dtype not in INTEGER_TYPES else "int")
        if name in CONSTANTS:
            return Type("float")
        self.unknown(name, span, [*self.known_names(), *axes])
        return UNKNOWN

    def _binary(self, e: s.Binary, span: Span, axes: dict[str, int]) -> Type:
        types = [self.type_of(x, span, axes) for x in (e.left, e.right)]
        place = _at(e, span)
        if e.op in ("and", "or"):
            for t in types:
                if t.kind != "bool":
                    self.report(
                        "TL104",
                        place,
                        f"'{e.op}' joins conditions, found a number",
                        "compare it with something",
                    )
            return self._join("bool", types, place)
        if any(t.kind == "bool" for t in types):
            self.report(
                "TL104", place, f"'{e.op}' takes numbers, found a condition", "use where(condition, a, b)"
            )
        if e.op in ("//", "%"):
            if any(t.kind == "float" for t in types):
                self.report(
                    "TL107",
                    place,
                    f"'{e.op}' is for integers, found a floating value",
                    "use '/' for floating values",
                )
            return self._join("int", types, place)
        kind = "float" if e.op == "/" or any(t.kind == "float" for t in types) else "int"
        return self._join(kind, types, place)

    def _call(self, e: s.Call, span: Span, axes: dict[str, int]) -> Type:
        place = _at(e, span)
        if e.function not in FUNCTIONS:
            self.unknown(e.function, place, list(FUNCTIONS), "function")
            return UNKNOWN
        f = FUNCTIONS[e.function]
        if not f.arity[0] <= len(e.args) <= f.arity[1]:
            wanted = str(f.arity[0]) if f.arity[0] == f.arity[1] else f"{f.arity[0]} to {f.arity[1]}"
            self.report(
                "TL108",
                place,
                f"{f.name} takes {wanted} argument(s), found {len(e.args)}",
                f"{f.name}: {f.doc}",
            )
            return UNKNOWN
        types = [self.type_of(a, span, axes) for a in e.args]
        if f.name in REDUCTIONS:
            return self._reduction(e, types[0], place)
        if f.name == "where":
            if types[0].kind != "bool":
                self.report(
                    "TL104",
                    place,
                    "where takes a condition first, found a number",
                    "compare it with something",
                )
            joined = self._join("float", types[1:], place)
            kind = "int" if all(t.kind == "int" for t in types[1:]) else "float"
            return self._join(kind, [types[0], joined], place)
        if f.result == "int" and any(t.kind == "float" for t in types):
            self.report(
                "TL107",
                place,
                f"{f.name} is for integers, found a floating value",
                "use '/' for floating values",
            )
        kind = f.result if f.result != "same" else "int" if all(t.kind == "int" for t in types) else "float"
        return self._join(kind, types, place)

    def _reduction(self, e: s.Call, t: Type, place: Span) -> Type:
        if len(t.axes) != 2:
            self.report("TL106", place, f"{e.function} reduces the rows of a tile with two axes, found " f"{len(t.axes)}",
                        "a vector needs no row reduction")  # fmt: skip
            return Type("float", t.axes[:1], False)
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
        for t in types:
            if t.kind != "int":
                self.report("TL107", place, "an index must be an integer", "use integer arithmetic")
        kind = "int" if tensor.dtype in INTEGER_TYPES else "float"
        return self._join(kind, types, place)

    def _join(self, kind: str, types: list[Type], span: Span) -> Type:
        """Broadcast by axis name; the operand with most axes gives the order."""
        order: dict[str, Axis] = {}
        for t in sorted(types, key=lambda t: -len(t.axes)):
            for a in t.axes:
                known = order.setdefault(a.name, a)
                if known.size != a.size:
                    self.report("TL106", span, f"axis {a.name} has {known.size} elements in one operand " f"and {a.size} in " "another",
                                "give both tiles the same extent along it")  # fmt: skip
        if len(order) > 2:
            names = ", ".join(order)
            self.report("TL105", span, f"the operands' axes clash: together they have the axes {names}, " "a tile has two",
                        "check the axes that each operand's Copy or Allocate gave it")  # fmt: skip
        return Type(kind, tuple(order.values())[:2], all(t.uniform for t in types))

    # -------------------------------------------------------------- tiles
    def axes_of_tiles(self, names: set[str]) -> dict[str, int]:
        """Give the axes of the named register tiles, usable as global indices in an expression over them."""
        sizes = {
            LANE,
            *self.fixed,
            *self.sizes,
        }  # an axis named after a size is whole: the name means the size
        return {
            a.name: a.size
            for n in sorted(names)
            if n in self.tiles
            for a in self.tiles[n].axes
            if a.name not in sizes
        }

    def merge_origins(self, out: str, names: set[str]) -> None:
        """Let a computed tile begin where its operands begin."""
        kept = {a.name for a in self.tiles[out].axes} if out in self.tiles else set()
        self.origins[out] = {
            a: o for n in sorted(names) for a, o in self.origins.get(n, {}).items() if a in kept
        }


def _at(e: s.Expr, span: Span) -> Span:
    return e.span if e.span.line else span


def _names(e: s.Expr) -> set[str]:
    from qimeng_attention.tl.traverse import names_in

    return names_in(e)


def _text(e: s.Expr) -> str:
    from qimeng_attention.tl.printer import expression

    return expression(e)

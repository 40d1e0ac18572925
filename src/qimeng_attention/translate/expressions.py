"""Expressions of TL in C++.

Integers of the block stay ints with floor semantics for `//` and `%`; element expressions read fragments at (r, c).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import CONSTANTS
from qimeng_attention.tl.numerics import BOOL, INTEGER_TYPES
from qimeng_attention.tl.traverse import expressions
from qimeng_attention.tl.types import Checked
from qimeng_attention.translate import names

_LEVEL = {"or": 1, "and": 2, "compare": 4, "+": 5, "-": 5, "*": 6, "neg": 7}
_ATOM = 9


class NoLowering(Exception):
    """An expression that the generation has no lowering for."""


@dataclass
class Cpp:
    """Writes expressions.

    `tiles` says how a register tile is read at the present element, `indices` how a global index is called there,
    `functions` how each function of TL is called.
    """

    checked: Checked
    functions: Mapping[str, str]
    tiles: Callable[[str], str] = field(default=lambda name: _no_tile(name))
    indices: Mapping[str, str] = field(default_factory=dict)
    reductions: Mapping[s.Expr, str] = field(default_factory=dict)  # row reductions computed beforehand
    inside: Collection[tuple[s.Expr, s.Expr]] = ()  # loop variables, and dimensions that they never leave

    def __call__(self, e: s.Expr) -> str:
        """Write an expression."""
        return self._write(e)[0]

    def is_int(self, e: s.Expr) -> bool:
        """Tell whether an expression is an integer in C++."""
        match e:
            case s.Num(value):
                return isinstance(value, int)
            case s.Name(id):
                return id not in self.checked.tiles and id not in self.checked.scalars and id not in CONSTANTS
            case s.Unary(_, x):
                return self.is_int(x)
            case s.Binary(op, a, b):
                return op != "/" and self.is_int(a) and self.is_int(b)
            case s.Call("min" | "max" | "clamp" | "abs", args):
                return all(self.is_int(a) for a in args)
            case s.Call("where", (_, a, b)):
                return self.is_int(a) and self.is_int(b)
            case s.Call(function, _):
                return function == "ceildiv"
            case s.Index(tensor, _):
                return self.checked.tensors[tensor].dtype in INTEGER_TYPES
        return False

    def floating(self, e: s.Expr) -> str:
        """Write an expression as a float."""
        if isinstance(e, s.Num):
            return _float(float(e.value))
        text, level = self._write(e)
        if not self.is_int(e):
            return text if level >= _LEVEL["neg"] else f"({text})"
        return f"float({text})"

    def _write(self, e: s.Expr) -> tuple[str, int]:
        if e in self.reductions:
            return self.reductions[e], _ATOM
        match e:
            case s.Num(value):
                return (str(value) if isinstance(value, int) else _float(value)), _ATOM if value >= 0 else _LEVEL["neg"]
            case s.Name(id):
                return self._name(id), _ATOM
            case s.Unary("not", x):
                return f"!{self._wrap(x, _ATOM)}", _LEVEL["neg"]
            case s.Unary(_, x):
                return f"-{self._wrap(x, _LEVEL['neg'])}", _LEVEL["neg"]
            case s.Binary():
                return self._binary(e)
            case s.Compare(operands, ops):
                links = [
                    f"{self._wrap(a, 5)} {op} {self._wrap(b, 5)}"
                    for a, op, b in zip(operands, ops, operands[1:], strict=False)
                ]
                return (links[0], _LEVEL["compare"]) if len(links) == 1 else (" && ".join(links), _LEVEL["and"])
            case s.Call():
                return self._call(e)
            case s.Index(tensor, indices):
                return self._element(tensor, indices), _ATOM
        raise NoLowering("Scan")

    def _wrap(self, e: s.Expr, level: int) -> str:
        text, own = self._write(e)
        return text if own >= level else f"({text})"

    def _name(self, name: str) -> str:
        if name in self.checked.tiles and self.checked.tiles[name].space == "register" and name not in self.indices:
            return self.tiles(name)
        if name in self.indices and name not in self.checked.fixed and name not in self.checked.sizes:
            return self.indices[name]
        if name == "inf":
            return "tl::infinity()"
        if name in CONSTANTS:
            return _float(CONSTANTS[name])
        return names.variable(name)

    def _binary(self, e: s.Binary) -> tuple[str, int]:
        if e.op in ("and", "or"):
            level = _LEVEL[e.op]
            inner = level + 1 if e.op == "and" else _LEVEL["compare"]
            return (
                f"{self._wrap(e.left, inner)} {'&&' if e.op == 'and' else '||'} {self._wrap(e.right, inner)}",
                level,
            )
        if e.op == "//":
            return f"tl::floor_div({', '.join(self._integers((e.left, e.right)))})", _ATOM
        if e.op == "%":
            return f"tl::floor_mod({', '.join(self._integers((e.left, e.right)))})", _ATOM
        if e.op == "/":
            return f"{self.floating(e.left)} * tl::reciprocal({self._bare_float(e.right)})", _LEVEL["*"]
        level = _LEVEL[e.op]
        if self.is_int(e):
            return f"{self._wrap(e.left, level)} {e.op} {self._wrap(e.right, level + 1)}", level
        left, right = (self._operand(x, level + n) for n, x in enumerate((e.left, e.right)))
        return f"{left} {e.op} {right}", level

    def _operand(self, e: s.Expr, level: int) -> str:
        """Write an operand of floating arithmetic: integer literals become floating ones."""
        if isinstance(e, s.Num):
            return _float(float(e.value))
        return f"float({self(e)})" if self.is_int(e) else self._wrap(e, level)

    def _bare_float(self, e: s.Expr) -> str:
        return self(e) if not self.is_int(e) else self.floating(e)

    def _call(self, e: s.Call) -> tuple[str, int]:
        if e.function == "where":
            condition, a, b = e.args
            if self.is_int(e):
                return f"({self(condition)} ? {self(a)} : {self(b)})", _ATOM
            return f"({self(condition)} ? {self._bare_float(a)} : {self._bare_float(b)})", _ATOM
        if e.function not in self.functions:
            raise NoLowering(e.function)
        integer = self.is_int(e)
        args = self._integers(e.args) if integer else [self._bare_float(a) for a in e.args]
        text = args[-1]
        if e.function in ("min", "max") and len(args) > 2:
            for other in reversed(args[:-1]):
                text = f"{self.functions[e.function]}({other}, {text})"
            return text, _ATOM
        return f"{self.functions[e.function]}({', '.join(args)})", _ATOM

    def _element(self, tensor: str, indices: tuple[s.Expr, ...]) -> str:
        """Read an element of a named tensor; outside of it reads 0."""
        kind = self.checked.tensors[tensor]
        written = [self(i) for i in indices]
        inside = " && ".join(
            f"tl::inside({text}, {self(d)})"
            for i, text, d in zip(indices, written, kind.dims, strict=True)
            if not self._always_inside(i, d)
        )
        terms = [
            i if n == len(written) - 1 else f"int64_t({i}) * {names.stride(tensor, n)}" for n, i in enumerate(written)
        ]
        exact = kind.dtype in INTEGER_TYPES or kind.dtype in ("f32", BOOL)
        zero = "0" if kind.dtype in INTEGER_TYPES else "false" if kind.dtype == BOOL else "0.0f"
        value = f"{names.tensor(tensor)}[{' + '.join(terms)}]"
        value = value if exact else f"float({value})"
        return f"({inside} ? {value} : {zero})" if inside else value

    def _always_inside(self, index: s.Expr, dim: s.Expr) -> bool:
        """Tell whether an index is one of the grid or a loop that never leaves this dimension."""
        return (
            (index, dim) in self.inside
            or (index == s.Num(0) and _positive(dim, self.checked))
            or any(index == s.Name(d.name) and d.start == s.Num(0) and d.stop == dim for d in self.checked.grid.dims)
        )

    def is_wide(self, e: s.Expr) -> bool:
        """Tell whether an integer has 64 bits: elements of such a tensor take part in it."""
        return self.is_int(e) and any(
            isinstance(x, s.Index) and self.checked.tensors[x.tensor].dtype == "i64" for x in expressions(e)
        )

    def _integers(self, args: tuple[s.Expr, ...]) -> list[str]:
        """Write integer arguments, all of one width."""
        wide = any(self.is_wide(a) for a in args)
        return [f"int64_t({self(a)})" if wide else self(a) for a in args]


def _positive(e: s.Expr, checked: Checked) -> bool:
    """Prove a dimension to be at least 1, from how it is written."""
    match e:
        case s.Num(value):
            return value >= 1
        case s.Name(id):
            return checked.fixed.get(id, 0) >= 1
        case s.Binary("*", a, b):
            return _positive(a, checked) and _positive(b, checked)
        case s.Call("max", args):
            return any(_positive(a, checked) for a in args)
        case s.Call("ceildiv", (a, b)):
            return _positive(a, checked) and _positive(b, checked)
    return False


def _float(value: float) -> str:
    if value == float("inf"):
        return "tl::infinity()"
    text = repr(float(value))
    return (text if any(x in text for x in ".en") else text + ".0") + "f"


def _no_tile(name: str) -> str:
    raise NoLowering(f"tile {name} here")

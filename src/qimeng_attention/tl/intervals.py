"""Interval analysis of conditions over a tile: for which iterations of a loop do all elements pass, or any?

A condition is read as a conjunction and disjunction of comparisons that are linear in the loop's variable. Each
comparison `a <= b` is decided at the worst (for all) or best (for any) corner of the tile, which gives an inequality
`c * i <= N` and so a stretch of iterations. What cannot be read stays on the safe side: no iteration passes for all,
every iteration may pass for any.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.origins import Places
from qimeng_attention.tl.traverse import add, call, conjuncts, expressions, mul, names_in, num, sub
from qimeng_attention.tl.types import Checked

_TURNED = {"<": ">=", ">": "<=", "<=": ">", ">=": "<", "==": "!=", "!=": "=="}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Iterations `start <= i < stop`; None stands for no bound, `never` for none at all."""

    start: s.Expr | None = None
    stop: s.Expr | None = None
    never: bool = False

    def intersect(self, other: Stretch) -> Stretch:
        """Give the iterations in both."""
        return Stretch(
            _join("max", self.start, other.start),
            _join("min", self.stop, other.stop),
            self.never or other.never,
        )


def _join(function: str, a: s.Expr | None, b: s.Expr | None) -> s.Expr | None:
    if a is None or b is None or a == b:
        return a if b is None else b
    return call(function, a, b)


@dataclass(frozen=True, slots=True)
class _Axis:
    """The first and last global index of a tile along an axis."""

    low: s.Expr
    high: s.Expr


def all_true(
    condition: s.Expr,
    places: Places,
    extents: dict[str, int],
    var: str,
    checked: Checked,
    tile: str | None = None,
) -> Stretch:
    """Give iterations of `var` in which the condition holds for every element of a tile (never too many)."""
    axes = _axes(places, extents, tile)
    return _Analysis(axes, var, checked, everywhere=True).solve(condition)


def any_true(
    condition: s.Expr, origins: dict[str, s.Expr], extents: dict[str, s.Expr], var: str, fixed: dict[str, int]
) -> Stretch:
    """Give iterations of `var` outside of which the condition holds for no element of a tile (never too few).

    `extents` are the tile's sizes as the program names them, so that the bounds name them too.
    """
    axes = {name: _Axis(start, add(start, sub(extents[name], num(1)))) for name, start in origins.items()}
    return _Analysis(axes, var, None, everywhere=False, fixed=fixed).solve(condition)


def undecided(condition: s.Expr, axes: set[str]) -> bool:
    """Tell whether a condition has a clause over some axes that no interval decides: it reads a tensor, or is no
    comparison that is linear in them."""
    at = {a: _Axis(s.Name(f"{a}_first"), add(s.Name(f"{a}_first"), num(1))) for a in axes}
    analysis = _Analysis(at, "", None, everywhere=False)
    return any(isinstance(e, s.Index) for e in expressions(condition)) or not all(
        analysis.reads(e) for e in _clauses(condition) if names_in(e) & axes
    )


def _clauses(e: s.Expr) -> list[s.Expr]:
    match e:
        case s.Binary("and" | "or", a, b):
            return [*_clauses(a), *_clauses(b)]
        case s.Unary("not", x):
            return _clauses(x)
        case s.Compare(operands, ops) if len(ops) > 1:
            pairs = zip(operands, ops, operands[1:], strict=False)
            return [s.Compare((a, b), (op,)) for a, op, b in pairs]
    return [e]


def _axes(places: Places, extents: dict[str, int], tile: str | None) -> dict[str, _Axis]:
    found: dict[str, _Axis] = {}
    for name, origins in places.items():
        if tile is not None and name != tile:
            continue
        for axis, origin in origins.items():
            if axis in extents:
                found[axis] = _Axis(origin.start, add(origin.start, num(extents[axis] - 1)))
    return found


class _Analysis:
    def __init__(
        self,
        axes: dict[str, _Axis],
        var: str,
        checked: Checked | None,
        *,
        everywhere: bool,
        fixed: dict[str, int] | None = None,
    ) -> None:
        self.axes, self.var, self.everywhere = axes, var, everywhere
        self.fixed = fixed if fixed is not None else checked.fixed if checked is not None else {}

    def unknown(self) -> Stretch:
        """Give the safe answer."""
        return Stretch(never=self.everywhere)

    def solve(self, e: s.Expr) -> Stretch:
        """Give the stretch of a condition."""
        match e:
            case s.Binary("and", left, right):
                return self._both(self.solve(left), self.solve(right))
            case s.Binary("or", left, right):
                return self._either(self.solve(left), self.solve(right))
            case s.Unary("not", x):
                return self.solve_not(x)
            case s.Compare(operands, ops):
                links = [self._link(a, op, b) for a, op, b in zip(operands, ops, operands[1:], strict=False)]
                return reduce(self._both, links)
        return self.unknown()

    def solve_not(self, e: s.Expr) -> Stretch:
        """Give the stretch of a condition's contrary."""
        match e:
            case s.Compare((a, b), (op,)):
                return self.solve(s.Compare((a, b), (_TURNED[op],)))
            case s.Compare():
                return reduce(self._either, [self.solve_not(link) for link in conjuncts(e)])
            case s.Binary("and", left, right):
                return self._either(self.solve_not(left), self.solve_not(right))
            case s.Binary("or", left, right):
                return self._both(self.solve_not(left), self.solve_not(right))
            case s.Unary("not", x):
                return self.solve(x)
        return self.unknown()

    def _both(self, a: Stretch, b: Stretch) -> Stretch:
        if self.everywhere and (a.never or b.never):
            return Stretch(never=True)
        return a.intersect(b)

    def _either(self, a: Stretch, b: Stretch) -> Stretch:
        """Join two stretches: for all, one that is surely covered by either; for any, their hull."""
        if a.never or b.never:
            return b if a.never else a
        same = (
            (a.start is None) == (b.start is None)
            and (a.stop is None) == (b.stop is None)
            and (a.start is None or a.stop is None)
        )
        if self.everywhere and not same:
            return a
        start = None if a.start is None or b.start is None else _join("min", a.start, b.start)
        stop = None if a.stop is None or b.stop is None else _join("max", a.stop, b.stop)
        return Stretch(start, stop)

    def _link(self, a: s.Expr, op: str, b: s.Expr) -> Stretch:
        if op in (">", ">="):
            a, b, op = b, a, {">": "<", ">=": "<="}[op]
        if op == "==" and not self.everywhere:
            return self._link(a, "<=", b).intersect(self._link(b, "<=", a))
        if op not in ("<", "<="):
            return self.unknown()
        if isinstance(a, s.Call) and a.function == "abs":  # |x| <= b is x <= b and -x <= b
            (x,) = a.args
            return self._both(self._link(x, op, b), self._link(s.Unary("-", x), op, b))
        a, op, b = self._without_floor(a, op, b)
        try:
            low_a, high_a = self._bounds(a)
            low_b, high_b = self._bounds(b)
        except _NotLinear:
            return self.unknown()
        left, right = (high_a, low_b) if self.everywhere else (low_a, high_b)
        return self._solve_linear(left, right, strict=op == "<")

    def reads(self, e: s.Expr) -> bool:
        """Tell whether a comparison is bounded by the ends of the tile."""
        match e:
            case s.Compare((a, b), (op,)) if op != "!=":
                plain = [x.args[0] if isinstance(x, s.Call) and x.function == "abs" else x for x in (a, b)]
                left, _, right = self._without_floor(plain[0], "<=", plain[1])
                try:
                    self._bounds(left), self._bounds(right)
                except _NotLinear:
                    return False
                return True
        return False

    def _without_floor(self, a: s.Expr, op: str, b: s.Expr) -> tuple[s.Expr, str, s.Expr]:
        """Write `x // c <= b`, `a <= y // c` and `x // c <= y // c` without the divisions.

        The first two say the same without; the third is narrowed to x <= y where the answer is for all elements, and
        widened to x <= y + c - 1 where it is for any.
        """
        match a:
            case s.Unary("-", s.Binary("-", p, q)) if _divides((p, q)):
                a, b = q, add(p, b)
            case s.Binary("-", p, q) if _divides((p, q)):
                a, b = p, add(q, b)
        if not _divides((a, b)) or not (_integral(a) and _integral(b)):
            return a, op, b
        left, right, strict = self._floor(a), self._floor(b), op == "<"
        if left is not None and right is not None and left[1] == right[1]:
            (x, c), (y, _) = left, right
            if self.everywhere:
                return x, "<=", sub(y, num(c)) if strict else y
            return x, "<=", sub(y, num(1)) if strict else add(y, num(c - 1))
        if left is not None:
            (x, c) = left
            return x, "<=", add(mul(b, num(c)), num(-1 if strict else c - 1))
        if right is not None:
            (y, c) = right
            return add(mul(a, num(c)), num(c if strict else 0)), "<=", y
        return a, op, b

    def _floor(self, e: s.Expr) -> tuple[s.Expr, int] | None:
        """Match `x // c`, and `x // c + n`, which is `(x + n c) // c`, for a number c > 0."""
        match e:
            case s.Binary("//", x, by):
                c = _constant(by, self.fixed)
                return None if c is None or c <= 0 else (x, c)
            case s.Binary("+", inner, n) | s.Binary("+", n, inner) if isinstance(n, s.Num):
                found = self._floor(inner)
                return None if found is None else (add(found[0], num(int(n.value) * found[1])), found[1])
        return None

    def _solve_linear(self, left: s.Expr, right: s.Expr, *, strict: bool) -> Stretch:
        """Solve `left <= right` for the loop's variable: `c * i <= N`."""
        try:
            form = _Linear.of(left, self.fixed).minus(_Linear.of(right, self.fixed))
        except _NotLinear:
            return self.unknown()
        c, rest = form.split(self.var, self.fixed)
        if c is None:
            return self.unknown()
        step = form.step_of(self.var)
        if step is not None and _constant(step, self.fixed) != abs(c):
            step = None  # it is written in several places
        limit = rest.negated(-1 if strict else 0)  # N = -(rest), less one where the comparison is strict
        if c > 0 and self.everywhere:
            return Stretch(stop=_floordiv(limit.plus(c), c, step))  # i <= N // c
        if c > 0:
            return Stretch(stop=_ceildiv(limit.plus(1), c, step))  # the same number, with fewer terms
        if c < 0 and self.everywhere:
            return Stretch(start=_ceildiv(limit.negated(0), -c, step))
        if c < 0:
            return Stretch(start=_floordiv(limit.negated(-1).plus_form(_Linear.of(step or num(-c), {})), -c, step))
        return self.unknown()

    def _bounds(self, e: s.Expr) -> tuple[s.Expr, s.Expr]:
        """Give the least and greatest value of an integer expression over the tile."""
        match e:
            case s.Num(value) if isinstance(value, int):
                return e, e
            case s.Name(id):
                axis = self.axes.get(id)
                return (axis.low, axis.high) if axis is not None else (e, e)
            case s.Unary("-", x):
                low, high = self._bounds(x)
                return s.Unary("-", high), s.Unary("-", low)
            case s.Binary("+", a, b):
                (la, ha), (lb, hb) = self._bounds(a), self._bounds(b)
                return add(la, lb), add(ha, hb)
            case s.Binary("-", a, b):
                (la, ha), (lb, hb) = self._bounds(a), self._bounds(b)
                return sub(la, hb), sub(ha, lb)
            case s.Binary("*" | "//", a, b):
                return self._scaled(e, a, b)
            case s.Call("min" | "max" as f, args):
                bounds = [self._bounds(x) for x in args]
                return call(f, *[x for x, _ in bounds]), call(f, *[x for _, x in bounds])
        if not names_in(e) & set(self.axes) and not any(isinstance(x, s.Index) for x in expressions(e)):
            return e, e
        raise _NotLinear

    def _scaled(self, e: s.Binary, a: s.Expr, b: s.Expr) -> tuple[s.Expr, s.Expr]:
        if not (names_in(a) | names_in(b)) & set(self.axes):
            return e, e
        factor = _constant(b, self.fixed)
        if factor is None and e.op == "*" and _constant(a, self.fixed) is not None:
            a, b, factor = b, a, _constant(a, self.fixed)
        if factor is None or factor == 0 or (e.op == "//" and factor < 0):
            raise _NotLinear
        low, high = self._bounds(a)
        if factor < 0:
            low, high = high, low
        if e.op == "*":
            return mul(low, b), mul(high, b)
        return s.Binary("//", low, b), s.Binary("//", high, b)


class _NotLinear(Exception):
    """An expression the analysis cannot read."""


def _divides(node: s.Expr | tuple[s.Expr, ...]) -> bool:
    return any(isinstance(e, s.Binary) and e.op == "//" for e in expressions(node))


def _integral(e: s.Expr) -> bool:
    """Tell whether an expression is made of integers alone, elements of tensors left out."""
    return not any(
        (isinstance(x, s.Num) and not isinstance(x.value, int))
        or isinstance(x, s.Index | s.Scan)
        or (isinstance(x, s.Binary) and x.op == "/")
        or (isinstance(x, s.Call) and x.function not in ("min", "max", "clamp", "abs", "where", "ceildiv"))
        for x in expressions(e)
    )


def _constant(e: s.Expr, fixed: dict[str, int]) -> int | None:
    try:
        return integer(e, fixed)
    except (KeyError, ValueError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class _Linear:
    """A sum of signed terms and a constant."""

    terms: tuple[tuple[int, s.Expr], ...] = ()
    constant: int = 0

    @staticmethod
    def of(e: s.Expr, fixed: dict[str, int]) -> _Linear:
        value = None if names_in(e) else _constant(e, fixed)
        if value is not None:
            return _Linear(constant=value)
        match e:
            case s.Binary("+", a, b):
                return _Linear.of(a, fixed).plus_form(_Linear.of(b, fixed))
            case s.Binary("-", a, b):
                return _Linear.of(a, fixed).minus(_Linear.of(b, fixed))
            case s.Unary("-", x):
                return _Linear().minus(_Linear.of(x, fixed))
        return _Linear(((1, e),))

    def plus_form(self, other: _Linear) -> _Linear:
        return _Linear((*self.terms, *other.terms), self.constant + other.constant)

    def minus(self, other: _Linear) -> _Linear:
        return self.plus_form(_Linear(tuple((-n, e) for n, e in other.terms), -other.constant))

    def plus(self, n: int) -> _Linear:
        return replace(self, constant=self.constant + n)

    def negated(self, n: int) -> _Linear:
        return _Linear(tuple((-k, e) for k, e in self.terms), -self.constant + n)

    def split(self, var: str, fixed: dict[str, int]) -> tuple[int | None, _Linear]:
        """Separate the terms that hold the loop's variable: its factor, and the rest."""
        factor = 0
        rest = []
        for n, e in self.terms:
            if var not in names_in(e):
                rest.append((n, e))
                continue
            step = _factor(e, var, fixed)
            if step is None:
                return None, self
            factor += n * step
        return factor, _Linear(_cancelled(rest), self.constant)

    def step_of(self, var: str) -> s.Expr | None:
        """Give the factor of the loop's variable as it is written, where it has one."""
        for _, e in self.terms:
            match e:
                case s.Binary("*", s.Name(id), factor) | s.Binary("*", factor, s.Name(id)) if id == var:
                    return factor
        return None

    def expression(self) -> s.Expr:
        """Write the sum, positive terms first."""
        ordered = sorted(_cancelled(list(self.terms)), key=lambda t: t[0] < 0)
        total: s.Expr | None = None
        for n, e in ordered:
            term = e if abs(n) == 1 else mul(num(abs(n)), e)
            if total is None:
                total = term if n > 0 else s.Unary("-", term)
            else:
                total = add(total, term) if n > 0 else sub(total, term)
        if total is None:
            return num(self.constant)
        if self.constant == 0:
            return total
        return add(total, num(self.constant)) if self.constant > 0 else sub(total, num(-self.constant))


def _factor(e: s.Expr, var: str, fixed: dict[str, int]) -> int | None:
    """Give c of `c * var`, or None for an expression of another form."""
    match e:
        case s.Name(id):
            return 1 if id == var else None
        case s.Binary("*", a, b):
            for inner, by in ((a, _constant(b, fixed)), (b, _constant(a, fixed))):
                within = None if by is None else _factor(inner, var, fixed)
                if by is not None and within is not None:
                    return within * by
    return None


def _cancelled(terms: list[tuple[int, s.Expr]]) -> tuple[tuple[int, s.Expr], ...]:
    total: dict[s.Expr, int] = {}
    for n, e in terms:
        total[e] = total.get(e, 0) + n
    return tuple((n, e) for e, n in total.items() if n)


def _floordiv(form: _Linear, c: int, step: s.Expr | None) -> s.Expr:
    return form.expression() if c == 1 else s.Binary("//", form.expression(), step or num(c))


def _ceildiv(form: _Linear, c: int, step: s.Expr | None) -> s.Expr:
    return form.expression() if c == 1 else call("ceildiv", form.expression(), step or num(c))

"""What PyTorch's functions of single numbers mean, as expressions of a spec.

Each takes the trace and the arguments of the call. A test names those that the documentation lists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

from qimeng_attention.integrations.trace import FALSE, TRUE, Trace, Value
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import add, call, compare, conjuncts, mul, num, sub

Function: TypeAlias = Callable[..., Value]

_KIND_OF_TYPE = {
    **dict.fromkeys(("float16", "bfloat16", "float32", "float64", "half", "float", "double"), "float"),
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint8", "int", "long", "short"), "int"),
    "bool": "bool",
}
_OPPOSITE = {"<": ">=", ">": "<=", "<=": ">", ">=": "<", "==": "!=", "!=": "=="}


# ------------------------------------------------------------------ kinds


def number(t: Trace, x: Any) -> Value:
    """Give a value as a number: a condition is 1 or 0."""
    value = t.lift(x)
    return value if value.kind != "bool" else Value(t, call("where", value.expr, num(1), num(0)), "int")


def condition(t: Trace, x: Any) -> Value:
    """Give a value as a condition: a number is one where it is not 0."""
    value = t.lift(x)
    return value if value.kind == "bool" else Value(t, compare(value.expr, "!=", num(0)), "bool")


def _joined(values: list[Value]) -> str:
    return "int" if all(v.kind == "int" for v in values) else "float"


def _floats(t: Trace, values: list[Value], what: str, hint: str) -> None:
    if any(v.kind == "float" for v in values):
        raise t.refuse(f"computes {what} of a floating value", hint, what)


# ------------------------------------------------------------------ arithmetic


def _arithmetic(fold: Callable[[s.Expr, s.Expr], s.Expr]) -> Function:
    def apply(t: Trace, a: Any, b: Any, *, alpha: Any = 1) -> Value:
        left, right = number(t, a), number(t, b)
        if alpha != 1:
            right = _multiply(t, right, alpha)
        return Value(t, fold(left.expr, right.expr), _joined([left, right]))

    return apply


_multiply = _arithmetic(mul)


def _turned(f: Function) -> Function:
    return lambda t, a, b: f(t, b, a)


def _divide(t: Trace, a: Any, b: Any, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        if rounding_mode != "floor":
            raise t.refuse(f"divides with rounding_mode {rounding_mode!r}", "use rounding_mode='floor'", "div")
        return _floor_divide(t, a, b)
    return Value(t, s.Binary("/", number(t, a).expr, number(t, b).expr), "float")


def _floor_divide(t: Trace, a: Any, b: Any) -> Value:
    return _integers(t, "//", a, b)


def _remainder(t: Trace, a: Any, b: Any) -> Value:
    return _integers(t, "%", a, b)


def _integers(t: Trace, op: str, a: Any, b: Any) -> Value:
    values = [number(t, a), number(t, b)]
    _floats(t, values, op, "divide integers")
    if isinstance(values[1].expr, s.Num) and values[1].expr.value <= 0:
        raise t.refuse(f"computes {op} by a number that is not positive", "divide by a positive number", op)
    return Value(t, s.Binary(op, values[0].expr, values[1].expr), "int")


def _shift(op: str) -> Function:
    def apply(t: Trace, a: Any, b: Any) -> Value:
        if not isinstance(b, int) or not 0 <= b < 31:
            raise t.refuse("shifts by what is no small number", "shift by a number from 0 to 30", "shift")
        return _multiply(t, a, 1 << b) if op == "<<" else _floor_divide(t, a, 1 << b)

    return apply


def _power(t: Trace, a: Any, b: Any) -> Value:
    if isinstance(a, int | float) and a > 0:
        exponent = number(t, b).expr
        if a == 2:
            return Value(t, call("exp2", exponent), "float")
        return Value(t, call("exp2", mul(exponent, call("log2", t.lift(float(a)).expr))), "float")
    base = number(t, a)
    if isinstance(b, int) and 1 <= b <= 4:
        return reduce(lambda x, _: _multiply(t, x, base), range(b - 1), base)
    if isinstance(b, float) and abs(b) == 0.5:
        return Value(t, call("sqrt" if b > 0 else "rsqrt", base.expr), "float")
    raise t.refuse("raises to a power that is neither a small number nor 0.5", "write exp2 and log2", "pow")


def _function(name: str) -> Function:
    return lambda t, x: Value(t, call(name, number(t, x).expr), "float")


def _same_kind(name: str) -> Function:
    def apply(t: Trace, *args: Any) -> Value:
        values = [number(t, x) for x in args]
        return Value(t, call(name, *[v.expr for v in values]), _joined(values))

    return apply


def _absolute(t: Trace, x: Any) -> Value:
    return _same_kind("abs")(t, x)


def _both(name: str) -> Function:
    of = _same_kind(name)
    return lambda t, a, b: of(t, a, b)


def _two(name: str) -> Function:
    both = _same_kind(name)

    def apply(t: Trace, a: Any, *other: Any) -> Value:
        if len(other) != 1 or not (isinstance(other[0], Value) or t.is_tensor(other[0])):
            raise t.refuse(f"reduces a score with {name}", "each score is computed by itself", name)
        return both(t, a, *other)

    return apply


def _clamp(t: Trace, x: Any, min: Any = None, max: Any = None) -> Value:
    if min is None and max is None:
        raise t.refuse("clamps to nothing", "give a least or a greatest number", "clamp")
    if min is not None and max is not None:
        return _same_kind("clamp")(t, x, min, max)
    return _same_kind("max")(t, x, min) if min is not None else _same_kind("min")(t, x, max)


def _negative(t: Trace, x: Any) -> Value:
    value = number(t, x)
    inner = value.expr
    if isinstance(inner, s.Num):
        return Value(t, s.Num(-inner.value), value.kind)
    return Value(t, inner.operand if isinstance(inner, s.Unary) else s.Unary("-", inner), value.kind)


def _reciprocal(t: Trace, x: Any) -> Value:
    return _divide(t, 1.0, x)


def _square(t: Trace, x: Any) -> Value:
    return _multiply(t, x, x)


def _relu(t: Trace, x: Any) -> Value:
    return _same_kind("max")(t, x, 0)


def _sign(t: Trace, x: Any) -> Value:
    v = number(t, x)
    below = call("where", compare(v.expr, "<", num(0)), num(-1), num(0))
    return Value(t, call("where", compare(v.expr, ">", num(0)), num(1), below), v.kind)


# ------------------------------------------------------------------ conditions


def _comparison(op: str) -> Function:
    def apply(t: Trace, a: Any, b: Any) -> Value:
        left, right = t.lift(a), t.lift(b)
        if left.kind == right.kind == "bool" and op in ("==", "!="):
            differ = _xor(t, left, right)
            return differ if op == "!=" else _not(t, differ)
        return Value(t, compare(number(t, left).expr, op, number(t, right).expr), "bool")

    return apply


def _logical(op: str) -> Function:
    absorbing, neutral = (FALSE, TRUE) if op == "and" else (TRUE, FALSE)

    def apply(t: Trace, a: Any, b: Any) -> Value:
        left, right = condition(t, a).expr, condition(t, b).expr
        if absorbing in (left, right):
            return Value(t, absorbing, "bool")
        if op == "and":  # masks that are combined often share a part
            parts = conjuncts(left)
            new = [x for x in dict.fromkeys(conjuncts(right)) if x not in parts and x != neutral]
            return Value(t, reduce(lambda a, b: b if a == neutral else s.Binary("and", a, b), new, left), "bool")
        kept = right if left in (neutral, right) else left if right == neutral else s.Binary(op, left, right)
        return Value(t, kept, "bool")

    return apply


def _bitwise(f: Function, name: str) -> Function:
    def apply(t: Trace, a: Any, b: Any = True) -> Value:
        if name == "&" and (kept := _kept_bits(t, a, b)) is not None:
            return kept
        if any(t.lift(x).kind != "bool" for x in (a, b)):
            raise t.refuse(f"combines the bits of numbers ({name})", "compare numbers first: (a > 0) & (b > 0)", name)
        return f(t, a, b) if name != "~" else f(t, a)

    return apply


def _kept_bits(t: Trace, a: Any, b: Any) -> Value | None:
    """Write `x & n` as a remainder where n's bits are neighbours: negative numbers count as two's complement has it."""
    value, bits = (b, a) if isinstance(a, int) else (a, b)
    if isinstance(bits, bool) or not isinstance(bits, int) or bits <= 0 or t.lift(value).kind != "int":
        return None
    lowest = bits & -bits
    size = bits // lowest + 1
    if size & (size - 1):
        return None
    rest = _remainder(t, value if lowest == 1 else _floor_divide(t, value, lowest), size)
    return rest if lowest == 1 else _multiply(t, rest, lowest)


def negated(condition: s.Expr) -> s.Expr:
    """Give the opposite of a condition."""
    if condition in (TRUE, FALSE):
        return FALSE if condition == TRUE else TRUE
    match condition:
        case s.Compare((a, b), (op,)):
            return compare(a, _OPPOSITE[op], b)
        case s.Unary("not", inner):
            return inner
    return s.Unary("not", condition)


def _not(t: Trace, x: Any) -> Value:
    return Value(t, negated(condition(t, x).expr), "bool")


def _xor(t: Trace, a: Any, b: Any) -> Value:
    one, other = _logical("and")(t, a, _not(t, b)), _logical("and")(t, _not(t, a), b)
    return _logical("or")(t, one, other)


def _where(t: Trace, cond: Any, a: Any, b: Any) -> Value:
    chosen = condition(t, cond)
    x, y = t.lift(a), t.lift(b)
    if chosen.expr in (TRUE, FALSE):
        return x if chosen.expr == TRUE else y
    if x.kind == y.kind == "bool":
        one, other = _logical("and")(t, chosen, x), _logical("and")(t, _not(t, chosen), y)
        return _logical("or")(t, one, other)
    x, y = number(t, x), number(t, y)
    return Value(t, call("where", chosen.expr, x.expr, y.expr), _joined([x, y]))


# ------------------------------------------------------------------ types, and constants of one's own


def _cast(kind: str) -> Function:
    def apply(t: Trace, x: Any, **_: Any) -> Value:
        value = t.lift(x)
        if kind == "bool":
            return condition(t, value)
        if kind == "int" and value.kind == "float":
            raise t.refuse("rounds a floating value to an integer", "compute in integers, with // and %", "int")
        return Value(t, number(t, value).expr, kind)

    return apply


def _to(t: Trace, x: Any, *args: Any, dtype: Any = None, **_: Any) -> Value:
    kinds = [_KIND_OF_TYPE.get(str(a).rpartition(".")[2]) for a in (*args, dtype)]
    kind = next((k for k in kinds if k is not None), None)
    return t.lift(x) if kind is None else _cast(kind)(t, x)


def _type_as(t: Trace, x: Any, other: Any) -> Value:
    return _cast(t.lift(other).kind)(t, x)


def _constant(value: Any) -> Function:
    def apply(t: Trace, _: Any, *args: Any, dtype: Any = None, **__: Any) -> Value:
        kind = _KIND_OF_TYPE.get(str(dtype).rpartition(".")[2], "float")
        return t.lift(bool(value) if kind == "bool" else value if kind == "int" else float(value))

    return apply


def _full_like(t: Trace, _: Any, fill_value: Any, **__: Any) -> Value:
    return t.lift(fill_value)


def _new_full(t: Trace, _: Any, size: Any, fill_value: Any, **__: Any) -> Value:
    return t.lift(fill_value)


def _new_tensor(t: Trace, _: Any, data: Any, **__: Any) -> Value:
    return t.lift(data)


def _same(t: Trace, x: Any, *_: Any, **__: Any) -> Value:
    return t.lift(x)


_add, _sub, _and, _or = _arithmetic(add), _arithmetic(sub), _logical("and"), _logical("or")

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getitem": lambda t, tensor, index: t.element(tensor, index),
    "add": _add, "radd": _turned(_add), "sub": _sub, "subtract": _sub, "rsub": _turned(_sub),
    "mul": _multiply, "multiply": _multiply, "rmul": _turned(_multiply),
    "div": _divide, "divide": _divide, "true_divide": _divide, "truediv": _divide,
    "rdiv": _turned(_divide), "rtruediv": _turned(_divide),
    "floor_divide": _floor_divide, "floordiv": _floor_divide, "rfloordiv": _turned(_floor_divide),
    "remainder": _remainder, "mod": _remainder, "rmod": _turned(_remainder),
    "lshift": _shift("<<"), "rshift": _shift(">>"),
    "bitwise_left_shift": _shift("<<"), "bitwise_right_shift": _shift(">>"),
    "pow": _power, "rpow": _turned(_power), "float_power": _power,
    "neg": _negative, "negative": _negative, "pos": _same, "positive": _same,
    "abs": _absolute, "absolute": _absolute, "sign": _sign,
    "square": _square, "reciprocal": _reciprocal, "relu": _relu,
    "exp": _function("exp"), "exp2": _function("exp2"), "log": _function("ln"), "log2": _function("log2"),
    "tanh": _function("tanh"), "sigmoid": _function("sigmoid"), "softplus": _function("softplus"),
    "sqrt": _function("sqrt"), "rsqrt": _function("rsqrt"),
    "minimum": _both("min"), "maximum": _both("max"), "fmin": _both("min"), "fmax": _both("max"),
    "min": _two("min"), "max": _two("max"), "clamp": _clamp, "clip": _clamp,
    "clamp_min": lambda t, x, min: _clamp(t, x, min=min), "clamp_max": lambda t, x, max: _clamp(t, x, max=max),
    "eq": _comparison("=="), "ne": _comparison("!="), "not_equal": _comparison("!="),
    "lt": _comparison("<"), "less": _comparison("<"), "le": _comparison("<="), "less_equal": _comparison("<="),
    "gt": _comparison(">"), "greater": _comparison(">"),
    "ge": _comparison(">="), "greater_equal": _comparison(">="),
    "logical_and": _and, "logical_or": _or, "logical_not": _not, "logical_xor": _xor,
    "and": _bitwise(_and, "&"), "or": _bitwise(_or, "|"), "xor": _bitwise(_xor, "^"), "invert": _bitwise(_not, "~"),
    "rand": _bitwise(_and, "&"), "ror": _bitwise(_or, "|"), "rxor": _bitwise(_xor, "^"),
    "bitwise_and": _bitwise(_and, "&"), "bitwise_or": _bitwise(_or, "|"),
    "bitwise_xor": _bitwise(_xor, "^"), "bitwise_not": _bitwise(_not, "~"),
    "where": _where, "masked_fill": lambda t, x, mask, value: _where(t, mask, value, x),
    "to": _to, "type": _to, "type_as": _type_as,
    "float": _cast("float"), "half": _cast("float"), "bfloat16": _cast("float"), "double": _cast("float"),
    "int": _cast("int"), "long": _cast("int"), "bool": _cast("bool"),
    "new_ones": _constant(1), "new_zeros": _constant(0), "new_full": _new_full, "new_tensor": _new_tensor,
    "ones_like": _constant(1), "zeros_like": _constant(0), "full_like": _full_like,
    "clone": _same, "contiguous": _same, "detach": _same, "cpu": _same, "cuda": _same,
    "squeeze": _same, "view_as": _same,
}  # fmt: skip

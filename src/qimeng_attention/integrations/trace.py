"""Values that write down what a callable does to them: operators and functions become an expression of a spec.

A callable of FlexAttention gets such values for score, b, h, q_idx and kv_idx. Whatever cannot be written as an
expression is refused by its name; nothing is guessed.

Not here: what each function means (functions.py), PyTorch (flex_torch.py), the spec that comes of it (flex.py).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qimeng_attention.errors import SpecError
from qimeng_attention.integrations.ranges import range_of
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.traverse import add, call, compare, num

Function: TypeAlias = Callable[..., Any]  # of the trace and the arguments of the call

TRUE, FALSE = compare(num(0), "==", num(0)), compare(num(0), "==", num(1))
# A tensor's kind and the language's name of its type, by what its own library calls the type.
KINDS = {
    "float32": ("float", "f32"),
    "float16": ("float", "f16"),
    "bfloat16": ("float", "bf16"),
    "int32": ("int", "i32"),
    "int64": ("int", "i64"),
    "bool": ("bool", "bool"),
}
_DECISIONS = "write & for `and`, | for `or`, ~ for `not`, torch.where for `if`, torch.minimum for `min`"


def type_of(tensor: Any) -> str:
    """Give a tensor's type without the name of its library."""
    return str(tensor.dtype).rpartition(".")[2]


@dataclass
class Trace:
    """One callable under way."""

    role: str  # score_mod or mask_mod
    functions: Mapping[str, Function]  # by the name that PyTorch gives them
    name_of: Callable[[Any], str]  # names a captured tensor
    is_tensor: Callable[[Any], bool]
    constant_of: Callable[[Any], Any] = lambda _: None  # the number in a tensor that the callable itself has made
    least_of: Callable[[Any], int | None] = lambda _: None  # the least element of a tensor of integers
    least: dict[str, int] = field(default_factory=dict)  # of those that were read, by name
    attribute: Callable[[str, str], Any] = lambda _, __: None  # of a value, by name and kind: its device, its type

    def refuse(self, what: str, hint: str, value: str = "") -> SpecError:
        """Make the error for what cannot be traced."""
        return SpecError(f"{self.role} {what}", hint=hint, field=self.role, value=value or what)

    def function(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Write down the call of a function.

        Raises:
            SpecError: one that is not known, works in place, or has arguments that it cannot take.
        """
        plain = name.strip("_")
        if plain in _IN_PLACE if name.startswith("__") else name.endswith("_"):
            raise self.refuse(f"works in place ({name})", f"write x = x.{plain.removeprefix('i')}(...)", name)
        if "out" in kwargs:
            raise self.refuse(f"works in place ({name} with out=)", "take the result instead", name)
        known = self.functions.get(plain)
        if known is None:
            raise self.refuse(f"calls {plain}, which has no counterpart", "write it with other functions", plain)
        try:
            return known(self, *args, **kwargs)
        except TypeError:
            raise self.refuse(f"calls {plain} with arguments it does not take here", "pass fewer", plain) from None

    # -------------------------------------------------------------- making values
    def lift(self, x: Any) -> Value:
        """Turn whatever takes part in an expression into a value."""
        if isinstance(x, Value):
            return x
        if isinstance(x, Part):
            raise self.refuse(f"uses {x!r} as a number", f"index its other {x.left} dimension(s) too", repr(x))
        if isinstance(x, bool):
            return Value(self, TRUE if x else FALSE, "bool")
        if self.is_tensor(x):
            return self._scalar(x)
        if isinstance(x, numbers.Integral):
            return Value(self, s.Num(int(x)), "int")
        if isinstance(x, numbers.Real):
            return Value(self, self._number(float(x)), "float")
        raise self.refuse(f"computes with a {type(x).__name__}", "use numbers and tensors", type(x).__name__)

    def _scalar(self, tensor: Any) -> Value:
        if len(tensor.shape):
            shape = tuple(int(n) for n in tensor.shape)
            raise self.refuse(f"computes with a whole tensor of shape {shape}", "read one element of it for a score")
        constant = self.constant_of(tensor)
        return self.read(tensor, (num(0),)) if constant is None else self.lift(constant)

    def _number(self, x: float) -> s.Expr:
        if math.isnan(x):
            raise self.refuse("uses NaN", "use a number", "nan")
        if math.isinf(x):
            return s.Name("inf") if x > 0 else s.Unary("-", s.Name("inf"))
        return s.Num(x)

    def element(self, tensor: Any, index: Any) -> Any:
        """Read a tensor at an index: an element, or a part where dimensions are left."""
        return Part(self, tensor, ())[index]

    def read(self, tensor: Any, indices: tuple[s.Expr, ...]) -> Value:
        """Write down an element."""
        kind = KINDS.get(type_of(tensor))
        if kind is None:
            raise self.refuse(f"reads a tensor of {tensor.dtype}", f"make it one of {', '.join(KINDS)}")
        name = self.name_of(tensor)
        if kind[0] == "int" and name not in self.least:
            least = self.least_of(tensor)
            self.least |= {} if least is None else {name: least}
        return Value(self, s.Index(name, indices), kind[0])


_IN_PLACE = frozenset(
    {
        "iadd", "isub", "imul", "itruediv", "idiv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift",
        "irshift", "imatmul", "setitem",
    }
)  # fmt: skip


def _operator(name: str, *, turned: bool = False) -> Callable[..., Any]:
    def apply(self: Value, *others: Any) -> Any:
        return self.trace.function(name, (*others, self) if turned else (self, *others), {})

    return apply


def _in_place(name: str) -> Callable[..., Any]:
    def refuse(self: Value, other: Any) -> Any:
        raise self.trace.refuse(f"works in place ({name})", f"write x = x {name.rstrip('=')} y", name)

    return refuse


class Traced:
    """What stands for a tensor while a callable is traced."""

    trace: Trace

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take part in PyTorch's functions."""
        found = next(iter(traced((args, kwargs or {}))))
        return found.trace.function(func.__name__, args, kwargs or {})


class Value(Traced):
    """A number or condition as an expression of b, h, q_idx, kv_idx, score and elements of tensors."""

    __hash__ = None  # type: ignore[assignment]
    shape: tuple[int, ...] = ()
    ndim = 0

    def __init__(self, trace: Trace, expr: s.Expr, kind: str) -> None:
        """Take an expression and its kind: int, float or bool."""
        self.trace, self.expr, self.kind = trace, expr, kind

    def __repr__(self) -> str:
        return expression(self.expr)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = self.trace.attribute(name, self.kind)
        if found is not None:
            return found
        return lambda *args, **kwargs: self.trace.function(name, (self, *args), kwargs)

    def _unknown_yet(self, *_: Any) -> Any:
        raise self.trace.refuse(
            f"asks for the number of {self!r}, which differs from score to score",
            "compute with it as it is; a list or dictionary that it indexes must be a tensor",
            repr(self),
        )

    def __bool__(self) -> bool:
        raise self.trace.refuse(
            f"decides in Python (if, and, or, not, min, a < b < c) by {self!r}, which differs from score to score",
            _DECISIONS,
            repr(self),
        )

    __int__ = __float__ = __index__ = __iter__ = __len__ = __getitem__ = __contains__ = _unknown_yet
    item = tolist = numpy = _unknown_yet
    __add__, __radd__ = _operator("add"), _operator("add", turned=True)
    __sub__, __rsub__ = _operator("sub"), _operator("sub", turned=True)
    __mul__, __rmul__ = _operator("mul"), _operator("mul", turned=True)
    __truediv__, __rtruediv__ = _operator("true_divide"), _operator("true_divide", turned=True)
    __floordiv__, __rfloordiv__ = _operator("floor_divide"), _operator("floor_divide", turned=True)
    __mod__, __rmod__ = _operator("remainder"), _operator("remainder", turned=True)
    __pow__, __rpow__ = _operator("pow"), _operator("pow", turned=True)
    __and__, __rand__ = _operator("and"), _operator("and", turned=True)
    __or__, __ror__ = _operator("or"), _operator("or", turned=True)
    __xor__, __rxor__ = _operator("xor"), _operator("xor", turned=True)
    __lshift__, __rshift__ = _operator("lshift"), _operator("rshift")
    __eq__, __ne__ = _operator("eq"), _operator("ne")
    __lt__, __le__, __gt__, __ge__ = _operator("lt"), _operator("le"), _operator("gt"), _operator("ge")
    __neg__, __pos__, __abs__, __invert__ = _operator("neg"), _operator("pos"), _operator("abs"), _operator("invert")
    __iadd__, __isub__, __imul__, __itruediv__ = (_in_place(n) for n in ("+=", "-=", "*=", "/="))
    __ifloordiv__, __imod__, __ipow__ = (_in_place(n) for n in ("//=", "%=", "**="))
    __iand__, __ior__, __ixor__ = (_in_place(n) for n in ("&=", "|=", "^="))
    __setitem__ = _unknown_yet


class Part(Traced):
    """A tensor with the first of its dimensions indexed."""

    def __init__(self, trace: Trace, tensor: Any, indices: tuple[s.Expr, ...]) -> None:
        """Take a tensor and the indices so far."""
        self.trace, self.tensor, self.indices = trace, tensor, indices

    def __repr__(self) -> str:
        inside = ", ".join(expression(i) for i in self.indices)
        return f"{self.trace.name_of(self.tensor)}[{inside}]"

    @property
    def left(self) -> int:
        """Count the dimensions that no index reads yet."""
        return len(self.tensor.shape) - len(self.indices)

    @property
    def shape(self) -> tuple[int, ...]:
        """Give the extents of those dimensions."""
        return tuple(int(n) for n in self.tensor.shape[len(self.indices) :])

    def __getitem__(self, index: Any) -> Any:
        found = self.indices
        for x in index if isinstance(index, tuple) else (index,):
            if len(found) == len(self.tensor.shape):
                raise self.trace.refuse(f"indexes {self!r} once too often", "leave out the last index", repr(self))
            found = (*found, self._index(x, int(self.tensor.shape[len(found)])))
        if len(found) < len(self.tensor.shape):
            return Part(self.trace, self.tensor, found)
        return self.trace.read(self.tensor, found)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """Give each row of the first dimension that is left, as iterating over a tensor does."""
        return iter([self[n] for n in range(len(self))])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.trace.refuse(f"takes {name} of {self!r}", "index the other dimensions first", name)

    def _index(self, x: Any, extent: int) -> s.Expr:
        """Write an index as PyTorch counts: a negative one counts from the end.

        An element of a tensor that holds no negative number is taken for none.
        """
        if isinstance(x, slice) or x is None or x is Ellipsis:
            raise self.trace.refuse("takes a slice of a tensor", "index each dimension by a number", repr(x))
        value = self.trace.lift(x)
        if value.kind != "int":
            raise self.trace.refuse(f"indexes a tensor by {value!r}, no integer", "use // instead of /", repr(value))
        low, high = range_of(value.expr, self.trace.least)
        if low is not None and low >= 0:
            return value.expr
        turned = add(value.expr, num(extent))
        if high is not None and high < 0:
            return turned
        return call("where", compare(value.expr, "<", num(0)), turned, value.expr)


def traced(x: Any) -> Iterator[Traced]:
    """Give the traced values among arguments, in lists too."""
    if isinstance(x, Traced):
        yield x
    elif isinstance(x, tuple | list):
        for item in x:
            yield from traced(item)
    elif isinstance(x, dict):
        yield from traced(list(x.values()))

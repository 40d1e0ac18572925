"""Callables of PyTorch's FlexAttention, `score_mod(score, b, h, q_idx, kv_idx)` and `mask_mod(b, h, q_idx, kv_idx)`, as
a spec.

    traced = spec_from_flex(score_mod, mask_mod, Hq=32, Hk=8, Dqk=128)
    bundle = generate(traced.spec, target="H200")
    out = bundle(q, k, v, tensors=traced.tensors)      # (B, S, H, D), as everywhere here

A callable is run with values that write down what is done to them. Their meaning is FlexAttention's: q_idx and kv_idx
count from the front, so that its causal, `q_idx >= kv_idx`, is aligned at the sequences' beginnings.

Not here: what each function means (functions.py).
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from qimeng_attention.errors import SpecError
from qimeng_attention.integrations.functions import FUNCTIONS, negated
from qimeng_attention.integrations.trace import FALSE, KINDS, TRUE, Trace, Value, type_of
from qimeng_attention.named_tensors import Problem, declared
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.traverse import expressions

INDICES = ("b", "h", "q_idx", "kv_idx")
_DEEPEST = 6  # of containers and functions within which a captured tensor is looked for
_MINUS_INFINITY = s.Unary("-", s.Name("inf"))


@dataclass(frozen=True)
class FlexOperator:
    """A spec, and the captured tensors that its calls must be given, by name."""

    spec: AttentionSpec
    tensors: Mapping[str, Any]


def spec_from_flex(
    score_mod: Callable[..., Any] | None = None,
    mask_mod: Callable[..., Any] | None = None,
    *,
    Hq: int,
    Hk: int | None = None,
    Dqk: int,
    Dv: int | None = None,
    dims: Mapping[str, Sequence[str | int]] | None = None,
    **fields: Any,
) -> FlexOperator:
    """Trace FlexAttention's callables to a spec.

    Args:
        score_mod: gives a score for a scaled one; None leaves it as it is.
        mask_mod: tells whether a query sees a key; None shows all.
        Hq: query heads.
        Hk: key and value heads; None stands for as many.
        Dqk: head dim of queries and keys.
        Dv: head dim of values; None stands for Dqk.
        dims: names of a captured tensor's dimensions, as {"doc": ("B", "Sk")}; without them its extents are fixed.
        fields: any other field of a spec, such as dtype, scale, name or B.

    Raises:
        SpecError: a callable that cannot be written as an expression, with what it did; or a field that makes no sense.
    """
    names = _Names([f for f in (score_mod, mask_mod) if f is not None])
    score = _traced(score_mod, "score_mod", names, with_score=True) if score_mod is not None else s.Name("score")
    mask = _traced(mask_mod, "mask_mod", names, with_score=False) if mask_mod is not None else TRUE
    score, mask = _hidden(score, mask)
    read = {x.tensor for e in (score, mask) for x in expressions(e) if isinstance(x, s.Index)}
    captured = {name: tensor for name, tensor in names.found.items() if name in read}
    tensors = {name: _declaration(name, tensor, dims or {}) for name, tensor in captured.items()}
    if unknown := sorted(set(dims or {}) - set(tensors)):
        known = ", ".join(tensors) or "none"
        raise SpecError(f"dims names '{unknown[0]}', which no callable reads", hint=f"captured tensors are {known}")
    asked = {"Hq": Hq, "Hk": Hk or Hq, "Dqk": Dqk, "Dv": Dv or Dqk, **fields}
    spec = AttentionSpec.make(**asked, mask=_mask_text(mask), score=expression(score), tensors=tensors)
    return FlexOperator(spec, {name: t if len(t.shape) else t.reshape(1) for name, t in captured.items()})


def _mask_text(mask: s.Expr) -> str:
    return "full" if mask == TRUE else "kv_idx < 0" if mask == FALSE else expression(mask)


def _hidden(score: s.Expr, mask: s.Expr) -> tuple[s.Expr, s.Expr]:
    """Let the mask hide what a score modifier sets to -inf: the same weights, and tiles that need no work."""
    match score:
        case s.Call("where", (seen, inner, other)) if other == _MINUS_INFINITY:
            pass
        case s.Call("where", (hides, other, inner)) if other == _MINUS_INFINITY:
            seen = negated(hides)
        case _:
            return score, mask
    if any(x == s.Name("score") for x in expressions(seen)):  # a mask knows places, not scores
        return score, mask
    return _hidden(inner, seen if mask == TRUE else s.Binary("and", mask, seen))


def _declaration(name: str, tensor: Any, dims: Mapping[str, Sequence[str | int]]) -> dict[str, Any]:
    shape = [int(n) for n in tensor.shape] or [1]
    given = list(dims.get(name, shape))
    if len(given) != len(shape):
        raise SpecError(
            f"dims names {len(given)} dimensions of '{name}', which has {len(shape)}",
            hint=f"its shape is {tuple(shape)}",
            field="dims",
            value=name,
        )
    return {"dims": given, "dtype": KINDS[type_of(tensor)][1]}


# ------------------------------------------------------------------ tracing


def _traced(f: Callable[..., Any], role: str, names: _Names, *, with_score: bool) -> s.Expr:
    """Trace a callable twice: what differs was random, or depends on something outside."""
    first, second = (_once(f, role, names, with_score=with_score) for _ in range(2))
    if first != second:
        raise SpecError(
            f"{role} gives another expression each time: {expression(first)}, then {expression(second)}",
            hint="draw random numbers before, and capture them as a tensor",
            field=role,
            value=expression(second),
        )
    return first


def _once(f: Callable[..., Any], role: str, names: _Names, *, with_score: bool) -> s.Expr:
    trace = Trace(role, FUNCTIONS, names.of, _looks_like_a_tensor)
    arguments = [Value(trace, s.Name(n), "int") for n in INDICES]
    if with_score:
        arguments.insert(0, Value(trace, s.Name("score"), "float"))
    try:
        with _torch_tracing(trace):
            result = f(*arguments)
            value = trace.lift(result)
    except SpecError:
        raise
    except Exception as error:  # the callable is the user's: whatever it raises is told
        what = f"fails while it is traced: {type(error).__name__}: {error}"
        raise trace.refuse(what, f"it must take ({', '.join(map(repr, arguments))}) of any call") from None
    if (value.kind == "bool") == with_score:
        wanted, found = ("number", "condition") if with_score else ("condition", "number")
        raise trace.refuse(f"gives the {found} {value!r}, expected a {wanted}", "return the other one", repr(value))
    return value.expr


def _torch_tracing(trace: Trace) -> AbstractContextManager[Any]:
    """Let PyTorch take part, where it is installed."""
    try:
        from qimeng_attention.integrations import flex_torch
    except ImportError:
        return nullcontext()
    return flex_torch.Tracing(trace)


def _looks_like_a_tensor(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype") and hasattr(x, "stride")


# ------------------------------------------------------------------ names of captured tensors


@dataclass
class _Names:
    """What captured tensors are called: as the variables that hold them are."""

    callables: Sequence[Callable[..., Any]]
    found: dict[str, Any] = field(default_factory=dict)

    def of(self, tensor: Any) -> str:
        """Give a tensor's name; the first time, find one."""
        for name, known in self.found.items():
            if known is tensor:
                return name
        held = (name for f in self.callables for name, x in _captured(f, 0) if x is tensor)
        name = self._legal(next(held, "tensor"))
        self.found[name] = tensor
        return name

    def _legal(self, wanted: str) -> str:
        """Give a name that a spec takes and that no other tensor has."""
        base = wanted.strip("_") or "tensor"
        problem = _problem_with([base])
        base = base if problem is None else str(problem.nearest)
        name, number = base, 1
        while name in self.found or _problem_with([*self.found, name]) is not None:
            number += 1
            name = f"{base}_{number}"
        return name


def _problem_with(names: Sequence[str]) -> Problem | None:
    try:
        declared({name: {"dims": [1], "dtype": "f32"} for name in names})
    except Problem as problem:
        return problem
    return None


def _captured(x: Any, depth: int, name: str = "") -> Iterator[tuple[str, Any]]:
    """Give the tensors that a callable holds, with the name of the variable, attribute or key that does."""
    if _looks_like_a_tensor(x):
        yield name, x
        return
    if depth > _DEEPEST:
        return
    for key, inner in _held(x, name):
        yield from _captured(inner, depth + 1, key)


def _held(x: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(x, functools.partial):
        yield from [("", x.func), *((name, a) for a in x.args), *x.keywords.items()]
    elif isinstance(x, types.MethodType):
        yield from [("", x.__func__), ("", x.__self__)]
    elif isinstance(x, types.FunctionType):
        variables = inspect.getclosurevars(x)
        yield from [*variables.nonlocals.items(), *variables.globals.items()]
        yield from ((name, d) for d in (x.__defaults__ or ()))
    elif isinstance(x, dict):
        yield from ((k if isinstance(k, str) else name, v) for k, v in x.items())
    elif isinstance(x, list | tuple):
        yield from ((name, v) for v in x)
    elif not isinstance(x, type | types.ModuleType) and hasattr(x, "__dict__"):
        yield from vars(x).items()
        if callable(x):
            yield "", type(x).__call__


__all__ = ["FlexOperator", "spec_from_flex"]

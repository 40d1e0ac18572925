"""Truth and baseline on a GPU, in PyTorch: what reference.py defines, for calls too large for NumPy.

A test compares the two. The candidate never runs in the process that imports this.
Not here: definitions and their reasons (reference.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch

from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.judge.reference import F32_FUNCTION_ERROR, F32_SUM_ERROR, Truth, row_chunks
from qimeng_attention.judge.weighing import Weighing
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import CONSTANTS
from qimeng_attention.tl.numerics import Array

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CHUNK = 1 << 26  # scores held at once: 512 MB in float64
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "ln": torch.log,
    "log2": torch.log2,
    "tanh": torch.tanh,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: torch.logaddexp(torch.zeros_like(x), x),
}


OF_ONE_SCORE: dict[str, Callable[[Any], Any]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
    "linear": lambda x: x,
}


@dataclass(frozen=True, slots=True)
class _Stack:
    """Heads that are computed at once, and a stretch of their rows."""

    operator: Operator
    call: Call
    places: list[tuple[int, int]]  # batch entry and query head of each
    rows: Array

    @property
    def heads(self) -> list[int]:
        """Give the key head of each place."""
        return [self.operator.key_head(self.call, h) for _, h in self.places]

    def queries(self, q: Array) -> Array:
        """Give the stretch of rows of each place, (places, rows, D)."""
        return np.stack([q[b, self.rows, h] for b, h in self.places])

    def keys(self, k: Array) -> Array:
        """Give all keys or values of each place, (places, Sk, D)."""
        return np.stack([k[b, : self.call.Sk, g] for (b, _), g in zip(self.places, self.heads, strict=True)])

    def put(self, target: Array, found: Any) -> None:
        """Write what was found for each place to a result (B, Sq, Hq, ...)."""
        values = found.cpu().numpy()
        for number, (b, h) in enumerate(self.places):
            target[b, self.rows, h] = values[number]


def _stacks(operator: Operator, call: Call) -> Iterator[_Stack]:
    """Divide a call: as many heads at once as fit, unless mask or score differ between them."""
    entries = [[b] for b in range(call.B)] if call.lens else [range(call.B)]
    for some in entries:  # which have the same keys
        places = [(b, h) for b in some for h in range(call.Hq)]
        alike = operator.entry(call, some[0]) if call.lens else call
        for rows in row_chunks(call, CHUNK):
            together = 1 if operator.reads_position else max(1, CHUNK // max(1, len(rows) * alike.Sk))
            for start in range(0, len(places), together):
                yield _Stack(operator, alike, places[start : start + together], rows)


def truth(operator: Operator, call: Call, q: Array, k: Array, v: Array) -> Truth:
    """Compute a call in float64; arguments and result as of `reference.truth`."""
    result = Truth.empty(call)
    for stack in _stacks(operator, call):
        _fill(result, stack, *(_moved(x, torch.float64) for x in (stack.queries(q), stack.keys(k), stack.keys(v))))
    return result


def _fill(result: Truth, stack: _Stack, queries: Any, keys: Any, values: Any) -> None:
    operator, call = stack.operator, stack.call
    plain = operator.scale_of(call) * (queries @ keys.mT)
    visible, scores = _applied(stack, operator, plain)
    weights, lse = _weigh(stack, scores, visible)
    stack.put(result.out, weights @ values)
    if call.Sk:
        stack.put(result.magnitude, (weights.abs() @ values.abs()).amax(dim=2))
        stack.put(result.spread, (weights**2 @ values**2).amax(dim=2).sqrt())
        _fill_moves(result, stack, plain, scores, visible, (queries, keys, values.abs()))
    natural = lse if operator.lse_of == "modified" else _weigh(stack, plain, visible)[1]
    stack.put(result.lse.swapaxes(1, 2), natural / float(np.log(operator.lse_base)))
    blind = (~visible.any(dim=2)).cpu().numpy()
    for number, (b, h) in enumerate(stack.places):
        if operator.empty_lse is not None:
            result.lse[b, h, stack.rows[blind[number]]] = operator.empty_lse
        if operator.empty_out == "mean" and call.Sk:
            result.out[b, stack.rows[blind[number]], h] = values[number].mean(dim=0).cpu().numpy()


def _fill_moves(
    result: Truth, stack: _Stack, plain: Any, scores: Any, visible: Any, inputs: tuple[Any, Any, Any]
) -> None:
    """Fill in slack, or drift; `inputs` are queries, keys and the sizes of values."""
    queries, keys, sizes = inputs
    moved, rough = _scores_moved(stack, plain, scores, queries, keys), _approximate(stack, plain, scores)
    if stack.operator.weighing.kind.summed:
        seen_rough = plain.new_zeros(plain.shape[:2]) if rough is None else _of_seen(rough, visible).amax(dim=2)
        seen_moved = moved if stack.operator.score is None else _of_seen(moved, visible)
        stack.put(result.approximate, seen_rough)
        stack.put(result.slack, seen_moved.amax(dim=2) + seen_rough)
        return
    moved = torch.where(scores.isfinite(), moved, 0)
    stack.put(result.seen, (visible.to(sizes.dtype) @ sizes).amax(dim=2))
    if rough is not None:
        drift = _weights_moved(stack, scores, visible, rough) @ sizes
        stack.put(result.approximate_drift, drift.amax(dim=2))
        moved = moved + rough
    stack.put(result.drift, (_weights_moved(stack, scores, visible, moved) @ sizes).amax(dim=2))


def _of_seen(moved: Any, visible: Any) -> Any:
    return torch.where(visible & moved.isfinite(), moved, 0)


def _approximate(stack: _Stack, plain: Any, scores: Any) -> Any:
    rough = stack.operator.rough
    return None if rough is None else (_applied(stack, rough, plain)[1] - scores).abs()


def _weights_moved(stack: _Stack, scores: Any, visible: Any, moved: Any) -> Any:
    weighing = stack.operator.weighing
    weights, up, down = (_of_one_score(weighing, x, visible) for x in (scores, scores + moved, scores - moved))
    change = torch.maximum((up - weights).abs(), (down - weights).abs()) + F32_FUNCTION_ERROR * weights.abs()
    return torch.where(change.isfinite(), change, 0)


def _scores_moved(stack: _Stack, plain: Any, scores: Any, queries: Any, keys: Any) -> Any:
    longest = keys.norm(dim=2).amax(dim=1, keepdim=True)
    moved = (F32_SUM_ERROR * abs(stack.operator.scale_of(stack.call)) * longest * queries.norm(dim=2))[:, :, None]
    if stack.operator.score is None:
        return moved
    other = _applied(stack, stack.operator, plain + moved)[1]
    return (other - scores).abs() + F32_FUNCTION_ERROR * scores.abs()


def baseline(operator: Operator, call: Call, q: Array, k: Array, v: Array, dtype: str) -> Array:
    """Compute the output on the plain path; arguments and result as of `reference.baseline`."""
    narrow = TYPES[dtype]
    out = np.zeros((call.B, call.Sq, call.Hq, call.Dv), np.float32)
    for stack in _stacks(operator, call):
        keys = (_moved(stack.keys(k), torch.float32) * operator.scale_of(call)).to(narrow)
        plain = (_moved(stack.queries(q), narrow) @ keys.mT).float()
        visible, scores = _applied(stack, operator, plain)
        weights, _ = _weigh(stack, scores.to(narrow).float(), visible)
        stack.put(out, (weights.to(narrow) @ _moved(stack.keys(v), narrow)).float())
    return out


def _moved(a: Array, dtype: Any) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.from_numpy(a.copy()).to(device).to(dtype)


def _weigh(stack: _Stack, scores: Any, visible: Any) -> tuple[Any, Any]:
    """Give weights and each row's LSE; arguments (places, rows, keys)."""
    weighing = stack.operator.weighing
    if not weighing.kind.summed:
        return _of_one_score(weighing, scores, visible), scores.new_full(scores.shape[:2], -torch.inf)
    sinks = [stack.operator.sink_of(stack.call, h) for _, h in stack.places]
    weights, lse = _softmax(scores, visible, sinks if weighing.has_sink else None)
    return weights, lse if weighing.lse_has_sink else _softmax(scores, visible)[1]


def _of_one_score(weighing: Weighing, scores: Any, visible: Any) -> Any:
    function = OF_ONE_SCORE[weighing.name]
    hidden = 0 if weighing.hidden_score is None else function(scores.new_tensor(weighing.hidden_score))
    return torch.where(visible, function(scores), hidden)


def _softmax(scores: Any, visible: Any, sinks: list[float] | None = None) -> tuple[Any, Any]:
    masked = torch.where(visible, scores, -torch.inf)
    if sinks is not None:  # a key more
        column = masked.new_tensor(sinks)[:, None, None].expand(*masked.shape[:2], 1)
        more = torch.cat([masked, column], dim=2)
        weights, lse = _softmax(more, torch.ones_like(more, dtype=torch.bool))
        return weights[:, :, :-1], lse
    empty = masked.new_full(masked.shape[:2], -torch.inf)
    lse = torch.logsumexp(masked, dim=2) if masked.shape[2] else empty
    weights = torch.exp(masked - torch.where(lse.isneginf(), 0, lse)[:, :, None])
    return weights, lse


# ------------------------------------------------------------------ expressions


def _applied(stack: _Stack, operator: Operator, plain: Any) -> tuple[Any, Any]:
    """Give what is visible, and the modified scores in the precision of `plain`; (places, rows, keys)."""
    call = stack.call
    names: dict[str, Any] = call.sizes | dict(zip("bh", stack.places[0], strict=True))
    names["q_idx"] = torch.from_numpy(stack.rows).to(plain.device)[:, None]
    names["kv_idx"] = torch.arange(call.Sk, device=plain.device)[None, :]
    names["score"] = plain
    if operator.tensors:
        contents = operator.contents if operator.contents is not None else operator.drawn(call)
        named = {n: torch.from_numpy(np.array(contents[kernel_name(n)])) for n in operator.tensors}
        names |= {n: (a.to(plain.dtype) if a.is_floating_point() else a).to(plain.device) for n, a in named.items()}
    visible = torch.ones_like(plain, dtype=torch.bool)
    if operator.condition is not None:
        visible = visible & _tensor(evaluate(operator.condition, names, plain.dtype), plain.device)
    if operator.score is None:
        return visible, plain
    return visible, _tensor(evaluate(operator.score, names, plain.dtype), plain.device).to(plain.dtype).expand_as(plain)


def _tensor(value: Any, device: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, device=device)


def evaluate(e: s.Expr, names: Mapping[str, Any], dtype: Any) -> Any:
    """Evaluate an expression of a spec; floating arithmetic is in `dtype`."""
    match e:
        case s.Num(value):
            return value if isinstance(value, int) else torch.tensor(value, dtype=dtype, device=names["kv_idx"].device)
        case s.Name(id):
            return names[id] if id in names else torch.tensor(CONSTANTS[id], dtype=dtype, device=names["kv_idx"].device)
        case s.Unary(op, x):
            value = evaluate(x, names, dtype)
            return ~_tensor(value, names["kv_idx"].device) if op == "not" else -value
        case s.Binary(op, left, right):
            return _binary(
                op, evaluate(left, names, dtype), evaluate(right, names, dtype), dtype, names["kv_idx"].device
            )
        case s.Compare(operands, ops):
            values = [evaluate(x, names, dtype) for x in operands]
            links = [_OPERATORS[op](a, b) for op, a, b in zip(ops, values, values[1:], strict=False)]
            return reduce(lambda a, b: a & b, links)
        case s.Index(tensor, indices):
            return _element(names[tensor], [evaluate(i, names, dtype) for i in indices])
        case s.Call(function, args):
            return _call(function, [evaluate(a, names, dtype) for a in args], dtype, names["kv_idx"].device)
    raise TypeError(e)


def _element(data: Any, indices: list[Any]) -> Any:
    """Read elements of a named tensor; one outside of it is 0."""
    places = torch.broadcast_tensors(*[_tensor(i, data.device).long() for i in indices])
    inside = torch.ones_like(places[0], dtype=torch.bool)
    for place, extent in zip(places, data.shape, strict=True):
        inside = inside & (place >= 0) & (place < extent)
    if 0 in data.shape:
        return data.new_zeros(inside.shape)
    found = data[tuple(torch.where(inside, place, 0) for place in places)]
    return torch.where(inside, found, torch.zeros_like(found))


def _binary(op: str, a: Any, b: Any, dtype: Any, device: Any) -> Any:
    if op == "and":
        return a & b
    if op == "or":
        return a | b
    if op == "/":
        a, b = _tensor(a, device).to(dtype), _tensor(b, device).to(dtype)
    return _OPERATORS[op](a, b)


def _call(function: str, args: list[Any], dtype: Any, device: Any) -> Any:
    if function in _FUNCTIONS:
        return _FUNCTIONS[function](_tensor(args[0], device).to(dtype))
    if function == "ceildiv":
        return -((-args[0]) // args[1])
    values = [_tensor(a, device) for a in args]
    if function == "abs":
        return values[0].abs()
    if function == "where":
        return torch.where(values[0], values[1], values[2])
    if function == "clamp":
        return torch.minimum(torch.maximum(values[0], values[1]), values[2])
    return reduce(torch.minimum if function == "min" else torch.maximum, values)

"""Truth and baseline on a GPU, in PyTorch: what reference.py defines, for calls too large for NumPy.

A test compares the two. The candidate never runs in the process that imports this.
Not here: definitions and their reasons (reference.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch

from qimeng_attention.judge.meaning import SIZES, Call, Operator
from qimeng_attention.judge.reference import F32_FUNCTION_ERROR, F32_SUM_ERROR, Truth, row_chunks
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


def truth(operator: Operator, call: Call, q: Array, k: Array, v: Array) -> Truth:
    """Compute a call in float64; arguments and result as of `reference.truth`."""
    result = Truth.empty(call)
    for b in range(call.B):
        for h in range(call.Hq):
            head = operator.key_head(call, h)
            keys, values = _moved(k[b, :, head], torch.float64), _moved(v[b, :, head], torch.float64)
            for rows in row_chunks(call, CHUNK):
                _fill(result, operator, call, (b, h), rows, _moved(q[b, rows, h], torch.float64), keys, values)
    return result


def _fill(
    result: Truth,
    operator: Operator,
    call: Call,
    place: tuple[int, int],
    rows: Array,
    queries: Any,
    keys: Any,
    values: Any,
) -> None:
    b, h = place
    scale = operator.scale_of(call)
    plain = scale * (queries @ keys.T)
    visible, scores = _applied(operator, call, place, rows, plain)
    weights, lse = _softmax(scores, visible)
    at = (b, rows, h)
    result.out[at] = (weights @ values).cpu().numpy()
    if call.Sk:
        result.magnitude[at] = (weights @ values.abs()).amax(dim=1).cpu().numpy()
        result.spread[at] = (weights**2 @ values**2).amax(dim=1).sqrt().cpu().numpy()
        if operator.rough is not None:
            moved = (_applied(operator.rough, call, place, rows, plain)[1] - scores).abs()
            result.approximate[at] = torch.where(visible & moved.isfinite(), moved, 0).amax(dim=1).cpu().numpy()
        slack = _slack(operator, call, place, rows, plain, scores, visible, queries, keys).cpu().numpy()
        result.slack[at] = slack + result.approximate[at]
    natural = lse if operator.lse_of == "modified" else _softmax(plain, visible)[1]
    result.lse[b, h, rows] = natural.cpu().numpy() / float(
        torch.log(torch.tensor(operator.lse_base, dtype=torch.float64))
    )
    blind = (~visible.any(dim=1)).cpu().numpy()
    result.lse[b, h, rows[blind]] = operator.empty_lse
    if operator.empty_out == "mean" and call.Sk:
        result.out[b, rows[blind], h] = values.mean(dim=0).cpu().numpy()


def _slack(
    operator: Operator,
    call: Call,
    place: tuple[int, int],
    rows: Array,
    plain: Any,
    scores: Any,
    visible: Any,
    queries: Any,
    keys: Any,
) -> Any:
    moved = F32_SUM_ERROR * abs(operator.scale_of(call)) * keys.norm(dim=1).max() * queries.norm(dim=1)
    if operator.score is None:
        return moved
    other = _applied(operator, call, place, rows, plain + moved[:, None])[1]
    change = (other - scores).abs() + F32_FUNCTION_ERROR * scores.abs()
    return torch.where(visible & change.isfinite(), change, 0).amax(dim=1)


def baseline(operator: Operator, call: Call, q: Array, k: Array, v: Array, dtype: str) -> Array:
    """Compute the output on the plain path; arguments and result as of `reference.baseline`."""
    narrow = TYPES[dtype]
    out = torch.zeros((call.B, call.Sq, call.Hq, call.Dv), dtype=torch.float32)
    for b in range(call.B):
        for h in range(call.Hq):
            head = operator.key_head(call, h)
            keys = (_moved(k[b, :, head], torch.float32) * operator.scale_of(call)).to(narrow)
            values = _moved(v[b, :, head], narrow)
            for rows in row_chunks(call, CHUNK):
                plain = (_moved(q[b, rows, h], narrow) @ keys.T).float()
                visible, scores = _applied(operator, call, (b, h), rows, plain)
                weights, _ = _softmax(scores.to(narrow).float(), visible)
                out[b, rows, h] = (weights.to(narrow) @ values).float().cpu()
    result: Array = out.numpy()
    return result


def _moved(a: Array, dtype: Any) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.from_numpy(a.copy()).to(device).to(dtype)


def _softmax(scores: Any, visible: Any) -> tuple[Any, Any]:
    masked = torch.where(visible, scores, -torch.inf)
    lse = torch.logsumexp(masked, dim=1) if masked.shape[1] else masked.new_full((len(masked),), -torch.inf)
    weights = torch.exp(masked - torch.where(lse.isneginf(), 0, lse)[:, None])
    return weights, lse


# ------------------------------------------------------------------ expressions


def _applied(operator: Operator, call: Call, place: tuple[int, int], rows: Array, plain: Any) -> tuple[Any, Any]:
    """Give what is visible, and the modified scores in the precision of `plain`."""
    names: dict[str, Any] = {n: getattr(call, n) for n in SIZES} | dict(zip("bh", place, strict=True))
    names["q_idx"] = torch.from_numpy(rows).to(plain.device)[:, None]
    names["kv_idx"] = torch.arange(call.Sk, device=plain.device)[None, :]
    names["score"] = plain
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
        case s.Call(function, args):
            return _call(function, [evaluate(a, names, dtype) for a in args], dtype, names["kv_idx"].device)
    raise TypeError(e)


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

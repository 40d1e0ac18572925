"""What a call must give, in float64 from the spec alone, and what it gives in the spec's own precision.

    S = scale * Q K^T;  S' = score(S);  w = exp(S' - LSE) where visible;  O = w V;  LSE = ln sum exp S'

The truth carries, for each row, what the acceptance rule scales its bounds with. The baseline is the plain
path of FlashAttention's tests (`attention_ref(..., upcast=False, reorder_ops=True)`): K times scale
rounded, scores accumulated in float32 and rounded, softmax in float32, P rounded, P V accumulated in
float32 and rounded.

Not here: what a spec's expressions mean (meaning.py), the same on a GPU (reference_torch.py), any
tolerance (rule.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.tl.numerics import Array, round_to

CHUNK = 1 << 21  # scores held at once: 16 MB in float64
F32_SUM_ERROR = 16 * 2.0**-24  # of a float32 dot product, relative to |q| |k|: tensor cores truncate each partial sum
F32_FUNCTION_ERROR = 2.0**-21  # of a score modifier in float32, relative to its value: prelude's functions


@dataclass(frozen=True)
class Truth:
    """Outputs in float64, and for each row what bounds scale with (the largest over the row's columns)."""

    out: Array  # (B, Sq, Hq, Dv)
    lse: Array  # (B, Hq, Sq)
    magnitude: Array  # (B, Sq, Hq): sum of |w| |v|
    spread: Array  # (B, Sq, Hq): square root of the sum of w^2 v^2, what independent roundings of w add up to
    slack: Array  # (B, Sq, Hq): how far float32 and the approximations may move a score
    approximate: Array  # (B, Sq, Hq): the approximations' part of it

    @staticmethod
    def empty(call: Call) -> Truth:
        """Give arrays to fill; rows start as rows that see nothing."""
        rows = (call.B, call.Sq, call.Hq)
        lse = np.full((call.B, call.Hq, call.Sq), -np.inf)
        return Truth(np.zeros((*rows, call.Dv)), lse, *(np.zeros(rows) for _ in range(4)))


def row_chunks(call: Call, most: int = CHUNK) -> Iterator[Array]:
    """Give the rows in stretches of at most `most` scores."""
    step = max(1, most // max(1, call.Sk))
    for start in range(0, call.Sq, step):
        yield np.arange(start, min(start + step, call.Sq))


def truth(operator: Operator, call: Call, q: Array, k: Array, v: Array) -> Truth:
    """Compute a call in float64.

    Args:
        operator: what is asked for.
        call: the sizes and the scale.
        q: (B, Sq, Hq, Dqk), values of the spec's type.
        k: (B, Sk, Hk, Dqk).
        v: (B, Sk, Hk, Dv).
    """
    result = Truth.empty(call)
    for b in range(call.B):
        for h in range(call.Hq):
            head = operator.key_head(call, h)
            entry = operator.entry(call, b)
            keys, values = (a[b, : entry.Sk, head].astype(np.float64) for a in (k, v))
            for rows in row_chunks(call):
                _fill(result, operator, entry, (b, h), rows, q[b, rows, h].astype(np.float64), keys, values)
    return result


def _fill(
    result: Truth,
    operator: Operator,
    call: Call,
    place: tuple[int, int],
    rows: Array,
    queries: Array,
    keys: Array,
    values: Array,
) -> None:
    b, h = place
    scale = operator.scale_of(call)
    positions = np.arange(call.Sk)
    plain = scale * (queries @ keys.T)
    visible = operator.visible(call, b, h, rows, positions)
    scores = operator.modified(call, b, h, rows, positions, plain)
    weights, lse = softmax(scores, visible)
    at = (b, rows, h)
    result.out[at] = weights @ values
    result.magnitude[at] = (weights @ np.abs(values)).max(axis=1, initial=0)
    result.spread[at] = np.sqrt((weights**2 @ values**2).max(axis=1, initial=0))
    if operator.rough is not None and call.Sk:
        moved = np.abs(operator.rough.modified(call, b, h, rows, positions, plain) - scores)
        result.approximate[at] = np.where(visible & np.isfinite(moved), moved, 0).max(axis=1)
    slack = _slack(operator, call, place, rows, plain, scores, visible, queries, keys)
    result.slack[at] = slack + result.approximate[at]
    natural = lse if operator.lse_of == "modified" else softmax(plain, visible)[1]
    result.lse[b, h, rows] = natural / np.log(operator.lse_base)
    blind = ~visible.any(axis=1)
    result.lse[b, h, rows[blind]] = operator.empty_lse
    if operator.empty_out == "mean" and call.Sk:
        result.out[b, rows[blind], h] = values.mean(axis=0)


def softmax(scores: Array, visible: Array) -> tuple[Array, Array]:
    """Give the weights and the logarithm of their sum; a row that sees nothing has weights 0 and -inf."""
    masked = np.where(visible, scores, -np.inf)
    top = masked.max(axis=1, initial=-np.inf, keepdims=True)
    safe = np.where(np.isneginf(top), 0, top)
    with np.errstate(all="ignore"):
        weights = np.exp(masked - safe)
        total = weights.sum(axis=1, keepdims=True)
        lse = np.where(total == 0, -np.inf, safe + np.log(total))
        return np.where(total == 0, 0, weights / total), lse[:, 0]


def _slack(
    operator: Operator,
    call: Call,
    place: tuple[int, int],
    rows: Array,
    plain: Array,
    scores: Array,
    visible: Array,
    queries: Array,
    keys: Array,
) -> Array:
    """Bound how far a score of each row moves when it is computed in float32."""
    if not call.Sk:
        return np.zeros(len(rows))
    longest = np.sqrt((keys**2).sum(axis=1)).max()
    moved: Array = F32_SUM_ERROR * abs(operator.scale_of(call)) * longest * np.sqrt((queries**2).sum(axis=1))
    if operator.score is None:
        return moved
    other = operator.modified(call, *place, rows, np.arange(call.Sk), plain + moved[:, None])
    with np.errstate(invalid="ignore"):
        change = np.abs(other - scores) + F32_FUNCTION_ERROR * np.abs(scores)
    largest: Array = np.where(visible & np.isfinite(change), change, 0).max(axis=1)
    return largest


def baseline(operator: Operator, call: Call, q: Array, k: Array, v: Array, dtype: str) -> Array:
    """Compute the output on the plain path, (B, Sq, Hq, Dv) float32 values of `dtype`."""
    out = np.zeros((call.B, call.Sq, call.Hq, call.Dv), np.float32)
    scaled = round_to(k * np.float32(operator.scale_of(call)), dtype)
    for b in range(call.B):
        entry = operator.entry(call, b)
        positions = np.arange(entry.Sk)
        for h in range(call.Hq):
            head = operator.key_head(call, h)
            keys, values = (a[b, : entry.Sk, head] for a in (scaled, v))
            for rows in row_chunks(call):
                scores = round_to(q[b, rows, h] @ keys.T, dtype)
                scores = round_to(operator.modified(entry, b, h, rows, positions, scores), dtype)
                weights, _ = softmax(scores, operator.visible(entry, b, h, rows, positions))
                out[b, rows, h] = round_to(round_to(weights, dtype) @ values, dtype)
    return out

"""What a call must give, in float64 from the spec alone, and what it gives in the spec's own precision.

    S = scale * Q K^T;  S' = score(S);  w = exp(S' - LSE) where visible;  O = w V;  LSE = ln sum exp S'
    or other weights w, of a sum that a sink joins, or each a function of one score (weighing.py)

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
from qimeng_attention.judge.weighing import of_one_score, weigh
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
    # Of weights that no sum divides, where a score that moves by d has no share of its weight to move it by:
    drift: Array  # (B, Sq, Hq): sum of |v| times how far float32 and the approximations may move each weight
    approximate_drift: Array  # (B, Sq, Hq): the approximations' part of it
    seen: Array  # (B, Sq, Hq): sum of |v| over the keys that are seen

    @staticmethod
    def empty(call: Call) -> Truth:
        """Give arrays to fill; rows start as rows that see nothing."""
        rows = (call.B, call.Sq, call.Hq)
        lse = np.full((call.B, call.Hq, call.Sq), -np.inf)
        return Truth(np.zeros((*rows, call.Dv)), lse, *(np.zeros(rows) for _ in range(7)))


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
                queries = q[b, rows, h].astype(np.float64)
                _fill(result, _Rows(operator, entry, (b, h), rows, queries, keys, values))
    return result


@dataclass(frozen=True, slots=True)
class _Rows:
    """A stretch of rows of one head, in float64."""

    operator: Operator
    call: Call
    place: tuple[int, int]  # batch entry and query head
    rows: Array
    queries: Array
    keys: Array
    values: Array

    @property
    def plain(self) -> Array:
        """Give the scores before their modifiers, (rows, keys)."""
        return self.operator.scale_of(self.call) * (self.queries @ self.keys.T)

    def modified(self, plain: Array, operator: Operator | None = None) -> Array:
        """Give the scores after the modifiers of the operator, or of another one."""
        return (operator or self.operator).modified(self.call, *self.place, self.rows, np.arange(self.call.Sk), plain)

    def visible(self) -> Array:
        """Give which keys each row sees."""
        return self.operator.visible(self.call, *self.place, self.rows, np.arange(self.call.Sk))

    def weigh(self, scores: Array, visible: Array) -> tuple[Array, Array]:
        """Give the weights and the LSE of each row."""
        return weigh(self.operator.weighing, scores, visible, self.operator.sink_of(self.call, self.place[1]))


def _fill(result: Truth, x: _Rows) -> None:
    operator, (b, h), plain = x.operator, x.place, x.plain
    visible, scores = x.visible(), x.modified(plain)
    weights, lse = x.weigh(scores, visible)
    at = (b, x.rows, h)
    result.out[at] = weights @ x.values
    result.magnitude[at] = (np.abs(weights) @ np.abs(x.values)).max(axis=1, initial=0)
    result.spread[at] = np.sqrt((weights**2 @ x.values**2).max(axis=1, initial=0))
    if x.call.Sk and operator.weighing.kind.summed:
        _fill_slack(result, x, plain, scores, visible)
    elif x.call.Sk:
        _fill_drift(result, x, plain, scores, visible)
    natural = lse if operator.lse_of == "modified" else x.weigh(plain, visible)[1]
    result.lse[b, h, x.rows] = natural / np.log(operator.lse_base)
    blind = ~visible.any(axis=1)
    if operator.empty_lse is not None:
        result.lse[b, h, x.rows[blind]] = operator.empty_lse
    if operator.empty_out == "mean" and x.call.Sk:
        result.out[b, x.rows[blind], h] = x.values.mean(axis=0)


def _fill_slack(result: Truth, x: _Rows, plain: Array, scores: Array, visible: Array) -> None:
    """Fill in how far float32 and approximations move a score of each row."""
    at = (x.place[0], x.rows, x.place[1])
    if x.operator.rough is not None:
        rough = np.abs(x.modified(plain, x.operator.rough) - scores)
        result.approximate[at] = np.where(visible & np.isfinite(rough), rough, 0).max(axis=1)
    moved = _moved(x, plain, scores)
    if x.operator.score is not None:
        moved = np.where(visible & np.isfinite(moved), moved, 0)
    result.slack[at] = moved.max(axis=1) + result.approximate[at]


def _fill_drift(result: Truth, x: _Rows, plain: Array, scores: Array, visible: Array) -> None:
    """Fill in how far float32 and approximations move an output whose weights are each made of one score."""
    at, sizes = (x.place[0], x.rows, x.place[1]), np.abs(x.values)
    moved = np.where(np.isfinite(scores), _moved(x, plain, scores), 0)
    result.seen[at] = (visible @ sizes).max(axis=1)
    if x.operator.rough is not None:
        rough = np.abs(x.modified(plain, x.operator.rough) - scores)
        result.approximate_drift[at] = (_weights_moved(x, scores, visible, rough) @ sizes).max(axis=1)
        moved = moved + rough
    result.drift[at] = (_weights_moved(x, scores, visible, moved) @ sizes).max(axis=1)


def _weights_moved(x: _Rows, scores: Array, visible: Array, moved: Array) -> Array:
    """Bound how far each weight moves with its score, and by its own function in float32."""
    weighing = x.operator.weighing
    weights, up, down = (of_one_score(weighing, s, visible) for s in (scores, scores + moved, scores - moved))
    with np.errstate(invalid="ignore"):
        change = np.maximum(np.abs(up - weights), np.abs(down - weights)) + F32_FUNCTION_ERROR * np.abs(weights)
    return np.where(np.isfinite(change), change, 0)


def _moved(x: _Rows, plain: Array, scores: Array) -> Array:
    """Bound how far each score moves when it is computed in float32; (rows, 1) where all of a row may move alike."""
    longest = np.sqrt((x.keys**2).sum(axis=1)).max()
    norms = np.sqrt((x.queries**2).sum(axis=1))
    moved: Array = (F32_SUM_ERROR * abs(x.operator.scale_of(x.call)) * longest * norms)[:, None]
    if x.operator.score is None:
        return moved
    other = x.modified(plain + moved)
    with np.errstate(invalid="ignore"):
        change: Array = np.abs(other - scores) + F32_FUNCTION_ERROR * np.abs(scores)
    return change


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
                visible = operator.visible(entry, b, h, rows, positions)
                weights, _ = weigh(operator.weighing, scores, visible, operator.sink_of(call, h))
                out[b, rows, h] = round_to(round_to(weights, dtype) @ values, dtype)
    return out

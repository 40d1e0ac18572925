"""What the words of `weights` mean in numbers: rows of scores become rows of weights.

Not here: which words there are (weights.py), the same on a GPU (reference_torch.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qimeng_attention.tl.numerics import Array
from qimeng_attention.weights import WEIGHTS, Weights


@dataclass(frozen=True, slots=True)
class Weighing:
    """How an operator weighs; fields with a default differ from a spec's only where a clause is left out."""

    name: str = "softmax"
    sink: Literal["own", "absent", "of head 0", "twice", "times scale"] = "own"
    lse_has_sink: bool = True
    hidden_score: float | None = None  # of keys that are not seen; None: they weigh 0

    @property
    def kind(self) -> Weights:
        """Give the word's facts."""
        return WEIGHTS[self.name]

    @property
    def has_sink(self) -> bool:
        """Tell whether a logit without a value joins the sum."""
        return self.kind.sink != "none" and self.sink != "absent"

    def sink_of(self, sinks: Array | None, h: int, scale: float) -> float:
        """Give the sink of a query head; -inf where there is none.

        Args:
            sinks: what the call hands over, (Hq).
            h: the query head.
            scale: of the call's scores.
        """
        if not self.has_sink:
            return float("-inf")
        value = 0.0 if sinks is None else float(sinks[0 if self.sink == "of head 0" else h])
        return {"twice": value + float(np.log(2)), "times scale": value * scale}.get(self.sink, value)


def softmax(scores: Array, visible: Array, sink: float = float("-inf")) -> tuple[Array, Array]:
    """Give the weights and the logarithm of their sum; a row that sees nothing has weights 0, and -inf or the sink."""
    masked = np.where(visible, scores, -np.inf)
    joined = masked.dtype.type(sink)
    top = np.maximum(masked.max(axis=1, initial=-np.inf, keepdims=True), joined)
    safe = np.where(np.isneginf(top), 0, top)
    with np.errstate(all="ignore"):
        weights = np.exp(masked - safe)
        total = weights.sum(axis=1, keepdims=True) + np.exp(joined - safe)
        lse = np.where(total == 0, -np.inf, safe + np.log(total))
        return np.where(total == 0, 0, weights / total), lse[:, 0]


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


OF_ONE_SCORE: Mapping[str, Callable[[Array], Array]] = {
    "sigmoid": _sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "linear": lambda x: x,
}


def of_one_score(weighing: Weighing, scores: Array, visible: Array) -> Array:
    """Give weights that are each a function of one score, in the precision of the scores."""
    function = OF_ONE_SCORE[weighing.name]
    with np.errstate(all="ignore"):
        hidden = 0 if weighing.hidden_score is None else function(np.asarray(weighing.hidden_score, scores.dtype))
        return np.asarray(np.where(visible, function(scores), hidden), scores.dtype)


def weigh(weighing: Weighing, scores: Array, visible: Array, sink: float) -> tuple[Array, Array]:
    """Give the weights of rows, and each row's LSE (-inf where weights have none).

    Args:
        weighing: how.
        scores: (rows, keys), modified.
        visible: the same shape.
        sink: of the head.
    """
    if not weighing.kind.summed:
        return of_one_score(weighing, scores, visible), np.full(len(scores), -np.inf, scores.dtype)
    weights, lse = softmax(scores, visible, sink)
    return weights, lse if weighing.lse_has_sink else softmax(scores, visible)[1]

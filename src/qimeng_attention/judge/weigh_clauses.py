"""The clauses of `weights`: what an operator weighs by when one part of a word's meaning is left out.

Not here: the other clauses of a spec, and what shows their lack (clauses.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from qimeng_attention.judge.meaning import Operator
from qimeng_attention.judge.weighing import OF_ONE_SCORE
from qimeng_attention.spec import AttentionSpec

# What each word weighs by besides, and the word that is left without it.
_WITHOUT = {
    "sigmoid": (("each weight is the sigmoid of one score", "softmax"),),
    "relu": (("a negative score weighs 0", "linear"), ("weights are not divided by a sum", "softmax")),
    "relu2": (("weights are squared", "relu"), ("weights are not divided by a sum", "softmax")),
    "linear": (("a negative score weighs less than 0", "relu"), ("weights are not divided by a sum", "softmax")),
}


def weaker_weights(operator: Operator, spec: AttentionSpec) -> Iterator[tuple[str, Operator]]:
    """Give the operator without each part of what its word of `weights` says."""

    def but(**changes: Any) -> Operator:
        return replace(operator, weighing=replace(operator.weighing, **changes))

    kind = operator.weighing.kind
    for name, word in _WITHOUT.get(kind.name, ()):
        yield name, but(name=word)
    if kind.sink == "none":
        return
    yield "the sink takes part", but(sink="absent")
    yield "the sink counts once", but(sink="twice")
    if "LSE" in spec.outputs:
        yield "LSE has the sink", but(lse_has_sink=False)
    if kind.reads_sink:
        yield "the sink is not scaled", but(sink="times scale")
        if spec.Hq > 1:
            yield "each query head has its own sink", but(sink="of head 0")


def hidden_keys_weigh(operator: Operator) -> Operator | None:
    """Give the operator in which a hidden key weighs what a score of 0 does; None if that is nothing."""
    function = OF_ONE_SCORE.get(operator.weighing.name)
    if function is None or operator.condition is None or function(np.zeros(1))[0] == 0:
        return None
    return replace(operator, weighing=replace(operator.weighing, hidden_score=0.0))

"""Inputs whose weights and outputs the spec's type can hold.

Weights that no sum divides grow with the scores: in fp16 the square of a score of 300 is beyond 65,504, and P or O
would be infinite in a correct kernel. Such inputs say nothing, so queries are halved until weights fit, then values
until outputs do. The largest weight and output are looked for in some rows of each head, and must stay well below the
type's largest number, as other rows may have larger ones. Weights of a softmax, and sigmoids, always fit.

Not here: the values of a family (families.py).
"""

from __future__ import annotations

import numpy as np

from qimeng_attention.judge.families import Tensors
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.judge.weighing import of_one_score
from qimeng_attention.tl.numerics import Array

LARGEST = {"fp16": 65_504.0, "bf16": 3.3e38}
MARGIN = 32.0  # how far below the largest number what is looked at must stay
ROWS = 8  # looked at in each head, the first and the last among them
HALVINGS = 40
BOUNDED = ("sigmoid",)  # words whose weights are at most 1


def held_in(drawn: Tensors, operator: Operator, call: Call, dtype: str) -> Tensors:
    """Give the values of Q, K and V, smaller by powers of two where weights or outputs would not fit the type."""
    if operator.weighing.kind.summed or not call.Sk or not call.Sq:
        return drawn
    most = LARGEST[dtype] / MARGIN
    found = dict(drawn)
    for _ in range(HALVINGS):
        weight, output = _largest(found, operator, call)
        if weight > most and operator.weighing.name not in BOUNDED:
            found["Q"] = found["Q"] / 2
        elif output > most:
            found["V"] = found["V"] / 2
        else:
            break
    return found


def _largest(drawn: Tensors, operator: Operator, call: Call) -> tuple[float, float]:
    """Give the largest weight and the largest sum of |weight| |value| of some rows."""
    rows = np.unique(np.linspace(0, call.Sq - 1, ROWS).astype(int))
    positions = np.arange(call.Sk)
    weight = output = 0.0
    for b in range(call.B):
        for h in range(call.Hq):
            head = operator.key_head(call, h)
            keys, values = drawn["K"][b, :, head], drawn["V"][b, :, head]
            scores: Array = call.scale * (drawn["Q"][b, rows, h].astype(np.float64) @ keys.T.astype(np.float64))
            visible = operator.visible(call, b, h, rows, positions)
            with np.errstate(all="ignore"):
                modified = operator.modified(call, b, h, rows, positions, scores)
                weights = np.abs(of_one_score(operator.weighing, modified, visible))
            weight = max(weight, float(weights.max(initial=0)))
            output = max(output, float((weights @ np.abs(values)).max(initial=0)))
    return weight, output

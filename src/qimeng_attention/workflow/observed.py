"""What is seen of a function that no description covers, by calling it: which keys move a query's output, and how much.

With unit vectors for values an output of attention is its weights. Whether outputs are such sums is looked at too:
where they are not, that is said, and nothing is shown.

Not here: drawing (report/).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qimeng_attention.errors import QimengError
from qimeng_attention.judge import Place, Reference, open_reference
from qimeng_attention.judge.user_function import Asked
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import Array
from qimeng_attention.workflow.from_function import small_call

WEIGHTS, PICTURE = {"B": 1, "Sq": 4, "Sk": 6}, {"B": 1, "Sq": 12, "Sk": 16}
_DRAWS = 3  # of queries and keys: a weight may be 0 by chance
_CLOSE = 1e-6


@dataclass(frozen=True, slots=True)
class Observed:
    """Weights of head 0, and which keys have one; `why` says why there are none."""

    weights: Array | None = None  # (4, 6) float64
    seen: Array | None = None  # (12, 16) bool: keys that move the output for some queries and keys
    why: str = ""


def observe(spec: AttentionSpec, place: Place, framework: str = "auto") -> Observed:
    """Call a function with unit vectors for values."""
    try:
        with open_reference(place, framework) as function:
            weights, linear = _weights(function, spec, WEIGHTS, 0)
            if not linear:
                return Observed(why="an output of the function is no sum of values with weights")
            seen = [_weights(function, spec, PICTURE, draw)[0] != 0 for draw in range(_DRAWS)]
    except QimengError as error:
        return Observed(why=error.message)
    return Observed(weights, np.logical_or.reduce(seen))


def _weights(function: Reference, spec: AttentionSpec, sizes: dict[str, int], draw: int) -> tuple[Array, bool]:
    """Give the weights of one call, and whether they make the output of other values."""
    given, outputs = small_call(spec, sizes, draw)
    outputs = {"Out": outputs["Out"]}
    values = given["V"]
    units = np.zeros_like(values)
    for key in range(sizes["Sk"]):
        units[0, key, :, key] = 1.0
    asked = Asked(function)
    weights = asked.call({**given, "V": units}, outputs, "unit values")["Out"][0, :, 0, : sizes["Sk"]]
    out = asked.call(given, outputs, "random values")["Out"][0, :, 0]
    return weights, bool(np.allclose(out, weights @ values[0, :, 0], rtol=_CLOSE, atol=_CLOSE))

"""Further cases, for clauses that the usual ones do not show: a window beyond their lengths, ids that hide it.

Not here: the usual cases (inputs.py), who asks for more (judge.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from qimeng_attention.judge.contents import KINDS
from qimeng_attention.judge.inputs import Budget, Case, sized_case
from qimeng_attention.judge.meaning import Operator
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import expressions, names_in

MOST = 12  # cases; each costs as much as a usual one of its length


def further(spec: AttentionSpec, operator: Operator, tiles: tuple[int, int], budget: Budget) -> Iterator[Case]:
    """Give as many queries as keys, past the numbers of the mask, the longest first, with each kind of tensors."""
    numbers = {
        int(e.value)
        for e in expressions(operator.condition)
        if isinstance(e, s.Num) and isinstance(e.value, int) and 1 < e.value < budget.keys
    }
    lengths = {3 * tiles[0] + 1} | {x + tiles[0] + 1 for x in numbers} | {2 * x + 1 for x in numbers}
    heads = budget.heads and (budget.heads if "h" in names_in((operator.condition, operator.score)) else 1)
    kinds = range(len(KINDS) if operator.tensors else 1)
    found = (sized_case(spec, heads, (2, length, length), kind) for length in sorted(lengths)[::-1] for kind in kinds)
    fit = (c for c in found if c.call.Sk <= budget.keys and c.call.Sq * c.call.Sk * c.call.Hq <= budget.scores)
    yield from islice(fit, MOST)

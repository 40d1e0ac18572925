"""`approximate tanh`: a function by one instruction with a stated error, where it is computed exactly otherwise
(approximate).

Only statements on fragments change: what is computed once for a tile costs nothing to compute well.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import APPROXIMATIONS
from qimeng_attention.tl.traverse import map_blocks, map_expressions
from qimeng_attention.tl.types import Checked

FORM = "approximate FUNCTION"


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Put the approximation for every call of the function."""
    if len(choice.words) != 2:
        raise malformed(choice, FORM)
    function = choice.words[1]
    known = ", ".join(APPROXIMATIONS)
    if function not in APPROXIMATIONS:
        raise unfit(choice, f"there is no approximation of {function}", f"take one of {known}")
    other, _ = APPROXIMATIONS[function]

    def turn(e: s.Expr) -> s.Expr:
        return replace(e, function=other) if isinstance(e, s.Call) and e.function == function else e

    body = map_blocks(kernel.body, lambda n: map_expressions(n, turn) if isinstance(n, s.Compute) else n)
    if body == kernel.body:
        raise unfit(choice, f"no statement computes {function} of a fragment", "remove this choice")
    return with_body(kernel, body)


REWRITING = Rewriting(
    "approximate",
    FORM,
    "approximate tanh",
    "Computes a function by one instruction, with a relative error of at most 2^-11 for tanh.",
    "approximate",
    apply,
)

"""`unroll loop i by 4`: the kernel holds a loop's body several times, one iteration behind the other (exact).

What a loop computes stays; loads of later iterations may begin before the first one has used its own.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, number, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import map_blocks, statements
from qimeng_attention.tl.types import Checked

FORM = "unroll loop VARIABLE by NUMBER"
MOST = 16  # bodies: a kernel must fit the instruction cache


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Say of every loop over the variable how many iterations its body holds."""
    words = choice.words
    if len(words) != 5 or words[1] != "loop" or words[3] != "by":
        raise malformed(choice, FORM)
    times = number(words[4], choice, FORM)
    if not 2 <= times <= MOST:
        raise unfit(choice, f"a body cannot be held {times} times", f"take a number from 2 to {MOST}")
    if not any(isinstance(n, s.For) and n.var == words[2] and n.ranges for n in statements(kernel.body)):
        raise unfit(choice, f"no loop counts {words[2]}", "name the variable of a loop")

    def unrolled(n: s.Statement) -> s.Statement:
        return replace(n, unroll=times) if isinstance(n, s.For) and n.var == words[2] and n.ranges else n

    return with_body(kernel, map_blocks(kernel.body, unrolled))


REWRITING = Rewriting(
    "unroll",
    FORM,
    "unroll loop i by 4",
    "Holds a loop's body several times, so that loads of later iterations begin early.",
    "exact",
    apply,
)

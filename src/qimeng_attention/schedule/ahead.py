"""`ahead Q stages 2`: what a role fills once for each tile of the grid gets several stages (exact).

The producer then fills it for the next tile while the consumers still read this tile's, and goes on to the next tile's
keys. It pays where blocks walk over many tiles (`grid persistent`); a ring that a loop fills is deepened by `ring`.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, number, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import num, statements
from qimeng_attention.tl.types import Checked

FORM = "ahead TILE stages NUMBER"
MAX_STAGES = 4


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Give the named tile its stages."""
    words = choice.words
    if len(words) != 4 or words[2] != "stages":
        raise malformed(choice, FORM)
    tile, stages = words[1], number(words[3], choice, FORM)
    if not 1 <= stages <= MAX_STAGES:
        raise unfit(choice, f"{stages} stages are not possible", f"take 1 to {MAX_STAGES}")
    roles = [n for n in kernel.body if isinstance(n, s.Role)]
    if not any(_fills(n, tile) for role in roles for n in role.body):
        raise unfit(
            choice,
            f"no role fills {tile} once for each tile of the grid",
            "choose `roles` too, and `ring` for a tile that a loop fills",
        )
    body = [
        replace(n, stages=num(stages) if stages > 1 else None)
        if isinstance(n, s.Allocate) and n.space == "shared" and n.name == tile
        else n
        for n in kernel.body
    ]
    return with_body(kernel, body)


def _fills(n: s.Statement, tile: str) -> bool:
    found = [n] if not isinstance(n, s.If) else list(statements((n,)))
    return any(isinstance(x, s.Copy) and x.signals is not None and (x.to_name or x.name) == tile for x in found)


REWRITING = Rewriting(
    "ahead",
    FORM,
    "ahead Q stages 2",
    "Lets the producer fill a tile for the block's next tile of the grid while this one's is still read.",
    "exact",
    apply,
)

"""`warps 4 along q, 2 blocks an SM`: how many warps run a block, and which axis of the register tiles they divide
(exact)."""

from __future__ import annotations

from qimeng_attention.schedule.rewriting import Rewriting, malformed, number, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.types import Checked

FORM = "warps NUMBER along AXIS, NUMBER blocks an SM"
ROWS_A_WARP = 16  # an MMA m16n8 tile has 16 rows (PTX ISA)


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Put the Warps statement behind the Grid."""
    words = choice.words
    if (
        len(words) not in (4, 9)
        or words[2] != "along"
        or (len(words) == 9 and (words[4], *words[6:]) != (",", "blocks", "an", "SM"))
    ):
        raise malformed(choice, FORM)
    if any(isinstance(n, s.Role) for n in kernel.body):
        raise unfit(choice, "each role has its warpgroups already", "leave this choice out")
    count, axis = number(words[1], choice, FORM), words[3]
    blocks = s.Num(number(words[5], choice, FORM)) if len(words) == 9 else None
    rows = {t.axes[0].size for t in checked.tiles.values() if t.space == "register" and t.axes[0].name == axis}
    if not rows:
        raise unfit(choice, f"no register tile has rows along {axis}", "name the axis of the accumulators' rows")
    if count < 1 or any(r % (count * ROWS_A_WARP) for r in rows):
        raise unfit(
            choice,
            f"{max(rows)} rows do not divide into {count} warps of a multiple of {ROWS_A_WARP} rows",
            "take fewer warps, or a taller tile",
        )
    position = next(i for i, n in enumerate(kernel.body) if isinstance(n, s.Grid))
    body = [n for n in kernel.body if not isinstance(n, s.Warps)]
    body.insert(position + 1, s.Warps(s.Num(count), axis, blocks))
    return with_body(kernel, body)


REWRITING = Rewriting(
    "warps",
    FORM,
    "warps 4 along q, 2 blocks an SM",
    "Divides the rows of a block's tiles among warps, and says how many blocks an SM should hold.",
    "exact",
    apply,
)

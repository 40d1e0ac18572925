"""`hold Q in register`: a tile that a loop reads again and again is fetched into registers once (exact)."""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import (
    Rewriting,
    fills,
    malformed,
    map_operands,
    shared_names,
    unfit,
    with_body,
)
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import map_blocks, statements
from qimeng_attention.tl.types import Checked

FORM = "hold TILE in register"


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Copy the tile to registers before the first loop that reads it."""
    words = choice.words
    if len(words) != 4 or words[2:] != ("in", "register"):
        raise malformed(choice, FORM)
    tile = words[1]
    shared = shared_names(checked)
    users = [n for n in statements(kernel.body) if isinstance(n, s.Gemm) and tile in (n.a.name, n.b.name)]
    position = next((i for i, n in enumerate(kernel.body) if isinstance(n, s.For)), None)
    if tile not in shared or position is None or any(tile in fills(n, shared) for n in kernel.body[position:]):
        raise unfit(
            choice,
            f"{tile} is no shared tile that stays the same through a loop",
            "hold a tile that is copied once, before the loop",
        )
    if any(n.b.name == tile or n.a.transposed or n.a.rows for n in users) or not users:
        raise unfit(
            choice,
            f"{tile} is not read as the whole first operand of GEMM",
            "only first operands may come from registers",
        )
    held = f"{tile}_held"
    body = list(kernel.body)
    body.insert(position, s.Copy(tile, "shared", "register", to_name=held))
    rest = map_blocks(tuple(body[position + 1 :]), lambda n: map_operands(n, tile, lambda o: replace(o, name=held)))
    return with_body(kernel, [*body[: position + 1], *rest])


REWRITING = Rewriting(
    "hold",
    FORM,
    "hold Q in register",
    "Fetches an operand into registers once, instead of in every iteration.",
    "exact",
    apply,
)

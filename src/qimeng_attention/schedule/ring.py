"""`ring K stages 2`: a tile gets several stages, and iteration i of the loop that fills it uses stage i % stages
(exact)."""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import (
    Rewriting,
    entries,
    find_loop,
    malformed,
    map_operands,
    number,
    shared_names,
    unfit,
    with_body,
)
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import map_blocks
from qimeng_attention.tl.types import Checked

FORM = "ring TILE stages NUMBER, TILE stages NUMBER"
MAX_STAGES = 8


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Give each named tile its stages."""
    for words in entries(choice, 1, FORM):
        if len(words) != 3 or words[1] != "stages":
            raise malformed(choice, FORM)
        stages = number(words[2], choice, FORM)
        if not 1 <= stages <= MAX_STAGES:
            raise unfit(choice, f"a ring of {stages} stages is not possible", f"take 1 to {MAX_STAGES}")
        kernel = _ring(kernel, words[0], stages, choice, checked)
    return kernel


def _ring(kernel: s.Kernel, tile: str, stages: int, choice: s.Choice, checked: Checked) -> s.Kernel:
    shared = shared_names(checked)
    if tile not in shared:
        raise unfit(choice, f"no tile named {tile} lies in shared memory", f"take one of {', '.join(sorted(shared))}")
    position = find_loop(kernel, tile, shared)
    if position is None:
        raise unfit(choice, f"{tile} is filled outside of loops, a ring serves a loop", "remove it from this choice")
    loop = kernel.body[position]
    assert isinstance(loop, s.For)
    body = list(kernel.body)
    if stages > 1:
        slot = s.Binary("%", s.Name(loop.var), s.Num(stages))
        body[position] = replace(loop, body=map_blocks(loop.body, lambda n: _in_slot(n, tile, slot)))
    body = [
        replace(n, stages=s.Num(stages) if stages > 1 else None)
        if isinstance(n, s.Allocate) and n.name == tile and n.space == "shared"
        else n
        for n in body
    ]
    return with_body(kernel, body)


def _in_slot(n: s.Statement, tile: str, slot: s.Expr) -> s.Statement:
    if isinstance(n, s.Copy) and n.target == "shared" and (n.to_name or n.name) == tile:
        return replace(n, slot=slot)
    if isinstance(n, s.Copy) and n.source == "shared" and n.name == tile:
        return replace(n, slot=slot)
    return map_operands(n, tile, lambda o: replace(o, slot=slot))


REWRITING = Rewriting(
    "ring",
    FORM,
    "ring K stages 2, V stages 2",
    "Gives a tile several stages in shared memory, so that a copy may fill one while another is read.",
    "exact",
    apply,
)

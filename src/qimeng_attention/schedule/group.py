"""`group head by 4 around block`: an index of the grid in groups, each of which walks over another index whole (exact).

The tiles of a few heads run together, longest first, before the next heads begin: their keys and values stay in the L2
cache, and the last tiles of each group are short ones. A member behind the last head reads zeros and writes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, fresh_name, malformed, number, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import add, call, map_blocks, mul, num, sub
from qimeng_attention.tl.types import Checked

FORM = "group INDEX by NUMBER around INDEX"


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Put the group's members before the other index, the groups behind it."""
    words = choice.words
    if len(words) != 6 or (words[2], words[4]) != ("by", "around"):
        raise malformed(choice, FORM)
    index, size, around = words[1], number(words[3], choice, FORM), words[5]
    position = next(i for i, n in enumerate(kernel.body) if isinstance(n, s.Grid))
    grid = kernel.body[position]
    assert isinstance(grid, s.Grid)
    dims = {d.name: d for d in grid.dims}
    if index not in dims or around not in dims or index == around or size < 1:
        raise unfit(choice, f"the grid has the indices {', '.join(dims)}", "name two of them, and a size from 1 on")
    grouped = dims[index]
    member, group = fresh_name(f"{index}_member", kernel), fresh_name(f"{index}_group", kernel)
    groups = call("ceildiv", sub(grouped.stop, grouped.start), num(size))
    rest = [d for d in grid.dims if d.name not in (index, around)]
    made = (s.GridDim(member, num(0), num(size)), dims[around], s.GridDim(group, num(0), groups), *rest)
    value = add(add(grouped.start, mul(s.Name(group), num(size))), s.Name(member))
    if not grid.persistent:
        raise unfit(
            choice, "the grid is not persistent, and a GPU's grid has three indices", "choose `grid persistent`"
        )
    body = map_blocks(kernel.body, lambda n: _named(n, s.Let(index, value)))
    return with_body(kernel, (*body[:position], replace(grid, dims=made), *body[position + 1 :]))


def _named(n: s.Statement, let: s.Let) -> s.Statement:
    """Say at the start of a tile what the index is."""
    if not isinstance(n, s.For) or n.ranges:
        return n
    return replace(n, body=(let, *n.body))


REWRITING = Rewriting(
    "group",
    FORM,
    "group head by 4 around block",
    "Runs the tiles of a few heads together, so that their keys and values stay in the L2 cache.",
    "exact",
    apply,
)

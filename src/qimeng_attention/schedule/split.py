"""`split loop i where Mask is not all true`: only the tiles that a mask touches pay for it (exact).

Interval analysis of the mask's condition gives the stretch of iterations in which it holds for every element of the tile;
there the loop runs without the Mask. Before and behind it the loop runs as it was. An empty stretch leaves one loop.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import Checked
from qimeng_attention.tl.intervals import Stretch, all_true
from qimeng_attention.tl.origins import origins_at
from qimeng_attention.tl.traverse import call, names_in, num, statements

FORM = "split loop VARIABLE where Mask is not all true"
_WORDS = ("where", "Mask", "is", "not", "all", "true")


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Split the loop over the named variable into the parts before, within and behind the unmasked stretch."""
    if len(choice.words) != 9 or choice.words[:2] != ("split", "loop") or choice.words[3:] != _WORDS:
        raise malformed(choice, FORM)
    var = choice.words[2]
    position = next((i for i, n in enumerate(kernel.body) if isinstance(n, s.For) and n.var == var), None)
    if position is None:
        raise unfit(choice, f"no loop counts {var}", "name the variable of the loop over the keys")
    loop = kernel.body[position]
    assert isinstance(loop, s.For)
    masks = [n for n in statements(loop.body) if isinstance(n, s.Mask)]
    if not masks or len(loop.ranges) != 1:
        raise unfit(choice, f"the loop over {var} has no Mask, or several ranges", "remove this choice")
    places = origins_at(checked)
    stretch = Stretch()
    for mask in masks:
        extents = {a.name: a.size for a in checked.tiles[mask.tile].axes}
        stretch = stretch.intersect(all_true(mask.condition, places[id_of(mask, kernel)], extents, var, checked))
    if stretch.never:
        return kernel  # the mask may touch every tile: nothing to split
    return with_body(kernel, _parts(kernel, position, loop, stretch))


def id_of(mask: s.Mask, kernel: s.Kernel) -> int:
    """Give the number of a Mask among the kernel's statements, by which `origins_at` names it."""
    return next(i for i, n in enumerate(statements(kernel.body)) if n is mask)


def _parts(kernel: s.Kernel, position: int, loop: s.For, stretch: Stretch) -> list[s.Statement]:
    first, last = loop.ranges[0].start, loop.ranges[0].stop
    taken = {x for n in statements(kernel.body) for x in names_in(n)}
    lets: list[s.Statement] = []

    def named(name: str, value: s.Expr) -> s.Expr:
        if isinstance(value, s.Num | s.Name):
            return value
        while name in taken:
            name += "_"
        taken.add(name)
        lets.append(s.Let(name, value))
        return s.Name(name)

    last = named("last", last)
    start = first if stretch.start is None else named("unmasked", call("clamp", stretch.start, first, last))
    stop = last if stretch.stop is None else named("masked", call("clamp", stretch.stop, start, last))
    bare = tuple(n for n in loop.body if not isinstance(n, s.Mask))
    loops: list[s.Statement] = []
    if stretch.start is not None:
        loops.append(replace(loop, ranges=(s.Range(first, start),)))
    loops.append(replace(loop, ranges=(s.Range(start, stop),), body=bare, comment="every element of these tiles is visible"))
    if stretch.stop is not None:
        loops.append(replace(loop, ranges=(s.Range(stop, last),), above=(), comment=loop.comment if stretch.start is None else ""))
    body = list(kernel.body)
    body[position : position + 1] = [*lets, *loops]
    return body


_ = num

REWRITING = Rewriting("split", FORM, "split loop i where Mask is not all true",
                      "Runs the tiles that a mask leaves whole in a loop of their own, without the mask.", "exact", apply)  # fmt: skip

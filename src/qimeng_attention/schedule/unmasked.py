"""Where a loop's masks change nothing: what `split` and `guard` share.

Interval analysis of the masks' conditions gives the stretch of iterations in which all of them hold for every element.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qimeng_attention.schedule.rewriting import fresh_name, unfit
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.intervals import Stretch, all_true
from qimeng_attention.tl.origins import origins_at
from qimeng_attention.tl.traverse import call, statements
from qimeng_attention.tl.types import Checked


@dataclass(frozen=True)
class MaskedLoop:
    """A loop with masks, its place in the kernel, and the iterations that no mask touches."""

    position: int
    loop: s.For
    stretch: Stretch


@dataclass(frozen=True)
class Bounds:
    """The ends of the unmasked stretch within the loop's range, as names that the `lets` before it define."""

    lets: tuple[s.Let, ...]
    first: s.Expr
    start: s.Expr  # `first` where the stretch has no lower end
    stop: s.Expr  # `last` where it has no upper end
    last: s.Expr


def masked_loop(kernel: s.Kernel, var: str, choice: s.Choice, checked: Checked) -> MaskedLoop:
    """Find the loop over `var` and analyse its masks.

    Raises:
        ScheduleError: no such loop, or one without a Mask or with several ranges.
    """
    position = next((i for i, n in enumerate(kernel.body) if isinstance(n, s.For) and n.var == var), None)
    if position is None:
        raise unfit(choice, f"no loop counts {var}", "name the variable of the loop over the keys")
    loop = kernel.body[position]
    assert isinstance(loop, s.For)
    masks = [n for n in statements(loop.body) if isinstance(n, s.Mask)]
    if not masks or len(loop.ranges) != 1:
        raise unfit(choice, f"the loop over {var} has no Mask, or several ranges", "remove this choice")
    places = origins_at(checked)
    number = {id(n): i for i, n in enumerate(statements(kernel.body))}
    stretch = Stretch()
    for mask in masks:
        extents = {a.name: a.size for a in checked.tiles[mask.tile].axes}
        found = all_true(mask.condition, places[number[id(mask)]], extents, var, checked)
        stretch = stretch.intersect(found)
    return MaskedLoop(position, loop, stretch)


def bounds_of(kernel: s.Kernel, found: MaskedLoop) -> Bounds:
    """Name the ends of the stretch, held within the loop's own range."""
    lets: list[s.Let] = []

    def named(name: str, value: s.Expr) -> s.Expr:
        if isinstance(value, s.Num | s.Name):
            return value
        name = fresh_name(name, replace(kernel, body=(*lets, *kernel.body)))
        lets.append(s.Let(name, value))
        return s.Name(name)

    stretch, loop_range = found.stretch, found.loop.ranges[0]
    first, last = named("first", loop_range.start), named("last", loop_range.stop)
    start = first if stretch.start is None else named("unmasked", call("clamp", stretch.start, first, last))
    stop = last if stretch.stop is None else named("masked", call("clamp", stretch.stop, start, last))
    return Bounds(tuple(lets), first, start, stop, last)

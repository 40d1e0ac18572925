"""`prefetch K 1 ahead`: the copy for a later iteration is issued as soon as its stage is free (exact).

With `0 ahead` a copy moves to the beginning of its own iteration. With a distance d below the ring's stages the copy
for
iteration i + d stands at the beginning of iteration i; with d equal to the stages it stands behind the last statement
that reads the stage. The first d copies stand before the loop. Matched by dependencies: what reads the tile, and that
the coordinate depends on the loop's variable and nothing that the loop computes.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import (
    Rewriting,
    entries,
    find_loop,
    fresh_name,
    malformed,
    map_operands,
    number,
    reads,
    shared_names,
    unfit,
    with_body,
)
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import add, compare, names_in, num, statements, substitute
from qimeng_attention.tl.types import Checked

FORM = "prefetch TILE NUMBER ahead, TILE NUMBER ahead"


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Move the copies of each named tile ahead."""
    for words in entries(choice, 1, FORM):
        if len(words) != 3 or words[2] != "ahead":
            raise malformed(choice, FORM)
        kernel = _prefetch(kernel, words[0], number(words[1], choice, FORM), choice, checked)
    return kernel


def _prefetch(kernel: s.Kernel, tile: str, ahead: int, choice: s.Choice, checked: Checked) -> s.Kernel:
    shared = shared_names(checked)
    position = find_loop(kernel, tile, shared) if tile in shared else None
    if position is None:
        raise unfit(choice, f"no loop fills a shared tile named {tile}", f"take one of {', '.join(sorted(shared))}")
    kernel, position = _named_bounds(kernel, position)
    loop = kernel.body[position]
    assert isinstance(loop, s.For)
    copy = next((n for n in loop.body if isinstance(n, s.Copy) and (n.to_name or n.name) == tile), None)
    stages = checked.tiles[tile].stages
    _refuse(loop, copy, ahead, stages, choice, tile)
    assert copy is not None
    readers = [n for n in loop.body if tile in reads(n, shared)]
    body = [_at_origin(n, tile, copy, loop.var) for n in loop.body if n is not copy]
    place = 0
    if ahead == stages:
        place = max(i for i, n in enumerate(body) if tile in reads(n, shared)) + 1 if readers else 0
    else:
        while place < len(body) and isinstance(body[place], s.Copy | s.If) and not reads(body[place], shared):
            place += 1  # behind the copies already there, in the order they are needed
    last = loop.ranges[0].stop
    body.insert(place, _for_iteration(copy, loop.var, add(s.Name(loop.var), num(ahead)), last if ahead else None))
    first = loop.ranges[0].start
    prologue = [_for_iteration(copy, loop.var, add(first, num(j)), last) for j in range(ahead)]
    outer = list(kernel.body)
    outer[position : position + 1] = [*prologue, replace(loop, body=tuple(body))]
    return with_body(kernel, outer)


def _refuse(loop: s.For, copy: s.Copy | None, ahead: int, stages: int, choice: s.Choice, tile: str) -> None:
    if copy is None or len(loop.ranges) != 1 or loop.down:
        raise unfit(
            choice,
            f"{tile} is not copied straight in an ascending loop over one range",
            "prefetch before other rewritings of the loop",
        )
    if not 0 <= ahead <= stages:
        raise unfit(
            choice,
            f"{ahead} ahead needs {ahead} stages, {tile} has {stages}",
            f"write `ring {tile} stages {ahead}`, or prefetch less",
        )
    made = {n.out for n in statements(loop.body) if isinstance(n, s.Compute | s.Gemm) and n.out}
    if names_in(copy.coordinate) & made:
        raise unfit(
            choice,
            f"where {tile} is copied from depends on what the loop computes",
            "it cannot be known ahead",
        )


def _named_bounds(kernel: s.Kernel, position: int) -> tuple[s.Kernel, int]:
    """Give the loop's end a name, if it is an expression, because the copies ahead compare with it."""
    loop = kernel.body[position]
    assert isinstance(loop, s.For)
    body = list(kernel.body)
    ranges = loop.ranges[0]
    for end in ("start", "stop"):
        value = getattr(ranges, end)
        if not isinstance(value, s.Num | s.Name):
            name = fresh_name({"start": "first", "stop": "last"}[end], with_body(kernel, body))
            body.insert(position, s.Let(name, value))
            position += 1
            ranges = replace(ranges, **{end: s.Name(name)})
    body[position] = replace(loop, ranges=(ranges, *loop.ranges[1:]))
    return with_body(kernel, body), position


def _for_iteration(copy: s.Copy, var: str, iteration: s.Expr, last: s.Expr | None) -> s.Statement:
    """Make the copy of another iteration, guarded where that iteration may not exist."""
    moved = substitute(copy, {var: iteration})
    moved = replace(moved, coordinate=tuple(_folded(c) for c in moved.coordinate), slot=_fold_slot(moved.slot))
    if last is None:
        return moved
    return s.If(
        compare(iteration, "<", last),
        (replace(moved, above=(), comment=""),),
        above=copy.above,
        comment=copy.comment,
    )


def _folded(c: s.Coordinate) -> s.Coordinate:
    match c.start:
        case s.Binary("*", s.Num(a), _) if a == 0:
            return replace(c, start=num(0))
        case s.Binary("*", s.Num(a), right) if a == 1:
            return replace(c, start=right)
    return c


def _fold_slot(e: s.Expr | None) -> s.Expr | None:
    if isinstance(e, s.Binary) and e.op == "%" and isinstance(e.left, s.Num) and isinstance(e.right, s.Num):
        return num(int(e.left.value % e.right.value))
    return e


def _at_origin(n: s.Statement, tile: str, copy: s.Copy, var: str) -> s.Statement:
    """Say at each use which part of the tensor the stage holds: the copy no longer stands above it."""
    moving = tuple((c.axis, c.start) for c in copy.coordinate if c.axis is not None and var in names_in(c.start))
    return map_operands(n, tile, lambda o: replace(o, at=moving))


REWRITING = Rewriting(
    "prefetch",
    FORM,
    "prefetch K 1 ahead, V 0 ahead",
    "Issues the copy of a later iteration as soon as its stage is free.",
    "exact",
    apply,
)

"""`copies async` and what many warps need to run a block together: groups of copies, waits and barriers (exact).

A fill must be seen before it is read, and a stage must be read by all before it is filled again. Each of these
requirements is a stretch of places in the program where a barrier would meet it; the least number of places that meet
all is chosen, as late as possible, and each waits for just the copies that are read before the next. Matched by what
reads and fills which tile; the program's own order of copies is kept.

Without the choice the copies stay synchronous and only barriers are put in.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import reduce

from qimeng_attention.schedule.groups import OpenWait, Tiles, grouped
from qimeng_attention.schedule.rewriting import (
    Rewriting,
    Shared,
    fills,
    malformed,
    reads,
    shared_names,
    unfit,
    with_body,
)
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.traverse import map_blocks, map_expressions, names_in, statements
from qimeng_attention.tl.types import Checked

FORM = "copies async"
MOST_POINTS = 4  # barriers an iteration that are tried exactly; a loop with more gets one at each requirement's end


@dataclass(frozen=True)
class _Need:
    """A requirement inside a loop: the places (before statement 0 .. n) of one iteration that meet it."""

    places: frozenset[int]
    latest: int
    tile: str = ""  # set where the requirement is a fill that must have arrived


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Make copies asynchronous if asked to, and put in waits and barriers."""
    asynchronous = choice.words == ("copies", "async")
    if not asynchronous and choice.words != ("copies", "sync"):
        raise malformed(choice, FORM)
    if any(isinstance(n, s.Role | s.Barrier) for n in statements(kernel.body)):
        raise unfit(choice, "the program has roles or barriers already", "remove this choice")
    body = kernel.body
    if asynchronous:
        body = map_blocks(body, _asynchronous)
    shared = shared_names(checked)
    out = _Straight(shared, checked, asynchronous).block(body)
    if asynchronous:
        over = {n: t.over or n for n, t in checked.tiles.items() if n in shared and (t.over or t.stages == 1)}
        out = grouped(out, Tiles(shared, over, lambda loop, tile: _ahead(loop, tile, shared, checked)))
    return with_body(kernel, out)


def _asynchronous(n: s.Statement) -> s.Statement:
    if isinstance(n, s.Copy) and (n.source, n.target) == ("global", "shared"):
        return replace(n, asynchronous=True)
    return n


class _Straight:
    """Statements one after the other: a barrier stands right before the statement that needs it."""

    def __init__(self, shared: Shared, checked: Checked, asynchronous: bool) -> None:
        self.shared, self.checked, self.asynchronous = shared, checked, asynchronous
        self.fresh: set[str] = set()  # filled, not yet seen by all
        self.read: set[str] = set()  # read since the last barrier
        self.points = 0
        self.only_if: dict[str, s.Expr] = {}  # tile: it is filled only if something is less than this

    def block(self, body: tuple[s.Statement, ...]) -> tuple[s.Statement, ...]:
        """Put waits and barriers into statements and the blocks below them."""
        out: list[s.Statement] = []
        for n in body:
            filled, seen = fills(n, self.shared), reads(n, self.shared)
            if isinstance(n, s.For) and (filled or seen):
                out += self._loop(n)
            elif isinstance(n, s.If) and seen:
                out.append(self._branch(n))
            else:
                out += self._step(n, filled, seen)
        return tuple(out)

    def _step(self, n: s.Statement, filled: set[str], seen: set[str]) -> list[s.Statement]:
        under = {self.checked.tiles[t].over for t in filled} - {None}
        again = self._single(filled) | under  # what lies there must have arrived, and nobody may read it any more
        before: list[s.Statement] = []
        if (seen | again) & self.fresh or (filled | again) & self.read:
            before = self._point()
        for tile in filled:
            self.only_if.pop(tile, None)
            if isinstance(n, s.If) and (limit := _limit(n)) is not None:
                self.only_if[tile] = limit
        self.fresh |= filled
        self.read |= seen
        return [*before, n]

    def _single(self, tiles: set[str]) -> set[str]:
        """Give the tiles that have one stage: a second fill meets the first."""
        return {t for t in tiles if self.checked.tiles[t].stages == 1}

    def _branch(self, n: s.If) -> s.If:
        """Either block runs, or none: what one of them leaves undone is undone."""
        before = (set(self.fresh), set(self.read))
        body = self.block(n.body)
        after = (self.fresh, self.read)
        self.fresh, self.read = (set(x) for x in before)
        orelse = self.block(n.orelse)
        self.fresh, self.read = self.fresh | after[0] | before[0], self.read | after[1] | before[1]
        return replace(n, body=body, orelse=orelse)

    def _loop(self, loop: s.For) -> list[s.Statement]:
        inside, read = fills(loop, self.shared), reads(loop, self.shared)
        if not _in_rounds(loop, self.shared):
            # Any iteration may follow any other, or none: begin with all that one may leave behind, and end with it.
            self.fresh, self.read = self.fresh | inside, self.read | read
            before = (set(self.fresh), set(self.read))
            body = self.block(loop.body)
            self.fresh, self.read = self.fresh | before[0], self.read | before[1]
            return [replace(loop, body=body)]
        region, points = _region(loop), _points(loop, self.shared, self.checked)
        waiting = [
            i
            for i, x in enumerate(region)
            if (reads(x, self.shared) | self._single(fills(x, self.shared))) & self.fresh
        ]
        late = bool(waiting) and not any(
            p <= waiting[0] for p in points
        )  # no point of the loop serves the first reader
        before_loop = self._point() if late else []
        made = self._with_points(loop, region, points)
        last = loop.ranges[-1].stop if loop.ranges else None
        if last is not None:  # without iterations there was no copy ahead of them either
            self.fresh = {tile for tile in self.fresh if self.only_if.get(tile) != last}
        behind = region[max(points) :] if points else region  # behind the last point
        self.read |= set().union(*[reads(x, self.shared) for x in behind])
        self.fresh |= set().union(
            *[fills(x, self.shared) for x in behind if not isinstance(x, s.If) or _limit(x) != last]
        )
        return [*before_loop, made]

    def _with_points(self, loop: s.For, region: tuple[s.Statement, ...], points: list[int]) -> s.For:
        body: list[s.Statement] = []
        for position in range(len(region) + 1):
            body += self._wait_and_barrier() if position in points else []
            body += region[position : position + 1]
        around = _around(loop)
        if around is not None:
            return replace(loop, body=(*loop.body[:-1], replace(around, body=tuple(body))))
        return replace(loop, body=tuple(body))

    def _point(self) -> list[s.Statement]:
        self.fresh, self.read = set(), set()
        return self._wait_and_barrier()

    def _wait_and_barrier(self) -> list[s.Statement]:
        self.points += 1
        wait: list[s.Statement] = [OpenWait("copies", None, None, self.points)] if self.asynchronous else []
        return [*wait, s.Barrier()]


# ------------------------------------------------------------------ loops


def _region(loop: s.For) -> tuple[s.Statement, ...]:
    """Give the statements of an iteration: those of the `if` that stands around all of them, where one does."""
    around = _around(loop)
    return loop.body if around is None else around.body


def _around(loop: s.For) -> s.If | None:
    rest = [n for n in loop.body if not isinstance(n, s.Let | s.Find)]
    only = rest[0] if len(rest) == 1 else None
    return only if isinstance(only, s.If) and not only.orelse and loop.body[-1] is only else None


def _limit(n: s.If) -> s.Expr | None:
    """Give b of `if a < b`, as it stands around the copy for another iteration: that one runs before b only."""
    match n.condition:
        case s.Compare((_, limit), ("<",)) if not n.orelse:
            return limit
    return None


def _in_rounds(loop: s.For, shared: Shared) -> bool:
    """Tell whether the copies and readers of an iteration stand in one row, so that iterations can be laid end to
    end."""
    region = _region(loop)
    filled = [tile for n in region for tile in fills(n, shared)]
    return len(filled) == len(set(filled)) and not any(isinstance(n, s.For | s.If) and reads(n, shared) for n in region)


def _needs(loop: s.For, shared: Shared, checked: Checked) -> list[_Need]:
    body = _region(loop)
    n = len(body)
    found: list[_Need] = []
    for tile in sorted(fills(loop, shared)):
        copies = [i for i, x in enumerate(body) if tile in fills(x, shared)]
        readers = [i for i, x in enumerate(body) if tile in reads(x, shared)]
        if not readers:
            continue
        for c in copies:
            ahead = _distance(body[c], body[readers[0]], tile, loop.var, checked)
            found += _fill_and_refill(tile, c, readers, ahead, checked.tiles[tile].stages, n)
    return found


def _fill_and_refill(tile: str, c: int, readers: list[int], ahead: int, stages: int, n: int) -> list[_Need]:
    everywhere = frozenset(range(n + 1))
    first, last = readers[0], readers[-1]
    if ahead == 0:
        arrived = _Need(frozenset(range(c + 1, first + 1)), first, tile)
    elif ahead == 1:
        arrived = _Need(frozenset(range(c + 1, n + 1)) | frozenset(range(first + 1)), first, tile)
    else:
        arrived = _Need(everywhere, first, tile)
    older = ahead - stages  # the stage held iteration i + older until now
    if older == 0:
        freed = _Need(frozenset(range(last + 1, c + 1)), c)
    elif older == -1:
        freed = _Need(frozenset(range(last + 1, n + 1)) | frozenset(range(c + 1)), c)
    else:
        freed = _Need(everywhere, c)
    return [arrived, freed]


def _ahead(loop: s.For, tile: str, shared: Shared, checked: Checked) -> int:
    """Give how many iterations a loop's copy of a tile runs ahead of the tile's first reader."""
    region = _region(loop)
    copy = next((x for x in region if tile in fills(x, shared)), None)
    reader = next((x for x in region if tile in reads(x, shared)), None)
    if copy is None or reader is None:
        return 0
    return _distance(copy, reader, tile, loop.var, checked)


def _distance(copy: s.Statement, reader: s.Statement, tile: str, var: str, checked: Checked) -> int:
    """Find how many iterations ahead of its reader a copy runs, from the coordinate and the origin the reader
    states."""
    load = next(x for x in statements((copy,)) if isinstance(x, s.Copy))
    stated = {}
    if isinstance(reader, s.Gemm):
        stated = {axis: e for o in (reader.a, reader.b) if o.name == tile for axis, e in o.at}
    for c in load.coordinate:
        if c.axis in stated:
            for ahead in range(9):
                if _equal_after(c.start, stated[c.axis], var, ahead, checked):
                    return ahead
    return 0


def _equal_after(copied: s.Expr, read: s.Expr, var: str, ahead: int, checked: Checked) -> bool:
    free = sorted((names_in(copied) | names_in(read)) - {var} - set(checked.fixed))
    values = {**checked.fixed, **{name: 3 + 7 * n for n, name in enumerate(free)}}
    try:
        return all(_value(copied, {**values, var: i}) == _value(read, {**values, var: i + ahead}) for i in (2, 5))
    except (KeyError, ValueError, ZeroDivisionError):
        return False


def _value(e: s.Expr, values: dict[str, int]) -> int:
    """Evaluate a coordinate; an element of a tensor counts as a number that its indices alone decide."""

    def element(x: s.Expr) -> s.Expr:
        if not isinstance(x, s.Index):
            return x
        at = [integer(i, values) for i in x.indices]
        return s.Num(reduce(lambda a, b: (a * 31 + b) % 1009, at, 7))

    return integer(map_expressions(e, element), values)


def _points(loop: s.For, shared: Shared, checked: Checked) -> list[int]:
    """Choose the fewest places that meet every requirement, the latest among equals."""
    needs = _needs(loop, shared, checked)
    candidates = sorted({x.latest for x in needs})
    for count in range(1, min(MOST_POINTS, len(candidates)) + 1):
        choices = [p for p in itertools.combinations(candidates, count) if all(x.places & set(p) for x in needs)]
        if choices:
            return list(max(choices, key=sum))
    return candidates


REWRITING = Rewriting(
    "copies",
    "copies async",
    "copies async",
    "Lets copies run beside the computation, in groups, and puts in the waits and barriers that this needs.",
    "exact",
    apply,
)

"""Groups of asynchronous copies: where one is closed (Commit), and how many may stay in flight at each Wait.

Groups complete in the order of their Commits. The program's copies, Commits, points and readers are laid end to end,
for
no, one, two and several iterations of each loop; every reader then says which copy it needs, and so how far back the
point
before it must wait. A Wait that nothing needs is dropped, and so is a Commit without which every point waits for the
same copies.

Not here: where the points (a Wait and a Barrier) stand (sync.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from qimeng_attention.schedule.rewriting import Shared, fills, reads
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import boolean
from qimeng_attention.tl.traverse import map_blocks, names_in, statements

_ROUNDS = (0, 1, 2, 9)  # iterations tried of each loop; nine is one more than the most stages of a ring
_MOST_PADS = 6  # empty groups
_PAD = "an empty group: the first iterations count like the others"
_MOST_LOOPS = 3  # whose iterations are tried in every combination

Body = tuple[s.Statement, ...]
Ahead = Callable[[s.For, str], int]  # how many iterations a loop's copy of a tile runs ahead of its reader


@dataclass(frozen=True, slots=True)
class OpenWait(s.Wait):
    """A Wait for copies whose count is still to be found; its number tells it from the others."""

    number: int = 0


@dataclass(frozen=True)
class Tiles:
    """What the search must know of the program's tiles."""

    shared: Shared
    over: Mapping[
        str, str
    ]  # a tile -> what its fill meets: the tile over whose bytes it lies, or, with one stage, itself
    ahead: Ahead


def grouped(body: Body, tiles: Tiles) -> Body:
    """Close each run of asynchronous copies with Commit and put the counts into the open Waits."""
    body, counts = _padded(_committed(body), tiles)
    for number in list(counts):  # a Wait may do what another was put in for
        fewer = {n: c for n, c in counts.items() if n != number}
        if not any(_Play(tiles, rounds, fewer).misses(body) for rounds in _combinations(body)):
            counts = fewer
    awaited = [_Play(tiles, rounds, counts).over(body) for rounds in _combinations(body)]
    for n in [n for n in statements(body) if isinstance(n, s.Commit)]:
        without = map_blocks(body, lambda x, n=n: None if x is n else x)  # type: ignore[misc]
        fewer = {n: c for n, c in _counts(without, tiles).items() if n in counts}
        if [_Play(tiles, rounds, fewer).over(without) for rounds in _combinations(without)] == awaited:
            body, counts = without, fewer

    def count(n: s.Statement) -> s.Statement | None:
        if not isinstance(n, OpenWait):
            return n
        return s.Wait("copies", None, s.Num(counts[n.number])) if n.number in counts else None

    return map_blocks(body, count)


# ------------------------------------------------------------------ Commits


def _committed(body: Body) -> Body:
    """Close each run of asynchronous copies; a run that a condition skips closes an empty group."""
    out: list[s.Statement] = []
    open_run = False
    for n in body:
        if isinstance(n, s.For | s.If) and any(isinstance(x, s.Gemm | s.Barrier) for x in statements((n,))):
            out += [s.Commit()] * open_run
            open_run = False
            made = replace(n, body=_committed(n.body))
            out.append(replace(made, orelse=_committed(made.orelse)) if isinstance(made, s.If) else made)
            continue
        copies = any(isinstance(x, s.Copy) and x.asynchronous for x in statements((n,)))
        if open_run and not copies and not isinstance(n, s.Let | s.Find | s.Allocate):
            out.append(s.Commit())
            open_run = False
        out.append(n)
        open_run = open_run or copies
    return (*out, s.Commit()) if open_run else tuple(out)


# ------------------------------------------------------------------ Waits


def _padded(body: Body, tiles: Tiles) -> tuple[Body, dict[int, int]]:
    """Put empty groups before the first loop where its first iterations would else have to wait longer than the others.

    What stands before a loop lies in few groups: a count that is right for the first iteration is too strict later.
    """
    best, counts = body, _counts(body, tiles)
    first = next((i for i, n in enumerate(body) if isinstance(n, s.For)), None)
    if first is None or not any(isinstance(n, s.Commit) for n in body[:first]):
        return best, counts
    for number in range(1, _MOST_PADS + 1):
        pads = [replace(s.Commit(), comment=_PAD)] * number
        tried = (*body[:first], *pads, *body[first:])
        found = _counts(tried, tiles)
        if sum(found.values()) > sum(counts.values()):
            best, counts = tried, found
    return best, counts


def _counts(body: Body, tiles: Tiles) -> dict[int, int]:
    """Give for each open Wait that something needs how many groups may stay in flight."""
    found: dict[int, int] = {}
    for rounds in _combinations(body):
        play = _Play(tiles, rounds, None)
        play.over(body)
        done = -1
        for number, closed, needed in play.visits:
            if needed > done:
                found[number] = max(0, min(found.get(number, closed), closed - 1 - needed))
                done = needed
    certain = len(_loops(body)) <= _MOST_LOOPS and not _conditional_groups(body, top=True)
    return found if certain else dict.fromkeys(found, 0)


def _loops(body: Body) -> list[s.For]:
    return [n for n in statements(body) if isinstance(n, s.For)]


def _combinations(body: Body) -> list[tuple[int, ...]]:
    """Give the iterations to try of each loop; loops over one range run equally often."""
    loops = _loops(body)
    kinds = list(dict.fromkeys(n.ranges for n in loops))
    if len(kinds) <= _MOST_LOOPS:
        tried = list(itertools.product(_ROUNDS, repeat=len(kinds)))
    else:
        tried = [(rounds,) * len(kinds) for rounds in _ROUNDS]
    return [tuple(rounds[kinds.index(n.ranges)] for n in loops) for rounds in tried]


def _conditional_groups(body: Body, *, top: bool) -> bool:
    """Tell whether a group is closed on one path only, but for an `if` around all of an iteration."""
    for n in body:
        if isinstance(n, s.For) and _conditional_groups(n.body, top=False):
            return True
        if isinstance(n, s.If) and any(isinstance(x, s.Commit) for x in statements((n,))):
            around = not top and n is body[-1] and not any(isinstance(x, s.Commit) for x in body)
            if not around or _conditional_groups(n.body, top=True) or n.orelse:
                return True
    return False


@dataclass
class _Play:
    """One run through the program's groups."""

    tiles: Tiles
    rounds: tuple[int, ...]  # iterations of each loop, in the order of the text
    counts: dict[int, int] | None  # of the open Waits; None: note what each would have to wait for
    group: int = 0  # the open one
    copies: list[int] = field(default_factory=list)  # the group of each copy, in order
    fills: dict[str, list[int]] = field(default_factory=dict)  # tile: the groups of its fills
    visits: list[tuple[int, int, int]] = field(default_factory=list)  # Wait, groups closed then, newest group needed
    done: int = 0  # groups waited for
    missed: bool = False  # a reader's copy was not waited for
    awaited: list[int] = field(default_factory=list)  # copies waited for, after each Wait
    left: dict[int, int] = field(default_factory=dict)  # loop: its iterations
    ints: dict[str, int] = field(default_factory=dict)  # ends of loops and their variables, where known

    def over(self, body: Body) -> list[int]:
        """Run through the program; give what its Waits wait for."""
        loops = _loops(body)
        self.left = dict(zip(map(id, loops), self.rounds, strict=True))
        for n in loops:  # a loop's end, where it has a name, says which of the copies ahead run
            if len(n.ranges) == 1 and n.ranges[0].start == s.Num(0) and isinstance(n.ranges[0].stop, s.Name):
                self.ints[n.ranges[0].stop.id] = self.left[id(n)]
        self.body(body, {})
        return self.awaited

    def misses(self, body: Body) -> bool:
        """Tell whether some reader comes before a Wait for its copy."""
        self.over(body)
        return self.missed

    def body(self, body: Body, turn: dict[str, int]) -> None:
        for n in body:
            self.statement(n, turn)

    def statement(self, n: s.Statement, turn: dict[str, int]) -> None:
        if isinstance(n, s.For):
            self.loop(n)
        elif isinstance(n, s.If):
            runs = self.decided(n.condition)
            self.body(n.body if runs is not False else (), turn)
            self.body(n.orelse if runs is not True else (), turn)
        elif isinstance(n, s.Commit):
            self.group += 1
        elif isinstance(n, OpenWait):
            self.wait(n)
        else:
            self.read(reads(n, self.tiles.shared), turn)
            for tile in fills(n, self.tiles.shared):
                under = self.tiles.over.get(tile)
                if under is not None:
                    self.read({under}, {})  # what lies there must have arrived before it is written over
                if isinstance(n, s.Copy) and n.asynchronous:
                    self.copies.append(self.group)
                    self.fills.setdefault(tile, []).append(self.group)

    def decided(self, condition: s.Expr) -> bool | None:
        """Evaluate a condition, or give None: then both blocks count as run."""
        try:
            return boolean(condition, self.ints)
        except (KeyError, ValueError, ZeroDivisionError):
            return None

    def wait(self, n: OpenWait) -> None:
        if self.counts is None:
            self.visits.append((n.number, self.group, -1))
        elif n.number in self.counts:
            self.done = max(self.done, self.group - self.counts[n.number])
            self.awaited.append(sum(1 for g in self.copies if g < self.done))

    def read(self, tiles: set[str], turn: dict[str, int]) -> None:
        """Note what the last Wait must have waited for; `turn` says which fill a loop's reader means."""
        for tile in tiles & self.fills.keys():
            groups = self.fills[tile]
            needed = groups[min(turn.get(tile, len(groups)), len(groups) - 1)]
            self.missed = self.missed or needed >= self.done
            if self.visits and needed > self.visits[-1][2]:
                self.visits[-1] = (*self.visits[-1][:2], needed)

    def loop(self, n: s.For) -> None:
        tiles = self.tiles
        copied = [tile for x in statements(n.body) if isinstance(x, s.Copy) for tile in fills(x, tiles.shared)]
        rounds, first = self.left[id(n)], {}
        known = len(n.ranges) == 1 and names_in(n.ranges[0].stop) & self.ints.keys()
        for tile in copied:
            if copied.count(tile) == 1:
                ahead = tiles.ahead(n, tile)
                first[tile] = len(self.fills.get(tile, ())) - (min(ahead, rounds) if known else ahead)
        for turn in range(rounds):
            self.ints[n.var] = turn
            self.body(n.body, {tile: at + turn for tile, at in first.items()})
        self.ints.pop(n.var, None)

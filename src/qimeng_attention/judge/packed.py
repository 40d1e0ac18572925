"""Packed sequences for the judge: a dense call becomes some of the sequences of a packed one, among others.

So a program for packed sequences is held to the same reference, families, properties and clauses as any other: what
sequence b of a call must give does not depend on how it lies in memory. The sequences between, of lengths around the
tiles, of none, or long, hold NaN, infinities and huge values: a program that reads a neighbour's rows, ends a tile
where the tensor does, or stores past a sequence's end shows it in the rows that are judged. Tokens of no sequence,
before the first and behind the last, must stay as they were.

Not here: offsets that make no sense (tests/judge/test_packed.py says what they do).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qimeng_attention.judge.candidate import INPUTS, Candidate, Stopped
from qimeng_attention.judge.meaning import Call
from qimeng_attention.judge.packed_call import PackedCall
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import Array, round_to

FOREIGN = (np.nan, np.inf, -60_000.0, -np.inf)  # what sequences hold that nobody judges
UNCLAIMED = -60_000.0  # what tokens of no sequence hold: a result of theirs that is written is no NaN, and shows
OUTPUT_TOKENS = {"Out": 0, "Lse": 1}  # the dimension of tokens


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence of a packed call: that of a batch entry, or one that nobody judges."""

    queries: int
    keys: int
    entry: int | None = None


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The sequences of a packed call in order, and the tokens that belong to none."""

    sequences: tuple[Sequence, ...]
    before: int = 0
    behind: int = 0

    def starts(self) -> dict[str, Array]:
        """Give the prefix sums."""
        lengths = {"StartQ": [x.queries for x in self.sequences], "StartK": [x.keys for x in self.sequences]}
        return {n: self.before + np.cumsum([0, *found]).astype(np.int64) for n, found in lengths.items()}


def arrange(call: Call, tiles: tuple[int, int], batch: int | None) -> Arrangement:
    """Put the sequences of a call among others, in one of several ways that its sizes choose.

    Args:
        call: whose sequences are judged.
        tiles: query rows and key rows of the candidate's tiles.
        batch: the number of sequences, if it is fixed.
    """
    m, n = tiles
    own = [Sequence(call.Sq, call.Sk, b) for b in range(call.B)]
    way = (call.B + 2 * call.Sq + 3 * call.Sk + 5 * call.Hq) % 7 % 6
    if batch is not None or way == 0:  # alone, all tokens are theirs
        return Arrangement(tuple(own))
    kinds = {
        1: [(m + 1, 3), (1, n - 1 or 1)],
        2: [(0, 0), (0, 5), (3, 0)],
        3: [(1, 1), (2, 3), (0, 1), (3, 2), (1, 4), (5, 1)],
        4: [(2 * m + 3, 2 * n + 1)],
        5: [(m, n)],  # whole tiles: the sequence behind begins with one
    }[way]
    others = [Sequence(*x) for x in kinds]
    found = list(others)
    for place, sequence in enumerate(own):
        found += [sequence, others[place % len(others)]]
    if way % 2 == 0:  # one that is judged comes last, tokens of no sequence behind it
        return Arrangement(tuple(found[:-1]), 5, 7)
    return Arrangement(tuple(found))


class Packed:
    """A candidate for packed sequences, as one for calls of one length."""

    def __init__(self, inner: Candidate, spec: AttentionSpec, tiles: tuple[int, int]) -> None:
        self._inner, self._spec, self._tiles = inner, spec, tiles
        self.name, self.digest, self.any_heads = inner.name, inner.digest, inner.any_heads
        self.numbers, self.approximated = inner.numbers, inner.approximated

    def run(self, call: Call, tensors: Mapping[str, Array], layout: str) -> dict[str, Array]:
        """Pack the call's sequences among others, run, and take their rows out of what comes back.

        Raises:
            Stopped: the candidate stopped, or wrote rows of no sequence.
        """
        plan = arrange(call, self._tiles, self._spec.B)
        starts = plan.starts()
        queries, keys = (int(starts[n][-1]) + plan.behind for n in ("StartQ", "StartK"))
        packed = PackedCall(
            len(plan.sequences), queries, keys, call.Hq, call.Hk, call.Dqk, call.Dv, call.scale, call.own
        )
        given = self._inner.run(packed, self._packed(plan, packed, tensors) | starts, layout)
        return {name: _own_rows(name, a, plan, starts["StartQ"], call) for name, a in given.items()}

    def _packed(self, plan: Arrangement, packed: PackedCall, tensors: Mapping[str, Array]) -> dict[str, Array]:
        shapes, starts = packed.shapes(), plan.starts()
        made: dict[str, Array] = {}
        for name in INPUTS:
            held = np.full(shapes[name], UNCLAIMED, np.float32)
            first = starts["StartQ" if name == "Q" else "StartK"]
            for number, x in enumerate(plan.sequences):
                rows = slice(first[number], first[number + 1])
                held[rows] = FOREIGN[number % len(FOREIGN)] if x.entry is None else tensors[name][x.entry]
            made[name] = round_to(held, self._spec.dtype)
        entries = [x.entry or 0 for x in plan.sequences]
        for name, kind in self._spec.tensors.items():
            held = tensors[kernel_name(name)]
            for axis, dim in enumerate(kind.dims):
                held = np.take(held, entries, axis) if dim == "B" else held
            made[kernel_name(name)] = held
        return made


def _own_rows(name: str, given: Array, plan: Arrangement, starts: Array, call: Call) -> Array:
    """Take the judged sequences' rows, (B, Sq, Hq, Dv) or (B, Hq, Sq)."""
    axis = OUTPUT_TOKENS[name]
    for rows in (range(plan.before), range(int(starts[-1]), given.shape[axis])):
        if len(rows) and not np.isnan(np.take(given, rows, axis)).all():
            raise Stopped(f"writes rows of {name} that belong to no sequence")
    judged = {x.entry: number for number, x in enumerate(plan.sequences) if x.entry is not None}
    found = [np.take(given, range(starts[judged[b]], starts[judged[b] + 1]), axis) for b in range(call.B)]
    return np.stack(found) if found else np.zeros((0, *call.shapes()[name][1:]), np.float32)

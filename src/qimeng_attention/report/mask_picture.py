"""A mask as a small grid of cells, each with the share of its (query, key) pairs that are seen.

The lengths are chosen so that the largest number of the condition spans a quarter of the keys: a window of 1,024 and
one of 4 look alike, and the picture says how many keys a cell stands for.

Not here: characters (terminal_page.py) and SVG (html_page.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qimeng_attention.judge import Call, Operator
from qimeng_attention.spec import MOST, AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.traverse import expressions

ROWS, COLUMNS = 12, 16  # cells: Sq < Sk shows how the two are aligned
_SMALL = 8  # numbers up to this one are seen with one key a cell
_MOST_PAIRS = 1 << 20  # looked at one by one
_POINTS = 8  # a side of each cell otherwise


@dataclass(frozen=True, slots=True)
class MaskPicture:
    """Cells from top to bottom and left to right: 0 nothing seen, 1 everything."""

    cells: tuple[tuple[float, ...], ...]
    seqlen_q: int
    seqlen_k: int
    queries_a_cell: int
    keys_a_cell: int
    exact: bool  # False: from a sample of each larger cell
    place: str  # "head 0 of batch entry 0", or "" where all are alike

    def words(self) -> str:
        """Say what is shown."""
        size = f"Sq = {self.seqlen_q}, Sk = {self.seqlen_k}"
        if (self.queries_a_cell, self.keys_a_cell) != (1, 1):
            size += f", a cell is {self.queries_a_cell:,} x {self.keys_a_cell:,}"
        return size + ("" if self.exact else ", sampled") + (f", {self.place}" if self.place else "")


def draw_mask(spec: AttentionSpec, operator: Operator) -> MaskPicture:
    """Look at which keys each query sees, at the spec's lengths or at telling ones."""
    cell = _cell(operator)
    seqlen_q, seqlen_k = spec.Sq or ROWS * cell, spec.Sk or COLUMNS * cell
    call = Call(spec.B or 1, seqlen_q, seqlen_k, spec.Hq, spec.Hk, spec.Dqk, spec.Dv, spec.default_scale)
    exact = seqlen_q * seqlen_k <= _MOST_PAIRS
    high, wide = -(-seqlen_q // ROWS), -(-seqlen_k // COLUMNS)
    columns = [_points(start, wide, seqlen_k, exact) for start in range(0, seqlen_k, wide)]
    keys = np.concatenate(columns)
    ends = np.cumsum([len(column) for column in columns])[:-1]
    cells = []
    for start in range(0, seqlen_q, high):
        seen = operator.visible(call, 0, 0, _points(start, high, seqlen_q, exact), keys)
        cells.append(tuple(float(part.mean()) for part in np.split(seen, ends, axis=1)))
    place = "head 0 of batch entry 0" if operator.reads_position else ""
    return MaskPicture(tuple(cells), seqlen_q, seqlen_k, high, wide, exact or max(high, wide) <= _POINTS, place)


def _cell(operator: Operator) -> int:
    """Give how many keys a cell stands for where the spec fixes no length."""
    numbers = [abs(e.value) for e in expressions(operator.condition) if isinstance(e, s.Num)]
    largest = max((int(n) for n in numbers if n <= MOST), default=0)
    return 1 if largest <= _SMALL else min(-(-largest // (COLUMNS // 4)), MOST // COLUMNS)


def _points(start: int, extent: int, end: int, exact: bool) -> Array:
    """Give the positions of a cell to look at: all, or some with both ends among them."""
    last = min(start + extent, end) - 1
    if exact or last - start < _POINTS:
        return np.arange(start, last + 1)
    found: Array = np.unique(np.linspace(start, last, _POINTS).round().astype(np.int64))
    return found

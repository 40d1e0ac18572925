"""What a Copy through an index tensor adds to copy.py: which indices may follow an axis, and what is read then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import Place
from qimeng_attention.tl.machine import Strand
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.scope import Scope


def check_along(p: Place, n: s.Copy, scope: Scope, size: int) -> None:
    """An index may follow the axis of a gather: of a load, and of that axis alone."""
    t = scope.type_of(p.start, n.span, {p.along: size})
    if t.kind not in ("int", "any") or {a.name for a in t.axes} - {p.along} or n.target == "global":
        scope.report(
            "TL107",
            n.span,
            f"an index that follows {p.along} must be an integer of a Copy from global memory, "
            f"found {expression(p.start)}",
            f"use sizes, indices, {p.along} and elements of integer tensors",
        )


def rows_past(p: Place, missing: Array, n: s.Copy, t: Strand) -> list[int]:
    """Give which of the rows that are filled with zeros must be masked.

    One that an index tensor places nowhere counts, as a row of zeros: only the call's data tell, no program can.
    """
    stop = None if p.at is None or p.stop is None else t.integer(p.stop, n.span)
    found: list[int] = missing[(missing < 0) | (missing >= stop)].tolist() if stop is not None else missing.tolist()
    return found


def picked(source: Array, indices: Sequence[Array], found: Sequence[Place]) -> Array:
    """Read a tensor at the indices of each dimension, -1 where there is none, which reads as 0.

    A dimension's indices lie along the result's dimension of the same number, or of the axis that they follow.
    """
    axes = {p.axis: d for d, p in enumerate(found) if p.kind != "index"}
    turned = [
        i.reshape([-1 if e == axes.get(p.along, d) else 1 for e in range(len(indices))])
        for d, (p, i) in enumerate(zip(found, indices, strict=True))
    ]
    there = np.ones((), bool)
    for i in turned:
        there = there & (i >= 0)
    values = source[tuple(np.maximum(i, 0) for i in turned)] if source.size else np.zeros(there.shape, np.float32)
    return np.where(there, values, 0)

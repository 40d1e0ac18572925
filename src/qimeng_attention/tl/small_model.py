"""Properties tried on every small size: what symbolic arithmetic would have to prove, decided by trying.

Sizes near the tile sizes (0, 1, one tile less or more by one, two tiles and one) are where bounds go wrong: a bound that
is right on all of them, being piecewise linear with breaks at multiples of the tile sizes, is right. Not a proof for
conditions of another kind; the judge runs those at full size.
"""

from __future__ import annotations

import itertools

import numpy as np

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import Environment, integer
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.traverse import names_in
from qimeng_attention.tl.types import Checked

SMALL = (0, 1, 2, 3, 5, 8, 13)
WINDOW = 24  # indices tried past a limit


def implies_below(condition: s.Expr, axis: str, limit: s.Expr, scope: Scope, tile: str) -> bool:
    """Tell whether `condition` can only hold where `axis < limit`, for other axes within their own limits.

    Tried on all small sizes. A condition that reads a named tensor proves nothing.
    """
    if any(isinstance(e, s.Index | s.Scan) for e in _expressions(condition)):
        return False
    origins = scope.origins.get(tile, {})
    others = {a: o.limit for a, o in origins.items() if a != axis and o.limit is not None and a in names_in(condition)}
    free = sorted((names_in(condition) | names_in(limit) | names_in(tuple(others.values()))) - {axis, *others} - set(scope.fixed))
    if not set(free) <= set(scope.sizes) | scope.ints:
        return False
    for values in itertools.product(SMALL, repeat=len(free)):
        ints = {**scope.fixed, **dict(zip(free, values, strict=True))}
        try:
            if not _holds_below(condition, axis, integer(limit, ints), {a: integer(e, ints) for a, e in others.items()}, ints):
                return False
        except (KeyError, ValueError, ZeroDivisionError):
            return False
    return True


def _expressions(e: s.Expr) -> list[s.Expr]:
    from qimeng_attention.tl.traverse import expressions

    return list(expressions(e))


def _holds_below(condition: s.Expr, axis: str, limit: int, others: dict[str, int], ints: dict[str, int]) -> bool:
    """Look for an index at or past the limit where the condition holds."""
    if any(extent <= 0 for extent in others.values()):
        return True
    indices: dict[str, Array] = {axis: np.arange(limit, limit + WINDOW)}
    indices |= {a: np.arange(extent) for a, extent in others.items()}
    found = Environment(ints, indices=indices).evaluate(condition).data
    return not bool(np.any(found))


def small_sizes(checked: Checked, limit: int = 24) -> list[dict[str, int]]:
    """Choose run-time sizes to run a program on: each size around the tile that divides it, the others 1.

    Args:
        checked: the program.
        limit: how many combinations to give at most.
    """
    tiles = _tile_of_size(checked)
    sequence = [name for name in checked.sizes if name in tiles]
    around = {name: sorted({0, 1, tiles[name] - 1, tiles[name] + 1, 2 * tiles[name] + 1}) for name in sequence}
    rest = {name: 1 for name in checked.sizes if name not in tiles}
    combinations = [dict(zip(sequence, values, strict=True)) for values in itertools.product(*[around[n] for n in sequence])]
    if len(combinations) > limit:  # keep the corners and an even spread of the others
        step = len(combinations) / limit
        combinations = [combinations[int(n * step)] for n in range(limit - 1)] + [combinations[-1]]
    return [{**rest, **c} for c in combinations]


def _tile_of_size(checked: Checked) -> dict[str, int]:
    """Give for each run-time size the largest tile that steps along it."""
    from qimeng_attention.tl.coordinates import CoordinateError, copy_tensor, places
    from qimeng_attention.tl.traverse import statements

    found: dict[str, int] = {}
    for n in statements(checked.kernel.body):
        if not isinstance(n, s.Copy) or "global" not in (n.source, n.target) or not n.dims:
            continue
        tensor = checked.tensors[copy_tensor(n)]
        try:
            extents = [integer(d.size, checked.fixed) for d in n.dims]
            taken = places(n, extents, tensor.axis_names)
        except (CoordinateError, KeyError, ValueError):
            continue
        for p, dim in zip(taken, tensor.dims, strict=True):
            if p.kind == "axis" and isinstance(dim, s.Name) and dim.id in checked.sizes:
                found[dim.id] = max(found.get(dim.id, 1), p.size)
    return found

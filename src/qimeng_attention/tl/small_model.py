"""Properties tried on every small size: what symbolic arithmetic would have to prove, decided by trying.

Sizes near the tile sizes (0, 1, one tile less or more by one, two tiles and one) are where bounds go wrong: a bound
that
is right on all of them, being piecewise linear with breaks at multiples of the tile sizes, is right. Not a proof for
conditions of another kind; the judge runs those at full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import prod

import numpy as np

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import CoordinateError, Place, copy_tensor, places
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.numerics import INTEGER_TYPES, Array
from qimeng_attention.tl.traverse import expressions, names_in, statements
from qimeng_attention.tl.types import Checked

SEARCHED = 3  # of a size that is searched: with one there is nothing to find


def small_sizes(checked: Checked, limit: int = 36) -> list[dict[str, int]]:
    """Choose run-time sizes to run a program on: each size around the tile that divides it, the others 1.

    Args:
        checked: the program.
        limit: how many combinations to give at most.
    """
    tiles = tile_of_size(checked)
    sequence = [name for name in checked.sizes if name in tiles]
    stages = max((t.stages for t in checked.tiles.values()), default=1)
    around = {}
    for name in sequence:
        size = tiles[name]
        around[name] = sorted({0, 1, size - 1, size, size + 1, 2 * size + 1})
        if stages > 1:  # a ring shows its faults when it has gone round
            around[name].append((stages + 2) * size + 1)
    looked = {x for n in searches(checked) for x in names_in(n.range)}
    rest = {name: SEARCHED if name in looked else 1 for name in checked.sizes if name not in tiles}
    numbers: Sequence[int]
    total = prod(len(values) for values in around.values())
    if total <= limit:
        numbers = range(total)
    else:  # keep the corners and an even spread of the others
        numbers = [*(n * total // limit for n in range(limit - 1)), total - 1]
    many = 3 * max((tiles[name] for name in sequence), default=0) + 1  # several blocks, each with several tiles
    long = [{**rest, **dict.fromkeys(sequence, many)}] if sequence else []
    return [{**rest, **_combination(n, around)} for n in numbers] + long


def searches(checked: Checked) -> list[s.Find]:
    """Give the searches of a program."""
    return [n for n in statements(checked.kernel.body) if isinstance(n, s.Find)]


def starts(checked: Checked, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Give rising contents for the vectors of integers that a Find searches, and for those as long as one of them.

    They divide the longest of the sizes evenly: with zeros, as other tensors hold them here, there would be no rows.
    """
    return rising(checked, sizes, searches(checked))


def rising(checked: Checked, sizes: Mapping[str, int], searched: Sequence[s.Find]) -> dict[str, Array]:
    """Give the same for searches that are known."""
    if not searched:
        return {}
    read = {x for n in searched for x in names_in(n.condition)} & set(checked.tensors)
    shapes = {checked.tensors[name].dims for name in read}
    found = {}
    for name in checked.inputs:
        tensor = checked.tensors[name]
        if tensor.dtype in INTEGER_TYPES and len(tensor.dims) == 1 and tensor.dims in shapes:
            length = max(0, integer(tensor.dims[0], {**checked.fixed, **sizes}))
            found[name] = np.arange(length) * max(sizes.values(), default=0) // max(length - 1, 1)
    return found


def _combination(number: int, around: dict[str, list[int]]) -> dict[str, int]:
    """Give the combination of a number: the last size varies fastest."""
    chosen = {}
    for name, values in reversed(around.items()):
        number, digit = divmod(number, len(values))
        chosen[name] = values[digit]
    return {name: chosen[name] for name in around}


def tile_of_size(checked: Checked) -> dict[str, int]:
    """Give for each run-time size the largest tile that steps along it."""
    found: dict[str, int] = {}
    for p, dim in _taken(checked):
        if p.kind == "axis" and isinstance(dim, s.Name) and dim.id in checked.sizes:
            found[dim.id] = max(found.get(dim.id, 1), p.size)
        for name, steps in _looked_up(p, checked):
            found[name] = max(found.get(name, 1), steps)
    return found


def _looked_up(p: Place, checked: Checked) -> Iterator[tuple[str, int]]:
    """Give the sizes of index tensors that a gather walks along, and how many of their elements a tile takes."""
    e = p.at if p.at is not None else p.start if p.along else None
    axis, size = (p.axis, p.size) if p.at is not None else (p.along, p.size)
    for x in expressions(e):
        if not isinstance(x, s.Index) or x.tensor not in checked.tensors:
            continue
        for index, dim in zip(x.indices, checked.tensors[x.tensor].dims, strict=True):
            if axis in names_in(index) and isinstance(dim, s.Name) and dim.id in checked.sizes:
                with suppress(KeyError, ValueError, ZeroDivisionError):
                    yield dim.id, max(1, integer(index, {**checked.fixed, axis: size}))


def gathered_tile(checked: Checked) -> int:
    """Give the largest tile that steps along an axis which an index tensor places, 1 where none does."""
    return max((p.size for p, _ in _taken(checked) if p.at is not None), default=1)


def _taken(checked: Checked) -> Iterator[tuple[Place, s.Expr]]:
    """Give what copies take of each dimension of a tensor."""
    for n in statements(checked.kernel.body):
        if not isinstance(n, s.Copy) or "global" not in (n.source, n.target) or not n.dims:
            continue
        tensor = checked.tensors[copy_tensor(n)]
        try:
            extents = [integer(d.size, checked.fixed) for d in n.dims]
            yield from zip(places(n, extents, tensor.axis_names), tensor.dims, strict=True)
        except (CoordinateError, KeyError, ValueError):
            continue

"""Compute Mask: fills a tile with -inf, or with another value, where a condition fails."""

from __future__ import annotations

import numpy as np

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import align
from qimeng_attention.tl.machine import Strand
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.small_model import implies_below
from qimeng_attention.tl.statements.rule import Rule
from qimeng_attention.tl.traverse import conjuncts, names_in


def _check(n: s.Mask, scope: Scope) -> None:
    tile = scope.tiles.get(n.tile)
    if tile is None or tile.space != "register":
        scope.unknown(n.tile, n.span, [t.name for t in scope.tiles.values() if t.space == "register"], "register tile")
        return
    if n.tile not in scope.filled:
        scope.report("TL204", n.span, f"tile {n.tile} is masked before anything fills it", "compute it before this line")
    axes = scope.axes_of_tiles({n.tile} | names_in(n.condition))
    kind = scope.type_of(n.condition, n.span, axes)
    if kind.kind != "bool":
        scope.report("TL104", n.span, "Mask takes a condition, found a number", "write a comparison, as `k <= q`")
    if n.fill is not None:
        scope.type_of(n.fill, n.span, axes)
    for axis in sorted(scope.ragged.get(n.tile, set())):
        origin = scope.origins.get(n.tile, {}).get(axis)
        if origin is None or origin.limit is None:
            continue
        written = any(c == s.Compare((s.Name(axis), origin.limit), ("<",)) for c in conjuncts(n.condition))
        if written or implies_below(n.condition, axis, origin.limit, scope, n.tile):
            scope.ragged[n.tile].discard(axis)
    scope.masked.setdefault(n.tile, []).append(n.condition)


def _run(n: s.Mask, t: Strand) -> None:
    register = t.read_register(n.tile, n.span)
    if register.data is None:
        return
    kind = t.machine.checked.tiles[n.tile]
    environment = t.environment({n.tile} | names_in(n.condition) | names_in(n.fill), n.span)
    shape = register.data.shape
    keep = align(environment.evaluate(n.condition), kind.axis_names, shape)
    fill = np.float32("-inf") if n.fill is None else align(environment.evaluate(n.fill), kind.axis_names, shape)
    t.write_register(n.tile, np.where(keep, register.data, fill), register.origin, n.span)


RULES = {
    s.Mask: Rule(
        "Mask", "Compute", "Compute Mask S where k <= q + Sk - Sq and k < Sk",
        "Keeps the elements of a tile where the condition holds and puts -inf, or the value behind `else`, in the others.",
        _check, _run, "sketch",
    ),
}  # fmt: skip

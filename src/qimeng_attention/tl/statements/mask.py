"""Compute Mask: fills a tile with -inf, or with another value, where a condition fails."""

from __future__ import annotations

import numpy as np

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import align
from qimeng_attention.tl.machine import Strand
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.scope import Scope, Type
from qimeng_attention.tl.statements.ends import still_ragged
from qimeng_attention.tl.statements.rule import Rule
from qimeng_attention.tl.traverse import names_in
from qimeng_attention.tl.types import TileType


def _check(n: s.Mask, scope: Scope) -> None:
    tile = scope.tiles.get(n.tile)
    if tile is None or tile.space != "register":
        scope.unknown(n.tile, n.span, [t.name for t in scope.tiles.values() if t.space == "register"], "register tile")
        return
    if n.tile not in scope.filled:
        scope.report(
            "TL204",
            n.span,
            f"tile {n.tile} is masked before anything fills it",
            "compute it before this line",
        )
    axes = scope.axes_of_tiles({n.tile} | names_in(n.condition))
    kind = scope.type_of(n.condition, n.span, axes)
    place = n.condition.span if n.condition.span.line else n.span
    if kind.kind in ("int", "float"):
        scope.report(
            "TL104",
            place,
            f"Mask takes a condition, found the number {expression(n.condition)}",
            "write a comparison, as `k <= q`",
        )
    _check_axes(n, kind, tile, "the condition", scope)
    if n.fill is not None:
        fill = scope.type_of(n.fill, n.span, axes)
        if fill.kind == "bool":
            scope.report(
                "TL104",
                n.span,
                f"Mask fills with a number, found the condition {expression(n.fill)}",
                "write a number behind `else`",
            )
        _check_axes(n, fill, tile, "the value behind `else`", scope)


def _check_axes(n: s.Mask, kind: Type, tile: TileType, what: str, scope: Scope) -> None:
    clash = any(f.code == "TL105" and f.span.line == n.span.line for f in scope.findings)
    if extra := not clash and [a.name for a in kind.axes if a.name not in tile.axis_names]:
        scope.report(
            "TL105",
            n.span,
            f"{what} has the axis {extra[0]}, but {n.tile} is {tile.describe()}",
            f"use only the axes {', '.join(tile.axis_names)}",
        )


def _run(n: s.Mask, t: Strand) -> None:
    register = t.read_register(n.tile, n.span)
    kind = t.machine.checked.tiles[n.tile]
    if register.data is None and (not register.ends or names_in(n.condition) & set(t.machine.checked.tiles)):
        return
    t.machine.spend(kind.elements)
    environment = t.environment({n.tile} | names_in(n.condition) | names_in(n.fill), n.span)
    shape = tuple(a.size for a in kind.axes)
    keep = align(t.evaluate(n.condition, environment, n.span), kind.axis_names, shape)
    register.ends = still_ragged(keep, register, kind)
    if register.data is None:
        return
    fill = np.float32("-inf") if n.fill is None else align(environment.evaluate(n.fill), kind.axis_names, shape)
    t.write_register(n.tile, np.where(keep, register.data, fill), register.origin, n.span, register.ends)


RULES = {
    s.Mask: Rule(
        "Mask",
        "Compute",
        "Compute Mask S where k <= q + Sk - Sq and k < Sk",
        "Keeps the elements of a tile where the condition holds and puts -inf, or the value behind "
        "`else`, in the "
        "others.",
        _check,
        _run,
        "sketch",
    ),
}

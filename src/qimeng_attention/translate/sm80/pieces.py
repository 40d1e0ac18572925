"""Copies through registers: a tile read from global memory in pieces, and written to shared memory later."""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import copy_target
from qimeng_attention.tl.types import PIECES
from qimeng_attention.translate import names
from qimeng_attention.translate.sm80 import copy
from qimeng_attention.translate.sm80.context import Lowering, Lowerings, Refused


def _copy(n: s.Copy, low: Lowering) -> None:
    """Lower a Copy whose register tile lies in pieces; any other is copy.py's."""
    tiles = low.checked.tiles
    if n.target == "register" and tiles[copy_target(n)].role == PIECES:
        a = copy.access(n, low, vector=False)
        pieces = names.register(copy_target(n))
        low.out.line(f"tl::load_pieces{a.template()}({pieces}, {a.pointer}, {a.stride}, {a.first}, {a.rows});")
    elif n.source == "register" and tiles[n.name].role == PIECES:
        tile = tiles[copy_target(n)]
        if tile.dtype != tiles[n.name].dtype:
            raise Refused(
                n, f"{n.name} is {tiles[n.name].dtype}, {tile.name} is {tile.dtype}", "carry the tile in its own type"
            )
        low.out.line(f"tl::store_pieces({low.shared_at(tile.name, n.slot, n)}, {names.register(n.name)});")
    else:
        copy.LOWERINGS["Copy"](n, low)


LOWERINGS: Lowerings = {"Copy": _copy}

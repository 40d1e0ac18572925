"""`store O through shared over Q`: a result goes through shared memory, so that rows leave in pieces of 16 bytes
(exact).

The staging tile lies over a tile that is no longer needed, and has the type of the tensor.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.explicit import swizzle_of
from qimeng_attention.schedule.rewriting import Rewriting, malformed, shared_names, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.types import Checked, TileType

FORM = "store TILE through shared over TILE"


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Put a staging tile between the registers and the tensor."""
    words = choice.words
    if len(words) != 6 or words[2:5] != ("through", "shared", "over"):
        raise malformed(choice, FORM)
    tile, under = words[1], words[5]
    position = next(
        (
            i
            for i, n in enumerate(kernel.body)
            if isinstance(n, s.Copy) and n.name == tile and n.target == "global" and n.source == "register"
        ),
        None,
    )
    if position is None or under not in shared_names(checked):
        raise unfit(
            choice,
            f"no Copy stores {tile} from registers, or no shared tile is named {under}",
            "name the stored tile and a shared one",
        )
    copy = kernel.body[position]
    assert isinstance(copy, s.Copy)
    tensor, source = checked.tensors[copy.to_name or copy.name], checked.tiles[tile]
    staged = TileType(f"{tile}_staged", "shared", tensor.dtype, source.axes)
    if staged.bytes > checked.tiles[under].bytes:
        raise unfit(
            choice,
            f"{tile} takes {staged.bytes:,} bytes, {under} has {checked.tiles[under].bytes:,}",
            "stage it over a larger tile",
        )
    dims = tuple(
        s.Dim(d.size, a.name if s.Name(a.name) != d.size else None) for d, a in zip(copy.dims, source.axes, strict=True)
    )
    made = s.Allocate(staged.name, "shared", dims, staged.dtype, swizzle=swizzle_of(staged), over=under)
    out = replace(copy, name=staged.name, source="shared", to_name=copy.to_name or copy.name, above=())
    stage = s.Copy(tile, "register", "shared", to_name=staged.name, above=copy.above)
    body = list(kernel.body)
    body[position : position + 1] = [stage, out]
    at = max(i for i, n in enumerate(body) if isinstance(n, s.Allocate) and n.space == "shared") + 1
    body.insert(at, made)
    return with_body(kernel, body)


REWRITING = Rewriting(
    "store",
    FORM,
    "store O through shared over Q",
    "Writes a result to shared memory first, so that it leaves in whole rows.",
    "exact",
    apply,
)

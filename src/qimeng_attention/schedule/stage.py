"""`stage O through shared by tma`: a role's result leaves through a staging tile and the copy engine (exact).

The threads write their rows, show them to the copy engine and meet; one of them starts the store, which nobody waits
for before the next tile's result is staged, or the role ends.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.explicit import swizzle_of
from qimeng_attention.schedule.rewriting import Rewriting, fresh_name, malformed, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.traverse import num
from qimeng_attention.tl.types import Checked, TileType

FORM = "stage TILE through shared by tma"


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Put a staging tile, one stage for each instance, between the registers and the tensor."""
    words = choice.words
    if len(words) != 6 or words[2:] != ("through", "shared", "by", "tma"):
        raise malformed(choice, FORM)
    tile = words[1]
    body = list(kernel.body)
    for i, role in enumerate(body):
        if not isinstance(role, s.Role):
            continue
        for position, n in enumerate(role.body):
            if isinstance(n, s.Copy) and (n.name, n.source, n.target) == (tile, "register", "global"):
                made, stored = _staged(kernel, role, n, checked)
                body[i] = replace(role, body=(*role.body[:position], *stored, *role.body[position + 1 :], _drained()))
                at = max(j for j, x in enumerate(body) if isinstance(x, s.Allocate) and x.space == "shared") + 1
                body.insert(at, made)
                return with_body(kernel, body)
    raise unfit(choice, f"no role stores {tile} from registers", "choose `roles` too, and name the stored tile")


def _staged(
    kernel: s.Kernel, role: s.Role, copy: s.Copy, checked: Checked
) -> tuple[s.Allocate, tuple[s.Statement, ...]]:
    tensor, source = checked.tensors[copy.to_name or copy.name], checked.tiles[copy.name]
    name = fresh_name(f"{copy.name}_staged", kernel)
    staged = TileType(name, "shared", tensor.dtype, source.axes)
    dims = tuple(
        s.Dim(d.size, a.name if s.Name(a.name) != d.size else None) for d, a in zip(copy.dims, source.axes, strict=True)
    )
    instances = 1 if role.range is None else integer(role.range.stop, checked.fixed)
    several = instances > 1 and role.var is not None
    slot = s.Name(role.var) if several and role.var is not None else None
    made = s.Allocate(
        name, "shared", dims, staged.dtype, stages=num(instances) if several else None, swizzle=swizzle_of(staged)
    )
    out = replace(copy, name=name, source="shared", to_name=tensor.name, slot=slot, asynchronous=True, above=())
    return made, (
        replace(_drained(), above=copy.above),
        s.Barrier(),
        s.Copy(copy.name, "register", "shared", to_name=name, slot=slot),
        s.Fence("async"),
        s.Barrier(),
        out,
    )


def _drained() -> s.Wait:
    """The staging tile has been read."""
    return s.Wait("stores", count=num(0))


REWRITING = Rewriting(
    "stage",
    FORM,
    "stage O through shared by tma",
    "Writes a role's result to shared memory, from where the copy engine stores it while the next tile begins.",
    "exact",
    apply,
)

"""`carry K, V through register`: a loop's copies to shared memory run under the computation, through registers (exact).

Where a target has no asynchronous copy, a thread that copies waits for global memory. Cut in two, a copy does not: it
is read into registers at the beginning of the iteration, and written to shared memory where it stood, behind the
barrier that frees its stage. Matched by dependencies: what the coordinate and the condition around the copy depend on
is known at the beginning, or the reading stands behind it.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import (
    Rewriting,
    entries,
    fresh_name,
    malformed,
    unfit,
    with_body,
    written_by,
)
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import copy_tensor
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.traverse import names_in, statements
from qimeng_attention.tl.types import Checked, TileType

FORM = "carry TILE, TILE through register"


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Cut the loops' copies of each named tile in two."""
    if len(choice.words) < 4 or choice.words[-2:] != ("through", "register"):
        raise malformed(choice, FORM)
    named = replace(choice, words=choice.words[:-2])
    for words in entries(named, 1, FORM):
        if len(words) != 1:
            raise malformed(choice, FORM)
        kernel = _carry(kernel, words[0], choice, checked)
    return kernel


def _carry(kernel: s.Kernel, name: str, choice: s.Choice, checked: Checked) -> s.Kernel:
    if any(isinstance(n, s.Role) for n in kernel.body):
        raise unfit(choice, "a role that copies does not compute meanwhile", "leave this choice out")
    tile = checked.tiles.get(name)
    found = [p for p, n in enumerate(kernel.body) if isinstance(n, s.For) and _copies(n, name)]
    if tile is None or not found:
        raise unfit(
            choice, f"no loop copies a tile named {name} from global to shared memory", "name one that a loop fills"
        )
    if len(tile.axes) != 2 or BYTES[tile.dtype] != 2:
        raise unfit(choice, f"{name} is {tile.describe()}, no 16-bit matrix", "leave it out")
    held = fresh_name(f"{name}_next", kernel)
    body = list(kernel.body)
    for position in found:
        loop = body[position]
        assert isinstance(loop, s.For)
        body[position] = _cut(loop, tile, held, choice)
    return with_body(kernel, body)


def _copies(loop: s.For, name: str) -> list[s.Copy]:
    return [n for n in statements(loop.body) if isinstance(n, s.Copy) and _is_copy(n, name)]


def _is_copy(n: s.Copy, name: str) -> bool:
    return (n.source, n.target) == ("global", "shared") and (n.to_name or n.name) == name


def _cut(loop: s.For, tile: TileType, held: str, choice: s.Choice) -> s.For:
    """Put the reading at the beginning of an iteration, and leave the writing where the copy stood."""
    place, copy, condition = _place(loop, tile.name, choice)
    stored = {copy_tensor(n) for n in statements(loop.body) if isinstance(n, s.Copy) and n.target == "global"}
    if copy.name in stored:
        raise unfit(choice, f"the loop stores to {copy.name}, which {tile.name} is copied from", "leave it out")
    if copy.asynchronous:
        raise unfit(choice, f"{tile.name} is copied asynchronously", "choose `copies sync`, or leave it out")
    needed = names_in(copy.coordinate) | names_in(condition)
    start = max((i + 1 for i, n in enumerate(loop.body[:place]) if _makes(n) & needed), default=0)
    while start < place and _reads_ahead(loop.body[start]):
        start += 1  # behind the tiles carried already, in the order they are needed
    dims = tuple(
        s.Dim(d.size, a.name if s.Name(a.name) != d.size else None) for d, a in zip(copy.dims, tile.axes, strict=True)
    )
    made = s.Allocate(held, "register", dims, tile.dtype, contiguous=tile.axes[-1].name)
    read = replace(copy, target="register", to_name=held, slot=None)
    write = s.Copy(held, "register", "shared", to_name=tile.name, slot=copy.slot)
    n = loop.body[place]
    before = (made, _under(condition, replace(read, above=n.above, comment=n.comment)))
    behind = _under(condition, write)
    return replace(loop, body=(*loop.body[:start], *before, *loop.body[start:place], behind, *loop.body[place + 1 :]))


def _place(loop: s.For, name: str, choice: s.Choice) -> tuple[int, s.Copy, s.Expr | None]:
    """Find the one copy of a tile in an iteration, and the condition it stands under."""
    places: list[tuple[int, s.Copy, s.Expr | None]] = []
    for i, n in enumerate(loop.body):
        match n:
            case s.Copy() if _is_copy(n, name):
                places.append((i, n, None))
            case s.If(condition, (s.Copy() as only,), ()) if _is_copy(only, name):
                places.append((i, only, condition))
    if len(places) != 1 or len(_copies(loop, name)) != 1:
        raise unfit(
            choice,
            f"{name} is not copied once an iteration, straight or under one condition",
            "carry it before other rewritings of the loop, or leave it out",
        )
    return places[0]


def _makes(n: s.Statement) -> set[str]:
    """Give the names that get their value in a statement."""
    made: set[str] = set()
    for x in statements((n,)):
        made |= {x.name} if isinstance(x, s.Let | s.Find) else {x.out} if isinstance(x, s.Gemm) else written_by(x)
    return made


def _reads_ahead(n: s.Statement) -> bool:
    only = n.body[0] if isinstance(n, s.If) and len(n.body) == 1 else n
    return isinstance(only, s.Allocate | s.Copy) and (isinstance(only, s.Allocate) or only.target == "register")


def _under(condition: s.Expr | None, n: s.Copy) -> s.Statement:
    if condition is None:
        return n
    return s.If(condition, (replace(n, above=(), comment=""),), above=n.above, comment=n.comment)


REWRITING = Rewriting(
    "carry",
    FORM,
    "carry K, V through register",
    "Reads a tile into registers at the beginning of an iteration, and writes it to shared memory where it was copied.",
    "exact",
    apply,
)

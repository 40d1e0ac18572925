"""`grid longest first`, `grid head fastest`, `grid persistent`: which blocks there are, and in what order (exact).

`longest first` lets the blocks with the longest loops start first, so that the last wave is short ones; found by
counting the loop's iterations at both ends of each grid index. Where only lists tell how long a loop is, `INDEX
backwards` says which blocks are likely to be long. `persistent` starts as many blocks as the GPU has multiprocessors,
and each role walks over the tiles that its block takes, dealt in rounds or `by counter`.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, fresh_name, malformed, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.traverse import statements
from qimeng_attention.tl.types import Checked

FORM = "grid longest first | grid INDEX backwards | grid INDEX fastest | grid persistent [by counter]"
SAMPLE = 4096  # a sequence length at which the ends of the grid are compared


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Change the order of the grid."""
    words = choice.words
    if words[1:2] == ("persistent",):
        return _persistent(kernel, choice)
    if len(words) != 3:
        raise malformed(choice, FORM)
    position = next(i for i, n in enumerate(kernel.body) if isinstance(n, s.Grid))
    grid = kernel.body[position]
    assert isinstance(grid, s.Grid)
    if words[1:] == ("longest", "first"):
        dims = tuple(replace(d, down=not d.down) if _grows(kernel, d, checked) else d for d in grid.dims)
    elif words[2] in ("fastest", "backwards"):
        if words[1] not in [d.name for d in grid.dims]:
            raise unfit(
                choice,
                f"the grid has no index {words[1]}",
                f"take one of {', '.join(d.name for d in grid.dims)}",
            )
        if words[2] == "fastest":
            dims = tuple(sorted(grid.dims, key=lambda d: d.name != words[1]))
        else:
            dims = tuple(replace(d, down=not d.down) if d.name == words[1] else d for d in grid.dims)
    else:
        raise malformed(choice, FORM)
    body = list(kernel.body)
    body[position] = replace(grid, dims=dims)
    return with_body(kernel, body)


def _persistent(kernel: s.Kernel, choice: s.Choice) -> s.Kernel:
    """Wrap what each role does for its tile in a loop over tiles; a wait for the last stores stays behind it."""
    if choice.words[2:] not in ((), ("by", "counter")):
        raise malformed(choice, FORM)
    if not any(isinstance(n, s.Role) for n in kernel.body):
        raise unfit(choice, "tiles are walked over by roles, and the kernel has none", "choose `roles` too")
    tile = fresh_name("t", kernel)
    body: list[s.Statement] = []
    for n in kernel.body:
        if isinstance(n, s.Grid):
            n = replace(n, persistent=True, counter=len(choice.words) == 4)
        elif isinstance(n, s.Role):
            end = len(n.body)
            if n.body and isinstance(n.body[-1], s.Wait) and n.body[-1].kind == "stores":
                end -= 1
            n = replace(n, body=(s.For(tile, (), n.body[:end]), *n.body[end:]))
        body.append(n)
    return with_body(kernel, body)


def _grows(kernel: s.Kernel, dim: s.GridDim, checked: Checked) -> bool:
    """Tell whether the loops run longer at the upper end of a grid index."""
    ints = {**checked.fixed, **dict.fromkeys(checked.sizes, SAMPLE), **{d.name: 0 for d in checked.grid.dims}}
    try:
        low, high = ({**ints, dim.name: v} for v in (integer(dim.start, ints), integer(dim.stop, ints) - 1))
        return _iterations(kernel, high) > _iterations(kernel, low)
    except (KeyError, ValueError, ZeroDivisionError):
        return False


def _iterations(kernel: s.Kernel, ints: dict[str, int]) -> int:
    """Count the iterations of the kernel's loops, those of its roles too, at one point of the grid."""
    total = 0
    for n in statements(kernel.body):
        if isinstance(n, s.Let):
            ints[n.name] = integer(n.value, ints)
        if isinstance(n, s.For):
            total += sum(max(0, integer(r.stop, ints) - integer(r.start, ints)) for r in n.ranges)
    return total


REWRITING = Rewriting("grid", FORM, "grid longest first", "Chooses which blocks start first.", "exact", apply)

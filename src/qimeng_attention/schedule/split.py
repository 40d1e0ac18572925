"""`split loop i where Mask is not all true`: only the tiles that a mask touches pay for it (exact).

The stretch of iterations that no mask touches runs in a loop of its own, without the masks. Before and behind it the
loop runs as it was.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, with_body
from qimeng_attention.schedule.unmasked import MaskedLoop, bounds_of, masked_loop
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.types import Checked

FORM = "split loop VARIABLE where Mask is not all true"
_WORDS = ("where", "Mask", "is", "not", "all", "true")


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Split the loop over the named variable into the parts before, within and behind the unmasked stretch."""
    if len(choice.words) != 9 or choice.words[:2] != ("split", "loop") or choice.words[3:] != _WORDS:
        raise malformed(choice, FORM)
    found = masked_loop(kernel, choice.words[2], choice, checked)
    if found.stretch.never:
        return kernel  # the mask may touch every tile: nothing to split
    return with_body(kernel, _parts(kernel, found))


def _parts(kernel: s.Kernel, found: MaskedLoop) -> list[s.Statement]:
    bounds, loop = bounds_of(kernel, found), found.loop
    bare = tuple(n for n in loop.body if not isinstance(n, s.Mask))
    middle = "every element of these tiles is visible"
    loops: list[s.Statement] = []
    if found.stretch.start is not None:
        loops.append(replace(loop, ranges=(s.Range(bounds.first, bounds.start),)))
    loops.append(replace(loop, ranges=(s.Range(bounds.start, bounds.stop),), body=bare, comment=middle))
    if found.stretch.stop is not None:
        comment = loop.comment if found.stretch.start is None else ""
        loops.append(replace(loop, ranges=(s.Range(bounds.stop, bounds.last),), above=(), comment=comment))
    if loop.down:
        loops.reverse()
    body = list(kernel.body)
    body[found.position : found.position + 1] = [*bounds.lets, *loops]
    return body


REWRITING = Rewriting(
    "split",
    FORM,
    "split loop i where Mask is not all true",
    "Runs the tiles that a mask leaves whole in a loop of their own, without the mask.",
    "exact",
    apply,
)

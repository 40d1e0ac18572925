"""`guard Mask of loop i where it is all true`: a mask is skipped where it would change nothing, within the one loop
(exact).

The same analysis as for `split`. One loop with a uniform branch keeps the code half as long as two loops and leaves
ptxas one schedule to find: on an H200 two copies of the body cost 10 % at head dim 64 (docs/log.md).
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, with_body
from qimeng_attention.schedule.unmasked import Bounds, MaskedLoop, bounds_of, masked_loop
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import compare, map_blocks
from qimeng_attention.tl.types import Checked

FORM = "guard Mask of loop VARIABLE where it is all true"
_WORDS = ("where", "it", "is", "all", "true")


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Put each Mask of the loop under a condition on the loop's variable."""
    words = choice.words
    if len(words) != 10 or words[:4] != ("guard", "Mask", "of", "loop") or words[5:] != _WORDS:
        raise malformed(choice, FORM)
    found = masked_loop(kernel, words[4], choice, checked)
    if found.stretch.never:
        return kernel  # the mask may touch every tile: nothing to guard
    bounds = bounds_of(kernel, found)
    body = map_blocks(found.loop.body, lambda n: _guarded(n, found, bounds))
    outer = list(kernel.body)
    ends = (s.Range(bounds.first, bounds.last),)
    outer[found.position : found.position + 1] = [*bounds.lets, replace(found.loop, ranges=ends, body=body)]
    return with_body(kernel, outer)


def _guarded(n: s.Statement, found: MaskedLoop, bounds: Bounds) -> s.Statement:
    if not isinstance(n, s.Mask):
        return n
    var = s.Name(found.loop.var)
    tests: list[s.Expr] = []
    if found.stretch.start is not None:
        tests.append(compare(var, "<", bounds.start))
    if found.stretch.stop is not None:
        tests.append(compare(var, ">=", bounds.stop))
    condition = tests[0] if len(tests) == 1 else s.Binary("or", tests[0], tests[1])
    return s.If(condition, (replace(n, above=(), comment=""),), above=n.above, comment=n.comment)


REWRITING = Rewriting(
    "guard",
    FORM,
    "guard Mask of loop i where it is all true",
    "Skips a mask in the iterations that it leaves whole, within one loop.",
    "exact",
    apply,
)

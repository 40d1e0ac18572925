"""`threshold 8`: a row keeps its old maximum until the new one is 2^8 larger in its exponentials (approximate).

The factor by which the accumulator is scaled is then 1 for most rows of most tiles, and a warp whose rows all have it
leaves the accumulator alone. Weights grow up to 2^8 instead of 1; sums and LSE use the same maximum, so that nothing
needs a correction at the end. Matched by what depends on what: `n = max(m, RowMax(S))`, a factor
`a = exp2(m * c - ...)`, `m = n`, and tiles `T = T * a`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, number, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import call, compare, map_blocks, mul, num, statements, sub
from qimeng_attention.tl.types import Checked

FORM = "threshold NUMBER"


@dataclass(frozen=True)
class _Row:
    """A running row maximum: the old one, the new one, its factor and what scores are multiplied with in exponents."""

    old: str
    new: str
    factor: str
    c: s.Expr


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Keep old maxima in every loop that has a running one."""
    if len(choice.words) != 2:
        raise malformed(choice, FORM)
    most = number(choice.words[1], choice, FORM)
    loops = [n for n in statements(kernel.body) if isinstance(n, s.For) and n.ranges]
    rows = {row for loop in loops for row in _rows(loop.body)}
    if not rows:
        raise unfit(choice, "no loop keeps a running row maximum", "remove this choice")

    def kept(n: s.Statement) -> s.Statement | tuple[s.Statement, ...]:
        for row in rows:
            if isinstance(n, s.Compute) and n.out == row.new and isinstance(n.value, s.Call):
                return n, _keep(row, most)
            if isinstance(n, s.Compute) and n.value == mul(s.Name(n.out), s.Name(row.factor)):
                wide = len(checked.tiles[n.out].axes) == 2
                moved = compare(s.Name(row.factor), "!=", num(1))
                return replace(n, value=call("where", moved, n.value, s.Name(n.out))) if wide else n
        return n

    return with_body(kernel, map_blocks(kernel.body, kept))


def _keep(row: _Row, most: int) -> s.Compute:
    old, new = s.Name(row.old), s.Name(row.new)
    grown = compare(mul(sub(new, old), row.c), ">", num(most))
    return s.Compute(call("where", grown, new, old), row.new, new=True, comment=f"until it is 2^{most} too small")


def _rows(body: tuple[s.Statement, ...]) -> Iterator[_Row]:
    """Find the running maxima of a loop's body."""
    found = [n for n in body if isinstance(n, s.Compute)]
    for n in found:
        match n.value:
            case s.Call("max", (s.Name(old), s.Call("RowMax", _))):
                updated = any(x.out == old and x.value == s.Name(n.out) for x in found)
                for x in found:
                    match x.value:
                        case s.Call("exp2", (s.Binary("-", s.Binary("*", s.Name(base), c), _),)) if (
                            base == old and updated
                        ):
                            yield _Row(old, n.out, x.out, c)


REWRITING = Rewriting(
    "threshold",
    FORM,
    "threshold 8",
    "Scales the accumulator only where a row's maximum has grown by more than 2^8 in its exponentials.",
    "approximate",
    apply,
)

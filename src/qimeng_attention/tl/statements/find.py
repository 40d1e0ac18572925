"""Find: the integer of a range up to which a condition holds, as in a table of where each sequence begins.

The range is narrowed to a 32nd of itself until one integer is left: at each of 31 places the condition is asked, and
as many stretches are passed as it holds at. So a warp asks at all places at once, a lone thread one by one, and both
find the same, whatever the condition: where it does not hold up to some integer and no further, they find some integer
of the range, the same one.
"""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.machine import Strand
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.declare import declare
from qimeng_attention.tl.statements.rule import Rule

PARTS = 32  # a range is narrowed to such a part of itself at a time; the lanes of a warp


def _check(n: s.Find, scope: Scope) -> None:
    for e in (n.range.start, n.range.stop):
        scope.uniform_integer(e, n.span, f"a bound of the range of {n.name}")
    if declare(scope, n.name, n):
        scope.ints.add(n.name)
    kind = scope.type_of(n.condition, n.span)
    place = n.condition.span if n.condition.span.line else n.span
    if kind.kind in ("int", "float"):
        scope.report(
            "TL104",
            place,
            f"Find takes a condition, found the number {expression(n.condition)}",
            "write a comparison, as `Start[batch] <= row`",
        )
    elif not kind.uniform or kind.axes:
        scope.report(
            "TL208",
            place,
            "the condition of Find differs within the block, expected one that all threads agree on",
            "use sizes, indices and elements of integer tensors",
        )


def _run(n: s.Find, t: Strand) -> None:
    first = t.integer(n.range.start, n.span)
    count = t.integer(n.range.stop, n.span) - first
    while count > 1:
        step = -(-count // PARTS)
        passed = 0
        for offset in range(step, count, step):
            t.machine.spend()
            t.ints[n.name] = first + offset
            passed += t.boolean(n.condition, n.span)
        first, count = first + passed * step, min(step, count - passed * step)
    t.ints[n.name] = first


RULES = {
    s.Find: Rule(
        "Find",
        "Find",
        "Find batch = 0 : B where Start[batch] <= row",
        "Names the last integer of a range up to which a condition of it holds.",
        _check,
        _run,
    ),
}

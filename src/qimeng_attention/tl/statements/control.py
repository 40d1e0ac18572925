"""Loops, branches and roles."""

from __future__ import annotations

from collections.abc import Generator

from qimeng_attention.errors import Span
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.machine import Fault, Strand, execute
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.declare import declare
from qimeng_attention.tl.statements.rule import Rule

MAX_ITERATIONS = 1 << 20
MOST_INSTANCES = 8  # of a role: a block has at most 1,024 threads, a warpgroup 128


def check_body(body: tuple[s.Statement, ...], scope: Scope) -> None:
    """Check statements in order."""
    from qimeng_attention.tl.statements import TABLE

    for n in body:
        if scope.trace is not None:
            scope.trace.append({tile: dict(axes) for tile, axes in scope.origins.items()})
        TABLE[type(n)].check(n, scope)


def check_block(body: tuple[s.Statement, ...], scope: Scope) -> None:
    """Check the statements of a block; the integers it names are its own."""
    before = set(scope.ints)
    scope.depth += 1
    check_body(body, scope)
    scope.depth -= 1
    scope.ints &= before


def _check_for(n: s.For, scope: Scope) -> None:
    for r in n.ranges:
        for e in (r.start, r.stop):
            scope.uniform_integer(e, n.span, f"a bound of the loop over {n.var}")
    if not n.ranges and (scope.grid is None or not scope.grid.persistent):
        scope.report(
            "TL603",
            n.span,
            "`for ... in tiles` needs a persistent Grid, found one that is not",
            "end the Grid statement with `persistent`",
        )
    fresh = declare(scope, n.var, n)
    scope.ints.add(n.var)
    check_block(n.body, scope)
    if fresh:
        scope.ints.discard(n.var)


def _run_for(n: s.For, t: Strand) -> Generator[Span | None, None, None]:
    if not n.ranges:
        yield from _run_tiles(n, t)
        return
    stretches = [range(t.integer(r.start, n.span), t.integer(r.stop, n.span)) for r in n.ranges]
    if sum(len(r) for r in stretches) > MAX_ITERATIONS:
        raise Fault("TL410", n.span, f"the loop runs more than {MAX_ITERATIONS:,} times", "check its bounds")
    for r in reversed(stretches) if n.down else stretches:
        for i in reversed(r) if n.down else r:
            t.ints[n.var] = i
            yield from execute(n.body, t)


def _run_tiles(n: s.For, t: Strand) -> Generator[Span | None, None, None]:
    """Visit the tiles of a persistent block: its own point of the grid first, then those that follow it at a stride."""
    tiles = t.machine.persistent_tiles(t.block.index)
    for number, index in enumerate(tiles):
        t.ints |= index
        t.ints[n.var] = number
        yield from execute(n.body, t)


def _check_if(n: s.If, scope: Scope) -> None:
    kind = scope.type_of(n.condition, n.span)
    place = n.condition.span if n.condition.span.line else n.span
    if kind.kind in ("int", "float"):
        scope.report(
            "TL104",
            place,
            f"`if` takes a condition, found the number {expression(n.condition)}",
            "write a comparison, as `first < last`",
        )
    elif not kind.uniform or kind.axes:
        scope.report(
            "TL208",
            place,
            "the condition of `if` differs within the block, expected one that all threads agree on",
            "use Mask, or where(...), for elements",
        )
    check_block(n.body, scope)
    check_block(n.orelse, scope)


def _run_if(n: s.If, t: Strand) -> Generator[Span | None, None, None]:
    yield from execute(n.body if t.boolean(n.condition, n.span) else n.orelse, t)


def _check_role(n: s.Role, scope: Scope) -> None:
    scope.at_top(n, f"role {n.name}")
    scope.roles += 1
    before = set(scope.filled)
    if n.range is not None:
        start, stop = (scope.constant(e) for e in (n.range.start, n.range.stop))
        if start is None or stop is None or not 0 < stop - start <= MOST_INSTANCES:
            shown = f"{expression(n.range.start)} : {expression(n.range.stop)}"
            scope.report(
                "TL103",
                n.span,
                f"role {n.name} must have 1 to {MOST_INSTANCES} instances known at compile time, found {shown}",
                "write numbers, as `w = 0 : 2`",
            )
    if n.registers is not None:
        scope.require("setmaxnreg", n.span, "a role with registers of its own", "leave `registers` out")
        count = scope.extent(n.registers, n.span, f"the registers of role {n.name}")
        if count % 8 or not 24 <= count <= 240:
            scope.report(
                "TL502",
                n.span,
                f"{count} registers a thread is no legal budget of a role",
                "take a multiple of 8 from 24 to 240",
            )
    if n.var is not None:
        declare(scope, n.var, n)
        scope.ints.add(n.var)
    check_block(n.body, scope)
    if n.var is not None:
        scope.ints.discard(n.var)
    scope.filled |= before


def _run_role(n: s.Role, t: Strand) -> None:
    raise AssertionError("roles are started by the machine")


RULES = {
    s.For: Rule(
        "for",
        "for",
        "for i = 0 : ceildiv(Sk, BN)",
        "Repeats its body for each index; `a : b` leaves b out, `down` runs backwards, several "
        "ranges follow "
        "each "
        "other.",
        _check_for,
        _run_for,
        "sketch",
    ),
    s.If: Rule(
        "if",
        "if",
        "if first < last",
        "Runs its body where a condition holds that the whole role agrees on.",
        _check_if,
        _run_if,
    ),
    s.Role: Rule(
        "role",
        "role",
        "role consumer w = 0 : 2 registers 240",
        "Warps that run their own statements beside the other roles and meet them at rings.",
        _check_role,
        _run_role,
        "scheduled",
    ),
}

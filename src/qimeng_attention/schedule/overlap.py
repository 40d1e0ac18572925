"""`overlap GEMM P, V of the previous tile with the row statistics of this one`: a software pipeline (exact).

`… with the exponentials of this one` is the same, only that the row sums come behind the wait for P V: which of the two
is better depends on how long P V takes beside the exponentials. `… with the weights of this one` is the first by
another name, for loops whose weights need no row statistics.

In the consumers' loop the first GEMM of an iteration (S) is started before the last one of the iteration before (P V),
so that the tensor cores have work while the row statistics are computed. The first iteration's first half stands before
the loop, the last iteration's second half behind it. What needs the second GEMM's result, or overwrites what it still
reads, moves behind the wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, touches, unfit, with_body, written_by
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import (
    add,
    compare,
    expressions,
    map_blocks,
    map_expressions,
    num,
    statements,
    sub,
    substitute,
)
from qimeng_attention.tl.types import Checked

FORM = "overlap GEMM TILE, TILE of the previous tile with the row statistics|exponentials|weights of this one"
_BEFORE = ("of", "the", "previous", "tile", "with", "the")
# Whether the row sums wait for the second GEMM; where there are none, both come to the same.
_WITH = {("row", "statistics"): False, ("exponentials",): True, ("weights",): False}
_BEHIND = ("of", "this", "one")


@dataclass(frozen=True)
class _Iteration:
    """The loop's body in parts; each GEMM with the Wait before it and the Releases behind it."""

    first_wait: tuple[s.Statement, ...]
    first: s.Gemm
    first_release: tuple[s.Statement, ...]
    early: tuple[s.Statement, ...]  # may run while the second GEMM does
    late: tuple[s.Statement, ...]  # need its result, or overwrite what it reads
    second_wait: tuple[s.Statement, ...]
    second: s.Gemm
    second_release: tuple[s.Statement, ...]


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Pipeline the loop whose body ends with the named GEMM."""
    words = choice.words
    beside = words[11:-3]
    known = words[5:11] == _BEFORE and beside in _WITH and words[-3:] == _BEHIND
    if not known or words[1] != "GEMM" or words[3] != ",":
        raise malformed(choice, FORM)
    names = (words[2], words[4])
    for number, role in enumerate(kernel.body):
        if not isinstance(role, s.Role):
            continue
        for position, n in enumerate(role.body):
            if isinstance(n, s.For) and len(n.ranges) == 1 and any(_is(x, names) for x in n.body):
                parts = _parts(n, names, choice, sums_late=_WITH[beside])
                loop, end = _pipeline(n, parts)
                freed = _released(role.body[position + 1 :], parts)
                body = (*role.body[:position], loop, *freed, end, *role.body[position + 1 + len(freed) :])
                roles = (*kernel.body[:number], replace(role, body=body), *kernel.body[number + 1 :])
                return with_body(kernel, tuple(_ahead(r, n, parts) if isinstance(r, s.Role) else r for r in roles))
    raise unfit(
        choice,
        f"no loop of a role has GEMM {names[0]}, {names[1]}",
        "choose `roles` too, and name the operands of the loop's last GEMM",
    )


def _is(n: s.Statement, names: tuple[str, str]) -> bool:
    return isinstance(n, s.Gemm) and (n.a.name, n.b.name) == names


def _parts(loop: s.For, names: tuple[str, str], choice: s.Choice, *, sums_late: bool) -> _Iteration:
    body = loop.body
    gemms = [i for i, n in enumerate(body) if isinstance(n, s.Gemm)]
    if len(gemms) != 2 or not _is(body[gemms[1]], names) or loop.down:
        raise unfit(
            choice,
            f"the loop over {loop.var} has {len(gemms)} GEMMs, or counts down, or ends with another one",
            "a pipeline takes a loop of two GEMMs, the named one last",
        )
    first, second = gemms
    waits = [i for i in range(first + 1, second) if isinstance(body[i], s.Wait)]
    releases = first + 1
    while isinstance(body[releases], s.Release):
        releases += 1
    after = body[second + 1 :]
    if not all(isinstance(n, s.Release) for n in after) or not all(isinstance(n, s.Wait) for n in body[:first]):
        raise unfit(choice, "something stands before the first GEMM or behind the second", "compute it between the two")
    middle = tuple(body[i] for i in range(releases, second) if i not in waits)
    one, two = body[first], body[second]
    assert isinstance(one, s.Gemm)
    assert isinstance(two, s.Gemm)
    busy = {two.out, two.a.name, two.b.name}
    sums = tuple(n for n in middle if _is_sum(n))
    late = tuple(n for n in middle if touches(n) & busy or (sums_late and n in sums))
    _check_order(middle, late, choice)
    early = tuple(n for n in middle if n not in late)
    if not sums_late and _tied(early, sums) is None:  # last, so that the wait comes behind them
        early = (*(n for n in early if n not in sums), *(n for n in early if n in sums))
    return _Iteration(
        body[:first], one, body[first + 1 : releases], early, late, tuple(body[i] for i in waits), two, after
    )


def _is_sum(n: s.Statement) -> bool:
    """Tell whether a statement adds up rows."""
    sums = ("RowSum", "LaneSum")
    return isinstance(n, s.Compute) and any(isinstance(e, s.Call) and e.function in sums for e in expressions(n.value))


def _check_order(middle: tuple[s.Statement, ...], late: tuple[s.Statement, ...], choice: s.Choice) -> None:
    """Moving statements behind others is right only where none of those others is tied to them."""
    tied = _tied(middle, late)
    if tied is not None:
        raise unfit(
            choice, f"`{_shown(tied)}` needs a statement that must wait for the second GEMM", "leave this choice out"
        )


def _tied(middle: tuple[s.Statement, ...], late: tuple[s.Statement, ...]) -> s.Statement | None:
    """Give a statement that is tied to one of those that would move behind it."""
    for i, n in enumerate(middle):
        for other in middle[i + 1 :]:
            if n not in late or other in late:
                continue
            written = set().union(*[written_by(x) for x in statements((n,))])
            overwritten = set().union(*[written_by(x) for x in statements((other,))])
            if written & touches(other) or overwritten & touches(n):
                return other
    return None


def _shown(n: s.Statement) -> str:
    from qimeng_attention.tl.printer import head

    return head(n)


def _released(rest: tuple[s.Statement, ...], p: _Iteration) -> tuple[s.Statement, ...]:
    """Give the Releases behind the loop of tiles that the last second half does not read."""
    found: list[s.Statement] = []
    for n in rest:
        if not isinstance(n, s.Release) or n.ring in (p.second.a.name, p.second.b.name):
            break
        found.append(n)
    return tuple(found)


def _ahead(role: s.Role, loop: s.For, p: _Iteration) -> s.Role:
    """Let the role that fills both GEMMs' rings fill the first one's an iteration ahead, as it is read."""
    return replace(role, body=tuple(_shifted(n, loop, p) if isinstance(n, s.For) else n for n in role.body))


def _shifted(n: s.For, loop: s.For, p: _Iteration) -> s.For:
    """Put the copies of the second GEMM's ring one iteration later than those of the first one's."""
    rings = [x.ring for x in n.body if isinstance(x, s.Wait)]
    pairs = len(n.body) == 4 and rings == [p.first.b.name, p.second.b.name] and n.var == loop.var
    if not pairs or not all(isinstance(x, s.Copy) for x in (n.body[1], n.body[3])) or n.ranges != loop.ranges:
        return n
    i, span = s.Name(n.var), n.ranges[0]
    behind = map_blocks(n.body[2:], lambda x: substitute(x, {n.var: sub(i, num(1))}))
    body = (s.If(compare(i, "<", span.stop), n.body[:2]), s.If(compare(i, ">", span.start), behind))
    comment = f"{p.first.b.name} runs one ahead of {p.second.b.name}"
    return replace(n, ranges=(s.Range(span.start, add(span.stop, num(1))),), body=body, comment=comment)


def _fold(e: s.Expr) -> s.Expr:
    zero = isinstance(e, s.Binary) and e.op == "*" and s.Num(0) in (e.left, e.right)
    return s.Num(0) if zero else e


def _pipeline(loop: s.For, p: _Iteration) -> tuple[s.Statement, s.Statement]:
    var, span = loop.var, loop.ranges[0]
    i = s.Name(var)

    def at(body: tuple[s.Statement, ...], value: s.Expr) -> tuple[s.Statement, ...]:
        return map_blocks(body, lambda n: map_expressions(substitute(n, {var: value}), _fold))

    started = (replace(p.first, asynchronous=True),)
    second = replace(p.second, asynchronous=True)
    done, landed = s.Wait("gemm", count=num(0)), s.Wait("gemm", count=num(1))
    before = (*p.first_wait, *started, done, *p.first_release, *p.early, *p.late)
    turn = (
        *p.first_wait, *started, *p.second_wait, *at((second,), sub(i, num(1))), landed, *p.first_release, *p.early,
        done, *p.second_release, *p.late,
    )  # fmt: skip
    behind = (*p.second_wait, *at((second,), sub(span.stop, num(1))), done, *p.second_release)
    run = compare(span.start, "<", span.stop)
    inner = replace(loop, ranges=(s.Range(add(span.start, num(1)), span.stop),), body=turn)
    return (
        s.If(run, (*at(before, span.start), inner), above=("the first tile's row statistics; no P V yet",)),
        s.If(run, behind, above=("the last tile's P V",)),
    )


REWRITING = Rewriting(
    "overlap",
    FORM,
    "overlap GEMM P, V of the previous tile with the row statistics of this one",
    "Starts the next S before this tile's P V, so that the tensor cores work while the row statistics are computed.",
    "exact",
    apply,
)

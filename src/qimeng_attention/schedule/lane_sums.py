"""`sums per lane`: a running row sum is kept as four partial sums, one a lane, and reduced once behind the loop
(reassociating).

`sums per lane running` scales the old sums in a statement of their own, so that each tile's elements are added to them
one by one as they are computed, instead of being added up first.

Matched by what depends on what: inside one loop a vector is only ever updated as `x * factor + RowSum(T)`, with factors
along the rows, and nothing else there reads it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from qimeng_attention.schedule.rewriting import Rewriting, malformed, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import LANES_A_ROW, REDUCTIONS
from qimeng_attention.tl.scope import LANE
from qimeng_attention.tl.traverse import expressions, map_blocks, map_expressions, names_in, statements
from qimeng_attention.tl.types import Checked

FORM = "sums per lane [running]"


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Rewrite every running sum of the kernel's loops."""
    if choice.words not in (("sums", "per", "lane"), ("sums", "per", "lane", "running")):
        raise malformed(choice, FORM)
    apart = len(choice.words) == 4
    body = list(kernel.body)
    found: list[str] = []
    for position, n in reversed(list(enumerate(body))):
        if isinstance(n, s.For):
            running = [x for x in _running_sums(n, checked) if _declared(body, x) and not _assigned(body, x)]
            found += running
            rewritten = replace(n, body=map_blocks(n.body, partial(_partial, running=tuple(running), apart=apart)))
            whole = [s.Compute(s.Call("RowSum", (s.Name(f"{x}_lane"),)), x, new=True) for x in running]
            body[position : position + 1] = [rewritten, *whole]
    if not found:
        raise unfit(choice, "no loop keeps a running row sum", "remove this choice")
    body = [x for n in body for x in _declare(n, found)]
    return with_body(kernel, body)


def _running_sums(loop: s.For, checked: Checked) -> list[str]:
    updates: dict[str, list[s.Compute]] = {}
    for n in statements(loop.body):
        if isinstance(n, s.Compute):
            updates.setdefault(n.out, []).append(n)
    result = []
    for name, found in updates.items():
        others = [n for n in statements(loop.body) if name in names_in(n) and n not in found]
        tile = checked.tiles.get(name)
        if tile is not None and len(tile.axes) == 1 and len(found) == 1 and not others and _is_sum(found[0], name):
            result.append(name)
    return result


def _is_sum(n: s.Compute, name: str) -> bool:
    """Match `name * factor + RowSum(T)`, or without a factor, in which T and the factor do not read the sum itself."""
    match n.value:
        case s.Binary("+", left, s.Call("RowSum", (inside,))) if name not in names_in(inside) and not _reduces(inside):
            return left == s.Name(name) or (
                isinstance(left, s.Binary)
                and left.op == "*"
                and left.left == s.Name(name)
                and name not in names_in(left.right)
            )
    return False


def _reduces(e: s.Expr) -> bool:
    return any(isinstance(x, s.Call) and x.function in REDUCTIONS for x in expressions(e))


def _declared(body: list[s.Statement], name: str) -> bool:
    return any(isinstance(n, s.Allocate) and n.name == name and n.init == s.Num(0) for n in body)


def _assigned(body: list[s.Statement], name: str) -> bool:
    """Tell whether something outside of loops gives the sum a value before the last loop that carries it."""
    loops = [i for i, n in enumerate(body) if isinstance(n, s.For) and name in _outs(n)]
    return any(name in _outs(n) for i, n in enumerate(body) if i < loops[-1] and not isinstance(n, s.For))


def _outs(n: s.Statement) -> set[str]:
    return {x.out for x in statements((n,)) if isinstance(x, s.Compute)}


def _partial(n: s.Statement, running: tuple[str, ...], apart: bool) -> s.Statement | tuple[s.Statement, ...]:
    if not isinstance(n, s.Compute) or n.out not in running:
        return n
    lane, old = s.Name(f"{n.out}_lane"), s.Name(n.out)

    def rename(e: s.Expr) -> s.Expr:
        return lane if e == old else e

    value = map_expressions(n.value, rename)
    assert isinstance(value, s.Binary)
    assert isinstance(value.right, s.Call)
    value = replace(value, right=s.Call("LaneSum", value.right.args))
    if not apart or value.left == lane:
        return replace(n, value=value, out=lane.id)
    scaled = replace(n, value=value.left, out=lane.id)
    return scaled, replace(n, value=replace(value, left=lane), out=lane.id, comment="", above=())


def _declare(n: s.Statement, running: list[str]) -> list[s.Statement]:
    if not isinstance(n, s.Allocate) or n.name not in running:
        return [n]
    dims = (*n.dims, s.Dim(s.Num(LANES_A_ROW), LANE))
    return [replace(n, init=None), s.Allocate(f"{n.name}_lane", "register", dims, n.dtype, s.Num(0))]


REWRITING = Rewriting(
    "sums",
    FORM,
    "sums per lane",
    "Keeps a running row sum as four partial sums, one a lane, and adds them once behind the loop.",
    "reassociating",
    apply,
)

"""`skip blocks past the end`: a block whose tile begins behind the last row does nothing (exact).

Its stores would all end before they begin: so nothing else that it does matters, and it all comes under one condition.
Each role skips the same blocks, so that none waits for what another does not send. It pays where only the block itself
knows how many rows there are, as in packed sequences; a grid that is made to measure has no such blocks.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import copy_tensor
from qimeng_attention.tl.traverse import compare, map_expressions, num, statements, substitute
from qimeng_attention.tl.types import Checked

FORM = "skip blocks past the end"
_KNOWN_FIRST = (s.Size, s.Choose, s.Scalar, s.Tile, s.Grid, s.Warps, s.Allocate, s.Let, s.Find)


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Put what a block does, once its indices are known, under the condition that it has rows."""
    if choice.words != tuple(FORM.split()):
        raise malformed(choice, FORM)
    start, stop = _rows(kernel, choice, checked)
    condition = compare(start, "<", stop)
    if not any(isinstance(n, s.Role) for n in kernel.body):
        return with_body(kernel, _guarded(kernel.body, condition))
    body = [replace(n, body=_guarded(n.body, condition)) if isinstance(n, s.Role) else n for n in kernel.body]
    return with_body(kernel, body)


def _rows(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> tuple[s.Expr, s.Expr]:
    """Give where the block's rows begin and end, which all stores agree on."""
    stores: list[list[tuple[s.Expr, s.Expr]]] = []
    roles: list[s.Role | None] = [n for n in kernel.body if isinstance(n, s.Role)]
    for role in roles or [None]:
        for n in statements(kernel.body if role is None else role.body):
            if isinstance(n, s.Copy) and n.target == "global":
                dims = zip(n.coordinate, checked.tensors[copy_tensor(n)].dims, strict=False)
                stores.append([(_first(c.start, role), c.stop or dim) for c, dim in dims if c.axis is not None])
    common = [ends for ends in (stores[0] if stores else []) if all(ends in others for others in stores)]
    if not common:
        raise unfit(
            choice,
            "the stores do not all end with the same rows",
            "let all of them begin and end alike, as `[q = block * BM : Sq, ...]`",
        )
    return common[0]


def _first(start: s.Expr, role: s.Role | None) -> s.Expr:
    """Give where the first instance begins: those behind it have later rows."""
    if role is None or role.var is None or role.range is None:
        return start
    return map_expressions(substitute(start, {role.var: role.range.start}), _folded)


def _folded(e: s.Expr) -> s.Expr:
    match e:
        case s.Binary("*", a, b) if s.Num(0) in (a, b):
            return num(0)
        case s.Binary("+", a, s.Num(0)):
            return a
    return e


def _guarded(body: tuple[s.Statement, ...], condition: s.Expr) -> tuple[s.Statement, ...]:
    """Put all but what is known first under the condition; the wait for the last stores stays behind it."""
    end = len(body)
    if body and isinstance(body[-1], s.Wait) and body[-1].kind == "stores":
        end -= 1
    first = next((i for i, n in enumerate(body) if not isinstance(n, _KNOWN_FIRST)), end)
    if first == end:
        return body
    declared = [n for n in body[first:end] if isinstance(n, s.Allocate)]
    inside = tuple(n for n in body[first:end] if not isinstance(n, s.Allocate))
    return (*body[:first], *declared, s.If(condition, inside), *body[end:])


REWRITING = Rewriting(
    "skip",
    FORM,
    FORM,
    "Lets a block that has no rows do nothing.",
    "exact",
    apply,
)

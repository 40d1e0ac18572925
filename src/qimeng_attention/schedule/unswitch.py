"""`unswitch loop i`: a loop with a branch that changes once becomes loops without one (exact).

A branch `if i >= bound` in the loop's body is false up to the bound and true from there on, `if i < bound` the other
way round: each stretch gets a loop of its own, with what the branch does there. What `guard` and `overlap` leave to the
inner loop leaves it this way.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import call, names_in, statements
from qimeng_attention.tl.types import Checked

FORM = "unswitch loop VARIABLE"


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Split the innermost loops over the variable at the bounds that their branches name."""
    words = choice.words
    if len(words) != 3 or words[1] != "loop":
        raise malformed(choice, FORM)
    made = _blocks(kernel.body, words[2])
    if not any(isinstance(n, s.For) and n.var == words[2] for n in statements(kernel.body)):
        raise unfit(choice, f"no loop counts {words[2]}", "name the variable of the loop over the keys")
    return with_body(kernel, made)


def _blocks(body: tuple[s.Statement, ...], var: str) -> tuple[s.Statement, ...]:
    made: list[s.Statement] = []
    for n in body:
        if isinstance(n, s.For) and n.var == var and len(n.ranges) == 1 and _computes(n):
            made += _split(n)
        elif isinstance(n, s.For | s.Role):
            made.append(replace(n, body=_blocks(n.body, var)))
        elif isinstance(n, s.If):
            made.append(replace(n, body=_blocks(n.body, var), orelse=_blocks(n.orelse, var)))
        else:
            made.append(n)
    return tuple(made)


def _computes(loop: s.For) -> bool:
    """A loop that only copies gains nothing from being two."""
    return any(isinstance(n, s.Gemm) for n in statements(loop.body))


def _split(loop: s.For) -> list[s.Statement]:
    """Split at the first branch that changes once, then each part again."""
    for n in loop.body:
        bounds = _bounds(n, loop)
        if bounds is None:
            continue
        below, above = (_taken(loop, n, holds) for holds in bounds[1:])
        span = loop.ranges[0]
        low = replace(below, ranges=(s.Range(span.start, call("min", bounds[0], span.stop)),))
        high = replace(above, ranges=(s.Range(call("max", span.start, bounds[0]), span.stop),), above=(), comment="")
        return [*_split(low), *_split(high)] if not loop.down else [*_split(high), *_split(low)]
    return [loop]


def _bounds(n: s.Statement, loop: s.For) -> tuple[s.Expr, bool, bool] | None:
    """Give where a branch changes, and whether it is taken below and from there on."""
    if not isinstance(n, s.If) or n.orelse:
        return None
    match n.condition:
        case s.Compare((s.Name(id), bound), (op,)) if id == loop.var and loop.var not in names_in(bound):
            if op == ">=":
                return bound, False, True
            if op == "<":
                return bound, True, False
        case s.Binary("or", s.Compare((s.Name(id), bound), ("<",)), _) if id == loop.var and loop.var not in names_in(
            bound
        ):
            return bound, True, False  # below the lower bound; what is left is split at the upper one
    return None


def _taken(loop: s.For, branch: s.Statement, holds: bool) -> s.For:
    assert isinstance(branch, s.If)
    body: list[s.Statement] = []
    for n in loop.body:
        if n is not branch:
            body.append(n)
        elif holds:
            body += branch.body
        elif isinstance(branch.condition, s.Binary):
            body.append(replace(branch, condition=branch.condition.right))
    return replace(loop, body=tuple(body))


REWRITING = Rewriting(
    "unswitch",
    FORM,
    "unswitch loop i",
    "Makes a loop whose branch changes once into loops without the branch.",
    "exact",
    apply,
)

"""`approximate tanh`, `approximate exp2 1 of 4`: a function of scores by another way with a stated error (approximate).

tanh becomes one instruction of the special-function unit instead of two. exp2 becomes a polynomial on the FMA lanes: a
share of it takes work off that unit. The share counts groups of eight columns, as each lane of a fragment has two
columns of every group. Only what is computed for each element changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, number, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import APPROXIMATIONS
from qimeng_attention.tl.traverse import call, compare, map_blocks, map_expressions, names_in, num
from qimeng_attention.tl.types import Checked

FORM = "approximate FUNCTION [NUMBER of NUMBER]"
GROUP = 8  # columns of an accumulator's fragment that lie in one register pair of four lanes


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Put the approximation for every call of the function, or for a share of the columns."""
    function, share = _read(choice)
    other, _ = APPROXIMATIONS[function]
    wide = {t.name for t in checked.tiles.values() if t.space == "register" and len(t.axes) == 2}

    def turn(n: s.Compute) -> Callable[[s.Expr], s.Expr]:
        columns = checked.tiles[n.out].axes[1].name

        def of(e: s.Expr) -> s.Expr:
            if not isinstance(e, s.Call) or e.function != function or not names_in(e.args) & wide:
                return e
            rough = replace(e, function=other)
            if share is None:
                return rough
            if columns in checked.fixed or columns in checked.sizes:
                return e  # the axis is named like a size: an expression cannot say which column it is at
            group = s.Binary("%", s.Binary("//", s.Name(columns), num(GROUP)), num(share[1]))
            return call("where", compare(group, "<", num(share[0])), rough, e)

        return of

    def of_elements(n: s.Statement) -> s.Statement:
        return map_expressions(n, turn(n)) if isinstance(n, s.Compute) and n.out in wide else n

    body = map_blocks(kernel.body, of_elements)
    if body == kernel.body:
        raise unfit(choice, f"no statement computes {function} of each element", "remove this choice")
    return with_body(kernel, body)


def _read(choice: s.Choice) -> tuple[str, tuple[int, int] | None]:
    words = choice.words
    if len(words) not in (2, 5) or (len(words) == 5 and words[3] != "of"):
        raise malformed(choice, FORM)
    known = ", ".join(APPROXIMATIONS)
    if words[1] not in APPROXIMATIONS:
        raise unfit(choice, f"there is no approximation of {words[1]}", f"take one of {known}")
    if len(words) == 2:
        return words[1], None
    some, all_of_them = number(words[2], choice, FORM), number(words[4], choice, FORM)
    if not 0 < some <= all_of_them:
        raise unfit(choice, f"{some} of {all_of_them} is no share", "write a smaller number before the larger one")
    return words[1], (some, all_of_them)


REWRITING = Rewriting(
    "approximate",
    FORM,
    "approximate tanh",
    "Computes a function of scores by another way, off by at most 2^-11 of its value for tanh, 2^-13 for exp2.",
    "approximate",
    apply,
)

"""`pingpong consumer`: the instances of a role start their GEMMs in turn (exact).

One instance's exponentials then run under the other's GEMMs, instead of all instances asking for the tensor cores at
once. A turn begins before the first of the GEMMs that are started together, and is passed on behind the last of them.
Where only the last GEMM of a loop is left to do there is nothing to take turns for. `in loops` takes turns in the loop
over tiles alone, so that one instance may finish a tile while another begins the next.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import statements
from qimeng_attention.tl.types import Checked

FORM = "pingpong ROLE [in loops]"


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Put a turn around the GEMMs that the named role starts."""
    if len(choice.words) not in (2, 4) or choice.words[2:] not in ((), ("in", "loops")):
        raise malformed(choice, FORM)
    everywhere = len(choice.words) == 2
    name = choice.words[1]
    body = list(kernel.body)
    for i, n in enumerate(body):
        if isinstance(n, s.Role) and n.name == name and n.var is not None:
            made = replace(n, body=_turns(n.body, s.Name(n.var), everywhere))
            if made == n:
                raise unfit(choice, f"{name} starts no asynchronous GEMM that makes a new tile", "choose `overlap` too")
            body[i] = made
            return with_body(kernel, body)
    roles = ", ".join(n.name for n in body if isinstance(n, s.Role) and n.var is not None)
    raise unfit(
        choice, f"no role of several instances is named {name}", f"take one of {roles}" if roles else "choose `roles`"
    )


def _turns(body: tuple[s.Statement, ...], instance: s.Expr, here: bool) -> tuple[s.Statement, ...]:
    """A turn begins at a GEMM that makes a new tile, and ends behind the last one before a Wait for GEMMs."""
    made: list[s.Statement] = []
    open_at = False
    for position, n in enumerate(body):
        if isinstance(n, s.For):
            n = replace(n, body=_turns(n.body, instance, here or bool(n.ranges)))
        elif isinstance(n, s.If):
            n = replace(n, body=_turns(n.body, instance, here), orelse=_turns(n.orelse, instance, here))
        starts = here and isinstance(n, s.Gemm) and n.asynchronous
        if starts and not open_at and isinstance(n, s.Gemm) and not n.accumulate:
            made.append(s.Wait("turn", count=instance))
            open_at = True
        made.append(n)
        if starts and open_at and not _more(body[position + 1 :]):
            made.append(s.PassTurn())
            open_at = False
    return tuple(made)


def _more(rest: tuple[s.Statement, ...]) -> bool:
    """Tell whether another GEMM is started before the next Wait for GEMMs."""
    for n in rest:
        if isinstance(n, s.Wait) and n.kind == "gemm":
            return False
        if any(isinstance(x, s.Gemm) for x in statements((n,))):
            return True
    return False


REWRITING = Rewriting(
    "pingpong",
    FORM,
    "pingpong consumer",
    "Lets the instances of a role start their GEMMs in turn, so that one's exponentials run under the other's GEMMs.",
    "exact",
    apply,
)

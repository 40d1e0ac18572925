"""Sizes that no tensor of a caller has: the value that the launcher gives them."""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.machine import Strand
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.rule import Rule
from qimeng_attention.tl.traverse import names_in


def _check(n: s.Choose, scope: Scope) -> None:
    scope.at_top(n, "Choose")
    if n.name not in scope.sizes:
        scope.report(
            "TL101", n.span, f"'{n.name}' is no run-time size declared above", f"declare `Size {n.name}` before it"
        )
    if n.name in names_in(n.value):
        scope.report("TL110", n.span, f"the value of {n.name} reads itself", "compute it from other sizes")
    scope.of_sizes(n.value, n.span, f"the value of {n.name}")


def _run(n: s.Choose, t: Strand) -> None:
    """Nothing: the program is right for every value."""


RULES = {
    s.Choose: Rule(
        "Choose",
        "Choose",
        "Choose Splits = clamp(132 // (B * Hk), 1, ceildiv(Sk, 512))",
        "Says which value a launcher gives a size that the caller's tensors do not tell; the program is right for any.",
        _check,
        _run,
    ),
}

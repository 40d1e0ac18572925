"""What a sketch's loop does beside its GEMMs, seen from what depends on what: the planner's choices follow from it.

Not here: what a loop's choices cost (groups.py, model.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qimeng_attention.author.planner.reason import Reason
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import APPROXIMATIONS, FUNCTIONS
from qimeng_attention.tl.macros import expand
from qimeng_attention.tl.traverse import expressions, names_in, statements

SPECIAL_FUNCTIONS = {  # results of the special-function unit that each takes
    "tanh": 2,
    "tanh_approx": 1,
    "sigmoid": 2,
    "exp": 1,
    "exp2": 1,
    "ln": 1,
    "log2": 1,
    "softplus": 2,
    "sqrt": 1,
    "rsqrt": 1,
}
# Registers: 128 x 96 at D = 64 on an A100, estimated at 220, has 12 bytes of spills with it; at 188 nothing has.
ON_THEIR_WAY = {"sigmoid": 36}
_ELEMENTWISE = {"S", "q", "k"}  # what differs from score to score


@dataclass(frozen=True)
class Recurrence:
    """The loop over keys, its macros written out."""

    functions: tuple[str, ...]  # called for each score, as often as they are
    sums: bool  # it carries a sum over rows of scores
    scales: bool  # it multiplies what a GEMM adds to

    def special(self, fast: Sequence[str] = ()) -> int:
        """Count the special-function results a score, those of `fast` by their approximations."""
        taken = (APPROXIMATIONS[f][0] if f in fast else f for f in self.functions)
        return sum(SPECIAL_FUNCTIONS.get(f, 0) for f in taken)

    @property
    def on_their_way(self) -> int:
        """Estimate the registers of results that ptxas has on their way between two GEMMs.

        Where rows have statistics, these keep the special functions apart.
        """
        return 0 if self.sums else max((ON_THEIR_WAY.get(f, 0) for f in self.functions), default=0)

    def reasons(self) -> list[Reason]:
        """Say which choices have nothing to rewrite."""
        if self.sums and self.scales:
            return []
        why = "a weight is a function of one score: no row sum to keep per lane, and O is never scaled"
        return [Reason("carried", "O alone", why, {})]


def recurrence(sketch: s.Program) -> Recurrence:
    """Look at the loops of a sketch."""
    body = [n for k in sketch.kernels for loop in expand(k, sketch.defines)[0].body for n in _inside(loop)]
    computed = [n for n in body if isinstance(n, s.Compute)]
    calls = [e for n in computed for e in expressions(n.value) if isinstance(e, s.Call)]
    accumulated = {n.out for n in body if isinstance(n, s.Gemm) and n.accumulate}
    return Recurrence(
        # any other value is the same for a whole tile
        tuple(e.function for e in calls if e.function in FUNCTIONS and names_in(e.args) & _ELEMENTWISE),
        any(e.function == "RowSum" for e in calls),
        any(n.out in accumulated for n in computed),
    )


def _inside(n: s.Statement) -> tuple[s.Statement, ...]:
    return tuple(statements(n.body)) if isinstance(n, s.For) else ()

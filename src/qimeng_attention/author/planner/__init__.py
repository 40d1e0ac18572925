"""The built-in author: from a specification to TL code, offline, with a reason beside every number.

First a sketch from the library, with mask and score expressions composed into it; then the parameters are reasoned with
an analytic model of the SM's pipes. Authors write and run no gate: the checker, the interpreter and the judge come
after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qimeng_attention.author.planner import decode, roles, warps
from qimeng_attention.author.planner.code import Tiled, write_code
from qimeng_attention.author.planner.reason import Reason
from qimeng_attention.author.planner.sketch import compose
from qimeng_attention.author.planner.widths import HEAD_DIMS, nearest_head_dims, reasons_for
from qimeng_attention.errors import SpecError
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import APPROXIMATIONS, FUNCTIONS
from qimeng_attention.tl.printer import print_program
from qimeng_attention.tl.traverse import expressions, names_in

SPECIAL_FUNCTIONS = {
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


FASTER = ("tanh",)  # by its approximation, where the special-function unit would bind
_ELEMENTWISE = {"S", "q", "k"}  # what differs from score to score


@dataclass(frozen=True)
class Plan:
    """What the author wrote."""

    sketch: str
    code: str
    reasons: tuple[Reason, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the reasons as data."""
        return {"author": "planner", "reasons": [asdict(r) for r in self.reasons]}


def plan(spec: AttentionSpec, target: Target) -> Plan:
    """Write a program for a specification.

    Raises:
        SpecError: a head dim or type that the generator or the target lacks, or an expression it cannot read.
    """
    _refuse(spec, target)
    decode.refuse_other_caches(spec)
    if decode.fits(spec):
        return _decode(spec, target)
    sketch = compose(spec)
    called = _functions_an_element(sketch)
    best: Tiled
    if "wgmma" in target.capabilities:
        fast = [f for f in FASTER if f in called]
        best, reasons, schedule = roles.choose(spec, target, _results(called, fast), fast)
    else:
        best, reasons, schedule = warps.choose(spec, target, _results(called, ()))
    reasons += reasons_for(spec)
    code = write_code(spec, target, sketch, best, reasons[0].why, schedule)
    return Plan(print_program(sketch), print_program(code), tuple(reasons))


def _decode(spec: AttentionSpec, target: Target) -> Plan:
    """Write the two kernels for few queries."""
    sketch = compose(spec, "decode")
    fast = [f for f in FASTER if f in _functions_an_element(sketch) and "wgmma" in target.capabilities]
    tile, reasons, *schedules = decode.choose(spec, target, fast)
    reasons += [roles.approximation(f) for f in fast]
    why = {r.parameter: r.why for r in reasons}
    code = decode.write_decode(spec, target, sketch, tile, why, (schedules[0], schedules[1]))
    return Plan(print_program(sketch), print_program(code), tuple(reasons))


def _refuse(spec: AttentionSpec, target: Target) -> None:
    if spec.dtype not in target.dtypes:
        raise SpecError(
            f"{target.name} has no {spec.dtype}",
            hint=f"take one of {', '.join(target.dtypes)}",
            field="dtype",
            value=spec.dtype,
            allowed=list(target.dtypes),
        )
    for field in ("Dqk", "Dv"):
        value = getattr(spec, field)
        if value not in HEAD_DIMS:
            below, above = nearest_head_dims(value)
            choices = f"choices: {below} or {above}" if below != above else f"choice: {below}"
            raise SpecError(
                f"{field} = {value} is not supported: head dims are "
                f"multiples of {HEAD_DIMS.step} from {HEAD_DIMS[0]} to {HEAD_DIMS[-1]}",
                hint=f"nearest valid {choices}",
                field=field,
                value=value,
                allowed=list(HEAD_DIMS),
                nearest=above,
            )


def _functions_an_element(sketch: s.Program) -> list[str]:
    """Give the functions that score expressions call for each element, as often as they do."""
    scores = [
        n.value
        for k in sketch.kernels
        for loop in k.body
        if isinstance(loop, s.For)
        for n in loop.body
        if isinstance(n, s.Compute)
    ]
    calls = [e for value in scores for e in expressions(value) if isinstance(e, s.Call) and e.function in FUNCTIONS]
    # any other value is the same for a whole tile
    return [e.function for e in calls if names_in(e.args) & _ELEMENTWISE]


def _results(called: Sequence[str], fast: Sequence[str]) -> int:
    """Count the special-function results an element, the softmax's own included."""
    return 1 + sum(SPECIAL_FUNCTIONS.get(APPROXIMATIONS[f][0] if f in fast else f, 0) for f in called)


__all__ = ["Plan", "Reason", "plan"]

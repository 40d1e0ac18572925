"""The built-in author: from a specification to TL code, offline, with a reason beside every number.

First a sketch from the library, with mask and score expressions composed into it; then the parameters are reasoned with
an analytic model of the SM's pipes. Authors write and run no gate: the checker, the interpreter and the judge come
after.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qimeng_attention.author.planner import decode, lists, roles, warps
from qimeng_attention.author.planner.code import Tiled, write_code
from qimeng_attention.author.planner.reason import Reason
from qimeng_attention.author.planner.recurrence import recurrence
from qimeng_attention.author.planner.sketch import compose
from qimeng_attention.author.planner.widths import HEAD_DIMS, nearest_head_dims, reasons_for
from qimeng_attention.errors import SpecError
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.targets import Target
from qimeng_attention.tl.printer import print_program

FASTER = ("tanh",)  # by its approximation, where the special-function unit would bind


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
    loop = recurrence(sketch)
    best: Tiled
    if "wgmma" in target.capabilities:
        fast = [f for f in FASTER if f in loop.functions]
        best, reasons, schedule = roles.choose(spec, target, loop, fast)
    else:
        best, reasons, schedule = warps.choose(spec, target, loop)
    reasons += reasons_for(spec) + loop.reasons()
    if lists.fits(spec):
        sketch = lists.compose_lists(spec, sketch)
        reasons = [*(r for r in reasons if r.parameter != "guard"), lists.reason()]
        code = lists.write_lists(spec, target, sketch, best, reasons[0].why, lists.listed(spec, best, schedule))
    else:
        code = write_code(spec, target, sketch, best, reasons[0].why, schedule)
    return Plan(print_program(sketch), print_program(code), tuple(reasons))


def _decode(spec: AttentionSpec, target: Target) -> Plan:
    """Write the two kernels for few queries."""
    sketch = compose(spec, "decode")
    loop = recurrence(sketch)
    fast = [f for f in FASTER if f in loop.functions and "wgmma" in target.capabilities]
    tile, reasons, *schedules = decode.choose(spec, target, loop, fast)
    reasons += [roles.approximation(f) for f in fast] + loop.reasons()
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


__all__ = ["Plan", "Reason", "plan"]

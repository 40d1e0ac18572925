"""One kernel through the lowerings of its generation, each statement under its name.

A program of roles takes the lowerings made for them, where the target has the instructions; any other takes those of
sm_80, which later generations run as well, or those of sm_75 where the target has no m16n8k16. The statements and the
target's instructions decide, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_attention.errors import Diagnostic, DiagnosticError
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.statements import TABLE
from qimeng_attention.tl.traverse import statements
from qimeng_attention.tl.types import Checked
from qimeng_attention.translate import sm75, sm80, sm90
from qimeng_attention.translate.abi import TensorMap
from qimeng_attention.translate.sm80.context import Lowering, Lowerings, Refused
from qimeng_attention.translate.sm80.loads import hold_before
from qimeng_attention.translate.sm90.context import GroupLowering


@dataclass(frozen=True)
class Emitted:
    """A kernel's source, and what its launch needs."""

    source: str
    threads: int
    shared_bytes: int
    maps: tuple[TensorMap, ...] = ()


def emit(checked: Checked, target: Target, digest: str, text: str) -> Emitted:
    """Emit one kernel.

    Raises:
        DiagnosticError: TL701, with every statement that has no lowering.
    """
    table = _lowerings(checked, target)

    def lower(n: s.Statement, low: Lowering) -> None:
        if isinstance(n, s.For | s.If):
            hold_before(n, low)
        table[TABLE[type(n)].name](n, low)

    findings = [_missing(n, target) for n in statements(checked.kernel.body) if TABLE[type(n)].name not in table]
    if not findings:
        try:
            if table is sm90.LOWERINGS:
                groups = GroupLowering(checked, target, lower)
                sm90.emit(groups, digest)
                return Emitted(groups.out.text(), groups.threads, groups.shared_bytes, tuple(groups.maps))
            state = sm75.TuringLowering if table is sm75.LOWERINGS else Lowering
            warps = state(checked, target, lower)
            sm80.emit(warps, digest)
            return Emitted(warps.out.text(), warps.threads, warps.shared_bytes)
        except Refused as refusal:
            findings.append(refusal.diagnostic)
    raise DiagnosticError(findings, source=text, file="scheduled.tl")


def _lowerings(checked: Checked, target: Target) -> Lowerings:
    roles = any(isinstance(n, s.Role) for n in checked.kernel.body)
    if roles and "wgmma" in target.capabilities:
        return sm90.LOWERINGS
    return sm80.LOWERINGS if "mma m16n8k16" in target.capabilities else sm75.LOWERINGS


def _missing(n: s.Statement, target: Target) -> Diagnostic:
    rule = TABLE[type(n)]
    return Diagnostic(
        "TL701",
        f"{target.arch} has no lowering of `{rule.name}` here",
        f"remove it, or name a target whose generation has one: {rule.doc}",
        n.span,
    )

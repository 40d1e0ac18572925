"""Lowerings for sm_80 and later through sm_80's instructions: mma m16n8k16, ldmatrix, cp.async.

One lowering for each statement, under the statement's name; those of other generations (roles, rings by barrier,
asynchronous GEMM) are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_attention.errors import Diagnostic, DiagnosticError
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.statements import TABLE
from qimeng_attention.tl.traverse import statements
from qimeng_attention.tl.types import Checked
from qimeng_attention.translate.sm80 import compute, control, copy, gemm, kernel, sync
from qimeng_attention.translate.sm80.context import Lowering, Lowerings, Refused

LOWERINGS: Lowerings = {
    **kernel.LOWERINGS,
    **copy.LOWERINGS,
    **gemm.LOWERINGS,
    **compute.LOWERINGS,
    **control.LOWERINGS,
    **sync.LOWERINGS,
}


@dataclass(frozen=True)
class Emitted:
    """A kernel's source, and what its launch needs."""

    source: str
    threads: int
    shared_bytes: int


def emit(checked: Checked, target: Target, digest: str, text: str) -> Emitted:
    """Emit one kernel.

    Raises:
        DiagnosticError: TL701, with every statement that has no lowering.
    """
    low = Lowering(checked, target, lower)
    findings: list[Diagnostic] = []
    for n in statements(checked.kernel.body):
        rule = TABLE[type(n)]
        if rule.name not in LOWERINGS:
            findings.append(
                Diagnostic(
                    "TL701",
                    f"{target.arch} has no lowering of `{rule.name}` here",
                    f"remove it, or name a target whose generation has one: {rule.doc}",
                    n.span,
                )
            )
    if not findings:
        try:
            kernel.emit(low, digest)
        except Refused as refusal:
            findings.append(refusal.diagnostic)
    if findings:
        raise DiagnosticError(findings, source=text, file="scheduled.tl")
    return Emitted(low.out.text(), low.threads, low.shared_bytes)


def lower(n: s.Statement, low: Lowering) -> None:
    """Emit one statement."""
    LOWERINGS[TABLE[type(n)].name](n, low)

"""What the judge says: a verdict with everything it rests on, as one value that reads and writes JSON.

Not here: how it is reached (judge.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from qimeng_attention.judge.rule import Finding


def _written(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


# JSON has no infinity: it is written as the word `inf`, `-inf` or `nan`, and read back.
Number = Annotated[float, BeforeValidator(float), PlainSerializer(_written, when_used="json")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Frozen):
    """One output of one case against the reference, by the acceptance rule."""

    case: str
    output: str
    passed: bool
    worst_error: Number
    bound: Number
    mean_error: Number
    mean_bound: Number
    reason: str = ""
    diagnostics: tuple[dict[str, Any], ...] = ()  # of a program that the interpreter stopped

    @classmethod
    def of(cls, case: str, found: Finding) -> Check:
        """Give the check of an output that was compared."""
        return cls(case=case, **asdict(found))

    @classmethod
    def of_stop(cls, case: str, reason: str, diagnostics: Sequence[dict[str, Any]]) -> Check:
        """Give the check of a case that gave no outputs."""
        found = Finding("", False, math.inf, 0.0, math.inf, 0.0, reason)
        return cls(case=case, **asdict(found), diagnostics=tuple(diagnostics))


class PropertyResult(_Frozen):
    """One property that needs no reference values."""

    name: str
    applies: bool  # the reference itself has it
    passed: bool
    worst_error: Number = 0.0
    bound: Number = 0.0
    reason: str = ""


class ClauseResult(_Frozen):
    """One clause of the spec: the case on which a candidate that lacks it is rejected."""

    name: str
    caught_by: str | None
    implied: bool = False  # the other clauses imply it, it cannot be missed


class Verdict(_Frozen):
    """The judge's verdict on one candidate."""

    verdict: Literal["accepted", "rejected", "inconclusive"]
    reason: str
    subject: str  # the kernel's name
    where: Literal["cpu", "gpu"]
    digest: str  # of the TL text, or of the bundle
    entropy: int
    seed: int
    checks: tuple[Check, ...] = ()
    properties: tuple[PropertyResult, ...] = ()
    clauses: tuple[ClauseResult, ...] = ()
    seconds: float = 0.0
    reference: dict[str, Any] | None = None  # a user's function: its name, file's digest, and how closely it agrees

    @property
    def accepted(self) -> bool:
        """Tell whether the candidate computes what was asked."""
        return self.verdict == "accepted"

    @property
    def worst(self) -> Check | None:
        """Give the check nearest to, or furthest beyond, its bound."""
        return max(self.checks, key=lambda c: (not c.passed, _share(c)), default=None)

    def to_json(self) -> dict[str, Any]:
        """Give all fields as JSON values."""
        return self.model_dump(mode="json")

    def row(self, case: dict[str, Any]) -> dict[str, Any]:
        """Give the row of a correctness table: case, verdict, number of checks, worst error and its bound."""
        worst = self.worst
        return {
            "case": case,
            "verdict": self.verdict,
            "checks": len(self.checks) + sum(p.applies for p in self.properties),
            "worst_error": _written(worst.worst_error) if worst else 0.0,
            "bound": _written(worst.bound) if worst else 0.0,
        }


def _share(c: Check) -> float:
    if not c.bound:
        return math.inf if c.worst_error else 0.0
    return c.worst_error / c.bound if math.isfinite(c.worst_error) else math.inf

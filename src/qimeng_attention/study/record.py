"""What came of one sample: a request, answered once by one model with one method, and every repair of that answer.

A sample keeps each attempt and how far it got, so that what holds before repair and what holds after it are counted
from the same records. A sample that ends without an answer (refused, truncated, out of budget) is a failure like any
other.

Not here: where samples are kept (samples.py), what they say together (statistics.py), the kinds of failure (kinds.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qimeng_attention.study.requests import Stratum

Method = Literal["two-stage", "one-stage", "cot", "vanilla", "translated"]
Gate = Literal["parses", "checks", "schedules", "compiles", "interprets", "judged"]
Outcome = Literal["passed", "failed", "not run", "not asked"]
METHODS: tuple[Method, ...] = get_args(Method)
GATES: tuple[Gate, ...] = get_args(Gate)  # in the order of tables
MOST_REPAIRS = 3
Key: TypeAlias = tuple[str, str, str, int, int]  # request, method, model, round, sample


class Attempt(BaseModel):
    """One answer and how far it got; the first of a sample is the one before repair.

    `outcomes` names the gates that the method has, in the order in which an answer meets them: a gate left out is not
    asked (CUDA is not parsed as TL). The first refusal ends an attempt: the gates behind it were not run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcomes: dict[Gate, Outcome] = Field(default_factory=dict)
    codes: list[str] = Field(default_factory=list)  # of the findings that refused it, each once: TL205, Q300 ...
    causes: list[str] = Field(default_factory=list)  # named by whoever read it; kinds.CAUSES lists them
    fault: str = ""  # why no answer came: the kind of the client's fault
    input_tokens: int | None = None  # None: nobody knows
    output_tokens: int | None = None
    usd: float | None = None
    seconds: float = Field(default=0.0, ge=0)  # of the model and of the gates

    @model_validator(mode="after")
    def _in_order(self) -> Attempt:
        refused = False
        for gate, outcome in self.outcomes.items():
            if refused and outcome in ("passed", "failed"):
                raise ValueError(f"{gate} has an outcome behind a gate that refused")
            refused = refused or outcome == "failed"
        if self.fault and any(o in ("passed", "failed") for o in self.outcomes.values()):
            raise ValueError(f"no answer came ({self.fault}), and yet a gate has an outcome")
        return self

    def outcome(self, gate: Gate) -> Outcome:
        """Give the outcome of a gate."""
        return self.outcomes.get(gate, "not asked")

    @property
    def accepted(self) -> bool:
        """Tell whether the judge accepted it."""
        return self.outcome("judged") == "passed"

    @property
    def refused_by(self) -> Gate | None:
        """Name the gate that refused it, if one did."""
        return next((g for g in GATES if self.outcome(g) == "failed"), None)


class Sample(BaseModel):
    """One run: an answer and at most three repairs of it, without a beam and without improvement."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: str
    stratum: Stratum
    method: Method
    model: str
    sample: int = Field(ge=0)
    round: int = Field(default=1, ge=1)  # of the trial, which may ask a request again in a later one
    attempts: list[Attempt] = Field(min_length=1, max_length=1 + MOST_REPAIRS)
    target: str = ""
    judged_on: str = ""  # "cpu", or the GPU's name
    date: str = ""
    transcript: str = ""  # where everything said is kept
    taken_over: list[str] = Field(default_factory=list)  # stages whose answers are those of another method's sample

    @model_validator(mode="after")
    def _ends_once(self) -> Sample:
        if any(a.accepted for a in self.attempts[:-1]):
            raise ValueError("an attempt follows one that was accepted")
        asked = {frozenset(a.outcomes) for a in self.attempts if a.outcomes}
        if len(asked) > 1:
            raise ValueError("the attempts name different gates; name each gate of the method in all, `not run` too")
        return self

    @property
    def key(self) -> Key:
        """Name the sample: a study holds each once."""
        return (self.request, self.method, self.model, self.round, self.sample)

    @property
    def repairs(self) -> int:
        """Count the repairs it used."""
        return len(self.attempts) - 1

    @property
    def accepted(self) -> bool:
        """Tell whether it was accepted in the end."""
        return self.attempts[-1].accepted

    @property
    def accepted_before(self) -> bool:
        """Tell whether it was accepted before any repair."""
        return self.attempts[0].accepted

    def after(self, repairs: int) -> Attempt:
        """Give the attempt that stands after so many repairs: the last one, where fewer were needed or left."""
        return self.attempts[min(repairs, self.repairs)]

    def total(self, field: Literal["input_tokens", "output_tokens", "usd"]) -> float | None:
        """Add up what the attempts took; None where it is unknown for one of them."""
        values = [getattr(a, field) for a in self.attempts]
        return None if any(v is None for v in values) else sum(values)

    @property
    def minutes(self) -> float:
        """Give how long it took."""
        return sum(a.seconds for a in self.attempts) / 60


def outcomes_up_to(refused_by: Gate | None, asked: tuple[Gate, ...] = GATES) -> dict[Gate, Outcome]:
    """Give the outcomes of an attempt from the gate that refused it: passed before it, not run behind it.

    Args:
        refused_by: None where the judge accepted it.
        asked: the gates that the method has.
    """
    if refused_by is None:
        return dict.fromkeys(asked, "passed")
    place = asked.index(refused_by)
    found: dict[Gate, Outcome] = dict.fromkeys(asked[:place], "passed")
    return found | {refused_by: "failed"} | dict.fromkeys(asked[place + 1 :], "not run")


GATES_OF: Mapping[Method, tuple[Gate, ...]] = {
    "two-stage": GATES,  # the judge interprets what compiles
    "one-stage": GATES,
    "cot": ("compiles", "judged"),  # it writes CUDA
    "vanilla": ("compiles", "judged"),
    "translated": ("parses", "checks", "interprets", "compiles", "judged"),  # its TL is interpreted, its CUDA compiled
}


def plan(
    requests: Mapping[str, Any], methods: tuple[Method, ...], model: str, samples: int, round_: int = 1
) -> list[Key]:
    """List the samples of a study, sample by sample, so that one cut short has some of every request."""
    return [(r, m, model, round_, n) for n in range(samples) for m in methods for r in requests]

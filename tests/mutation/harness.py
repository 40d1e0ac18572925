"""What becomes of a mutant: refused by the checker, rejected by the judge, or alive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from mutation.mutants import Mutant, semantic
from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import QimengError
from qimeng_attention.judge import judge_program
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check_text, check_with_findings

SPEC = {"Hq": 32, "Hk": 8, "mask": "causal"}
SEED = 20261121


@dataclass(frozen=True)
class Fate:
    """A mutant's end; `by` is "checker", "judge" or "" for one that lives."""

    name: str
    family: str
    by: str
    detail: str


@cache
def shipped() -> s.Program:
    """Give the shipped causal GQA program, macros written out so that each of their statements is a place for a
    fault."""
    text = plan(AttentionSpec.make(**SPEC), targets.get("A100")).code
    return s.Program((replace(check_text(text)[0].kernel, schedule=()),))


@cache
def mutants() -> tuple[Mutant, ...]:
    """Give every semantic mutant of the shipped program."""
    return tuple(semantic(shipped()))


def fate(number: int) -> Fate:
    """Find out what becomes of a mutant."""
    mutant = mutants()[number]
    passed, findings = check_with_findings(mutant.program)
    errors = [f for f in findings if f.severity == "error"]
    if errors or not passed:
        return Fate(mutant.name, mutant.family, "checker", errors[0].code if errors else "")
    try:
        verdict = judge_program(passed[0], AttentionSpec.make(**SPEC), seed=SEED)
    except QimengError as refusal:
        return Fate(mutant.name, mutant.family, "judge", refusal.message)
    alive = verdict.verdict == "accepted"
    return Fate(mutant.name, mutant.family, "" if alive else "judge", verdict.reason)

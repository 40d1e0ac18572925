"""One answer on its way through gates: each gate takes what came of the one before, and the first refusal ends it.

Not here: the gates themselves (authoring.py for TL, cuda.py for CUDA), and how often a model is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from qimeng_attention.author.llm.methods import Language
from qimeng_attention.errors import BundleError, EnvironmentMissing, QimengError
from qimeng_attention.judge import OwnFunction
from qimeng_attention.judge.reference_process import Reference
from qimeng_attention.llm.chat import ClientFault
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import feedback
from qimeng_attention.workflow.stages import Results

# What this machine lacks, a file that somebody else wrote, and waiting are no faults of an answer.
NO_FAULT = (EnvironmentMissing, BundleError, ClientFault)


@dataclass(frozen=True)
class Truth:
    """What a kernel is judged against: a description, a function of the user's, or both."""

    spec: AttentionSpec | None = None
    function: Reference | None = None
    own: OwnFunction | None = None  # the function, once it agrees with the description
    place: str = ""  # FILE.py:FUNCTION, where the function comes from a file
    framework: str = "auto"  # what it takes


@dataclass(frozen=True)
class Attempt:
    """One answer that should hold a program, and how far it came."""

    stage: str  # "code", "repair 1"
    program: str = ""
    passed: tuple[str, ...] = ()  # gates, in order
    failed: str = ""  # the gate that refused it
    codes: tuple[str, ...] = ()  # of its findings
    findings: str = ""  # as the model is told them
    plain_schedule: bool = False  # the schedule is not the model's
    language: Language = "TL"  # of the program
    seconds: float = 0.0


Gate: TypeAlias = Callable[[Attempt, Results], tuple[Attempt, Results]]


def pass_gates(
    gates: Mapping[str, Gate], stage: str, results: Results, language: Language = "TL"
) -> tuple[Attempt, Results]:
    """Pass an answer through gates, in order, up to the first that refuses it.

    Raises:
        EnvironmentMissing, BundleError, ClientFault: what is no fault of the answer.
    """
    start, passed = time.perf_counter(), list[str]()
    attempt = Attempt(stage, language=language)
    failed, codes, findings = "", tuple[str, ...](), ""
    for gate, step in gates.items():
        try:
            attempt, results = step(attempt, results)
        except NO_FAULT:
            raise
        except QimengError as error:
            failed, codes = gate, feedback.codes_of(error)
            findings = feedback.of_error(error, results.code or attempt.program)
            break
        verdict = results.verdict
        if verdict is not None and not verdict.accepted:
            failed, codes, findings = gate, (f"judge: {verdict.verdict}",), feedback.of_verdict(verdict)
            break
        passed.append(gate)
    spent = time.perf_counter() - start
    return replace(attempt, passed=tuple(passed), failed=failed, codes=codes, findings=findings, seconds=spent), results

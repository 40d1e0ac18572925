"""A kernel by a language model: ask, pass what comes through every gate, tell what was found, and ask again.

One sample is one conversation: the prompts of a method, then at most so many repairs. Nothing is mended behind the
model's back: what it wrote goes through the gates as it stands, and a schedule that it left out is the trivial one.

Not here: prompts (author/llm), clients (llm), running samples of many requests (study).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from qimeng_attention.author.llm import render
from qimeng_attention.author.llm.answers import NoProgram, program_of
from qimeng_attention.author.llm.methods import Method
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.build import Cache
from qimeng_attention.errors import EnvironmentMissing, QimengError
from qimeng_attention.judge import OwnFunction, Verdict, judge_function, judge_program
from qimeng_attention.judge.reference_process import Reference
from qimeng_attention.llm.chat import Client, Message, Reply, Request
from qimeng_attention.schedule import REWRITINGS
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.parser import parse
from qimeng_attention.workflow import feedback, stages
from qimeng_attention.workflow.stages import Results

REPAIRS = 3
GATES = ("answer", "parse", "check", "schedule", "translate", "build", "judge")
_PLAINEST = "\nSchedule\n    warps 4 along q  # the author left the schedule out\n"


@dataclass(frozen=True)
class Truth:
    """What a kernel is judged against: a description, a function of the user's, or both."""

    spec: AttentionSpec | None = None
    function: Reference | None = None
    own: OwnFunction | None = None  # the function, once it agrees with the description


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
    seconds: float = 0.0


@dataclass
class Sample:
    """One conversation: what was said, what came of each answer, and the stages' results where one passed."""

    messages: tuple[Message, ...] = ()  # of the last stage and its repairs
    attempts: list[Attempt] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    sketch: str = ""
    results: Results | None = None
    verdict: Verdict | None = None

    @property
    def solved(self) -> bool:
        """Tell whether the last answer passed every gate."""
        return bool(self.attempts) and not self.attempts[-1].failed

    @property
    def repairs(self) -> int:
        """Count the repairs that were asked for."""
        return sum(a.stage.startswith("repair") for a in self.attempts)


def write_sample(
    wanted: Wanted,
    truth: Truth,
    client: Client,
    results: Results,
    method: Method,
    *,
    number: int = 0,
    repairs: int = REPAIRS,
    cache: Cache | None = None,
    report: Callable[[Attempt], None] | None = None,
) -> Sample:
    """Ask for one kernel and repair it.

    Args:
        wanted: the operator and the kernel's face.
        truth: what it is judged against.
        client: who answers.
        results: a target and an architecture, and nothing else yet.
        method: which prompts.
        number: of the sample: clients that record tell samples of one request apart by it.
        repairs: how often a refused program is asked for again, at most.
        cache: of cubins.
        report: called after each answer.

    Raises:
        ClientFault: no answer came.
    """
    sample = Sample()
    for before in method.stages[:-1]:
        reply = _ask(sample, client, render.sketch_prompt(wanted), before, number)
        sample.sketch = _sketch_of(reply.text)
        sample.messages = ()  # the next prompt holds the sketch: what led to it need not be paid for again
    stage: str = method.stages[-1]
    prompt = _last_prompt(wanted, results, sample)
    for left in range(repairs, -1, -1):
        reply = _ask(sample, client, prompt, stage, number)
        attempt, found = try_answer(reply.text, results, truth, stage, cache)
        sample.attempts.append(attempt)
        sample.results, sample.verdict = found, found.verdict
        if report is not None:
            report(attempt)
        if not attempt.failed or not left:
            break
        stage, prompt = f"repair {repairs - left + 1}", render.repair_prompt(attempt.failed, attempt.findings)
    return sample


def _ask(sample: Sample, client: Client, prompt: str, stage: str, number: int) -> Reply:
    """Add a turn to the conversation, and the answer."""
    sample.messages = (*sample.messages, Message("user", prompt))
    reply = client.complete(Request(sample.messages, stage, number))
    sample.messages = (*sample.messages, Message("assistant", reply.text))
    sample.replies.append(reply)
    return reply


def _sketch_of(text: str) -> str:
    """Give the sketch of an answer; an answer without one is passed on whole, for the model to see in its second."""
    try:
        return program_of(text)
    except NoProgram:
        return ""


def _last_prompt(wanted: Wanted, results: Results, sample: Sample) -> str:
    return render.code_prompt(wanted, results.target, list(REWRITINGS.values()), sample.sketch)


# ------------------------------------------------------------------ gates


def try_answer(
    text: str, results: Results, truth: Truth, stage: str, cache: Cache | None = None
) -> tuple[Attempt, Results]:
    """Pass an answer through every gate, up to the first that refuses it."""
    start, passed = time.perf_counter(), list[str]()
    attempt, found = Attempt(stage), results

    def ended(gate: str, codes: tuple[str, ...], findings: str) -> tuple[Attempt, Results]:
        spent = time.perf_counter() - start
        return replace(attempt, passed=tuple(passed), failed=gate, codes=codes, findings=findings, seconds=spent), found

    for gate in GATES:
        try:
            if gate == "answer":
                program = program_of(text)
                attempt = replace(attempt, program=program)
            elif gate == "parse":
                plain = not any(k.schedule for k in parse(attempt.program, "code.tl").kernels)
                code = attempt.program + (_PLAINEST if plain else "")
                found = replace(found, code=code, reasons={"author": "llm", "reasons": []})
                attempt = replace(attempt, plain_schedule=plain)
            elif gate == "judge":
                found = replace(found, verdict=_judged(found, truth))
                if not found.verdict.accepted:
                    return ended(gate, (f"judge: {found.verdict.verdict}",), feedback.of_verdict(found.verdict))
            else:
                found = _STEPS[gate](found, cache)
        except EnvironmentMissing:
            raise  # what this machine lacks is no fault of the answer
        except QimengError as error:
            return ended(gate, feedback.codes_of(error), feedback.of_error(error, found.code or attempt.program))
        passed.append(gate)
    return ended("", (), "")


_STEPS: dict[str, Callable[[Results, Cache | None], Results]] = {
    "check": lambda r, _: stages.check_code(r),
    "schedule": lambda r, _: stages.apply_schedule(r),
    "translate": lambda r, _: stages.to_cute(r),
    "build": stages.to_cubin,
}


def _judged(results: Results, truth: Truth) -> Verdict:
    """Judge the scheduled program on the CPU."""
    entropy = secrets.randbits(32)
    if truth.spec is not None:
        return judge_program(results.kernels, truth.spec, seed=entropy, own=truth.own)
    assert truth.function is not None
    return judge_function(results.kernels, truth.function, seed=entropy)

"""A kernel by a language model: ask, pass what comes through every gate, tell what was found, and ask again.

One sample is one conversation: the prompts of a method, then at most so many repairs. Nothing is mended behind the
model's back: what it wrote goes through the gates as it stands, and a schedule that it left out is the trivial one.

Not here: prompts (author/llm), gates of CUDA (cuda.py), clients (llm), running samples of many requests (study).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from qimeng_attention.author.llm import render
from qimeng_attention.author.llm.answers import NoProgram, clean, program_of
from qimeng_attention.author.llm.methods import Method
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.build import Cache
from qimeng_attention.errors import QimengError, SpecError
from qimeng_attention.judge import Verdict, judge_function, judge_program
from qimeng_attention.llm.chat import Client, Message, Reply, Request
from qimeng_attention.schedule import REWRITINGS
from qimeng_attention.tl.parser import parse
from qimeng_attention.workflow import feedback, stages
from qimeng_attention.workflow.attempts import Attempt, Gate, Truth, pass_gates
from qimeng_attention.workflow.cuda import refuse_other_arguments, try_cuda
from qimeng_attention.workflow.gpu import OnGpu
from qimeng_attention.workflow.stages import Results

__all__ = ["REPAIRS", "Attempt", "Sample", "Truth", "try_answer", "write_sample"]

REPAIRS = 3
MOST_SKETCH = 20_000  # characters of a text without a program that are passed on as a sketch
_PLAINEST = "\nSchedule\n    warps 4 along q  # the author left the schedule out\n"


@dataclass
class Sample:
    """One conversation: what was said, what came of each answer, and the stages' results where one passed."""

    messages: tuple[Message, ...] = ()  # of the last stage and its repairs
    attempts: list[Attempt] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    sketch: str = ""
    sketch_finding: str = ""  # what the parser says of a sketch that is no TL
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
    gpu: OnGpu | None = None,
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
        gpu: where kernels are judged that no CPU can judge: those of a method whose answers are CUDA.

    Raises:
        ClientFault: no answer came, or (Waiting) a kernel waits for a GPU.
        SpecError: the method needs a GPU's verdicts, and `gpu` is None.
    """
    if method.language == "CUDA":
        _require_gpu(method, gpu)
        refuse_other_arguments(truth.spec)
    sample = Sample()
    for before in method.stages[:-1]:
        reply = _ask(sample, client, render.sketch_prompt(wanted), before, number)
        sample.sketch, sample.sketch_finding = _sketch_of(reply.text)
        sample.messages = ()  # the next prompt holds the sketch: what led to it need not be paid for again
    stage: str = method.stages[-1]
    prompt = _last_prompt(wanted, results, sample, method)
    for left in range(repairs, -1, -1):
        reply = _ask(sample, client, prompt, stage, number)
        if method.language == "CUDA" and gpu is not None:
            attempt, found = try_cuda(reply.text, wanted, results, truth, stage, gpu, cache)
        else:
            attempt, found = try_answer(reply.text, results, truth, stage, cache)
        sample.attempts.append(attempt)
        sample.results, sample.verdict = found, found.verdict
        if report is not None:
            report(attempt)
        if not attempt.failed or not left:
            break
        stage = f"repair {repairs - left + 1}"
        prompt = render.repair_prompt(attempt.failed, attempt.findings, method.fence)
    return sample


def _require_gpu(method: Method, gpu: OnGpu | None) -> None:
    if gpu is None:
        raise SpecError(
            f"method '{method.name}' writes CUDA, which only a GPU can judge",
            hint="name the folder in which kernels wait for a GPU",
            field="method",
            value=method.name,
        )


def _ask(sample: Sample, client: Client, prompt: str, stage: str, number: int) -> Reply:
    """Add a turn to the conversation, and the answer."""
    sample.messages = (*sample.messages, Message("user", prompt))
    reply = client.complete(Request(sample.messages, stage, number))
    sample.messages = (*sample.messages, Message("assistant", reply.text))
    sample.replies.append(reply)
    return reply


def _sketch_of(text: str) -> tuple[str, str]:
    """Give the sketch of an answer, and what is wrong with it.

    One that is no TL is passed on, with the parser's words: the method stays two-stage, and no repair is spent on what
    the code's gates will see again. One without a block is passed on whole.
    """
    try:
        sketch = program_of(text)
        parse(sketch, "sketch.tl")
    except NoProgram as none:
        return clean(text)[:MOST_SKETCH], none.message
    except QimengError as error:
        return sketch[:MOST_SKETCH], feedback.of_error(error, sketch)
    return sketch, ""


def _last_prompt(wanted: Wanted, results: Results, sample: Sample, method: Method) -> str:
    if method.language == "CUDA":
        return render.cuda_prompt(wanted, results.target, steps=method.steps)
    return render.code_prompt(wanted, results.target, list(REWRITINGS.values()), sample.sketch, sample.sketch_finding)


# ------------------------------------------------------------------ gates


def try_answer(
    text: str, results: Results, truth: Truth, stage: str, cache: Cache | None = None
) -> tuple[Attempt, Results]:
    """Pass an answer in TL through every gate, up to the first that refuses it."""

    def answer(attempt: Attempt, found: Results) -> tuple[Attempt, Results]:
        return replace(attempt, program=program_of(text)), found

    def judge(attempt: Attempt, found: Results) -> tuple[Attempt, Results]:
        return attempt, replace(found, verdict=_judged(found, truth))

    steps: dict[str, Gate] = {
        "answer": answer,
        "parse": _parsed,
        "check": lambda a, r: (a, stages.check_code(r)),
        "schedule": lambda a, r: (a, stages.apply_schedule(r)),
        "translate": lambda a, r: (a, stages.to_cute(r)),
        "build": lambda a, r: (a, stages.to_cubin(r, cache)),
        "judge": judge,
    }
    return pass_gates(steps, stage, results)


def with_schedule(program: str) -> tuple[str, bool]:
    """Give a program with a schedule, and whether it is the plainest one, which was added.

    Raises:
        DiagnosticError: it does not parse.
    """
    plain = not any(k.schedule for k in parse(program, "code.tl").kernels)
    return program + (_PLAINEST if plain else ""), plain


def _parsed(attempt: Attempt, results: Results) -> tuple[Attempt, Results]:
    code, plain = with_schedule(attempt.program)
    made = replace(results, code=code, reasons={"author": "llm", "reasons": []})
    return replace(attempt, plain_schedule=plain), made


def _judged(results: Results, truth: Truth) -> Verdict:
    """Judge the scheduled program on the CPU."""
    entropy = secrets.randbits(32)
    if truth.spec is not None:
        return judge_program(results.kernels, truth.spec, seed=entropy, own=truth.own)
    assert truth.function is not None
    return judge_function(results.kernels, truth.function, seed=entropy)

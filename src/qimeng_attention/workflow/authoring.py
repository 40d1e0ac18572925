"""A kernel by a language model: ask, pass what comes through every gate, tell what was found, and ask again.

One sample is the prompts of a method and at most so many repairs, over all of its stages. Nothing is mended behind the
model's back: what it wrote goes through the gates as it stands, and a schedule that it left out is the trivial one.

Not here: prompts (author/llm), gates of CUDA (cuda.py), clients (llm), running samples of many requests (study).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from qimeng_attention.author.llm import render
from qimeng_attention.author.llm.answers import NoProgram, clean, program_of
from qimeng_attention.author.llm.methods import Method, Stage
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

__all__ = ["REPAIRS", "Attempt", "Sample", "Truth", "try_answer", "try_meaning", "write_sample"]

REPAIRS = 3
MOST_SKETCH = 20_000  # characters of a text without a block that are passed on
_PLAINEST = "\nSchedule\n    warps 4 along q  # the author left the schedule out\n"


@dataclass
class Sample:
    """One conversation: what was said, what came of each answer, and the stages' results where one passed."""

    messages: tuple[Message, ...] = ()  # of the last conversation: a program asked for, and its repairs
    attempts: list[Attempt] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    sketch: str = ""
    sketch_finding: str = ""  # what the parser says of a sketch that is no TL
    code: str = ""  # in TL, as the model wrote it, once it passed
    atoms: str = ""  # the instructions that a translation begins with
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
    sample, left = Sample(), repairs
    for part in method.parts:
        for before in part[:-1]:
            sample.messages = ()  # each prompt holds what it needs: what led to it need not be paid for again
            reply = _ask(sample, client, _prompt(before, wanted, results, sample), before.name, number)
            _keep(sample, before, reply.text)
        sample.messages = ()
        gates = _gates_of(part[-1], part[-1] is method.stages[-1], wanted, results, truth, gpu, cache)
        prompt = _prompt(part[-1], wanted, results, sample, steps=method.steps)
        left = _until_passed(sample, client, part[-1], prompt, gates, (left, repairs), number, report)
        if not sample.solved:
            break
        _keep(sample, part[-1], sample.attempts[-1].program)
    return sample


Try = Callable[[str, str], tuple[Attempt, Results]]  # an answer and its stage's name, to what came of it


def _until_passed(
    sample: Sample,
    client: Client,
    stage: Stage,
    prompt: str,
    gates: Try,
    repairs: tuple[int, int],
    number: int,
    report: Callable[[Attempt], None] | None,
) -> int:
    """Ask for a whole program until one passes or no repair is left.

    Args:
        sample: to which attempts are added.
        client: who answers.
        stage: what is asked for.
        prompt: that asks for it first.
        gates: what an answer is passed through.
        repairs: how many are left of how many, over all stages.
        number: of the sample.
        report: called after each answer.

    Returns:
        how many repairs are left.
    """
    left, most = repairs
    name: str = stage.name
    while True:
        reply = _ask(sample, client, prompt, name, number)
        attempt, found = gates(reply.text, name)
        sample.attempts.append(attempt)
        sample.results, sample.verdict = found, found.verdict
        if report is not None:
            report(attempt)
        if not attempt.failed or not left:
            return left
        name, left = f"repair {most - left + 1}", left - 1
        gate = "judge" if attempt.failed == "interpret" else attempt.failed
        prompt = render.repair_prompt(gate, attempt.findings, stage.fence)


def _gates_of(
    stage: Stage, last: bool, wanted: Wanted, results: Results, truth: Truth, gpu: OnGpu | None, cache: Cache | None
) -> Try:
    """Give what an answer of a stage is passed through."""
    if stage.language == "CUDA":
        assert gpu is not None
        return lambda text, name: try_cuda(text, wanted, results, truth, name, gpu, cache)
    if last:
        return lambda text, name: try_answer(text, results, truth, name, cache)
    return lambda text, name: try_meaning(text, results, truth, name)


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


def _keep(sample: Sample, stage: Stage, text: str) -> None:
    """Keep what later prompts hold of an answer."""
    if stage.name == "sketch":
        sample.sketch, sample.sketch_finding = _sketch_of(text)
    elif stage.name == "atoms":
        sample.atoms = _block_of(text, stage.fence, "cpp", "c++").replace("```", "")
    elif stage.name == "code":
        sample.code = text


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


def _block_of(text: str, *fences: str) -> str:
    """Give the block of an answer; one without a block is passed on whole: the method keeps its stages."""
    for fence in fences:
        with suppress(NoProgram):
            return program_of(text, fence)
    return clean(text)[:MOST_SKETCH]


def _prompt(stage: Stage, wanted: Wanted, results: Results, sample: Sample, *, steps: bool = False) -> str:
    """Ask for a stage's answer."""
    target, arch = results.target, results.arch
    if stage.name == "sketch":
        return render.sketch_prompt(wanted)
    if stage.name == "atoms":
        return render.atoms_prompt(wanted, target, arch, sample.code)
    if stage.name == "translation":
        return render.translation_prompt(wanted, target, arch, sample.code, sample.atoms)
    if stage.language == "CUDA":
        return render.cuda_prompt(wanted, target, steps=steps)
    return render.code_prompt(wanted, target, list(REWRITINGS.values()), sample.sketch, sample.sketch_finding)


# ------------------------------------------------------------------ gates


def try_answer(
    text: str, results: Results, truth: Truth, stage: str, cache: Cache | None = None
) -> tuple[Attempt, Results]:
    """Pass an answer in TL through every gate, up to the first that refuses it."""

    def answer(attempt: Attempt, found: Results) -> tuple[Attempt, Results]:
        return replace(attempt, program=program_of(text)), found

    def judge(attempt: Attempt, found: Results) -> tuple[Attempt, Results]:
        return attempt, replace(found, verdict=judge_on_cpu(found, truth))

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


def try_meaning(text: str, results: Results, truth: Truth, stage: str) -> tuple[Attempt, Results]:
    """Pass an answer in TL through the gates that ask what it means; how it runs fast is left to who translates it."""

    def answer(attempt: Attempt, found: Results) -> tuple[Attempt, Results]:
        return replace(attempt, program=program_of(text)), found

    def parsed(attempt: Attempt, found: Results) -> tuple[Attempt, Results]:
        parse(attempt.program, "code.tl")
        return attempt, replace(found, code=attempt.program)

    def interpret(attempt: Attempt, found: Results) -> tuple[Attempt, Results]:
        return attempt, replace(found, verdict=judge_on_cpu(found, truth))

    steps: dict[str, Gate] = {
        "answer": answer,
        "parse": parsed,
        "check": lambda a, r: (a, stages.check_code(r)),
        "interpret": interpret,
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


def judge_on_cpu(results: Results, truth: Truth) -> Verdict:
    """Judge the program on the CPU.

    The seed follows from the text: no author can aim at it, and a run begun again tells the model the same words, so
    that the answer to them is found.
    """
    entropy = int.from_bytes(hashlib.sha256(results.code.encode()).digest()[:4], "big")
    if truth.spec is not None:
        return judge_program(results.kernels, truth.spec, seed=entropy, own=truth.own)
    assert truth.function is not None
    return judge_function(results.kernels, truth.function, seed=entropy)

"""From words, a function, or a description, to a bundle whose program a language model wrote.

A run is a folder: `transcript.jsonl` holds everything said and what came of it, and a run begun again there asks
nothing twice. The person who asked sees what the words were taken to mean before anything is made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from qimeng_attention.author.llm.methods import Method, method
from qimeng_attention.author.llm.understanding import Understood
from qimeng_attention.build import Cache
from qimeng_attention.errors import SpecError
from qimeng_attention.judge import Place, open_reference
from qimeng_attention.llm.chat import Client, Waiting
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.store import refuse_existing
from qimeng_attention.workflow import stages
from qimeng_attention.workflow.authoring import REPAIRS, Attempt, Sample, Truth, write_sample
from qimeng_attention.workflow.from_function import FunctionAsked, understand_function
from qimeng_attention.workflow.generate import Outcome, save
from qimeng_attention.workflow.gpu import OnGpu
from qimeng_attention.workflow.judgement import agreeing
from qimeng_attention.workflow.request import understand_words, wanted_of
from qimeng_attention.workflow.stages import Results


@dataclass(frozen=True)
class Asked:
    """What a person asks a model for: words, a function or a description, and how it is to be made."""

    words: str = ""
    spec: AttentionSpec | None = None
    function: FunctionAsked | None = None  # instead of words: it is also the reference
    target: str | None = None  # None: the words', else the GPU that is present
    arch: str | None = None
    reference: Place | None = None
    framework: str = "auto"
    method: str = "two-stage"
    repairs: int = REPAIRS
    samples: int = 1


@dataclass
class Made:
    """What a run gave: what was understood, every sample, and the outcome of the best one."""

    understood: Understood
    samples: list[Sample] = field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def best(self) -> Sample | None:
        """Give the solved sample whose kernels spill least, then the one with fewest repairs."""
        solved = [s for s in self.samples if s.solved]
        return min(solved, key=lambda s: (_spills(s), s.repairs), default=None)


def _spills(sample: Sample) -> int:
    builds = sample.results.builds if sample.results else ()
    return sum(b.report.spill_store_bytes or 0 for b in builds)


def generate_with_model(
    asked: Asked,
    client: Client,
    *,
    confirm: Callable[[Understood, str], bool],
    out: str | Path | None = None,
    overwrite: bool = False,
    cache: Cache | None = None,
    report: Callable[[int, Attempt], None] | None = None,
    gpu: OnGpu | None = None,
    refine: Callable[[Results, Truth], Results] | None = None,
) -> Made:
    """Let a model write a kernel.

    Args:
        asked: words or a description, the GPU, the method.
        client: who answers.
        confirm: shown what was understood and the GPU's name; nothing is made if it gives False.
        out: the bundle's folder.
        overwrite: replace a bundle that is there.
        cache: of cubins.
        report: called after each answer, with the sample's number.
        gpu: where kernels of a method that writes CUDA are judged.
        refine: makes the best sample's program faster, before its bundle is written.

    Raises:
        SpecError: nothing that could be made is asked for, or what no description says comes without a function.
        ClientFault: no answer came.
        JudgeError: the user's function does something wrong, or differs from the description.
    """
    way = method(asked.method)
    understood = _understand(asked, client)
    if understood.beyond and asked.reference is None:
        raise SpecError(
            "no description can say this operator, and nothing tells what is right",
            hint="give a function that computes it: --reference FILE.py:FUNCTION",
            field="reference",
            value=None,
        )
    results = Results(*stages.find_target(asked.target or understood.target or "auto", asked.arch))
    if out is not None:
        refuse_existing(Path(out).absolute(), overwrite)
    made = Made(understood)
    if not confirm(understood, results.target.name):
        return made
    with ExitStack() as stack:
        truth = _truth(asked, understood, stack)
        _write_samples(made, asked, way, client, results, truth, cache, report, gpu)
        _keep(made, truth, out, overwrite, refine)
    return made


def _understand(asked: Asked, client: Client) -> Understood:
    if asked.function is not None:
        return understand_function(asked.function, client)
    if asked.spec is None:
        return understand_words(asked.words, client)
    return Understood(asked.words, asked.spec, asked.target, "given as a description")


def _truth(asked: Asked, understood: Understood, stack: ExitStack) -> Truth:
    """Open what kernels are judged against; a function beside a description must agree with it."""
    place = asked.reference if isinstance(asked.reference, str) else ""
    if understood.beyond:
        assert asked.reference is not None
        function = stack.enter_context(open_reference(asked.reference, asked.framework))
        return Truth(
            function=function,
            place=place,
            framework=asked.framework,
        )
    own = stack.enter_context(agreeing(asked.reference, understood.spec, asked.framework))
    return Truth(spec=understood.spec, own=own, place=place, framework=asked.framework)


def _write_samples(
    made: Made,
    asked: Asked,
    way: Method,
    client: Client,
    results: Results,
    truth: Truth,
    cache: Cache | None,
    report: Callable[[int, Attempt], None] | None,
    gpu: OnGpu | None,
) -> None:
    """Write every sample; where answers are awaited, every prompt is written before the run stops."""
    wanted = wanted_of(made.understood)
    waiting: list[Waiting] = []
    for number in range(asked.samples):
        told = (lambda a, n=number: report(n, a)) if report is not None else None
        settings = {"number": number, "repairs": asked.repairs, "cache": cache, "report": told, "gpu": gpu}
        try:
            made.samples.append(write_sample(wanted, truth, client, results, way, **settings))  # type: ignore[arg-type]
        except Waiting as fault:
            waiting.append(fault)
    if waiting:
        raise waiting[0]


def _keep(
    made: Made,
    truth: Truth,
    out: str | Path | None,
    overwrite: bool,
    refine: Callable[[Results, Truth], Results] | None,
) -> None:
    """Write the best sample's bundle."""
    best = made.best
    if best is None or best.results is None:
        return
    results = stages.with_author(best.results, truth.spec, best.sketch, _reasons(best))
    made.outcome = Outcome(results if refine is None else refine(results, truth))
    made.outcome.folder = save(made.outcome, out, overwrite)


def _reasons(sample: Sample) -> dict[str, object]:
    """Say who wrote the program, and which of its lines are not the author's."""
    last = sample.attempts[-1]
    added = ["Schedule: warps 4 along q"] if last.plain_schedule else []
    translated = last.language == "CUDA" and sample.code
    return {
        "author": sample.replies[-1].model,
        **({"translated from": sample.code, "instructions": sample.atoms} if translated else {}),
        "repairs": sample.repairs,
        "not the author's": added,
        **({"sketch": f"no TL: {sample.sketch_finding.splitlines()[0]}"} if sample.sketch_finding else {}),
        "reasons": [],
        "failed before": [
            {"stage": a.stage, "gate": a.failed, "codes": list(a.codes)} for a in sample.attempts if a.failed
        ],
    }

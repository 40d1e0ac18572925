"""A study that runs: each sample of a plan is asked for, passed through the gates, repaired, and recorded.

One sample is one conversation with at most three repairs, without a beam. A client that waits for somebody's answer
leaves its sample for the next run; every other sample is asked first, so that one round of answers serves all.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from qimeng_attention.author.llm.methods import METHODS
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.build import Cache
from qimeng_attention.judge import open_reference
from qimeng_attention.llm.budget import Budget
from qimeng_attention.llm.chat import Client, ClientFault, Reply, Request, Waiting
from qimeng_attention.llm.clients import careful, open_client
from qimeng_attention.llm.transcript import Transcript
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.study.record import GATES_OF, Attempt, Gate, Key, Sample, outcomes_up_to
from qimeng_attention.study.requests import StudyRequest
from qimeng_attention.study.samples import SampleStore
from qimeng_attention.study.taken_over import TAKEN_OVER, Earlier, TakenOver
from qimeng_attention.workflow import authoring
from qimeng_attention.workflow.authoring import Truth
from qimeng_attention.workflow.gpu import OnGpu
from qimeng_attention.workflow.stages import Results, find_target

T = TypeVar("T", int, float)
Said: TypeAlias = tuple[str, Reply]  # a stage and its answer
SAME_PROMPTS = {"translated": "two-stage"}  # a method, and the one whose stages in TL it begins with
_GATE_OF: dict[str, Gate] = {
    "answer": "parses",
    "parse": "parses",
    "check": "checks",
    "interpret": "interprets",
    "schedule": "schedules",
    "translate": "compiles",
    "build": "compiles",
    "judge": "judged",
}
_GATE_OF_CUDA: dict[str, Gate] = {
    "answer": "compiles",
    "includes": "compiles",
    "launch": "compiles",
    "build": "compiles",
    "judge": "judged",
}


@dataclass(frozen=True)
class Trial:
    """What all samples of a study share."""

    requests: dict[str, StudyRequest]
    store: SampleStore
    client_of: Callable[[Key], Client]  # a client of its own for each sample: its transcript, its folder
    judged_on: str = "cpu"  # TL
    gpu: OnGpu | None = None  # where kernels in CUDA wait for a GPU
    gpu_name: str = ""  # of the GPU that judges them
    gpu_arch: str | None = None  # what they are built for, where that is not the request's GPU
    cache: Cache | None = None


def run_study(trial: Trial, planned: Iterable[Key], report: Callable[[Key, Sample | None], None]) -> list[Key]:
    """Run what of a plan has no sample yet; give the samples that wait for an answer.

    Args:
        trial: requests, where samples go, who answers.
        planned: the samples' keys, in order.
        report: called after each, with None for a sample that waits.

    Raises:
        SpecError: a request or a method is unknown.
        EnvironmentMissing: this machine cannot compile or run references.
    """
    waiting = []
    for key in trial.store.missing(planned):
        sample = run_sample(trial, key)
        if sample is None:
            waiting.append(key)
        else:
            trial.store.record(sample)
        report(key, sample)
    return waiting


def run_sample(trial: Trial, key: Key) -> Sample | None:
    """Run one sample; None where its next answer, or the verdict of a GPU, is not there yet."""
    name, method, model, round_, number = key
    in_cuda = METHODS[method].language == "CUDA"
    request = trial.requests[name]
    results = Results(*find_target(request.target, trial.gpu_arch if in_cuda else None))
    attempts: list[authoring.Attempt] = []
    said: list[Said] = []
    fault = ""
    client = trial.client_of(key)
    with ExitStack() as stack:
        function = stack.enter_context(open_reference(request.reference))
        if isinstance(client, _WithTranscript):
            stack.callback(client.close)
        try:
            authoring.write_sample(
                wanted_of(request),
                Truth(function=function, place=request.reference),
                _Listening(client, said),
                results,
                METHODS[method],
                number=number,
                cache=trial.cache,
                report=attempts.append,
                gpu=trial.gpu,
            )
        except Waiting:
            return None
        except ClientFault as caught:
            fault = caught.kind
    return Sample(
        request=name,
        stratum=request.stratum,
        method=method,  # type: ignore[arg-type]
        model=model,
        sample=number,
        round=round_,
        attempts=_attempts(attempts, said, fault, GATES_OF[method]),  # type: ignore[index]
        target=request.target,
        judged_on=trial.gpu_name if in_cuda else trial.judged_on,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        taken_over=[stage for stage, reply in said if TAKEN_OVER in reply.facts],
    )


def wanted_of(request: StudyRequest) -> Wanted:
    """Give what the author is asked to write: the words as they stand, and the kernel's face."""
    dims = (request.head_dims["Dqk"], request.head_dims["Dv"])
    tensors = tuple(f"{kernel_name(n)} in global ({', '.join(t.dims)}) {t.dtype}" for n, t in request.tensors.items())
    return Wanted(request.words.strip(), request.name, dims, request.dtype, tensors, "LSE" in request.outputs)


class _Listening:
    """A client that keeps the replies that came, whatever becomes of the sample."""

    def __init__(self, client: Client, said: list[Said]) -> None:
        self.name, self._client, self._said = client.name, client, said

    def complete(self, request: Request) -> Reply:
        reply = self._client.complete(request)
        self._said.append((request.stage, reply))
        return reply


def _attempts(made: list[authoring.Attempt], said: list[Said], fault: str, asked: tuple[Gate, ...]) -> list[Attempt]:
    """Write attempts as a study keeps them: what stood after so many repairs.

    Answers before a program (a sketch, a choice of instructions) count to its attempt, and TL that passed counts to the
    attempt that translates it.
    """
    found, left, together, replies = list[Attempt](), list(said), list[authoring.Attempt](), list[Reply]()
    for one in made:
        end = next(n for n, (stage, _) in enumerate(left, 1) if stage == one.stage)
        together, replies = [*together, one], [*replies, *(reply for _, reply in left[:end])]
        left = left[end:]
        if one.failed or "judge" in one.passed:
            found.append(_attempt(together, replies, asked))
            together, replies = [], []
    if not fault:
        return found
    unanswered = Attempt(outcomes=dict.fromkeys(asked, "not run"), fault=fault)
    paid = [*replies, *(reply for _, reply in left)]  # a sketch that no program followed, TL without a translation
    return [*found, unanswered.model_copy(update=_spent(paid, sum(one.seconds for one in together)))]


def _attempt(together: list[authoring.Attempt], said: list[Reply], asked: tuple[Gate, ...]) -> Attempt:
    one = together[-1]
    gates = _GATE_OF if one.language == "TL" else _GATE_OF_CUDA
    refused = gates[one.failed] if one.failed else None
    if refused == "judged" and one.language == "TL" and "the interpreter stopped" in one.findings:
        refused = "interprets"
    return Attempt(
        outcomes=outcomes_up_to(refused, asked),
        codes=[_code(one, code) for code in one.codes],
        **_spent(said, sum(a.seconds for a in together)),
    )


def _spent(said: list[Reply], seconds: float = 0.0) -> dict[str, Any]:
    """Add up what answers took, and the gates behind them."""
    return {
        "input_tokens": _sum([r.usage.input_tokens for r in said]),
        "output_tokens": _sum([r.usage.output_tokens for r in said]),
        "usd": _sum([r.usage.usd for r in said]),
        "seconds": seconds + sum(r.seconds for r in said),
    }


def _code(one: authoring.Attempt, code: str) -> str:
    """Name a rejection by what the judge saw."""
    if code != "judge: rejected":
        return code.removeprefix("judge: ")
    if "which is nan" in one.findings:
        return "rejected: NaN"
    return "rejected: infinity" if "which is inf" in one.findings or "which is -inf" in one.findings else "rejected"


def _sum(values: list[T | None]) -> T | None:
    known = [v for v in values if v is not None]
    return sum(known) if values and len(known) == len(values) else None


def requests_by_name(requests: Iterable[StudyRequest]) -> dict[str, StudyRequest]:
    """Give requests by their names."""
    return {r.name: r for r in requests}


def recorded_client(author: str, folder: Path, budget: Budget, reuse: Path | None = None) -> Callable[[Key], Client]:
    """Give each sample a client that writes its own transcript; a folder for answers has one of its own below it too.

    A sample of a method whose first stages are those of another one goes on from that one's answers.

    Args:
        author: as `--author` names it.
        folder: of transcripts.
        budget: of all of them.
        reuse: the folder of transcripts to go on from; `folder` if None.

    Raises:
        SpecError: there is no such client.
        EnvironmentMissing: a provider's library or key is missing.
    """

    def client_of(key: Key) -> Client:
        path = transcript_of(folder, key)
        kind, _, place = author.partition(":")
        name = f"file:{Path(place) / path.parent.name / path.stem}" if kind == "file" else author
        transcript = Transcript(path, words=" ".join(map(str, key)))
        client: Client = careful(open_client(name), transcript, budget)
        if (source := SAME_PROMPTS.get(key[1])) is None:
            return _WithTranscript(client, transcript)
        request, _, model, round_, number = key
        earlier = Earlier(transcript_of(reuse or folder, (request, source, model, round_, number)), name)
        return _WithTranscript(TakenOver(client, transcript, earlier), transcript)

    return client_of


class _WithTranscript:
    """A client whose transcript others may write, or read to its end, once the sample is over."""

    def __init__(self, client: Client, transcript: Transcript) -> None:
        self.name, self.complete, self.close = client.name, client.complete, transcript.close


def transcript_of(folder: Path, key: Key) -> Path:
    """Say where a sample's transcript lies."""
    request, method, _, round_, number = key
    return folder / f"round{round_}" / method / f"{request}-s{number}.jsonl"

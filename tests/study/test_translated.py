"""A study of translation by the model: one record over both languages, and answers taken over from two-stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qimeng_attention.judge import Verdict
from qimeng_attention.llm.budget import Budget
from qimeng_attention.llm.chat import Refused, Reply, Request, Usage
from qimeng_attention.llm.file import END
from qimeng_attention.runtime import read_folder
from qimeng_attention.study.record import Key, Sample
from qimeng_attention.study.requests import StudyRequest, load_requests
from qimeng_attention.study.run import Trial, recorded_client, requests_by_name, run_study
from qimeng_attention.study.samples import SampleStore
from qimeng_attention.workflow.gpu import BUNDLE, VERDICT, OnGpu, bundle_digest

ROOT = Path(__file__).parents[2]
TL = (ROOT / "examples" / "squared_relu.tl").read_text().replace("squared_relu", "kernel").replace("D = 128", "D = 64")
CUDA = (ROOT / "tests" / "workflow" / "plain.cu").read_text().replace("plain(", "kernel(")
REQUEST = """\
name: kernel
stratum: known
round: 1
words: Causal attention whose weights are max(score, 0)^2 divided by their sum.
target: A100
dtype: bf16
heads: {Hq: 8, Hk: 2}
head_dims: {Dqk: 64, Dv: 64}
outputs: [O]
"""
WRONG = TL.replace("S * S", "S * S * S")
TWO_STAGE: Key = ("kernel", "two-stage", "m", 1, 0)
TRANSLATED: Key = ("kernel", "translated", "m", 1, 0)


def tl(program: str) -> str:
    return f"```tl\n{program}```\n"


def cuda(source: str) -> str:
    return f"```cuda\n{source}```\n"


@pytest.fixture
def requests(tmp_path: Path) -> list[StudyRequest]:
    folder = tmp_path / "requests" / "kernel"
    folder.mkdir(parents=True)
    (folder / "request.yaml").write_text(REQUEST)
    (folder / "reference.py").write_text((ROOT / "examples" / "squared_relu.py").read_text())
    return load_requests(folder.parent)


def run(requests: list[StudyRequest], folder: Path, keys: list[Key], client_of: Callable[[Key], object]) -> list[Key]:
    store = SampleStore(folder / "samples.jsonl")
    trial = Trial(requests_by_name(requests), store, client_of, gpu=OnGpu(folder / "gpu"), gpu_name="H200")  # type: ignore[arg-type]
    return run_study(trial, keys, lambda *_: None)


def samples(folder: Path) -> dict[str, Sample]:
    return {s.method: s for s in SampleStore(folder / "samples.jsonl").samples()}


def accept(folder: Path) -> None:
    for place in (folder / "gpu").glob("kernel-*"):
        digest = bundle_digest(read_folder(place / BUNDLE).manifest)
        verdict = Verdict(
            verdict="accepted", reason="as asked", subject="kernel", where="gpu", digest=digest, entropy=1, seed=1,
            checks=(),
        )  # fmt: skip
        (place / VERDICT).write_text(json.dumps(verdict.to_json()))


class Answers:
    """A client that answers each stage, and refuses those that it has no answer for."""

    name = "answers"

    def __init__(self, **texts: str) -> None:
        self.texts = texts

    def complete(self, request: Request) -> Reply:
        text = self.texts.get(request.stage.replace(" ", "_"))
        if text is None:
            raise Refused("no", retry=False)
        return Reply(text, "m", Usage(100, 10, 0.5), seconds=1.0)


# ------------------------------------------------------------------ one record over both languages
@pytest.mark.cuda
def test_attempts_are_what_stood_after_so_many_repairs(requests: list[StudyRequest], tmp_path: Path) -> None:
    client = Answers(
        sketch=tl("Copy Q from global to shared\n"),
        code=tl(WRONG),
        repair_1=tl(TL),
        atoms=cuda("using A = int;"),
        translation=cuda("no launch line\n"),
        repair_2=cuda(CUDA),
    )
    assert run(requests, tmp_path, [TRANSLATED], lambda _: client) == [TRANSLATED]
    accept(tmp_path)
    assert run(requests, tmp_path, [TRANSLATED], lambda _: client) == []
    sample = samples(tmp_path)["translated"]

    assert [list(a.outcomes.items()) for a in sample.attempts] == [
        [("parses", "passed"), ("checks", "passed"), ("interprets", "failed"), ("compiles", "not run"),
         ("judged", "not run")],
        [("parses", "passed"), ("checks", "passed"), ("interprets", "passed"), ("compiles", "failed"),
         ("judged", "not run")],
        [(g, "passed") for g in ("parses", "checks", "interprets", "compiles", "judged")],
    ]  # fmt: skip
    assert [a.codes for a in sample.attempts] == [["rejected"], ["LM310"], []]
    assert [a.input_tokens for a in sample.attempts] == [200, 300, 100]
    assert sample.accepted
    assert sample.repairs == 2
    assert sample.judged_on == "H200"


def test_a_translation_that_is_refused_keeps_what_the_tl_cost(requests: list[StudyRequest], tmp_path: Path) -> None:
    client = Answers(sketch="a sketch", code=tl(TL), atoms="some")
    assert run(requests, tmp_path, [TRANSLATED], lambda _: client) == []
    (attempt,) = samples(tmp_path)["translated"].attempts

    assert attempt.fault == "refused"
    assert attempt.input_tokens == 300
    assert attempt.seconds > 3.0
    assert set(attempt.outcomes.values()) == {"not run"}


# ------------------------------------------------------------------ answers taken over
MODEL = """\
import pathlib, sys
asked = sys.stdin.read()
stages = {{
    "It will be translated": "atoms", "Translate a program": "translation", "You design a fused": "sketch",
    "Work out every parameter": "code",
}}
stage = "repair" if "[assistant]" in asked else next(s for words, s in stages.items() if words in asked)
here = pathlib.Path({folder!r})
with (here / "asked.txt").open("a") as asked_for:
    asked_for.write(stage + "\\n")
print((here / stage).read_text())
"""


def model(folder: Path, **texts: str) -> str:
    """Give the name of an author: a program that answers by stage, and writes down what it was asked for."""
    for stage, text in texts.items():
        (folder / stage).write_text(text)
    (folder / "model.py").write_text(MODEL.format(folder=str(folder)))
    return f"command:{sys.executable} {folder / 'model.py'}"


def through(
    requests: list[StudyRequest], folder: Path, keys: list[Key], author: str, reuse: Path | None = None
) -> list[Key]:
    return run(requests, folder, keys, recorded_client(author, folder / "transcripts", Budget(None, None, 40), reuse))


@pytest.mark.cuda
def test_translation_goes_on_from_the_two_stage_sample(requests: list[StudyRequest], tmp_path: Path) -> None:
    author = model(
        tmp_path,
        sketch=tl("Copy Q from global to shared\n"),
        code=tl(WRONG),
        repair=tl(TL),  # the judge saw scheduled TL there, and TL code here: its numbers differ
        atoms=cuda("using A = int;"),
        translation=cuda(CUDA),
    )
    assert through(requests, tmp_path, [TWO_STAGE, TRANSLATED], author) == [TRANSLATED]
    accept(tmp_path)
    assert through(requests, tmp_path, [TWO_STAGE, TRANSLATED], author) == []
    found = samples(tmp_path)

    assert (tmp_path / "asked.txt").read_text().split() == ["sketch", "code", "repair", "atoms", "translation"]
    assert found["two-stage"].taken_over == []
    assert found["translated"].taken_over == ["sketch", "code", "repair 1"]
    assert [a.refused_by for a in found["translated"].attempts] == ["interprets", None]
    text = (tmp_path / "transcripts" / "round1" / "translated" / "kernel-s0.jsonl").read_text()
    assert text.count('"taken over from"') == 3


@pytest.mark.cuda
def test_another_folder_may_hold_the_samples_and_another_prompt_or_number_is_asked_afresh(
    requests: list[StudyRequest], tmp_path: Path
) -> None:
    author = model(tmp_path, sketch="a sketch", code="no program", repair="none either", atoms="", translation="")
    (first := tmp_path / "first").mkdir()
    through(requests, first, [TWO_STAGE], author)
    asked = tmp_path / "asked.txt"
    before = asked.read_text()
    through(requests, tmp_path / "second", [TRANSLATED], author, first / "transcripts")
    assert asked.read_text() == before

    through(requests, tmp_path / "third", [TRANSLATED], author)
    assert len(asked.read_text()) > len(before)
    before = asked.read_text()
    through(requests, tmp_path / "fourth", [(*TRANSLATED[:4], 1)], author, first / "transcripts")
    assert asked.read_text().count("sketch") == before.count("sketch") + 1
    changed = [requests[0].model_copy(update={"words": "Something else."})]
    through(changed, tmp_path / "fifth", [TRANSLATED], author, first / "transcripts")
    assert asked.read_text().count("sketch") == before.count("sketch") + 2


def test_a_prompt_that_both_samples_wait_for_is_written_once(requests: list[StudyRequest], tmp_path: Path) -> None:
    author = f"file:{tmp_path / 'answers'}"
    assert through(requests, tmp_path, [TWO_STAGE, TRANSLATED], author) == [TWO_STAGE, TRANSLATED]
    (prompt,) = (tmp_path / "answers").rglob("*.prompt.md")
    prompt.with_name(prompt.name.replace(".prompt.", ".answer.")).write_text(f"a sketch\n{END}\n")
    assert through(requests, tmp_path, [TWO_STAGE, TRANSLATED], author) == [TWO_STAGE, TRANSLATED]

    assert [p.parent.parent.name for p in (tmp_path / "answers").rglob("*.prompt.md")] == ["two-stage"] * 2

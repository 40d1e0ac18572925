"""A study of methods that write CUDA: samples wait for a GPU, and are recorded with its gates and its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from qimeng_attention.judge import Check, Verdict
from qimeng_attention.llm.chat import Empty, Reply, Request
from qimeng_attention.runtime import read_folder
from qimeng_attention.study.record import Key, Sample, plan
from qimeng_attention.study.requests import StudyRequest, load_requests
from qimeng_attention.study.run import Trial, requests_by_name, run_study
from qimeng_attention.study.samples import SampleStore
from qimeng_attention.workflow.gpu import BUNDLE, VERDICT, OnGpu, bundle_digest

SOURCE = (Path(__file__).parents[1] / "workflow" / "plain.cu").read_text()
REQUEST = """\
name: plain
stratum: known
round: 1
words: Softmax attention.
target: A100
dtype: bf16
heads: {Hq: 8, Hk: 2}
head_dims: {Dqk: 64, Dv: 64}
outputs: [O]
"""
REFERENCE = "def attention(Q, K, V, scale):\n    return {'Out': Q}\n"


class Answers:
    """A client that gives the same answers each time, and nothing after them."""

    name = "answers"

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def complete(self, request: Request) -> Reply:
        turn = len(request.messages) // 2
        if turn >= len(self.texts):
            raise Empty("no more answers", retry=False)
        return Reply(self.texts[turn], "answers")


@pytest.fixture
def requests(tmp_path: Path) -> list[StudyRequest]:
    folder = tmp_path / "requests" / "plain"
    folder.mkdir(parents=True)
    (folder / "request.yaml").write_text(REQUEST)
    (folder / "reference.py").write_text(REFERENCE)
    return load_requests(folder.parent)


def run(
    requests: list[StudyRequest], folder: Path, answers: tuple[str, ...], method: Literal["vanilla", "cot"] = "vanilla"
) -> tuple[list[Key], list[Sample]]:
    store = SampleStore(folder / "samples.jsonl")
    trial = Trial(
        requests_by_name(requests),
        store,
        lambda _: Answers(*answers),
        gpu=OnGpu(folder / "gpu"),
        gpu_name="H200",
        gpu_arch="sm_90",
    )
    planned = plan(trial.requests, (method,), "m", 1)
    return run_study(trial, planned, lambda *_: None), store.samples()


def decide(place: Path, decision: str) -> None:
    check = Check(case="normal, Sq=3", output="Out", passed=False, worst_error=1.0, bound=0.01, mean_error=1.0,
                  mean_bound=0.01, reason="Out[0, 0, 0, 0] is nan, expected 0.5")  # fmt: skip
    verdict = Verdict(
        verdict=decision,  # type: ignore[arg-type]
        reason="as it is",
        subject="plain",
        where="gpu",
        digest=bundle_digest(read_folder(place / BUNDLE).manifest),
        entropy=1,
        seed=1,
        checks=() if decision == "accepted" else (check,),
    )
    (place / VERDICT).write_text(json.dumps(verdict.to_json()))


def cuda(source: str) -> str:
    return f"```cuda\n{source}```\n"


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["vanilla", "cot"])
def test_samples_wait_and_are_recorded_with_the_gpus_verdict(
    requests: list[StudyRequest], tmp_path: Path, method: Literal["vanilla", "cot"]
) -> None:
    answers = (cuda("no launch line\n"), cuda(SOURCE.replace("sum += weight", "sum -= weight")), cuda(SOURCE))
    for decision in ("rejected", "accepted"):
        waiting, samples = run(requests, tmp_path, answers, method)
        assert len(waiting) == 1
        assert samples == []
        (place,) = (p for p in (tmp_path / "gpu").glob("plain-*") if not (p / VERDICT).exists())
        manifest = read_folder(place / BUNDLE).manifest
        assert (manifest.target, manifest.built_arch) == ("A100", "sm_90")
        decide(place, decision)
    waiting, (sample,) = run(requests, tmp_path, answers, method)

    assert waiting == []
    assert sample.judged_on == "H200"
    assert [a.outcomes for a in sample.attempts] == [
        {"compiles": "failed", "judged": "not run"},
        {"compiles": "passed", "judged": "failed"},
        {"compiles": "passed", "judged": "passed"},
    ]
    assert [a.codes for a in sample.attempts] == [["LM310"], ["rejected: NaN"], []]
    assert sample.accepted
    assert not sample.accepted_before


def test_a_sample_without_an_answer_names_the_gates_of_its_method(requests: list[StudyRequest], tmp_path: Path) -> None:
    waiting, (sample,) = run(requests, tmp_path, (cuda("no launch line\n"),))

    assert waiting == []
    assert [a.fault for a in sample.attempts] == ["", "empty"]
    assert sample.attempts[1].outcomes == {"compiles": "not run", "judged": "not run"}

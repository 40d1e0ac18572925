"""A study's runner on TL: what an answer that never came leaves behind, and what waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from qimeng_attention.llm.chat import Client, ClientFault, Refused, Reply, Request, Usage, Waiting
from qimeng_attention.study.record import Key, Sample
from qimeng_attention.study.requests import load_requests
from qimeng_attention.study.run import Trial, requests_by_name, run_study
from qimeng_attention.study.samples import SampleStore

REQUESTS = Path(__file__).parents[2] / "benchmarks" / "study" / "requests"
KEY: Key = ("window", "two-stage", "m", 1, 0)


class Faulty:
    """A client that writes a sketch, and no code."""

    name = "faulty"

    def __init__(self, fault: ClientFault) -> None:
        self.fault = fault

    def complete(self, request: Request) -> Reply:
        if request.stage == "sketch":
            return Reply("```tl\nCopy Q from global to shared\n```", "m", Usage(100, 20, 0.5), seconds=3.0)
        raise self.fault


def run(folder: Path, client: Client) -> tuple[list[Key], list[Sample]]:
    store = SampleStore(folder / "samples.jsonl")
    trial = Trial(requests_by_name(load_requests(REQUESTS)), store, lambda key: client)
    return run_study(trial, [KEY], lambda key, sample: None), store.samples()


@pytest.mark.cuda
def test_a_refusal_is_a_failed_sample_that_keeps_what_the_sketch_cost(tmp_path: Path) -> None:
    waiting, (sample,) = run(tmp_path, Faulty(Refused("no")))

    assert not waiting
    assert not sample.accepted
    (attempt,) = sample.attempts
    assert attempt.fault == "refused"
    assert (attempt.input_tokens, attempt.output_tokens, attempt.usd, attempt.seconds) == (100, 20, 0.5, 3.0)


@pytest.mark.cuda
def test_a_sample_that_waits_is_left_for_the_next_run(tmp_path: Path) -> None:
    assert run(tmp_path, Faulty(Waiting("later"))) == ([KEY], [])

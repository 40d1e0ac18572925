"""A conversation with a model: prompts, gates, what it is told, and repairs; the model is a list of answers here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qimeng_attention.author.llm.methods import method
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.judge import open_reference
from qimeng_attention.judge.reference_process import Reference
from qimeng_attention.llm.chat import Reply, Request
from qimeng_attention.workflow.authoring import Sample, Truth, write_sample
from qimeng_attention.workflow.stages import Results, find_target

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = (EXAMPLES / "squared_relu.tl").read_text().split("\nSchedule")[0].replace("squared_relu", "kernel")
WANTED = Wanted(
    "Causal attention whose weights are max(score, 0)^2 divided by their sum.", "kernel", (128, 128), "bf16"
)


class Answers:
    """A client that gives the answers it was made with, and keeps what it was asked."""

    name = "answers"

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), list[Request]()

    def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        return Reply(self.texts.pop(0), "answers")


@pytest.fixture(scope="module")
def truth() -> Iterator[Truth]:
    with open_reference(f"{EXAMPLES / 'squared_relu.py'}:attention") as function:
        assert isinstance(function, Reference)
        yield Truth(function=function)


def tl(program: str) -> str:
    return f"Some words.\n```tl\n{program}```\n"


def sample(truth: Truth, client: Answers, name: str = "one-stage", repairs: int = 3) -> Sample:
    return write_sample(WANTED, truth, client, Results(*find_target("A100")), method(name), repairs=repairs)


@pytest.mark.cuda
def test_a_right_answer_passes_every_gate_and_a_schedule_left_out_is_the_plainest(truth: Truth) -> None:
    client = Answers("A sketch.\n```tl\nCopy Q from global to shared\n```", tl(PROGRAM))
    made = sample(truth, client, "two-stage")

    assert made.solved
    assert made.repairs == 0
    assert made.attempts[0].plain_schedule
    assert made.attempts[0].passed == ("answer", "parse", "check", "schedule", "translate", "build", "judge")
    assert made.results is not None
    assert "# the author left the schedule out" in made.results.code
    assert made.results.built is not None
    assert "Copy Q from global to shared" in client.asked[1].messages[-1].text


@pytest.mark.cuda
def test_each_gate_tells_what_it_found_and_the_conversation_grows(truth: Truth) -> None:
    wrong = PROGRAM.replace(" else 0", "")
    client = Answers("nothing", tl(PROGRAM.replace("K.T", "K")), tl(wrong), tl(PROGRAM))
    made = sample(truth, client)

    assert [a.failed for a in made.attempts] == ["answer", "check", "judge", ""]
    assert [a.stage for a in made.attempts] == ["code", "repair 1", "repair 2", "repair 3"]
    assert made.attempts[1].codes == ("TL202",)
    told = [request.messages[-1].text for request in client.asked]
    assert "no fenced block" in told[1]
    assert "TL202" in told[2]
    assert "`.T`" in told[2] or ".T is missing" in told[2]
    assert "which is nan" in told[3]
    assert [len(request.messages) for request in client.asked] == [1, 3, 5, 7]


def test_repairs_end_and_the_last_findings_stay(truth: Truth) -> None:
    made = sample(truth, Answers("a", "b"), repairs=1)

    assert not made.solved
    assert [a.failed for a in made.attempts] == ["answer", "answer"]
    assert made.results is not None
    assert made.results.built is None


@pytest.mark.cuda
def test_no_expected_value_and_no_source_of_the_reference_is_told(truth: Truth) -> None:
    client = Answers(tl(PROGRAM.replace("S * S", "S * S * 1.1 + 0.001")), "stop")
    sample(truth, client, repairs=1)
    told = client.asked[1].messages[-1].text

    assert "expected" not in told
    assert "einsum" not in told
    assert "error" in told


@pytest.mark.cuda
def test_a_sketch_without_a_fence_is_passed_on_as_it_is(truth: Truth) -> None:
    client = Answers("First the tile of Q, then each tile of K.", tl(PROGRAM))
    sample(truth, client, "two-stage")

    assert "First the tile of Q, then each tile of K." in client.asked[1].messages[-1].text
    assert "# The sketch" in client.asked[1].messages[-1].text

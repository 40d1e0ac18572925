"""A model that translates its own TL: the gates of both languages, and repairs that are counted together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qimeng_attention.author.llm.methods import method
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.judge import Check, Verdict, open_reference
from qimeng_attention.judge.reference_process import Reference
from qimeng_attention.llm.chat import Reply, Request, Waiting
from qimeng_attention.runtime import read_folder
from qimeng_attention.workflow.authoring import Sample, Truth, write_sample
from qimeng_attention.workflow.gpu import BUNDLE, VERDICT, OnGpu, bundle_digest
from qimeng_attention.workflow.stages import Results, find_target

EXAMPLES = Path(__file__).parents[2] / "examples"
WANTED = Wanted("Causal attention whose weights are max(score, 0)^2 divided by their sum.", "kernel", (64, 64), "bf16")
TL = (EXAMPLES / "squared_relu.tl").read_text().replace("squared_relu", "kernel").replace("D = 128", "D = 64")
CUDA = (Path(__file__).parent / "plain.cu").read_text().replace("plain(", "kernel(")
ATOMS = "using Mma = MMA_Atom<SM80_16x8x16_F32BF16BF16F32_TN>;"


class Answers:
    """A client that gives the same answers each time, in the order of the conversations' turns."""

    name = "answers"

    def __init__(self, *texts: str) -> None:
        self.texts, self.said, self.asked = texts, dict[str, str](), list[Request]()

    def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        if request.digest not in self.said:
            self.said[request.digest] = self.texts[len(self.said)]
        return Reply(self.said[request.digest], "answers")


@pytest.fixture(scope="module")
def truth() -> Iterator[Truth]:
    with open_reference(f"{EXAMPLES / 'squared_relu.py'}:attention") as function:
        assert isinstance(function, Reference)
        yield Truth(function=function)


def tl(program: str = TL) -> str:
    return f"Some words.\n```tl\n{program}```\n"


def cuda(source: str = CUDA) -> str:
    return f"Some words.\n```cuda\n{source}```\n"


SKETCH = tl("Copy Q from global to shared\n")
CHOICE = f"The atoms.\n```cpp\n{ATOMS}\n```\n"


def sample(truth: Truth, client: Answers, folder: Path, repairs: int = 3) -> Sample:
    results = Results(*find_target("A100"))
    return write_sample(WANTED, truth, client, results, method("translated"), repairs=repairs, gpu=OnGpu(folder))


def waiting(truth: Truth, client: Answers, folder: Path) -> Path:
    """Run up to the bundle that waits, and give its folder."""
    with pytest.raises(Waiting, match="has not been judged on a GPU yet") as fault:
        sample(truth, client, folder)
    return Path(fault.value.details["folder"])


def put(place: Path, accepted: bool = True) -> None:
    wrong = Check(case="normal, Sq=3", output="Out", passed=False, worst_error=0.5, bound=0.01, mean_error=0.1,
                  mean_bound=0.01, reason="Out[0, 1, 2, 3] is 0.75, expected 0.25")  # fmt: skip
    verdict = Verdict(
        verdict="accepted" if accepted else "rejected",
        reason="as it is",
        subject="kernel",
        where="gpu",
        digest=bundle_digest(read_folder(place / BUNDLE).manifest),
        entropy=1,
        seed=1,
        checks=() if accepted else (wrong,),
    )
    (place / VERDICT).write_text(json.dumps(verdict.to_json()))


@pytest.mark.cuda
def test_a_sample_goes_from_a_sketch_to_a_verdict_in_four_calls(truth: Truth, tmp_path: Path) -> None:
    client = Answers(SKETCH, tl(), CHOICE, cuda())
    put(waiting(truth, client, tmp_path))
    made = sample(truth, client, tmp_path)

    assert made.solved
    assert made.repairs == 0
    assert len(client.said) == 4
    assert [a.stage for a in made.attempts] == ["code", "translation"]
    assert [a.language for a in made.attempts] == ["TL", "CUDA"]
    assert made.attempts[0].passed == ("answer", "parse", "check", "interpret")
    assert made.attempts[1].passed == ("answer", "includes", "launch", "build", "judge")
    assert [r.stage for r in client.asked[-4:]] == ["sketch", "code", "atoms", "translation"]
    assert all(len(r.messages) == 1 for r in client.asked)
    assert made.results is not None
    assert made.results.handwritten
    assert made.results.code == ""


@pytest.mark.cuda
def test_what_the_model_chose_and_wrote_is_what_it_translates(truth: Truth, tmp_path: Path) -> None:
    client = Answers(SKETCH, tl(), CHOICE, cuda())
    waiting(truth, client, tmp_path)
    atoms, translation = (r.messages[0].text for r in client.asked[2:4])

    for text in (atoms, translation):
        assert f"```tl\n{TL.strip()}\n```" in text
        assert "SM80_16x8x16_F32BF16BF16F32_TN" in text
    assert f"```cuda\n{ATOMS}\n```" in translation
    assert 'extern "C" __global__ void kernel(' in translation
    assert "einsum" not in translation


@pytest.mark.cuda
def test_tl_is_mended_before_it_is_translated_and_repairs_of_both_languages_count_together(
    truth: Truth, tmp_path: Path
) -> None:
    client = Answers(
        SKETCH,
        tl(TL.replace("K.T", "K")),
        tl(TL.replace("S * S", "S * S * S")),
        tl(),
        CHOICE,
        cuda(CUDA.replace("score *= scale;", "score *= skale;")),
        cuda(),
    )
    place = waiting(truth, client, tmp_path)
    put(place, accepted=False)
    made = sample(truth, client, tmp_path)

    assert [a.stage for a in made.attempts] == ["code", "repair 1", "repair 2", "translation", "repair 3"]
    assert [a.failed for a in made.attempts] == ["check", "interpret", "", "build", "judge"]
    assert not made.solved
    assert made.repairs == 3
    told = {r.stage: r.messages[-1].text for r in client.asked}
    assert "TL202" in told["repair 1"]
    assert "what it computes is not what was asked for" in told["repair 2"]
    assert "```tl" in told["repair 2"]
    assert "skale" in told["repair 3"]
    assert "```cuda" in told["repair 3"]


@pytest.mark.cuda
def test_a_rejection_on_the_gpu_is_mended_in_the_translation(truth: Truth, tmp_path: Path) -> None:
    client = Answers(SKETCH, tl(), CHOICE, cuda(CUDA.replace("sum > 0.0f ?", "true ?")), cuda())
    first = waiting(truth, client, tmp_path)
    put(first, accepted=False)
    second = waiting(truth, client, tmp_path)
    told = client.asked[-1].messages

    assert first != second
    assert len(told) == 3
    assert "Out[0, 1, 2, 3]: error 0.5, allowed 0.01" in told[-1].text
    assert "expected" not in told[-1].text
    put(second)
    made = sample(truth, client, tmp_path)
    assert made.solved
    assert [a.failed for a in made.attempts] == ["", "judge", ""]


def test_tl_that_never_passes_is_not_translated(truth: Truth, tmp_path: Path) -> None:
    client = Answers(SKETCH, "nothing", "nothing again")
    made = sample(truth, client, tmp_path, repairs=1)

    assert not made.solved
    assert [r.stage for r in client.asked] == ["sketch", "code", "repair 1"]
    assert [a.failed for a in made.attempts] == ["answer", "answer"]
    assert not list(tmp_path.iterdir())


def test_a_run_begun_again_tells_the_model_the_same_words(truth: Truth, tmp_path: Path) -> None:
    wrong = tl(TL.replace("S * S", "S * S * S"))
    first, second = (Answers(SKETCH, wrong, "stop") for _ in range(2))
    for client in (first, second):
        sample(truth, client, tmp_path, repairs=1)

    assert first.asked[-1].digest == second.asked[-1].digest

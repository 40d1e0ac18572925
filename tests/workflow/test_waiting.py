"""Kernels that wait for a GPU: what is written beside them, judging at once or all together, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qimeng_attention import targets
from qimeng_attention.author.llm.methods import method
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.cli import app
from qimeng_attention.errors import EnvironmentMissing, JudgeError, SpecError
from qimeng_attention.judge import Verdict, open_reference
from qimeng_attention.judge.process import Process
from qimeng_attention.llm.chat import Reply, Request, Waiting
from qimeng_attention.runtime import read_folder
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import judgement, waiting
from qimeng_attention.workflow.attempts import Truth
from qimeng_attention.workflow.authoring import Sample, write_sample
from qimeng_attention.workflow.gpu import BUNDLE, REFERENCE, VERDICT, WAITING, OnGpu, bundle_digest, found_beside
from qimeng_attention.workflow.stages import Results, find_target
from qimeng_attention.workflow.waiting import JudgeHere, judge_waiting

pytestmark = pytest.mark.cuda

EXAMPLES = Path(__file__).parents[2] / "examples"
FUNCTION = f"{EXAMPLES / 'squared_relu.py'}:attention"
SOURCE = (Path(__file__).parent / "plain.cu").read_text()
WANTED = Wanted("Softmax attention.", "plain", (64, 64), "bf16")


class Says:
    """A client with one answer."""

    name = "says"

    def __init__(self, source: str) -> None:
        self.source = source

    def complete(self, request: Request) -> Reply:
        return Reply(f"```cuda\n{self.source}```\n", "says")


def run(folder: Path, source: str = SOURCE, truth: Truth | None = None, judge: Any = None) -> Sample:
    results = Results(*find_target("A100"))
    with open_reference(FUNCTION) as function:
        against = truth or Truth(function=function, place=FUNCTION)
        return write_sample(
            WANTED, against, Says(source), results, method("vanilla"), repairs=0, gpu=OnGpu(folder, judge)
        )


def verdict_on(bundle: Path, verdict: str = "accepted") -> Verdict:
    digest = bundle_digest(read_folder(bundle).manifest)
    return Verdict(
        verdict=verdict,
        reason="as it is",
        subject="plain",
        where="gpu",
        digest=digest,
        entropy=1,
        seed=1,
        checks=(),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder in which three kernels wait: by a function, by a description, by nothing that is written."""
    folder = tmp_path_factory.mktemp("gpu")
    spec = AttentionSpec.make(name="plain", Hq=8, Hk=2, Dqk=64, outputs=["O"])
    with open_reference(FUNCTION) as function:
        for number, truth in enumerate((None, Truth(spec=spec), Truth(function=function))):
            with pytest.raises(Waiting):
                run(folder, SOURCE + f"// {number}\n", truth)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "elsewhere" / "gpu"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine look like one with a GPU."""
    monkeypatch.setattr(waiting, "need_gpu", lambda hint="": None)
    monkeypatch.setattr(judgement, "detect", lambda: targets.get("A100"))


def no_gpu(hint: str = "") -> None:
    raise EnvironmentMissing("judging a kernel needs an NVIDIA GPU", hint=hint)


def judging(monkeypatch: pytest.MonkeyPatch, judge: Callable[..., Verdict]) -> list[tuple[Path, Any, Any]]:
    asked: list[tuple[Path, Any, Any]] = []

    def judge_path(path: Path, against: Any, seed: Any, progress: Any, process: Any = None) -> Verdict:
        asked.append((path, against, process))
        return judge(path)

    monkeypatch.setattr(waiting, "judge_path", judge_path)
    return asked


# ------------------------------------------------------------------ what is written, and a judge at hand
def test_what_a_kernel_is_judged_against_lies_beside_it_and_can_be_carried_away(folder: Path) -> None:
    said = {}
    for place in folder.glob("plain-*"):
        fields = json.loads((place / WAITING).read_text())
        if fields["reference"]:
            assert (place / REFERENCE).read_text() == (EXAMPLES / "squared_relu.py").read_text()
        said[bool(json.loads((place / BUNDLE / "spec.json").read_text())), fields["reference"]] = fields["framework"]

    assert said == {(False, "reference.py:attention"): "auto", (True, None): "auto", (False, None): "auto"}
    assert "qimeng judge-waiting" in (folder / "README.md").read_text()


def test_a_gpu_that_is_here_judges_at_once_and_its_verdict_is_found_again(tmp_path: Path) -> None:
    seen: list[Path] = []

    def judge(bundle: Path, against: Truth) -> Verdict:
        seen.append(bundle)
        return verdict_on(bundle)

    assert run(tmp_path, judge=judge).solved
    assert run(tmp_path, judge=judge).solved
    assert len(seen) == 1
    assert run(tmp_path).solved


def test_a_kernel_for_another_gpu_waits(tmp_path: Path) -> None:
    with pytest.raises(Waiting, match="has not been judged") as fault:
        run(tmp_path, judge=lambda bundle, against: None)
    assert f"qimeng judge-waiting {tmp_path}" in fault.value.hint


@pytest.mark.usefixtures("gpu")
def test_the_judge_here_runs_kernels_in_a_process_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []

    def judge(path: Path, against: Any, **how: Any) -> Verdict:
        asked.append((against, how))
        return verdict_on(path)

    monkeypatch.setattr(waiting, "judge_bundle", judge)
    monkeypatch.setattr(waiting, "judge_bundle_by_function", judge)
    spec = AttentionSpec.make(name="plain", Hq=8, Hk=2, Dqk=64)
    (bundle, *_) = folder.glob(f"plain-*/{BUNDLE}")
    with JudgeHere() as here, open_reference(FUNCTION) as function:
        assert here(bundle, Truth(function=function)) is not None
        assert here(bundle, Truth(spec=spec)) is not None
        monkeypatch.setattr(judgement, "detect", lambda: targets.get("T4"))
        assert here(bundle, Truth(spec=spec)) is None
        monkeypatch.setattr(judgement, "detect", lambda: targets.get("A100"))
        monkeypatch.setattr(waiting, "need_gpu", no_gpu)
        assert here(bundle, Truth(spec=spec)) is None

    assert [a for a, _ in asked] == [function, spec]
    assert all(isinstance(how["process"], Process) for _, how in asked)
    assert asked[0][1]["process"] is asked[1][1]["process"]
    assert asked[0][1]["seed"] != asked[1][1]["seed"]


# ------------------------------------------------------------------ all of a folder
@pytest.mark.usefixtures("gpu")
def test_every_kernel_is_judged_against_its_own_and_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = judging(monkeypatch, verdict_on)
    told: list[tuple[int, int]] = []
    found = judge_waiting(folder, report=lambda one, number, of: told.append((number, of)))

    assert [one.outcome for one in found] == ["accepted"] * 3
    assert told == [(1, 3), (2, 3), (3, 3)]
    references = {str(against.reference) for _, against, _ in asked}
    assert len(references) == 2
    assert any(r.startswith(str(folder)) and r.endswith("reference.py:attention") for r in references)
    assert len({id(process) for *_, process in asked}) == 1
    for place in folder.glob("plain-*"):
        assert found_beside(place) is not None
    assert [one.before for one in judge_waiting(folder)] == [True] * 3
    assert len(asked) == 3
    assert [one.before for one in judge_waiting(folder, again=True)] == [False] * 3


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("fault", [JudgeError("it hangs", hint="mend it"), RuntimeError("broken"), OSError("full")])
def test_one_that_cannot_be_judged_does_not_keep_the_others_from_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    bad = sorted(folder.glob("plain-*"))[0]

    def judge(path: Path) -> Verdict:
        if path.parent == bad:
            raise fault
        return verdict_on(path, "rejected")

    judging(monkeypatch, judge)
    found = judge_waiting(folder)

    assert [one.outcome for one in found] == ["failed", "rejected", "rejected"]
    assert str(fault.args[0]) in found[0].reason
    assert not (bad / VERDICT).exists()


@pytest.mark.usefixtures("gpu")
def test_a_damaged_verdict_is_made_again_and_a_damaged_bundle_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = judging(monkeypatch, verdict_on)
    first, second, third = sorted(folder.glob("plain-*"))
    (first / VERDICT).write_text('{"verdict": "acc')
    (second / BUNDLE / "kernel.cu").write_text("other")
    (third / WAITING).write_text("{}")
    found = judge_waiting(folder)

    assert [one.outcome for one in found] == ["accepted", "failed", "failed"]
    assert "has changed" in found[1].reason
    assert "waiting.json makes no sense" in found[2].reason
    assert [path.parent for path, *_ in asked] == [first]


@pytest.mark.usefixtures("gpu")
def test_what_nothing_says_how_to_judge_is_told_so(folder: Path) -> None:
    (place,) = (
        p
        for p in folder.glob("plain-*")
        if json.loads((p / WAITING).read_text())["reference"] is None
        and json.loads((p / BUNDLE / "spec.json").read_text()) is None
    )
    for other in folder.glob("plain-*"):
        if other != place:
            shutil.rmtree(other)
    (one,) = judge_waiting(folder)

    assert one.outcome == "failed"
    assert "--reference" in one.reason


@pytest.mark.usefixtures("gpu")
def test_several_at_a_time_are_judged_in_processes(folder: Path) -> None:
    found = judge_waiting(folder, jobs=2)  # the processes see that there is no GPU

    assert [one.outcome for one in found] == ["skipped"] * 3
    assert "sm_80" in found[0].reason


def test_without_a_gpu_or_a_kernel_it_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="holds no bundle"):
        judge_waiting(tmp_path / "none")

    monkeypatch.setattr(waiting, "need_gpu", no_gpu)
    result = CliRunner().invoke(app, ["judge-waiting", str(folder)])
    assert result.exit_code == 3
    assert "machine with one" in result.output


@pytest.mark.usefixtures("gpu")
def test_the_command_prints_what_came_of_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judging(monkeypatch, verdict_on)
    result = CliRunner().invoke(app, ["judge-waiting", str(folder)])
    assert result.exit_code == 0, result.output
    assert "3/3  plain-" in result.output
    result = CliRunner().invoke(app, ["judge-waiting", str(folder), "--json"])
    found = json.loads(result.stdout)
    assert found["counts"] == {"accepted": 3}
    assert all(one["before"] for one in found["bundles"])

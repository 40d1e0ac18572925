"""Kernels in CUDA that wait, judged on a real GPU: right and wrong ones, one that faults, and one that never ends."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.author.llm.methods import method
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.errors import EnvironmentMissing
from qimeng_attention.judge import Verdict, open_reference
from qimeng_attention.judge.process import Process
from qimeng_attention.llm.chat import Reply, Request, Waiting
from qimeng_attention.workflow import waiting
from qimeng_attention.workflow.attempts import Truth
from qimeng_attention.workflow.authoring import Sample, write_sample
from qimeng_attention.workflow.gpu import OnGpu, found_beside
from qimeng_attention.workflow.present import detect
from qimeng_attention.workflow.stages import Results, find_target
from qimeng_attention.workflow.waiting import JudgeHere, judge_waiting

pytestmark = pytest.mark.gpu

SOURCE = (Path(__file__).parents[1] / "workflow" / "plain.cu").read_text()
WANTED = Wanted("Softmax attention.", "plain", (64, 64), "bf16")
REFERENCE = """\
import numpy as np

def attention(Q, K, V, scale):
    group = Q.shape[2] // K.shape[2]
    K, V = (np.repeat(x, group, axis=2) for x in (K, V))
    scores = scale * np.einsum("bqhd,bkhd->bhqk", Q, K)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-1e300))
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
    return {
        "Out": np.einsum("bhqk,bkhd->bqhd", weights, V),
        "Out_magnitude": np.einsum("bhqk,bkhd->bqhd", weights, np.abs(V)),
    }
"""
FAULTS = {
    "right": ("", "accepted"),
    "wrong": ("score *= 0.9f;", "rejected"),
    "faults": ('if (k == 1) asm volatile("trap;");', "rejected"),
    "hangs": ("if (k == 1) while (atomicAdd((int*)(Out + b), 0) != 7 || true) {}", "rejected"),
}


@pytest.fixture(scope="module")
def arch() -> str:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'qimeng-attention[gpu]'")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return detect().arch


@pytest.fixture
def place(tmp_path: Path) -> str:
    (tmp_path / "softmax.py").write_text(REFERENCE)
    return f"{tmp_path / 'softmax.py'}:attention"


class Says:
    """A client with one answer."""

    name = "says"

    def __init__(self, fault: str) -> None:
        self.source = SOURCE.replace("score *= scale;", f"score *= scale; {fault}")

    def complete(self, request: Request) -> Reply:
        return Reply(f"```cuda\n{self.source}```\n", "says")


def written(fault: str, place: str, where: OnGpu, arch: str) -> Sample:
    results = Results(*find_target("A100", arch))
    with open_reference(place) as function:
        truth = Truth(function=function, place=place)
        try:
            return write_sample(WANTED, truth, Says(fault), results, method("vanilla"), repairs=0, gpu=where)
        except EnvironmentMissing as missing:
            pytest.skip(f"needs the build extra: {missing.message}")


def test_a_kernel_is_judged_as_it_is_made(arch: str, place: str, tmp_path: Path) -> None:
    with JudgeHere() as here:
        where = OnGpu(tmp_path / "gpu", here)
        right = written("", place, where, arch)
        wrong = written(FAULTS["wrong"][0], place, where, arch)

    assert right.solved, right.attempts[-1].findings
    assert right.verdict is not None
    assert right.verdict.where == "gpu"
    assert wrong.attempts[-1].failed == "judge"
    assert "expected" not in wrong.attempts[-1].findings


@pytest.mark.parametrize("jobs", [1, 2])
def test_all_that_waits_is_judged_whatever_one_kernel_does(
    arch: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    folder, names = tmp_path / "gpu", dict[str, str]()
    for name, (fault, _) in FAULTS.items():
        if jobs == 1 or name != "hangs":  # with one job its time is short
            with pytest.raises(Waiting) as fault_:
                written(fault, place, OnGpu(folder), arch)
            names[Path(fault_.value.details["folder"]).name] = name
    monkeypatch.setattr(waiting, "Process", partial(Process, timeout_s=25.0))
    told: list[Any] = []
    found = judge_waiting(folder, jobs=jobs, report=lambda *one: told.append(one))

    assert {names[one.name]: one.outcome for one in found} == {n: FAULTS[n][1] for n in names.values()}
    assert len(told) == len(names)
    for one in found:
        verdict = found_beside(folder / one.name)
        assert isinstance(verdict, Verdict)
        assert verdict.where == "gpu"
    assert all(one.before for one in judge_waiting(folder))

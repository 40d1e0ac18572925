"""A bundle against a function alone; a Python program that speaks the worker's language stands in for its kernel."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qimeng_attention import targets
from qimeng_attention.errors import EnvironmentMissing, JudgeError, SpecError
from qimeng_attention.judge import Verdict, judge_bundle_by_function
from qimeng_attention.judge.function import judge_plain
from qimeng_attention.judge.plain_bundle import Built
from qimeng_attention.judge.plain_families import sizes_to_try
from qimeng_attention.judge.process import Process
from qimeng_attention.judge.worker import CANARY, launched
from qimeng_attention.runtime import GridAxis, Manifest, Scalar, Tensor
from qimeng_attention.runtime.manifest import REQUIRED, Requirement
from qimeng_attention.store import write_bundle
from qimeng_attention.tl.checker import check_text
from qimeng_attention.workflow import judgement
from qimeng_attention.workflow.judgement import Against, judge_path

OPERATOR = (Path(__file__).parents[2] / "examples" / "squared_relu.tl").read_text("utf-8")
MANIFEST = Manifest(  # of a kernel that knows no q, k or v
    kernel="picked",
    target="A100",
    arch="sm_80",
    built_arch="sm_80",
    threads=128,
    shared_bytes=0,
    grid=(GridAxis("block", 0, ("ceildiv", "M", 32)),),
    tensors=(
        Tensor("X", "bf16", ("M", 16), "input"),
        Tensor("W", "bf16", ("N", 16), "input"),
        Tensor("Row", "i32", ("M",), "input"),
        Tensor("Y", "f32", ("M", "N"), "output"),
        Tensor("Top", "f32", ("M",), "output"),
    ),
    sizes=("M", "N"),
    scalars=(Scalar("alpha", op=">", bound=1.0),),
    files={"kernel.cubin": "0" * 64},
)
SIZES = [{"M": 33, "N": 65}, {"M": 1, "N": 3}]
WORKER = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from qimeng_attention.judge.launches import from_bits, to_bits
folder = Path(sys.argv[-1])
for line in sys.stdin:
    request = json.loads(line)
    x = {}
    for n, a in request["inputs"].items():
        data = (folder / a["file"]).read_bytes()
        x[n] = np.frombuffer(data, np.int32) if a["dtype"] == "i32" else from_bits(data, a["dtype"])
        x[n] = x[n].reshape(a["shape"])
    M, N, alpha = request["sizes"]["M"], request["sizes"]["N"], request["scalars"]["alpha"]
    assert request["outputs"] == {"Y": {"dtype": "f32", "shape": [M, N]}, "Top": {"dtype": "f32", "shape": [M]}}
    X, W = x["X"].astype(float), x["W"].astype(float)
    runs = [{"Y": alpha * np.tanh(X @ W.T), "Top": X[x["Row"]].sum(axis=1)} for _ in range(2)]
    answer = {"damaged": [], "changed": [], "outputs": {"Y": ["Y.0", "Y.1"], "Top": ["Top.0", "Top.1"]}}
    FAULT
    for n, run in enumerate(runs):
        for name, a in run.items():
            (folder / f"{name}.{n}").write_bytes(to_bits(a, "f32").tobytes())
    print(json.dumps(answer), flush=True)
"""


def picked(X: Any, W: Any, Row: Any, alpha: float) -> dict[str, Any]:
    """Compute what the stand-in does."""
    return {"Y": alpha * np.tanh(X @ W.T), "Top": X[Row].sum(axis=1)}


@contextmanager
def built(fault: str = "pass", timeout_s: float = 60.0, failures: int = 6, **change: Any) -> Iterator[Built]:
    with Process([sys.executable, "-c", WORKER.replace("FAULT", fault)], timeout_s) as process:
        yield Built(replace(MANIFEST, **change), process, failures=failures)


def judged(fault: str = "pass", **how: Any) -> Verdict:
    with built(fault, **how) as candidate:
        return judge_plain(candidate, picked, seed=3, sizes=SIZES)


def test_a_kernel_is_called_by_the_names_of_its_manifest_and_accepted() -> None:
    with built() as candidate:
        verdict = judge_plain(candidate, picked, seed=3)

    assert verdict.accepted, verdict.reason
    assert (verdict.where, verdict.subject, verdict.digest) == ("gpu", "picked", candidate.digest)
    assert {c.output for c in verdict.checks} == {"Y", "Top"}
    assert len({c.case for c in verdict.checks}) >= 20
    assert {c.name for c in verdict.clauses} == {f"the outputs depend on {n}" for n in "XW"}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("runs = [{**r, 'Y': r['Y'] * 1.02} for r in runs]", "Y is off by"),
        ("runs = [{**r, 'Y': r['Y'] / alpha} for r in runs]", "Y["),
        ("runs = [{**r, 'Top': X.sum(axis=1)} for r in runs]", "Top["),
        (f"runs[0]['Top'][-1] = np.nan; runs[1]['Top'][-1] = {CANARY['f32']}", "never written"),
        ("os.abort()", "SIGABRT"),
        ("sys.exit('out of memory')", "exit code 1: out of memory"),
        ("answer = {'error': 'LaunchError: too much shared memory'}", "the launch failed: LaunchError"),
        ("answer['damaged'] = ['Top']", "writes outside of Top"),
        ("answer['changed'] = ['W']", "changes its input W"),
        ("runs[1]['Y'][0, 0] += 1", "Y[0, 0] differs between two runs"),
        ("del answer['outputs']['Top']", "gave 0 runs of Top"),
    ],
)
def test_what_is_wrong_is_a_rejection_by_name(fault: str, says: str) -> None:
    verdict = judged(fault, failures=2)

    assert verdict.verdict == "rejected"
    assert says in verdict.reason
    assert "the rest was left out" in verdict.reason
    assert len({c.case for c in verdict.checks if not c.passed}) == 2


def test_after_a_hang_and_a_crash_the_judge_goes_on(tmp_path: Path) -> None:
    flags = [str(tmp_path / "hung"), str(tmp_path / "crashed")]
    fault = f"Path({flags[0]!r}).exists() or (Path({flags[0]!r}).touch(), time.sleep(600)); "
    fault += f"Path({flags[1]!r}).exists() or (Path({flags[1]!r}).touch(), os.abort())"

    verdict = judged(fault, timeout_s=6)

    assert verdict.verdict == "rejected"
    assert "hangs" in verdict.checks[0].reason
    assert "SIGABRT" in verdict.checks[1].reason
    assert len({c.case for c in verdict.checks}) == 10
    assert all(c.passed for c in verdict.checks[2:])


def test_an_input_that_no_case_shows_makes_the_verdict_inconclusive() -> None:
    with built("runs = [{**r, 'Y': r['Y'] * 0} for r in runs]") as candidate:
        verdict = judge_plain(
            candidate, lambda X, Row, N: {"Y": np.zeros((len(X), N)), "Top": X[Row].sum(1)}, sizes=SIZES
        )

    assert verdict.verdict == "inconclusive"
    assert "the outputs depend on W" in verdict.reason


def test_layouts_and_what_the_launcher_chooses_differ_from_case_to_case(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    fault = f"open({kept!r}, 'a').write(request['layout'] + ' ' + str(request['sizes'].get('Parts')) + '\\n')"

    verdict = judged(fault, sizes=("M", "N", "Parts"), chosen={"Parts": ("ceildiv", "N", 64)})

    assert verdict.accepted, verdict.reason
    seen = {tuple(line.rsplit(" ", 1)) for line in Path(kept).read_text().splitlines()}
    assert {layout for layout, _ in seen} == {"contiguous", "padded rows", "heads first"}
    assert {parts for _, parts in seen} == {"1", "2", "3", "7"}


class InHere(Process):
    """The worker's own code on the CPU: guard bands, poisons and layouts are real, the kernel is Python."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.launch = act

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(launched(self, self.folder, json.loads(json.dumps(request)), device="cpu")))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda t: None, ""),
        (lambda t: t["Top"].as_strided((1,), (1,), t["Top"].storage_offset() - 1).fill_(0), "writes outside of Top"),
        (lambda t: t["Row"].add_(1), "changes its input Row"),
        (lambda t: t["Y"][-1].fill_(float("nan")), "never written, or not a number"),
    ],
    ids=["right", "outside", "input", "nan"],
)
def test_the_worker_runs_kernels_with_tensors_of_any_name(fault: Any, says: str) -> None:
    torch = pytest.importorskip("torch")

    def act(t: dict[str, Any], sizes: dict[str, int], scalars: dict[str, float]) -> None:
        t["Y"].copy_(scalars["alpha"] * torch.tanh(t["X"].double() @ t["W"].double().T))
        t["Top"].copy_(t["X"].double()[t["Row"].long()].sum(dim=1))
        fault(t)

    with InHere(act) as process:
        verdict = judge_plain(Built(MANIFEST, process, failures=1), picked, seed=3, sizes=SIZES)

    assert verdict.accepted == (not says)
    assert says in verdict.reason


# ------------------------------------------------------------------ sizes


def test_tiles_come_from_the_grid_where_there_is_no_tl() -> None:
    with built() as candidate:
        tried = candidate.sizes_to_try()

    assert {s["M"] for s in tried} == {1, 31, 32, 33, 65}
    assert {s["N"] for s in tried} == {1, 63, 64, 65, 129}


def test_sizes_that_the_launcher_refuses_are_left_out() -> None:
    with built(requires=(Requirement(("%", "M", 2), "==", 0),)) as candidate:
        assert {s["M"] for s in candidate.sizes_to_try()} == {32}


def test_rows_that_must_begin_at_multiples_are_as_long() -> None:
    rows = tuple(replace(t, align=16) if t.name == "Y" else t for t in MANIFEST.tensors)
    with built(tensors=rows) as candidate:
        tried = candidate.sizes_to_try()

    assert {s["M"] for s in tried} == {1, 31, 32, 33, 65}
    assert {s["N"] for s in tried} == {4, 64, 68, 132}


def test_a_kernel_that_takes_nothing_is_a_judge_error() -> None:
    with built(requires=(Requirement("M", "==", 12345),)) as candidate, pytest.raises(JudgeError) as caught:
        judge_plain(candidate, picked)

    assert "picked takes none of the sizes" in caught.value.message
    assert "sizes=" in caught.value.hint


def test_a_size_that_is_missing_is_a_judge_error() -> None:
    with built() as candidate, pytest.raises(JudgeError, match="takes the size N"):
        judge_plain(candidate, picked, sizes=[{"M": 4}])


def test_an_output_of_integers_is_a_judge_error() -> None:
    whole = tuple(replace(t, dtype="i32") if t.name == "Top" else t for t in MANIFEST.tensors)
    with pytest.raises(JudgeError, match="the output Top of picked is i32"), built(tensors=whole):
        pass


RELU = replace(
    MANIFEST,
    kernel="squared_relu",
    grid=(GridAxis("block", 0, ("ceildiv", "Sq", 128)), GridAxis("head", 0, "Hq"), GridAxis("batch", 0, "B")),
    tensors=(
        Tensor("Q", "bf16", ("B", "Sq", "Hq", 128), "input"),
        Tensor("K", "bf16", ("B", "Sk", "Hk", 128), "input"),
        Tensor("V", "bf16", ("B", "Sk", "Hk", 128), "input"),
        Tensor("Out", "bf16", ("B", "Sq", "Hq", 128), "output"),
    ),
    sizes=("B", "Sq", "Sk", "Hq", "Hk"),
    scalars=(Scalar("scale"),),
)


def test_the_program_beside_the_kernel_tells_the_cases_that_it_would_have_on_a_cpu() -> None:
    kernels = check_text(OPERATOR, model=False)
    with Process() as process:
        beside = Built(RELU, process, kernels)

    assert beside.sizes_to_try() == sizes_to_try(kernels)
    assert beside.fixed["D"] == 128


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Size D = 128", "Size D = 64"),
        ("Hq, Hk  #", "Hq, Hk, W  #"),
        ("Out in global (B, Sq, Hq, D) bf16", "Out in global (B, Sq, Hq, D) fp16"),
    ],
)
def test_a_program_that_declares_something_else_is_not_asked(old: str, new: str) -> None:
    assert old in OPERATOR
    kernels = check_text(OPERATOR.replace(old, new), model=False)
    with Process() as process:
        beside = Built(RELU, process, kernels)

    assert beside.fixed == {}
    assert {s["Sk"] for s in beside.sizes_to_try()} == {1, 63, 64, 65, 129}


# ------------------------------------------------------------------ from the command line's side


def written(folder: Path, scheduled: str = "") -> Path:
    files = dict.fromkeys(REQUIRED, b"{}") | {"spec.json": b"null", "sketch.tl": b"", "code.tl": b""}
    return write_bundle(folder, {**files, "scheduled.tl": scheduled.encode()}, replace(RELU, files={}))


def test_a_bundle_without_a_description_is_judged_where_its_kernel_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, asked = written(tmp_path, OPERATOR), []
    reference = f"{Path(__file__).parents[2]}/examples/squared_relu.py:attention"
    monkeypatch.setattr(judgement, "detect", lambda: targets.get("RTX8000"))
    on_the_cpu = judge_path(bundle, Against(reference=reference), 7, None)
    monkeypatch.setattr(judgement, "detect", lambda: targets.get("A100"))
    monkeypatch.setattr(judgement, "judge_bundle_by_function", lambda path, function, **how: asked.append((path, how)))

    judge_path(bundle, Against(reference=reference), 7, None)

    assert (on_the_cpu.verdict, on_the_cpu.where) == ("accepted", "cpu")
    assert asked == [(bundle, {"seed": 7, "progress": None, "process": None})]


def test_cuda_without_tl_is_not_judged_where_no_gpu_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = written(tmp_path)
    monkeypatch.setattr(judgement, "detect", lambda: targets.get("H200"))
    reference = f"{Path(__file__).parents[2]}/examples/squared_relu.py:attention"

    with pytest.raises(
        EnvironmentMissing, match=r"made from CUDA without TL: .* needs an NVIDIA GPU that runs sm_80"
    ) as caught:
        judge_path(bundle, Against(reference=reference), 7, None)
    with pytest.raises(SpecError):
        judge_path(bundle, Against(), 7, None)

    assert "with such a GPU" in caught.value.hint


def test_without_pytorch_a_bundle_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = written(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(EnvironmentMissing, match="PyTorch"):
        judge_bundle_by_function(bundle, picked)

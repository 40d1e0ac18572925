"""Bundles that no description covers, on a real GPU, against functions: made from TL, and from CUDA by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qimeng_attention import targets
from qimeng_attention.build import build
from qimeng_attention.errors import EnvironmentMissing
from qimeng_attention.judge import Verdict, judge_bundle_by_function
from qimeng_attention.judge.process import Process
from qimeng_attention.runtime import GridAxis, Manifest, Scalar, Tensor
from qimeng_attention.runtime.launcher import runs_on
from qimeng_attention.runtime.manifest import REQUIRED
from qimeng_attention.store import write_bundle
from qimeng_attention.workflow.generate import run
from qimeng_attention.workflow.judgement import Against, judge_path

pytestmark = pytest.mark.gpu
EXAMPLES = Path(__file__).parents[2] / "examples"
OPERATOR = (EXAMPLES / "squared_relu.tl").read_text("utf-8")
REFERENCE = f"{EXAMPLES / 'squared_relu.py'}:attention"
ARCH = "sm_90"


@pytest.fixture(scope="session")
def torch(torch: Any) -> Any:
    if not runs_on(ARCH, torch.cuda.get_device_capability()):
        pytest.skip(f"needs a GPU of {ARCH}")
    return torch


# ------------------------------------------------------------------ from TL


def made(code: str, folder: Path) -> Path:
    outcome = run(None, target="A100", arch=ARCH, out=folder / "bundle", code=code)
    if outcome.folder is None:
        pytest.skip(f"needs the build extra: {'; '.join(outcome.notes)}")
    return outcome.folder


def test_a_right_program_is_accepted_on_the_gpu(torch: Any, tmp_path: Path) -> None:
    bundle = made(OPERATOR, tmp_path)

    verdict = judge_path(bundle, Against(reference=REFERENCE), 3, None)

    assert verdict.accepted, verdict.reason
    assert (verdict.where, verdict.subject) == ("gpu", "squared_relu")
    assert len(verdict.checks) == 35


PLANTED = [
    (" else 0", ""),  # -inf where nothing is seen
    ("max(S * scale, 0)", "max(S * abs(scale), 0)"),  # the scale's sign; its size cancels in the division
    ("O / l)", "O * 1.03 / l)"),
    ("k <= q + Sk - Sq and", "k < q + Sk - Sq and"),
]


@pytest.mark.parametrize(("old", "new"), PLANTED, ids=["no else 0", "scale's sign", "scaled output", "diagonal"])
def test_a_planted_bug_is_rejected(torch: Any, old: str, new: str, tmp_path: Path) -> None:
    assert old in OPERATOR
    bundle = made(OPERATOR.replace(old, new), tmp_path)

    verdict = judge_bundle_by_function(bundle, REFERENCE, seed=3)

    assert verdict.verdict == "rejected", verdict.reason
    assert "Out" in verdict.reason


# ------------------------------------------------------------------ from CUDA that somebody wrote

SOURCE = """
extern "C" __global__ void picked(
    const unsigned short* X, long long X_row, const unsigned short* W, long long W_row, const int* Row,
    float* Y, long long Y_row, float* Top, int M, int N, float alpha)
{
    int m = blockIdx.x * 32 + threadIdx.x, n = blockIdx.y;
    if (m >= M) return;
    FAULT
    float sum = 0, top = 0;
    for (int d = 0; d < 16; ++d) {
        sum += __uint_as_float(X[m * X_row + d] << 16) * __uint_as_float(W[n * W_row + d] << 16);
        top += __uint_as_float(X[Row[m] * X_row + d] << 16);
    }
    Y[m * Y_row + n] = alpha * tanhf(sum);
    if (n == 0) Top[m] = top;
}
"""
MANIFEST = Manifest(
    kernel="picked",
    target="A100",
    arch="sm_80",
    built_arch=ARCH,
    threads=32,
    shared_bytes=0,
    grid=(GridAxis("m", 0, ("ceildiv", "M", 32)), GridAxis("n", 0, "N")),
    tensors=(
        Tensor("X", "bf16", ("M", 16), "input"),
        Tensor("W", "bf16", ("N", 16), "input"),
        Tensor("Row", "i32", ("M",), "input"),
        Tensor("Y", "f32", ("M", "N"), "output"),
        Tensor("Top", "f32", ("M",), "output"),
    ),
    sizes=("M", "N"),
    scalars=(Scalar("alpha"),),
)


def picked(X: Any, W: Any, Row: Any, alpha: float) -> dict[str, Any]:
    """Compute what the kernel does."""
    return {"Y": alpha * np.tanh(X @ W.T), "Top": X[Row].sum(axis=1)}


def written(fault: str, folder: Path) -> Path:
    source = SOURCE.replace("FAULT", fault)
    try:
        made_ = build(source, name="picked", arch=ARCH, threads=32, shared_bytes=0, target=targets.get("A100"))
    except EnvironmentMissing as missing:
        pytest.skip(f"needs the build extra: {missing.message}")
    files = dict.fromkeys(REQUIRED, b"{}") | {"spec.json": b"null", "sketch.tl": b"", "code.tl": b""}
    files |= {"scheduled.tl": b"", "kernel.cu": source.encode(), "kernel.cubin": made_.cubin}
    return write_bundle(folder, files, MANIFEST)


def judged(fault: str, folder: Path, **how: Any) -> Verdict:
    return judge_bundle_by_function(written(fault, folder), picked, seed=5, **how)


def test_cuda_without_tl_is_accepted(torch: Any, tmp_path: Path) -> None:
    verdict = judged("", tmp_path)

    assert verdict.accepted, verdict.reason
    assert verdict.where == "gpu"
    assert len({c.case for c in verdict.checks}) >= 20


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("alpha = fabsf(alpha);", "Y["),
        ("if (m == M - 1) return;", "never written"),
        ("Top[-1 - m] = 0;", "writes outside of Top"),
        ("const_cast<unsigned short*>(W)[n * W_row] = 0x3f80;", "changes its input W"),
        ('asm volatile("trap;");', "the launch failed"),
        ("while (*(volatile const int*)Row > -1) {}", "hangs"),
    ],
    ids=["sign", "last row", "outside", "input", "trap", "hang"],
)
def test_what_a_kernel_does_wrong_is_a_rejection_by_name(torch: Any, fault: str, says: str, tmp_path: Path) -> None:
    verdict = judged(fault, tmp_path, timeout_s=30, failures=1)

    assert verdict.verdict == "rejected"
    assert says in verdict.reason


def test_the_judge_goes_on_after_a_crash_and_one_process_serves_many(torch: Any, tmp_path: Path) -> None:
    with Process() as process:
        crashed = judged('if (M == 1) asm volatile("trap;");', tmp_path / "one", process=process)
        right = judged("", tmp_path / "two", process=process)

    assert crashed.verdict == "rejected"
    assert {c.passed for c in crashed.checks} == {True, False}
    assert all("M=1 " in c.case for c in crashed.checks if not c.passed)
    assert right.accepted, right.reason

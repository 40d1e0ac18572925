"""What `qimeng bench` does without a GPU: it says so; pairs are counted, times kept in the bundle and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.bench import against_sdpa
from qimeng_attention.bench.against_sdpa import bench_bundle, pairs_seen, save
from qimeng_attention.bench.timing import Times
from qimeng_attention.errors import EnvironmentMissing, SpecError
from qimeng_attention.judge import Call, Operator
from qimeng_attention.report.page import page_of
from qimeng_attention.runtime import GridAxis, Manifest, Scalar, Tensor, load, read_folder
from qimeng_attention.runtime.manifest import REQUIRED
from qimeng_attention.runtime.operator import operator_name
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.store import write_bundle

MACHINE = {"device": "NVIDIA H200", "torch": "2.11.0", "cuda": "13.0", "date": "2026-11-28"}


@pytest.fixture
def bundle(tmp_path: Path) -> Any:
    names = (("Q", "q", "input"), ("K", "k", "input"), ("V", "k", "input"), ("Out", "q", "output"))
    manifest = Manifest(
        kernel="gqa",
        target="H200",
        arch="sm_90a",
        built_arch="sm_90a",
        threads=128,
        shared_bytes=0,
        grid=(GridAxis("block", 0, "Sq"),),
        tensors=tuple(Tensor(n, "bf16", ("B", f"S{x}", 8, 64), role) for n, x, role in names),
        sizes=("B", "Sq", "Sk"),
        scalars=(Scalar("scale", "f32", ">", 0.0),),
        call={"q": "Q", "k": "K", "v": "V"},
        outputs=("Out",),
    )
    files = dict.fromkeys(REQUIRED, b"{}") | {"kernel.cubin": b"\x7fELF", "code.tl": b"", "scheduled.tl": b""}
    files.pop("manifest.json", None)
    return load(write_bundle(tmp_path, files, manifest, name="gqa"))


def call_of(spec: AttentionSpec, sq: int, sk: int) -> Call:
    return Call(2, sq, sk, spec.Hq, spec.Hk, spec.Dqk, spec.Dv, 0.125)


@pytest.mark.parametrize(
    ("mask", "sq", "sk", "share"),
    [
        ("full", 7, 9, 1.0),
        ("causal", 600, 600, 601 / 1200),
        ("causal", 1, 9, 1.0),
        ("window:0", 50, 50, 1 / 50),
        ("kv_idx < 10 * (h + 1)", 5, 40, (10 + 20 + 30 + 40) / 160),
    ],
)
def test_pairs_that_the_mask_shows_are_counted(mask: str, sq: int, sk: int, share: float) -> None:
    spec = AttentionSpec.make(Hq=4, Dqk=64, mask=mask)

    assert pairs_seen(Operator.of(spec), call_of(spec, sq, sk)) == pytest.approx(share)


def test_without_a_gpu_it_is_said(bundle: Any) -> None:
    with pytest.raises(EnvironmentMissing) as caught:
        bench_bundle(bundle.path, 1, 128)
    assert "GPU" in caught.value.message or "PyTorch" in caught.value.message
    assert caught.value.hint


def row(**changed: Any) -> dict[str, Any]:
    call = Call(*(changed.get(n, d) for n, d in (("B", 4), ("Sq", 4096), ("Sk", 4096))), 8, 8, 64, 64, 0.125)
    job = against_sdpa._Job(call, {}, changed.get("peer", "SDPA"), flops=1e12, bytes=10**8)
    times = {"ours": Times(2.0, 0.01, 100)} | ({"sdpa": Times(3.0, 0.02, 100)} if job.peer else {})
    return against_sdpa._row(job, times, {"ours": 2.1, "sdpa": 3.3})


@pytest.mark.parametrize("field", ["varlen", "seqused_k"])
def test_calls_with_lengths_of_their_own_are_refused_by_name(
    bundle: Any, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(against_sdpa, "_torch", lambda: None)
    described = {**bundle.files, "spec.json": json.dumps({field: True}).encode()}
    path = write_bundle(bundle.path.parent, described, bundle.manifest, name="lengths")

    with pytest.raises(SpecError, match="no one length") as refused:
        bench_bundle(path, 2, 64)

    assert refused.value.details["field"] == field


def test_times_are_kept_in_the_bundle_and_shown(bundle: Any) -> None:
    before = operator_name(bundle.manifest)
    measured = against_sdpa._measured(bundle, MACHINE, row())

    path = save(bundle, measured)

    page = page_of(read_folder(path))
    assert path == bundle.path
    assert page.speed[0] == (
        "B = 4, Sq = 4,096, Sk = 4,096",
        "2 ms, 500 TFLOP/s, 50 GB/s; SDPA takes 3 ms, 1.50 times as long; called from Python 2.1 ms; "
        "rounds spread by 1.0%",
    )
    assert page.speed[-1] == ("measured on", "NVIDIA H200, torch 2.11.0, cuda 13.0, 2026-11-28")
    assert operator_name(load(path).manifest) == before


def test_other_shapes_stay_and_the_same_one_is_replaced(bundle: Any) -> None:
    for shape in ({}, {"Sq": 1}, {}):
        save(load(bundle.path), against_sdpa._measured(load(bundle.path), MACHINE, row(**shape)))
    kept = json.loads(load(bundle.path).files["speed.json"])["rows"]

    assert [r["Sq"] for r in kept] == [1, 4096]

    other = against_sdpa._measured(load(bundle.path), {**MACHINE, "device": "NVIDIA A100"}, row())
    assert len(other["rows"]) == 1, "times of two machines are not mixed"


def test_without_a_peer_only_our_times_are_kept() -> None:
    found = row(peer="")

    assert "ratio" not in found
    assert found["ours_tflops"] == 500.0

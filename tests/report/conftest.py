"""A bundle whose every file is written here, so that pages change only when the way of showing does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.report import Page, page_of
from qimeng_attention.runtime import GridAxis, Manifest, Requirement, Scalar, Tensor, read_folder
from qimeng_attention.runtime.manifest_json import to_json

SCHEDULED = """\
# gqa: a program to be shown
Kernel gqa for h200
Size B, Sq, Sk
Tile BM = 128, BN = 64  # 250 clocks (predicted)
Allocate S in register (BM q, BN k) f32
for i = 0 : ceildiv(Sk, BN)
    Compute GEMM Q, K.T and get S
    if i >= masked
        Compute Mask S where k <= q + Sk - Sq and k < Sk
    Compute exp2(S * c) and get new S  # one FFMA & one MUFU
end
"""
SOURCE = """\
// gqa: made from TL for H200
extern "C" __global__ void gqa(int const B, int const Sq, int const Sk) {
  // tl:5 Allocate S in register (BM q, BN k) f32
  tl::Accumulator<16, 64> rS;
  // tl:6 for i = 0 : ceildiv(Sk, BN)
  for (int i = 0; i < tl::ceildiv(Sk, 64); ++i) {
    // tl:7 Compute GEMM Q, K.T and get S
    tl::gemm(rS, sQ, sK);
    // tl:8 if i >= masked
    if (i >= masked && true) {
      // tl:9 Compute Mask S where k <= q + Sk - Sq and k < Sk
      tl::mask(rS);
    }
    // tl:10 Compute exp2(S * c) and get new S
    rS = tl::exp2(rS * c);
    // tl:7 Compute GEMM Q, K.T and get S
    tl::wait_gemm<0>();
  }
}
"""
REASONS = {
    "author": "planner",
    "reasons": [
        {"parameter": "tile", "value": "BM = 128, BN = 64", "why": "least clocks", "figures": {"kind": "prediction"}},
        {"parameter": "grid", "value": "longest first", "why": "the last wave is short blocks", "figures": {}},
    ],
}
VERDICT = {
    "verdict": "accepted",
    "reason": "2 checks, 0 properties",
    "where": "cpu",
    "seconds": 1.5,
    "entropy": 7,
    "checks": [
        {"case": "normal, B=1", "output": "Out", "passed": True, "worst_error": 0.001, "bound": 0.01},
        {"case": "edges, B=2", "output": "Lse", "passed": True, "worst_error": 0.004, "bound": 0.01},
    ],
    "clauses": [{"name": "scale", "implied": False, "caught_by": "normal, B=1"}],
}
REPORT = {
    "registers": 168,
    "spill_store_bytes": 0,
    "spill_load_bytes": 0,
    "occupancy": {"blocks_per_sm": 2, "warps_per_sm": 8, "limited_by": "registers"},
    "counts": {"HMMA": 64, "MUFU.EX2": 32, "LDSM": 16},
}
SPEC = {"Hq": 8, "Hk": 2, "Dqk": 64, "mask": "window:4", "softcap": 20.0}
FILES: dict[str, bytes] = {
    "spec.json": json.dumps(SPEC).encode(),
    "sketch.tl": b"Copy Q from global to shared\n",
    "code.tl": b"Kernel gqa\n\nSchedule\n    ring K stages 2\n",
    "scheduled.tl": SCHEDULED.encode(),
    "kernel.cu": SOURCE.encode(),
    "kernel.cubin": b"\x7fELF kernel",
    "report.json": json.dumps(REPORT).encode(),
    "reasons.json": json.dumps(REASONS).encode(),
    "verdict.json": json.dumps(VERDICT).encode(),
    "speed.json": json.dumps({"device": "H200", "ours_tflops": 601.5}).encode(),
}
MANIFEST = Manifest(
    kernel="gqa",
    target="H200",
    arch="sm_90a",
    built_arch="sm_90a",
    threads=128,
    shared_bytes=65_536,
    grid=(GridAxis("block", 0, ("ceildiv", "Sq", 128)), GridAxis("head", 0, 8), GridAxis("batch", 0, "B")),
    tensors=(
        Tensor("Q", "bf16", ("B", "Sq", 8, 64), "input"),
        Tensor("K", "bf16", ("B", "Sk", 2, 64), "input"),
        Tensor("V", "bf16", ("B", "Sk", 2, 64), "input"),
        Tensor("Out", "bf16", ("B", "Sq", 8, 64), "output"),
    ),
    sizes=("B", "Sq", "Sk"),
    scalars=(Scalar("scale", "f32", ">", 0.0),),
    requires=(Requirement("Sk", "<=", 1 << 30),),
    call={"q": "Q", "k": "K", "v": "V"},
    outputs=("Out",),
    provenance={"package": "0.1.0", "versions": {"nvrtc": "13.2"}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write the bundle, with other files or fields where they are given."""

    def write(files: dict[str, bytes | None] | None = None, **changed: Any) -> Path:
        kept = {name: content for name, content in {**FILES, **(files or {})}.items() if content is not None}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in kept.items()}
        path = tmp_path / "bundle"
        path.mkdir(exist_ok=True)
        for name, content in kept.items():
            (path / name).write_bytes(content)
        (path / "manifest.json").write_bytes(to_json(replace(MANIFEST, files=digests, **changed)))
        return path

    return write


@pytest.fixture
def page(folder: Callable[..., Path]) -> Callable[..., Page]:
    """Gather the bundle's page."""
    return lambda files=None, **changed: page_of(read_folder(folder(files, **changed)))

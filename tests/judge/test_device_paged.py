"""A kernel over pages in another process: what stands in for it follows lengths and tables, or is rejected."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from qimeng_attention.errors import JudgeError
from qimeng_attention.judge import judge_candidate
from qimeng_attention.judge.device import Isolated
from qimeng_attention.judge.inputs import Budget
from qimeng_attention.judge.process import Process
from qimeng_attention.runtime import GridAxis, Manifest, Scalar, Tensor
from qimeng_attention.spec import AttentionSpec

SPEC = AttentionSpec.make(Hq=2, Hk=1, Dqk=16, Sq=1, mask="causal", page_size=4)
MANIFEST = Manifest(
    kernel="paged",
    target="A100",
    arch="sm_80",
    built_arch="sm_80",
    threads=128,
    shared_bytes=0,
    grid=(GridAxis("row", 0, "Hk"),),
    tensors=(
        Tensor("Q", "bf16", ("B", 1, 2, 16), "input"),
        Tensor("K", "bf16", ("Pages", 4, "Hk", 16), "input"),
        Tensor("V", "bf16", ("Pages", 4, "Hk", 16), "input"),
        Tensor("SequsedK", "i32", ("B",), "input"),
        Tensor("PageTable", "i32", ("B", "MaxPages"), "input"),
        Tensor("Out", "bf16", ("B", 1, 2, 16), "output"),
        Tensor("Lse", "f32", ("B", 2, 1), "output"),
    ),
    sizes=("B", "Pages", "MaxPages", "Hk"),
    scalars=(Scalar("scale", op=">"),),
)
SMALL = Budget("small", heads=None, keys=70, scores=1 << 16, thorough=False)
WORKER = """
import json, sys
from pathlib import Path
import numpy as np
from qimeng_attention.judge import Call, Operator, truth
from qimeng_attention.judge.launches import from_bits, to_bits
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import round_to
folder = Path(sys.argv[-1])
operator = Operator.of(AttentionSpec.make(Hq=2, Hk=1, Dqk=16, Sq=1, mask="causal"))
for line in sys.stdin:
    request = json.loads(line)
    x = {}
    for n, a in request["inputs"].items():
        data = (folder / a["file"]).read_bytes()
        flat = np.frombuffer(data, np.int32) if a["dtype"] == "i32" else from_bits(data, a["dtype"])
        x[n] = flat.reshape(a["shape"])
    sizes, scale, table = request["sizes"], request["scalars"]["scale"], x["PageTable"]
    assert x["K"].shape[0] == sizes["Pages"] and table.shape[1] == sizes["MaxPages"]
    outs, lses = np.zeros(x["Q"].shape, np.float32), np.full((sizes["B"], 2, 1), -np.inf, np.float32)
    for b in range(sizes["B"]):
        length = int(np.clip(x["SequsedK"][b], 0, sizes["MaxPages"] * 4))
        row = b
        FAULT
        places = np.arange(length)
        pages = table[row, places // 4] if length else np.zeros(0, int)
        there = ((pages >= 0) & (pages < sizes["Pages"]))[:, None, None]
        k, v = (np.where(there, x[n][np.where(there[:, 0, 0], pages, 0), places % 4], 0)[None] for n in "KV")
        want = truth(operator, Call(1, 1, length, 2, 1, 16, 16, scale), x["Q"][b:b + 1], k, v)
        outs[b], lses[b] = round_to(want.out, "bf16")[0], want.lse[0]
    answer = {"damaged": [], "changed": [], "outputs": {"Out": ["Out.0", "Out.1"], "Lse": ["Lse.0", "Lse.1"]}}
    for n in range(2):
        (folder / f"Out.{n}").write_bytes(to_bits(outs, "bf16").tobytes())
        (folder / f"Lse.{n}").write_bytes(to_bits(lses, "f32").tobytes())
    print(json.dumps(answer), flush=True)
"""
FAULTS = {
    "the length is ignored": "length = sizes['MaxPages'] * 4",
    "the table's row of another entry": "row = 0",
    "one key less": "length = max(length - 1, 0)",
    "a page outside is skipped": "length = int(min([length, *(4 * np.flatnonzero(table[b] < 0))]))",
}


def verdict(fault: str) -> str:
    with Process([sys.executable, "-c", WORKER.replace("FAULT", fault)]) as process:
        candidate = Isolated(MANIFEST, SPEC, process)
        return judge_candidate(candidate, SPEC, (1, 8), seed=1, budget=SMALL, where="gpu").verdict


def test_what_follows_lengths_and_tables_is_accepted() -> None:
    assert verdict("pass") == "accepted"


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_is_rejected(fault: str) -> None:
    assert verdict(FAULTS[fault]) == "rejected"


def test_a_kernel_without_a_page_table_does_not_fit() -> None:
    tensors = tuple(t for t in MANIFEST.tensors if t.name != "PageTable")

    with Process() as process, pytest.raises(JudgeError, match="PageTable"):
        Isolated(replace(MANIFEST, tensors=tensors), SPEC, process)

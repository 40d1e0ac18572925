"""Packed sequences in another process: what goes there, what comes back; a Python program stands in for the kernel."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from qimeng_attention.errors import JudgeError
from qimeng_attention.judge import judge_candidate
from qimeng_attention.judge.candidate import Stopped
from qimeng_attention.judge.device import Isolated
from qimeng_attention.judge.inputs import Budget
from qimeng_attention.judge.meaning import Call
from qimeng_attention.judge.packed import Packed, arrange
from qimeng_attention.judge.process import Process
from qimeng_attention.runtime import GridAxis, Manifest, Scalar, Tensor
from qimeng_attention.spec import AttentionSpec

SPEC = AttentionSpec.make(Hq=2, Hk=1, Dqk=16, mask="causal", varlen=True)
SMALL = Budget("small", heads=2, keys=64, scores=1 << 12, thorough=False, failures=1)
MANIFEST = Manifest(
    kernel="packed",
    target="A100",
    arch="sm_80",
    built_arch="sm_80",
    threads=128,
    shared_bytes=0,
    grid=(GridAxis("slot", 0, "Tq"),),
    tensors=(
        Tensor("Q", "bf16", ("Tq", "Hq", 16), "input"),
        Tensor("K", "bf16", ("Tk", "Hk", 16), "input"),
        Tensor("V", "bf16", ("Tk", "Hk", 16), "input"),
        Tensor("StartQ", "i32", (("+", "B", 1),), "input"),
        Tensor("StartK", "i32", (("+", "B", 1),), "input"),
        Tensor("Out", "bf16", ("Tq", "Hq", 16), "output"),
        Tensor("Lse", "f32", ("Hq", "Tq"), "output"),
    ),
    sizes=("B", "Tq", "Tk", "Hq", "Hk"),
    scalars=(Scalar("scale", op=">"),),
)
WORKER = """
import json, sys
from pathlib import Path
import numpy as np
from qimeng_attention.judge import Call, Operator, truth
from qimeng_attention.judge.launches import from_bits, to_bits
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import round_to
folder = Path(sys.argv[-1])
operator = Operator.of(AttentionSpec.make(Hq=2, Hk=1, Dqk=16, mask="causal"))
for line in sys.stdin:
    request = json.loads(line)
    x = {}
    for n, a in request["inputs"].items():
        data = (folder / a["file"]).read_bytes()
        flat = np.frombuffer(data, np.int32) if a["dtype"] == "i32" else from_bits(data, a["dtype"])
        x[n] = flat.reshape(a["shape"])
    sizes, at_q, at_k = request["sizes"], x["StartQ"], x["StartK"]
    runs = []
    for poison in (np.nan, 2.0**100):
        out, lse = np.full((sizes["Tq"], 2, 16), poison, np.float32), np.full((2, sizes["Tq"]), poison, np.float32)
        for b in range(sizes["B"]):
            q, k = slice(at_q[b], at_q[b + 1]), slice(at_k[b], at_k[b + 1])
            end = q.stop
            FAULT
            call = Call(1, q.stop - q.start, k.stop - k.start, 2, 1, 16, 16, request["scalars"]["scale"])
            with np.errstate(all="ignore"):
                want = truth(operator, call, x["Q"][None, q], x["K"][None, k], x["V"][None, k])
            out[q.start : end] = round_to(want.out[0], "bf16")[: end - q.start]
            lse[:, q.start : end] = want.lse[0][:, : end - q.start]
        runs.append((out, lse))
    for n, (out, lse) in enumerate(runs):
        (folder / f"Out.{n}").write_bytes(to_bits(out, "bf16").tobytes())
        (folder / f"Lse.{n}").write_bytes(to_bits(lse, "f32").tobytes())
    names = {"Out": ["Out.0", "Out.1"], "Lse": ["Lse.0", "Lse.1"]}
    print(json.dumps({"damaged": [], "changed": [], "outputs": names}), flush=True)
"""


@contextmanager
def isolated(fault: str = "pass") -> Iterator[Isolated]:
    with Process([sys.executable, "-W", "ignore", "-c", WORKER.replace("FAULT", fault)]) as process:
        yield Isolated(MANIFEST, SPEC, process)


def test_a_kernel_that_is_right_is_accepted() -> None:
    with isolated() as candidate:
        verdict = judge_candidate(candidate, SPEC, (16, 16), seed=1, budget=SMALL)

    assert verdict.verdict == "accepted", verdict.reason


@pytest.mark.parametrize(
    "fault",
    [
        "k = slice(at_k[b], min(at_k[b + 1] + 1, sizes['Tk']))",
        "k = slice(at_q[b], at_q[b + 1])",
        "end -= q.stop > q.start",
        "q, end = slice(q.start, min(q.stop + 1, sizes['Tq'])), min(q.stop + 1, sizes['Tq'])",
    ],
    ids=["one key too many", "keys where queries lie", "the last row is not written", "a row past the end is written"],
)
def test_a_kernel_that_is_wrong_is_rejected(fault: str) -> None:
    with isolated(fault) as candidate:
        assert judge_candidate(candidate, SPEC, (16, 16), seed=1, budget=SMALL).verdict == "rejected"


def test_rows_of_no_sequence_must_stay_as_they_were() -> None:
    fault = "q, end = slice(q.start, min(q.stop + 1, sizes['Tq'])), min(q.stop + 1, sizes['Tq'])"
    call = next(
        c for c in (Call(1, sq, 5, 2, 1, 16, 16, 0.25) for sq in range(1, 9)) if arrange(c, (16, 16), None).behind
    )
    x = {n: np.zeros(call.shapes()[n], np.float32) for n in ("Q", "K", "V")}

    with isolated(fault) as candidate, pytest.raises(Stopped, match="belong to no sequence"):
        Packed(candidate, SPEC, (16, 16)).run(call, x, "contiguous")


@pytest.mark.parametrize("missing", ["StartQ", "StartK"])
def test_a_kernel_without_offsets_is_refused(missing: str) -> None:
    fewer = replace(MANIFEST, tensors=tuple(t for t in MANIFEST.tensors if t.name != missing))

    with Process() as process, pytest.raises(JudgeError, match=f"{missing} of packed is missing"):
        Isolated(fewer, SPEC, process)

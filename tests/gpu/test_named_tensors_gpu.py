"""Kernels that take named tensors, made and run on a real GPU: against PyTorch, and before the judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.errors import EnvironmentMissing, LaunchError
from qimeng_attention.judge import judge_bundle
from qimeng_attention.judge.inputs import GPU
from qimeng_attention.runtime import Bundle
from qimeng_attention.runtime.launcher import runs_on
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import generate

pytestmark = pytest.mark.gpu
HEADS: dict[str, Any] = {"Hq": 8, "Hk": 2, "Dqk": 64}
DOCUMENTS = AttentionSpec.make(
    **HEADS,
    mask="kv_idx <= q_idx + Sk - Sq and doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]",
    score="score - slopes[h] * (q_idx + Sk - Sq - kv_idx)",
    tensors={"doc": {"dims": ["B", "Sk"], "dtype": "i64"}, "slopes": {"dims": ["Hq"], "dtype": "f32"}},
)
BIASES = AttentionSpec.make(
    **HEADS,
    mask="gate[b, kv_idx] or kv_idx < lengths[b]",
    score="score + table[h, clamp(kv_idx - q_idx, -9, 9) + 9] + bias[h, q_idx, kv_idx]",
    tensors={
        "gate": {"dims": ["B", "Sk"], "dtype": "bool"},
        "lengths": {"dims": ["B"], "dtype": "i32"},
        "table": {"dims": ["Hq", "N"], "dtype": "f16"},
        "bias": {"dims": ["Hq", "Sq", "Sk"], "dtype": "bf16"},
    },
)
TARGETS = [("A100", "sm_90"), ("H200", None)]


def made(torch: Any, spec: AttentionSpec, target: tuple[str, str | None], folder: Path) -> Bundle:
    name, arch = target
    if not runs_on("sm_90a", torch.cuda.get_device_capability()):
        pytest.skip("needs a GPU of sm_90")
    try:
        return generate(spec, target=name, arch=arch, out=folder / "bundle", judge=False)
    except EnvironmentMissing as missing:
        pytest.skip(f"needs the build extra: {missing.message}")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
@pytest.mark.parametrize("spec", [DOCUMENTS, BIASES], ids=["documents", "biases"])
def test_the_judge_accepts_the_kernel(
    torch: Any, spec: AttentionSpec, target: tuple[str, str | None], tmp_path: Path
) -> None:
    bundle = made(torch, spec, target, tmp_path)

    verdict = judge_bundle(bundle.path, spec, budget=replace(GPU, keys=2100, scores=1 << 24))

    assert verdict.accepted, verdict.reason


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
def test_a_call_takes_them_by_keyword(torch: Any, target: tuple[str, str | None], tmp_path: Path) -> None:
    bundle = made(torch, DOCUMENTS, target, tmp_path)
    batch, queries, keys = 2, 130, 333
    q, k, v = (
        torch.randn(batch, n, h, 64, device="cuda", dtype=torch.bfloat16)
        for n, h in ((queries, 8), (keys, 2), (keys, 2))
    )
    doc = torch.randint(0, 4, (batch, keys), device="cuda").sort(dim=1).values
    slopes = torch.rand(8, device="cuda")

    out = bundle(q, k, v, doc=doc, slopes=slopes)

    rows, columns = torch.arange(queries, device="cuda")[:, None] + keys - queries, torch.arange(keys, device="cuda")
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double().repeat_interleave(4, dim=2)) / 8
    scores = scores - slopes.double()[:, None, None] * (rows - columns)
    seen = (columns <= rows) & (doc[:, rows] == doc[:, None, :])
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(dim=-1)
    want = torch.einsum("bhqk,bkhd->bqhd", weights, v.double().repeat_interleave(4, dim=2))
    torch.testing.assert_close(out.double(), want, rtol=0, atol=3e-2)
    with pytest.raises(LaunchError, match=r"doc is of torch\.int32"):
        bundle(q, k, v, doc=doc.int(), slopes=slopes)
    operator = bundle.operator()
    assert torch.equal(operator(q, k, v, doc=doc, slopes=slopes), out)
    found = torch.library.opcheck(operator.with_lse, (q, k, v), {"doc": doc, "slopes": slopes})
    assert set(found.values()) == {"SUCCESS"}
    step = torch.compile(lambda *x: operator(*x[:3], doc=x[3], slopes=x[4]) + 0, backend="aot_eager", fullgraph=True)
    assert torch.equal(step(q, k, v, doc, slopes), out)

"""Kernels that list tiles before they visit them, on a real GPU: made in the call, made before it, in a graph."""

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
HEADS: dict[str, Any] = {"Hq": 4, "Hk": 2, "Dqk": 128}
DOCUMENTS = AttentionSpec.make(
    **HEADS,
    mask="kv_idx <= q_idx + Sk - Sq and doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]",
    tensors={"doc": {"dims": ["B", "Sk"], "dtype": "i32"}},
)
BLOCKS = AttentionSpec.make(
    **HEADS,
    mask="blocks[h, q_idx // 64, kv_idx // 64]",
    tensors={"blocks": {"dims": ["Hq", "NQ", "NK"], "dtype": "bool"}},
)
TARGETS = [("A100", "sm_90"), ("H200", None), ("T4", "sm_90")]
BATCH, QUERIES, KEYS = 2, 1100, 1500


def made(torch: Any, spec: AttentionSpec, target: tuple[str, str | None], folder: Path) -> Bundle:
    name, arch = target
    if not runs_on("sm_90a", torch.cuda.get_device_capability()):
        pytest.skip("needs a GPU of sm_90")
    if name == "T4":
        spec = spec.model_copy(update={"dtype": "fp16"})
    try:
        return generate(spec, target=name, arch=arch, out=folder / "bundle", judge=False)
    except EnvironmentMissing as missing:
        pytest.skip(f"needs the build extra: {missing.message}")


def inputs(torch: Any, dtype: str) -> list[Any]:
    kind = torch.float16 if dtype == "fp16" else torch.bfloat16
    shapes = ((QUERIES, 4), (KEYS, 2), (KEYS, 2))
    return [torch.randn(BATCH, n, h, 128, device="cuda", dtype=kind) for n, h in shapes]


def documents(torch: Any, share: float) -> Any:
    """Give ids of documents of about 1 / share tokens."""
    return (torch.rand(BATCH, KEYS, device="cuda") < share).int().cumsum(dim=1, dtype=torch.int32)


def seen_documents(torch: Any, doc: Any) -> Any:
    rows = torch.arange(QUERIES, device="cuda")[:, None] + KEYS - QUERIES
    columns = torch.arange(KEYS, device="cuda")
    return ((columns <= rows) & (doc[:, rows] == doc[:, None, :]))[:, None]


def wanted(torch: Any, q: Any, k: Any, v: Any, seen: Any) -> tuple[Any, Any]:
    """Give output and LSE in float64; rows that see nothing give 0 and -inf."""
    k, v = (x.double().repeat_interleave(2, dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k) * 128**-0.5
    scores = scores.masked_fill(~seen, -torch.inf)
    weights = torch.nan_to_num(scores.softmax(dim=-1))
    return torch.einsum("bhqk,bkhd->bqhd", weights, v), scores.logsumexp(dim=-1)


def close(torch: Any, found: tuple[Any, Any], want: tuple[Any, Any]) -> None:
    torch.testing.assert_close(found[0].double(), want[0], rtol=0, atol=3e-2)
    torch.testing.assert_close(found[1].double(), want[1], rtol=0, atol=1e-2)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
@pytest.mark.parametrize("spec", [DOCUMENTS, BLOCKS], ids=["documents", "blocks"])
def test_the_judge_accepts_the_kernels(
    torch: Any, spec: AttentionSpec, target: tuple[str, str | None], tmp_path: Path
) -> None:
    bundle = made(torch, spec, target, tmp_path)
    asked = spec.model_copy(update={"dtype": "fp16"}) if target[0] == "T4" else spec

    verdict = judge_bundle(bundle.path, asked, budget=replace(GPU, keys=2100, scores=1 << 24))

    assert verdict.accepted, verdict.reason


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.02, 1.0])
def test_documents_with_lists_made_in_the_call_and_before_it(
    torch: Any, share: float, target: tuple[str, str | None], tmp_path: Path
) -> None:
    bundle = made(torch, DOCUMENTS, target, tmp_path)
    q, k, v = inputs(torch, "fp16" if target[0] == "T4" else "bf16")
    doc = documents(torch, share)
    want = wanted(torch, q, k, v, seen_documents(torch, doc))

    lists = bundle.lists(q, k, v, doc=doc)

    close(torch, bundle(q, k, v, doc=doc, return_lse=True), want)
    close(torch, bundle(q, k, v, doc=doc, lists=lists, return_lse=True), want)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
def test_a_block_mask_of_each_head(torch: Any, target: tuple[str, str | None], tmp_path: Path) -> None:
    bundle = made(torch, BLOCKS, target, tmp_path)
    q, k, v = inputs(torch, "fp16" if target[0] == "T4" else "bf16")
    blocks = torch.rand(4, -(-QUERIES // 64), -(-KEYS // 64), device="cuda") < 0.3
    blocks[1, 3] = False  # rows that see nothing
    i, j = torch.arange(QUERIES, device="cuda")[:, None] // 64, torch.arange(KEYS, device="cuda") // 64
    want = wanted(torch, q, k, v, blocks[:, i, j][None])

    close(torch, bundle(q, k, v, blocks=blocks, return_lse=True), want)
    lists = bundle.lists(q, k, v, blocks=blocks)
    close(torch, bundle(q, k, v, blocks=blocks, lists=lists, return_lse=True), want)


def test_a_graph_follows_the_ids_or_keeps_the_lists(torch: Any, tmp_path: Path) -> None:
    bundle = made(torch, DOCUMENTS, ("H200", None), tmp_path)
    q, k, v = inputs(torch, "bf16")
    doc = documents(torch, 0.01)
    lists = bundle.lists(q, k, v, doc=doc)
    bundle(q, k, v, doc=doc)
    torch.cuda.synchronize()
    graph, listed = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = bundle(q, k, v, doc=doc, return_lse=True)
    with torch.cuda.graph(listed):
        fixed = bundle(q, k, v, doc=doc, lists=lists, return_lse=True)

    listed.replay()
    close(torch, fixed, wanted(torch, q, k, v, seen_documents(torch, doc)))
    doc.copy_(documents(torch, 0.003))
    graph.replay()
    close(torch, found, wanted(torch, q, k, v, seen_documents(torch, doc)))


def test_lists_of_other_sizes_are_refused(torch: Any, tmp_path: Path) -> None:
    bundle = made(torch, DOCUMENTS, ("H200", None), tmp_path)
    q, k, v = inputs(torch, "bf16")
    doc = documents(torch, 0.01)
    lists = bundle.lists(q, k, v, doc=doc)

    with pytest.raises(LaunchError, match=f"the lists are for Sq = {QUERIES}, the call has Sq = 1000"):
        bundle(q[:, :1000], k, v, doc=doc, lists=lists)
    with pytest.raises(LaunchError, match="lists is a list"):
        bundle(q, k, v, doc=doc, lists=[lists])

"""Kernels with sinks and with weights of one score, made and run on a real GPU: before the judge, and called."""

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
HEADS: dict[str, Any] = {"Hq": 8, "Hk": 2, "Dqk": 64, "mask": "causal", "dtype": "fp16"}
TARGETS = [("T4", "sm_90"), ("A100", "sm_90"), ("H200", None)]
WORDS = ["softmax+sink", "softmax1", "sigmoid", "relu2"]


def made(torch: Any, spec: AttentionSpec, target: tuple[str, str | None], folder: Path) -> Bundle:
    name, arch = target
    if not runs_on("sm_90a", torch.cuda.get_device_capability()):
        pytest.skip("needs a GPU of sm_90")
    try:
        return generate(spec, target=name, arch=arch, out=folder / "bundle", judge=False)
    except EnvironmentMissing as missing:
        pytest.skip(f"needs the build extra: {missing.message}")


@pytest.mark.parametrize("queries", [None, 2], ids=["any", "few"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
@pytest.mark.parametrize("word", WORDS)
def test_the_judge_accepts_the_kernel(
    torch: Any, word: str, target: tuple[str, str | None], queries: int | None, tmp_path: Path
) -> None:
    spec = AttentionSpec.make(**HEADS, weights=word, Sq=queries)
    bundle = made(torch, spec, target, tmp_path)

    verdict = judge_bundle(bundle.path, spec, budget=replace(GPU, keys=2100, scores=1 << 24))

    assert verdict.accepted, verdict.reason


def reference(torch: Any, q: Any, k: Any, v: Any, sink: Any) -> tuple[Any, Any]:
    """Compute causal attention in float64 with the sink as a key of its own."""
    group, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    keys, values = (x.double().repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), keys) * scale
    hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device="cuda").triu(1 + k.shape[1] - q.shape[1])
    scores = scores.masked_fill(hidden, -torch.inf)
    column = sink.double()[None, :, None, None].expand(*scores.shape[:3], 1)
    joined = torch.cat([scores, column], dim=-1)
    weights = joined.softmax(dim=-1).nan_to_num(0.0)[..., :-1]
    return torch.einsum("bhqk,bkhd->bqhd", weights, values), joined.logsumexp(dim=-1)


@pytest.mark.parametrize("queries", [None, 2], ids=["any", "few"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
def test_a_call_takes_sinks_by_keyword(
    torch: Any, target: tuple[str, str | None], queries: int | None, tmp_path: Path
) -> None:
    bundle = made(torch, AttentionSpec.make(**HEADS, weights="softmax+sink", Sq=queries), target, tmp_path)
    shapes = ((2, queries or 130, 8, 64), (2, 333, 2, 64), (2, 333, 2, 64))
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.float16) for shape in shapes)
    sink = torch.tensor([0.0, 5.0, -5.0, -torch.inf, 6e4, -6e4, 12.0, 3.0], device="cuda")

    out, lse = bundle(q, k, v, sink=sink, return_lse=True)

    wanted, wanted_lse = reference(torch, q, k, v, sink)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=4e-3)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-5, atol=1e-3)
    assert not out[:, :, 4].any()
    torch.testing.assert_close(bundle.operator()(q, k, v, sink=sink), out, rtol=0, atol=0)
    for wrong in (sink.half(), sink[:7], sink.cpu()):
        with pytest.raises(LaunchError, match="sink"):
            bundle(q, k, v, sink=wrong)
    with pytest.raises(LaunchError, match="the tensor sink is missing"):
        bundle(q, k, v)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
def test_a_row_that_sees_nothing_gives_its_sink(torch: Any, target: tuple[str, str | None], tmp_path: Path) -> None:
    bundle = made(torch, AttentionSpec.make(**HEADS, weights="softmax+sink"), target, tmp_path)
    q, k, v = (torch.randn(1, n, h, 64, device="cuda", dtype=torch.float16) for n, h in ((40, 8), (9, 2), (9, 2)))
    sink = torch.arange(8, device="cuda", dtype=torch.float32)

    out, lse = bundle(q, k, v, sink=sink, return_lse=True)

    assert not out[:, :31].any()
    assert torch.equal(lse[0, :, :31], sink[:, None].expand(8, 31))

"""The checks on real tensors, on the CPU; skipped, with a word, where PyTorch is not installed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.errors import EnvironmentMissing, LaunchError
from qimeng_attention.runtime import Manifest, load
from qimeng_attention.runtime.comparison import errors, plain_mask, reference
from qimeng_attention.runtime.plan import check_pointers, layout_of, make_plan

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'qimeng-attention[gpu]'")

NAMES = ["q", "k", "v", "out", "lse"]


def inputs(*, device: str = "cpu") -> list[Any]:
    shapes = ((2, 30, 8, 64), (2, 7, 2, 64), (2, 7, 2, 64))
    return [torch.zeros(shape, dtype=torch.bfloat16, device=device) for shape in shapes]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_real_tensor_elsewhere_is_refused(manifest: Manifest, device: str) -> None:
    layouts = [layout_of(tensor, name) for tensor, name in zip(inputs(device=device), NAMES, strict=False)]

    with pytest.raises(LaunchError, match=f"q is on {device}"):
        make_plan(manifest, [*layouts, None, None], NAMES)


def test_real_tensors_are_planned_as_stand_ins_are(manifest: Manifest, tensor: Callable[..., Any]) -> None:
    device = torch.device("cuda", 0)
    real = [(*layout_of(t, name)[:3], device) for t, name in zip(inputs(), NAMES, strict=False)]

    plan = make_plan(manifest, [*real, None, None], NAMES)

    made = [layout_of(t, "t") for t in (tensor(2, 30, 8, 64), tensor(2, 7, 2, 64), tensor(2, 7, 2, 64))]
    assert plan.values == make_plan(manifest, [*made, None, None], NAMES).values
    assert hash(tuple(real))


def test_the_strides_of_an_output_are_those_that_torch_gives(manifest: Manifest) -> None:
    device = torch.device("cuda", 0)
    for batch, seqlen_q in ((2, 30), (0, 30), (2, 0), (1, 1)):
        q, k = torch.empty(batch, seqlen_q, 8, 64), torch.empty(batch, 7, 2, 64)
        layouts = [(t.shape, t.stride(), torch.bfloat16, device) for t in (q, k, k)]
        plan = make_plan(manifest, [*layouts, None, None], NAMES)
        for layout in plan.layouts[3:]:
            assert layout[1] == torch.empty(layout[0]).stride()


def test_a_sparse_tensor_is_refused() -> None:
    with warnings.catch_warnings(action="ignore"):
        sparse = torch.zeros(4, 4).to_sparse_csr()

    with pytest.raises(LaunchError, match="q has no strides"):
        layout_of(sparse, "q")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_call_without_a_gpu_says_so(folder: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="NVIDIA GPU"):
        load(folder)(*inputs())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(5, 5), (3, 9), (9, 3), (4, 0)])
def test_the_reference_is_attention(causal: bool, seqlen_q: int, seqlen_k: int) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(2, length, heads, 16, generator=generator, dtype=torch.float64)
        for length, heads in ((seqlen_q, 4), (seqlen_k, 2), (seqlen_k, 2))
    )

    found = torch.full_like(q, torch.nan)
    for place, rows in reference(torch, (q, k, v), 0.3, causal=causal):
        found[place] = rows

    keys, values = (t.repeat_interleave(2, dim=2) for t in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, keys) * 0.3
    if causal:
        seen = torch.arange(seqlen_k) <= torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
        scores = scores.masked_fill(~seen, -torch.inf)
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    torch.testing.assert_close(found, torch.einsum("bhqk,bkhd->bqhd", weights, values))
    assert errors(torch, found, (q, k, v), 0.3, causal=causal) == (0.0, 0.0)


def test_an_error_is_seen_and_nan_stays() -> None:
    q, k, v = (torch.zeros(1, 4, 2, 8) for _ in range(3))
    out = torch.zeros(1, 4, 2, 8)
    out[0, 1, 1, 3] = 0.5

    assert errors(torch, out, (q, k, v), 1.0, causal=True) == (0.5, 0.5 / 64)
    out[0, 0, 0, 0] = torch.nan
    largest, mean = errors(torch, out, (q, k, v), 1.0, causal=True)
    assert largest != largest
    assert mean != mean


def test_only_plain_attention_has_a_reference() -> None:
    def mask(**fields: Any) -> str | None:
        return plain_mask(json.dumps({"mask": "causal", "score": "score", "softcap": None, **fields}).encode())

    assert mask() == "causal"
    assert mask(mask="full") == "full"
    assert mask(mask="window:128") is None
    assert mask(softcap=20.0) is None
    assert mask(score="score + b") is None
    assert mask(weights="softmax") == "causal"
    assert mask(weights="sigmoid") is None
    assert mask(seqused_k=True) is None


def test_a_numpy_scalar_is_a_scale(manifest: Manifest) -> None:
    numpy = pytest.importorskip("numpy", reason="needs NumPy")
    from qimeng_attention.runtime.checks import check_scalar

    assert check_scalar(manifest.scalars[0], numpy.float32(0.5)) == 0.5
    with pytest.raises(LaunchError, match="no number"):
        check_scalar(replace(manifest.scalars[0]), torch.tensor(0.5))


def test_a_fake_tensor_on_a_gpu_has_no_memory(manifest: Manifest) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q, k = (torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for shape in ((2, 30, 8, 64), (2, 7, 2, 64)))
    plan = make_plan(manifest, [*(layout_of(t, "t") for t in (q, k, k)), None, None], NAMES)
    with warnings.catch_warnings(action="ignore"):
        pointers = [tensor.data_ptr() for tensor in (q, k, k)]

    with pytest.raises(LaunchError, match="q has no memory"):
        check_pointers(manifest, plan, [*pointers, 16, 16], NAMES)

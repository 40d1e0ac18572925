"""Bundles for few queries on a real GPU: QIMENG_TEST_BUNDLES/decode holds those of `make_bundles.py --set decode`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.runtime import Bundle, load

pytestmark = pytest.mark.gpu

VARIABLE = "QIMENG_TEST_BUNDLES"
FOLDER = Path(os.environ.get(VARIABLE, "")) / "decode"
NAMES = sorted(p.parent.name for p in FOLDER.glob("*/manifest.json")) if os.environ.get(VARIABLE) else []
# B, Sk: no key, fewer than a tile, ends of tiles, many splits, more sequences than multiprocessors
SHAPES = [(1, 0), (1, 1), (2, 127), (3, 128), (2, 129), (1, 4097), (1, 20000), (40, 700), (0, 50)]


@pytest.fixture(params=NAMES or [None])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    if request.param is None:
        pytest.skip(f"needs bundles: set {VARIABLE} to a folder with some in decode/")
    return load(FOLDER / request.param)


def heads(bundle: Bundle) -> tuple[int, int, int]:
    """Give query heads, key heads and the head dim that a bundle was made for."""
    q = bundle.manifest.face.tensor("Q")
    key_heads = int(next(r.right for r in bundle.manifest.requires if r.left == "Hk"))
    return int(q.dims[2][2]) * key_heads, key_heads, int(q.dims[3])


def inputs(torch: Any, bundle: Bundle, batch: int, keys: int) -> tuple[Any, Any, Any]:
    hq, hk, dim = heads(bundle)
    shapes = ((batch, 1, hq, dim), (batch, keys, hk, dim), (batch, keys, hk, dim))
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    return q, k, v


def reference(torch: Any, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    return (torch.softmax(scores, -1).nan_to_num() @ v).transpose(1, 2), torch.logsumexp(scores, -1)


@pytest.mark.parametrize(("batch", "keys"), SHAPES)
def test_a_call_is_right(torch: Any, bundle: Bundle, batch: int, keys: int) -> None:
    q, k, v = inputs(torch, bundle, batch, keys)

    out, lse = bundle(q, k, v, return_lse=True)

    wanted, wanted_lse = reference(torch, q, k, v)
    torch.testing.assert_close(out.double(), wanted, rtol=0.02, atol=0.01)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("splits", [1, 2, 3, 8, 50])
def test_any_number_of_parts_gives_the_same(torch: Any, bundle: Bundle, splits: int) -> None:
    q, k, v = inputs(torch, bundle, 2, 3000)
    out, lse = torch.empty_like(q), torch.empty(2, q.shape[2], 1, device="cuda")
    tensors = {"Q": q, "K": k, "V": v, "Out": out, "Lse": lse}

    bundle.launch(tensors, {"B": 2, "Sk": 3000, "Hk": k.shape[2], "Splits": splits}, {"scale": q.shape[-1] ** -0.5})

    wanted, wanted_lse = reference(torch, q, k, v)
    torch.testing.assert_close(out.double(), wanted, rtol=0.02, atol=0.01)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("default")  # what a compiler warns of is not ours
def test_two_kernels_are_one_operator(torch: Any, bundle: Bundle) -> None:
    torch._dynamo.reset()
    q, k, v = inputs(torch, bundle, 3, 700)
    operator = bundle.operator()

    for found, direct in zip(operator(q, k, v, return_lse=True), bundle(q, k, v, return_lse=True), strict=True):
        assert torch.equal(found, direct)
        assert found.stride() == direct.stride()
    for overload in (operator.plain, operator.with_lse):
        assert set(torch.library.opcheck(overload, (q, k, v)).values()) == {"SUCCESS"}
    step = torch.compile(lambda q, k, v: operator(q * 2, k, v) + 0, fullgraph=True)
    assert torch.equal(step(q, k, v), bundle(q * 2, k, v))


def test_a_graph_replays_the_same_bits(torch: Any, bundle: Bundle) -> None:
    q, k, v = inputs(torch, bundle, 3, 5000)
    expected = bundle(q, k, v).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = bundle(q, k, v)

    for _ in range(20):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)


def test_streams_do_not_share_what_lies_between_the_kernels(torch: Any, bundle: Bundle) -> None:
    streams = [torch.cuda.Stream() for _ in range(4)]
    calls = [inputs(torch, bundle, 2, 6000 + 100 * n) for n in range(len(streams))]
    expected = [bundle(*call).clone() for call in calls]
    torch.cuda.synchronize()

    for _ in range(20):
        found = []
        for stream, call in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                found.append(bundle(*call))
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

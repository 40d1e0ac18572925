"""Packed sequences on a real GPU: QIMENG_TEST_BUNDLES/varlen holds bundles of `make_bundles.py --set varlen`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Bundle, load

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # what a compiler warns of is not ours

VARIABLE = "QIMENG_TEST_BUNDLES"
FOLDER = Path(os.environ.get(VARIABLE, "")) / "varlen"
NAMES = sorted(p.parent.name for p in FOLDER.glob("*/manifest.json")) if os.environ.get(VARIABLE) else []
GUARD = 4096  # elements on each side of an output
# Lengths of queries and keys: around the tiles, none, one long and many short, more queries than keys
LENGTHS = [
    ([127, 128, 129], [127, 128, 129]),
    ([0, 5, 0, 300, 1], [7, 5, 0, 300, 1]),
    ([2000, *[3] * 40], [2000, *[3] * 40]),
    ([1, 64, 257], [500, 63, 129]),
    ([200, 4], [0, 1]),
    ([1] * 70, [130] * 70),
    ([0, 0], [0, 9]),
]
BAD = [[-300, 200, 400], [0, 100, 10**6], [400, 200, 0], [2**31 - 1, -(2**31), 7], [0, 300, 100], [90, 90, 90]]


@pytest.fixture(params=NAMES or [None])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    if request.param is None:
        pytest.skip(f"needs bundles: set {VARIABLE} to a folder with some in varlen/")
    return load(FOLDER / request.param)


def starts(torch: Any, lengths: list[int]) -> Any:
    return torch.tensor([0, *lengths], device="cuda").cumsum(0).int()


def inputs(torch: Any, bundle: Bundle, queries: int, keys: int) -> list[Any]:
    heads = {r.left: int(r.right) for r in bundle.manifest.requires}
    dim, hk = int(bundle.manifest.tensor("Q").dims[2]), heads.get("Hk", heads["Hq"])
    shapes = ((queries, heads["Hq"], dim), (keys, hk, dim), (keys, hk, dim))
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]


def reference(torch: Any, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """One causal sequence in float64, aligned at the ends."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    rows, keys = (torch.arange(n, device=q.device) for n in scores.shape[1:])
    scores = scores.masked_fill(keys[None] > rows[:, None] + len(keys) - len(rows), -torch.inf)
    return (torch.softmax(scores, -1).nan_to_num() @ v).transpose(0, 1), torch.logsumexp(scores, -1)


def check(torch: Any, given: tuple[Any, Any], tensors: list[Any], queries: list[int], keys: list[int]) -> None:
    at_q = at_k = 0
    for sq, sk in zip(queries, keys, strict=True):
        rows, columns = slice(at_q, at_q + sq), slice(at_k, at_k + sk)
        out, lse = reference(torch, tensors[0][rows], tensors[1][columns], tensors[2][columns])
        torch.testing.assert_close(given[0][rows].double(), out, rtol=0.02, atol=0.01)
        torch.testing.assert_close(given[1][:, rows].double(), lse, rtol=1e-3, atol=1e-3)
        at_q, at_k = at_q + sq, at_k + sk


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_a_call_is_right(torch: Any, bundle: Bundle, queries: list[int], keys: list[int]) -> None:
    tensors = inputs(torch, bundle, sum(queries), sum(keys))
    offsets = {"cu_seqlens_q": starts(torch, queries), "cu_seqlens_k": starts(torch, keys)}

    given = bundle(*tensors, **offsets, return_lse=True)

    check(torch, given, tensors, queries, keys)


def test_one_captured_graph_serves_other_lengths(torch: Any, bundle: Bundle) -> None:
    tensors = inputs(torch, bundle, 1000, 1000)
    offsets = starts(torch, [500, 300, 200])
    out = torch.empty_like(tensors[0])
    lse = torch.empty((tensors[0].shape[1], 1000), device="cuda")
    bundle(*tensors, cu_seqlens_q=offsets, cu_seqlens_k=offsets, out=out, lse=lse)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bundle(*tensors, cu_seqlens_q=offsets, cu_seqlens_k=offsets, out=out, lse=lse)

    for lengths in ([1, 998, 1], [0, 1000, 0], [333, 333, 334]):
        offsets.copy_(starts(torch, lengths))
        out.fill_(float("nan"))
        graph.replay()
        check(torch, (out, lse), tensors, lengths, lengths)


def guarded(torch: Any, shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    count = 1
    for n in shape:
        count *= n
    whole = torch.full((count + 2 * GUARD,), 7.0, device="cuda", dtype=dtype)
    return whole, whole[GUARD : GUARD + count].reshape(shape)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("which", ["cu_seqlens_q", "cu_seqlens_k", "both"])
def test_offsets_that_make_no_sense_touch_nothing_else(torch: Any, bundle: Bundle, bad: list[int], which: str) -> None:
    tensors = inputs(torch, bundle, 400, 400)
    whole = [guarded(torch, tuple(x.shape), x.dtype) for x in tensors]
    for (_, view), x in zip(whole, tensors, strict=True):
        view.copy_(x)
    outs = [guarded(torch, tuple(tensors[0].shape), torch.bfloat16)]
    outs += [guarded(torch, (tensors[0].shape[1], 400), torch.float32)]
    wrong = torch.tensor(bad, device="cuda", dtype=torch.int32)
    offsets = {
        n: wrong if which in (n, "both") else starts(torch, [150, 250]) for n in ("cu_seqlens_q", "cu_seqlens_k")
    }

    bundle(*[view for _, view in whole], **offsets, out=outs[0][1], lse=outs[1][1])
    torch.cuda.synchronize()

    for memory, _ in outs:
        assert bool((memory[:GUARD] == 7).all() & (memory[-GUARD:] == 7).all())
    for (_, view), x in zip(whole, tensors, strict=True):
        assert torch.equal(view, x)
    if which == "cu_seqlens_k":  # the queries' offsets are right: each row is written, and finite
        assert bool(outs[0][1].isfinite().all())


def test_what_is_free_to_check_is_checked(torch: Any, bundle: Bundle) -> None:
    tensors, offsets = inputs(torch, bundle, 100, 100), starts(torch, [60, 40])

    for wrong in (offsets.long(), offsets.cpu(), offsets[:-1], offsets[None]):
        with pytest.raises(LaunchError, match="cu_seqlens"):
            bundle(*tensors, cu_seqlens_q=wrong, cu_seqlens_k=offsets)
    with pytest.raises(LaunchError, match="cu_seqlens_k is missing"):
        bundle(*tensors, cu_seqlens_q=offsets)


def test_the_operator_is_what_a_compiler_needs(torch: Any, bundle: Bundle) -> None:
    operator = bundle.operator()
    tensors, offsets = inputs(torch, bundle, 300, 300), starts(torch, [200, 99, 1])
    given = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets}

    torch.library.opcheck(operator.plain, tuple(tensors), given)
    torch.library.opcheck(operator.with_lse, tuple(tensors), given)
    compiled = torch.compile(lambda q, k, v, s: operator(q, k, v, cu_seqlens_q=s, cu_seqlens_k=s) * 2, fullgraph=True)

    with torch.no_grad():
        torch.testing.assert_close(compiled(*tensors, offsets), bundle(*tensors, **given) * 2)

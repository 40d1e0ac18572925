"""Bundles over caches on a real GPU: QIMENG_TEST_BUNDLES/paged holds those of `make_bundles.py --set paged`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Bundle, load

pytestmark = pytest.mark.gpu

VARIABLE = "QIMENG_TEST_BUNDLES"
FOLDER = Path(os.environ.get(VARIABLE, "")) / "paged"
NAMES = sorted(p.parent.name for p in FOLDER.glob("*/manifest.json")) if os.environ.get(VARIABLE) else []
NOWHERE = (-1, 1 << 20, (1 << 31) - 1, -(1 << 31))  # numbers that name no page
# what calls say of their entries; the last two mean no key and all that the cache holds
LENGTHS = ([1], [63, 64, 65], [127, 0, 257, 1000], [4097], [300] * 40, [700, -5, 1 << 30])


@pytest.fixture
def torch(torch: Any) -> Any:
    torch.manual_seed(0)
    return torch


@pytest.fixture(params=NAMES or [None])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    if request.param is None:
        pytest.skip(f"needs bundles: set {VARIABLE} to a folder with some in paged/")
    return load(FOLDER / request.param)


@dataclass
class Call:
    """A call's tensors, and each entry's keys and values in order."""

    q: Any
    k: Any
    v: Any
    named: dict[str, Any]
    entries: list[tuple[Any, Any]]


def page_of(bundle: Bundle) -> int:
    """Give the keys of a page, 0 for a dense cache."""
    return int(bundle.manifest.face.tensor("K").dims[1]) if "page_table" in bundle.manifest.call else 0


def call_of(torch: Any, bundle: Bundle, lengths: list[int], spare: int = 5) -> Call:
    """Make a call; all memory that nobody may read holds NaN, around the caches too."""
    q_dims, k_dims = (bundle.manifest.face.tensor(n).dims for n in ("Q", "K"))
    hk = int(next(r.right for r in bundle.manifest.requires if r.left == "Hk"))
    hq, dim, page = int(q_dims[2][2]) * hk, int(k_dims[3]), page_of(bundle)
    batch, most = len(lengths), max(64, *(n for n in lengths if n < 1 << 20))
    q = torch.randn(batch, 1, hq, dim, device="cuda", dtype=torch.bfloat16)
    named = {"seqused_k": torch.tensor(lengths, device="cuda", dtype=torch.int32)}
    if not page:
        caches = [guarded(torch, (batch, most, hk, dim)) for _ in range(2)]
        entries = []
        for b, length in enumerate(lengths):
            n = min(max(length, 0), most)
            for cache in caches:
                cache[b, :n].normal_()
            entries.append((caches[0][b, :n], caches[1][b, :n]))
        return Call(q, *caches, named, entries)
    pages = -(-most // page)
    caches = [guarded(torch, (batch * pages + spare, page, hk, dim)) for _ in range(2)]
    table = torch.randperm(batch * pages + spare, device="cuda")[: batch * pages].view(batch, pages)
    named["page_table"] = table.to(torch.int32)
    entries = []
    for b, length in enumerate(lengths):
        n = min(max(length, 0), pages * page)
        at = torch.arange(n, device="cuda")
        where = (table[b, at // page], at % page)
        for cache in caches:
            cache[where] = torch.randn(n, hk, dim, device="cuda", dtype=torch.bfloat16)
        entries.append((caches[0][where], caches[1][where]))
        used = -(-n // page)
        named["page_table"][b, used:] = torch.tensor(NOWHERE * pages, device="cuda")[: pages - used].to(torch.int32)
    return Call(q, *caches, named, entries)


def guarded(torch: Any, shape: tuple[int, ...], guard: int = 1 << 16) -> Any:
    """Give a tensor of NaN within more NaN."""
    count = 1
    for extent in shape:
        count *= extent
    whole = torch.full((count + 2 * guard,), float("nan"), device="cuda", dtype=torch.bfloat16)
    return whole[guard : guard + count].view(shape)


def check(torch: Any, call: Call, out: Any, lse: Any) -> None:
    for b, (k, v) in enumerate(call.entries):
        group = call.q.shape[2] // k.shape[1]
        if not len(k):
            assert not out[b].any()
            assert torch.isneginf(lse[b]).all()
            continue
        keys, values = (x.double().repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("hd,khd->hk", call.q[b, 0].double(), keys) * call.q.shape[-1] ** -0.5
        wanted = torch.einsum("hk,khd->hd", torch.softmax(scores, -1), values)
        torch.testing.assert_close(out[b, 0].double(), wanted, rtol=0.02, atol=0.01)
        torch.testing.assert_close(lse[b, :, 0].double(), torch.logsumexp(scores, -1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_call_is_right(torch: Any, bundle: Bundle, lengths: list[int]) -> None:
    call = call_of(torch, bundle, lengths)

    out, lse = bundle(call.q, call.k, call.v, return_lse=True, **call.named)

    check(torch, call, out, lse)


@pytest.mark.parametrize("splits", [1, 3, 17])
def test_any_number_of_parts_gives_the_same(torch: Any, bundle: Bundle, splits: int) -> None:
    call = call_of(torch, bundle, [0, 3000, 65])
    out, lse = torch.empty_like(call.q), torch.empty(3, call.q.shape[2], 1, device="cuda")
    tensors = {"Q": call.q, "K": call.k, "V": call.v, "Out": out, "Lse": lse, "SequsedK": call.named["seqused_k"]}
    sizes = {"B": 3, "Hk": call.k.shape[2], "Splits": splits}
    if page_of(bundle):
        tensors["PageTable"] = call.named["page_table"]
        sizes |= {"Pages": call.k.shape[0], "MaxPages": tensors["PageTable"].shape[1]}
    else:
        sizes["Sk"] = call.k.shape[1]

    bundle.launch(tensors, sizes, {"scale": call.q.shape[-1] ** -0.5})

    check(torch, call, out, lse)


def test_a_page_outside_of_the_cache_reads_as_zeros(torch: Any, bundle: Bundle) -> None:
    page = page_of(bundle)
    if not page:
        pytest.skip("a dense cache has no pages")
    call = call_of(torch, bundle, [4 * page] * len(NOWHERE))
    for b, number in enumerate(NOWHERE):
        call.named["page_table"][b, 1] = number
        for x in call.entries[b]:
            x[page : 2 * page] = 0

    out, lse = bundle(call.q, call.k, call.v, return_lse=True, **call.named)

    check(torch, call, out, lse)


def test_a_graph_follows_lengths_and_pages(torch: Any, bundle: Bundle) -> None:
    first, second = (call_of(torch, bundle, lengths) for lengths in ([900, 1, 512], [64, 900, 0]))
    bundle(first.q, first.k, first.v, **first.named)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = bundle(first.q, first.k, first.v, return_lse=True, **first.named)
    graph.replay()
    check(torch, first, out, lse)

    first.q.copy_(second.q)
    first.k.copy_(second.k)
    first.v.copy_(second.v)
    for name, tensor in second.named.items():
        first.named[name].copy_(tensor)
    graph.replay()

    check(torch, second, out, lse)


def test_keys_and_values_may_share_pages(torch: Any, bundle: Bundle) -> None:
    """One tensor (pages, 2, page, Hk, D), as serving engines allocate it, and one with the heads before the page."""
    call = call_of(torch, bundle, [500, 77])
    both = torch.stack([call.k, call.v], dim=1)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (call.k, call.v)]

    for k, v in ((both[:, 0], both[:, 1]), turned):
        out, lse = bundle(call.q, k, v, return_lse=True, **call.named)
        check(torch, call, out, lse)


def test_the_operator_takes_lengths_and_pages(torch: Any, bundle: Bundle) -> None:
    call = call_of(torch, bundle, [400, 0, 129])
    operator = bundle.operator()
    compiled = torch.compile(lambda q, k, v, **named: operator(q, k, v, return_lse=True, **named), fullgraph=True)

    out, lse = compiled(call.q, call.k, call.v, **call.named)

    check(torch, call, out, lse)
    torch.library.opcheck(operator.with_lse, (call.q, call.k, call.v), call.named)


@pytest.mark.parametrize("wrong", ["dtype", "device", "missing", "batch", "strided"])
def test_what_does_not_fit_is_refused(torch: Any, bundle: Bundle, wrong: str) -> None:
    call = call_of(torch, bundle, [100, 20])
    lengths = call.named["seqused_k"]
    if wrong == "strided":
        lengths = torch.zeros(4, device="cuda", dtype=torch.int32)[::2]
    changed = {"dtype": lengths.long(), "device": lengths.cpu(), "batch": lengths[:1], "strided": lengths}
    named = {**call.named, "seqused_k": changed.get(wrong)}
    if wrong == "missing":
        del named["seqused_k"]

    with pytest.raises(LaunchError):
        bundle(call.q, call.k, call.v, **named)

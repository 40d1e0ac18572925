"""What a bundle over caches tells its launcher, and what a call is refused for before anything is launched."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Manifest
from qimeng_attention.runtime.plan import make_plan
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import run
from qimeng_attention.workflow.generate import manifest_of

DEVICE = SimpleNamespace(type="cuda", index=0)


def manifest_for(**fields: Any) -> Manifest:
    spec = AttentionSpec.make(Hq=4, Hk=2, Dqk=64, Sq=1, **fields)
    results = run(spec, target="A100", judge=False, until="cute").results
    return manifest_of(replace(results, builds=(SimpleNamespace(versions={}),))).face  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def paged() -> Manifest:
    return manifest_for(page_size=16)


def planned(manifest: Manifest, **changed: tuple[tuple[int, ...], str]) -> Any:
    shapes = {
        "Q": ((3, 1, 4, 64), "bfloat16"),
        "K": ((9, 16, 2, 64), "bfloat16"),
        "V": ((9, 16, 2, 64), "bfloat16"),
        "SequsedK": ((3,), "int32"),
        "PageTable": ((3, 5), "int32"),
    } | changed
    layouts = []
    for tensor in manifest.tensors:
        if tensor.role == "output":
            layouts.append(None)
            continue
        shape, dtype, *strides = shapes[tensor.name]
        dense = [1]
        for extent in reversed(shape[1:]):
            dense.append(dense[-1] * extent)
        layouts.append((shape, tuple(strides[0]) if strides else tuple(reversed(dense)), f"torch.{dtype}", DEVICE))
    names = {v: k for k, v in manifest.call.items()} | {"Out": "out", "Lse": "lse"}
    return make_plan(manifest, layouts, [names[t.name] for t in manifest.tensors])


def test_a_call_names_lengths_and_pages(paged: Manifest) -> None:
    assert dict(paged.call) == {
        "q": "Q", "k": "K", "v": "V", "seqused_k": "SequsedK", "page_table": "PageTable",
    }  # fmt: skip
    assert planned(paged).sizes == (3, 9, 5, 2)
    assert set(manifest_for(seqused_k=True).call) == {"q", "k", "v", "seqused_k"}


def test_pages_of_keys_and_values_may_take_turns(paged: Manifest) -> None:
    both = (2 * 16 * 2 * 64, 2 * 64, 64, 1)
    heads_first = (16 * 2 * 64, 64, 16 * 64, 1)

    for strides in (both, heads_first):
        planned(paged, K=((9, 16, 2, 64), "bfloat16", strides), V=((9, 16, 2, 64), "bfloat16", strides))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"SequsedK": ((3,), "int64")}, "seqused_k is of torch.int64"),
        ({"SequsedK": ((2,), "int32")}, "B is 3 in"),
        ({"SequsedK": ((3, 1), "int32")}, "seqused_k has 2 dimensions"),
        ({"PageTable": ((3, 5), "int64")}, "page_table is of torch.int64"),
        ({"PageTable": ((2, 5), "int32")}, "B is 3 in"),
        ({"PageTable": ((3, 5), "int32", (1, 3))}, "the last stride of page_table is 3"),
        ({"K": ((9, 32, 2, 64), "bfloat16")}, "dimension 1 of k is 32"),
        ({"V": ((8, 16, 2, 64), "bfloat16")}, "Pages is 9 in"),
        ({"PageTable": ((3, 1 << 27), "int32")}, "MaxPages"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(paged: Manifest, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(LaunchError) as refused:
        planned(paged, **changed)

    assert says in str(refused.value)


def test_a_dense_cache_has_a_bound_too() -> None:
    shape = (1, (1 << 30) + 1, 2, 64)

    with pytest.raises(LaunchError, match="1073741824"):
        planned(
            manifest_for(seqused_k=True),
            Q=((1, 1, 4, 64), "bfloat16"),
            K=(shape, "bfloat16"),
            V=(shape, "bfloat16"),
            SequsedK=((1,), "int32"),
        )

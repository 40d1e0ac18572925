"""Programs that list tiles: which masks get them, and what the lists hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import lists, plan
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.types import Checked

DOC: dict[str, Any] = {"doc": {"dims": ["B", "Sk"], "dtype": "i32"}}
CAUSAL = "kv_idx <= q_idx + Sk - Sq"


def spec_of(mask: str, **fields: Any) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 2, "Hk": 2, "Dqk": 64, "mask": mask, **fields})


@pytest.mark.parametrize(
    ("mask", "tensors", "listed"),
    [
        ("full", {}, False),
        ("causal", {}, False),
        ("window:100", {}, False),
        (f"kv_idx < 300 or {CAUSAL}", {}, False),
        ("q_idx // 150 == kv_idx // 150", {}, False),
        ("abs(q_idx - kv_idx) < 50 and not kv_idx < 3", {}, False),
        ("(q_idx - kv_idx) % 4 == 0", {}, True),
        (f"{CAUSAL} and doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]", DOC, True),
        ("kv_idx < ends[b]", {"ends": {"dims": ["B"], "dtype": "i32"}}, True),
    ],
)
def test_only_masks_that_no_interval_decides_get_lists(mask: str, tensors: Any, listed: bool) -> None:
    spec = spec_of(mask, tensors=tensors)

    assert lists.fits(spec) is listed
    assert ("Allocate List" in plan(spec, targets.get("A100")).code) is listed


def test_a_score_that_reads_a_tensor_needs_none() -> None:
    spec = spec_of("causal", score="score + bias[h]", tensors={"bias": {"dims": ["Hq"], "dtype": "f32"}})

    assert not lists.fits(spec)


def test_few_queries_need_none() -> None:
    spec = spec_of(f"{CAUSAL} and doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]", tensors=DOC, Sq=1)

    assert "Allocate List" not in plan(spec, targets.get("H200")).code


@pytest.mark.parametrize("target", ["T4", "A100", "H200"])
@pytest.mark.parametrize(
    ("mask", "dims"),
    [
        ("blocks[q_idx // 64, kv_idx // 64]", ["NQ", "NK"]),
        ("blocks[h, q_idx // 64, kv_idx // 64]", ["Hq", "NQ", "NK"]),
        ("blocks[b, q_idx // 64, kv_idx // 64]", ["B", "NQ", "NK"]),
        ("blocks[b, h, q_idx // 64, kv_idx // 64]", ["B", "Hq", "NQ", "NK"]),
    ],
)
def test_whoever_sees_alike_shares_a_list(mask: str, dims: list[str], target: str) -> None:
    spec = spec_of(mask, tensors={"blocks": {"dims": dims, "dtype": "bool"}}, dtype="fp16")
    code = plan(spec, targets.get(target)).code
    kernels = check(schedule(parse(code)))

    assert len(kernels) == 3
    assert [str(d) for d in kernels[2].tensors["List"].axis_names[:-2]] == dims[:-2]


def test_key_heads_that_are_the_query_heads_have_one_size() -> None:
    spec = spec_of("kv_idx < ends[h]", tensors={"ends": {"dims": ["Hk"], "dtype": "i32"}})
    kernels = check(schedule(parse(plan(spec, targets.get("A100")).code)), model=False)

    assert all("Hk" not in k.sizes and "Hq" in k.sizes for k in kernels)


def listed(doc: np.ndarray, queries: int, mask: str = "", target: str = "A100") -> tuple[Checked, dict[str, Any]]:
    """Run the two small kernels; give the first and their outputs."""
    spec = spec_of(mask or f"{CAUSAL} and doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]", tensors=DOC)
    kernels = check(schedule(parse(plan(spec, targets.get(target)).code)), model=False)
    sizes = {"B": doc.shape[0], "Sq": queries, "Sk": doc.shape[1]}
    found = interpret(kernels[0], sizes, {"Doc": doc})
    return kernels[0], found | interpret(kernels[1], sizes, found)


@pytest.mark.parametrize("queries", [300, 517, 1])
@pytest.mark.parametrize("mask", ["", "doc[b, q_idx] == doc[b, kv_idx]"])
def test_lists_hold_what_is_cut_and_then_what_is_whole(queries: int, mask: str) -> None:
    keys = 517
    doc = np.stack([np.arange(keys) // 90, np.arange(keys) // 400, np.zeros(keys, int)])
    kernel, found = listed(doc, queries, mask)
    rows, columns = kernel.fixed["BM"], kernel.fixed["BN"]
    at, q, k = (0 if mask else keys - queries), np.arange(queries)[:, None], np.arange(keys)
    for b in range(len(doc)):
        ids = doc[b][np.minimum(q + at, keys - 1)]
        seen = (ids == doc[b][k]) & ((k <= q + at) | bool(mask))
        for block in range(-(-queries // rows)):
            part = seen[block * rows : (block + 1) * rows]
            tiles = [part[:, i : i + columns] for i in range(0, keys, columns)]
            some = {n for n, t in enumerate(tiles) if t.any()}
            ragged = len(part) < rows  # rows past the end may cut a tile
            whole = {n for n, t in enumerate(tiles) if t.all() and t.shape[1] == columns}
            cut, visited = (int(found[name][b, block]) for name in ("Cut", "Visited"))
            names = [int(n) for n in found["List"][b, block, :visited]]

            assert some <= set(names) if ragged else some == set(names)
            assert len(set(names)) == visited
            assert set(names[cut:]) == whole or (ragged and set(names[cut:]) <= whole)
            assert names[:cut] == sorted(names[:cut])
            assert names[cut:] == sorted(names[cut:])


def test_a_block_of_queries_that_sees_nothing_has_an_empty_list() -> None:
    _, found = listed(np.zeros((1, 130), int), 400)

    assert found["Visited"][0, 0] == 0
    assert found["Visited"][0, -1] > 0


def test_no_keys_make_empty_lists() -> None:
    _, found = listed(np.zeros((2, 0), int), 70)

    assert not found["Visited"].any()
    assert not found["Cut"].any()

"""Packed sequences at run time: sizes told by offsets, and tensor maps that end where each copy says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qimeng_attention.errors import BundleError, LaunchError
from qimeng_attention.runtime import Manifest, tensor_maps
from qimeng_attention.runtime.expressions import told_by
from qimeng_attention.runtime.manifest import GridAxis, Tensor, TensorMap, problem_with
from qimeng_attention.runtime.manifest_json import from_json, to_json
from qimeng_attention.runtime.plan import make_plan

TENSORS = (
    Tensor("Q", "bf16", ("Tq", "Hq", 64), "input"),
    Tensor("K", "bf16", ("Tk", "Hk", 64), "input"),
    Tensor("V", "bf16", ("Tk", "Hk", 64), "input"),
    Tensor("StartQ", "i32", (("+", "B", 1),), "input"),
    Tensor("StartK", "i32", (("+", "B", 1),), "input"),
    Tensor("Out", "bf16", ("Tq", "Hq", 64), "output"),
    Tensor("Lse", "f32", ("Hq", "Tq"), "output"),
)
LABELS = ["q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "out", "lse"]


@pytest.fixture
def packed(manifest: Manifest) -> Manifest:
    call = {"q": "Q", "k": "K", "v": "V", "cu_seqlens_q": "StartQ", "cu_seqlens_k": "StartK"}
    grid = (GridAxis("head", 0, "Hq"), GridAxis("slot", 0, ("+", ("//", "Tq", 128), "B")))
    maps = (TensorMap("Q", (128, 1, 64), 0, ragged=True),)
    sizes = ("B", "Tq", "Tk", "Hq", "Hk")
    return replace(
        manifest, tensors=TENSORS, sizes=sizes, grid=grid, maps=maps, call=call, outputs=("Out", "Lse"), requires=(),
        persistent=True, files={}, then=(), chosen={},
    )  # fmt: skip


class Device:
    type, index = "cuda", 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return 0


def layouts(starts: int = 4, keys: int = 4, kind: str = "torch.int32") -> list[Any]:
    def dense(*shape: int, dtype: str = "torch.bfloat16") -> Any:
        strides = [1]
        for n in reversed(shape[1:]):
            strides.insert(0, strides[0] * n)
        return shape, tuple(strides), dtype, Device()

    vectors = [dense(starts, dtype=kind), dense(keys, dtype=kind)]
    return [dense(300, 8, 64), dense(500, 2, 64), dense(500, 2, 64), *vectors, None, None]


def test_offsets_tell_how_many_sequences_there_are(packed: Manifest) -> None:
    assert problem_with(packed) is None

    plan = make_plan(packed, layouts(), LABELS)

    assert dict(zip(packed.sizes, plan.sizes, strict=True)) == {"B": 3, "Tq": 300, "Tk": 500, "Hq": 8, "Hk": 2}
    assert plan.grid == (8 * (300 // 128 + 3), 1, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keys": 5}, "B is 3 in cu_seqlens_q"),
        ({"starts": 0, "keys": 0}, "dimension 0 of cu_seqlens_q is 0, 1 at least"),
        ({"kind": "torch.int64"}, "cu_seqlens_q"),
    ],
)
def test_offsets_of_the_wrong_form_are_refused(packed: Manifest, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        make_plan(packed, layouts(**changes), LABELS)


@pytest.mark.parametrize(
    ("dim", "size"),
    [("Sq", ("Sq", 0)), (("+", "B", 1), ("B", 1)), (("+", 2, "B"), ("B", 2)), (("*", "B", 2), None), (7, None)],
)
def test_a_dimension_tells_a_size_or_not(dim: Any, size: Any) -> None:
    assert told_by(dim) == size


@pytest.mark.parametrize("tokens", [0, 1, 300])
def test_a_ragged_map_begins_a_box_before_the_tensor(packed: Manifest, tokens: int) -> None:
    shape, strides = (tokens, 8, 64), (8 * 64, 64, 1)
    given = [(shape, strides, None, None)] * len(TENSORS)

    (box,) = tensor_maps.boxes_of(packed, given)

    assert box.extents == (64, 8, 128, tokens + 1)
    assert box.box == (64, 1, 128, 1)
    step = 2 * 8 * 64 if tokens > 1 else 128  # of one row it is never used
    assert box.strides == (128, step, step)
    assert box.before == 128 * step


@pytest.mark.parametrize(("at", "rows"), [(0, 128), (0, 1), (172, 128), (299, 1), (300, 0), (37, 5)])
def test_a_ragged_copy_reaches_its_rows_and_no_other(at: int, rows: int) -> None:
    box, tokens = 128, 300
    a, b = box - rows, at + rows

    reached = [(i, i + a - box + b) for i in range(box) if a + i < box and 0 <= b < tokens + 1]

    assert reached == [(i, at + i) for i in range(rows)]
    assert all(0 <= row < tokens for _, row in reached)


def test_a_manifest_says_which_maps_are_ragged_and_older_ones_say_nothing(packed: Manifest) -> None:
    written = to_json(packed)

    assert from_json(written).maps == packed.maps
    assert b'"ragged": true' in written
    assert b"ragged" not in to_json(replace(packed, maps=(TensorMap("Q", (128, 1, 64)),)))


@pytest.mark.parametrize(
    "box", [TensorMap("Q", (128, 1, 64), 2, ragged=True), TensorMap("Q", (128, 1, 64), 0, group=8, ragged=True)]
)
def test_a_ragged_map_that_makes_no_sense_is_named(packed: Manifest, box: TensorMap) -> None:
    assert "ragged" in (problem_with(replace(packed, maps=(box,))) or "")
    with pytest.raises(BundleError):
        from_json(to_json(replace(packed, maps=(box,))))

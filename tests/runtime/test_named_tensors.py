"""Calls of a kernel that takes named tensors besides q, k and v."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Bundle, Manifest, Tensor, load
from qimeng_attention.runtime.manifest import problem_with

TENSORS = (
    Tensor("Slopes", "f32", (8,), "input", 4),
    Tensor("Doc", "i64", ("B", "Sk"), "input", 8),
    Tensor("Table", "fp16", ("N", 3), "input", 2),
)


@pytest.fixture
def named(manifest: Manifest) -> Manifest:
    return replace(
        manifest,
        tensors=(*manifest.tensors[:3], *TENSORS, *manifest.tensors[3:]),
        sizes=(*manifest.sizes, "N"),
        call={**manifest.call, "slopes": "Slopes", "doc": "Doc", "table": "Table"},
    )


@pytest.fixture
def bundle(folder: Path, named: Manifest, rewrite: Callable[..., None], gpu: SimpleNamespace) -> Bundle:
    rewrite(folder, named)
    gpu.driver.arguments = 29
    return load(folder)


@pytest.fixture
def given(tensor: Callable[..., Any]) -> dict[str, Any]:
    return {
        "slopes": tensor(8, dtype="torch.float32", pointer=0x4004),
        "doc": tensor(2, 70, dtype="torch.int64", pointer=0x5008),
        "table": tensor(5, 3, dtype="torch.float16", pointer=0x6002),
    }


@pytest.fixture
def qkv(tensor: Callable[..., Any]) -> tuple[Any, Any, Any]:
    shapes = ((2, 300, 8, 64), (2, 70, 2, 64), (2, 70, 2, 64))
    q, k, v = (tensor(*shape, pointer=0x100_0000 * (index + 1)) for index, shape in enumerate(shapes))
    return q, k, v


def test_named_tensors_come_by_keyword_or_in_a_mapping(
    bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...], given: dict[str, Any]
) -> None:
    bundle(*qkv, **given)
    bundle(*qkv, tensors=given)
    bundle(*qkv, tensors={"doc": given["doc"]}, slopes=given["slopes"], table=given["table"])

    first, second, third = gpu.driver.launches
    assert first.slots[12:17] == [struct.pack("<q", x) for x in (0x4004, 0x5008, 70, 0x6002, 3)]
    assert first.slots[-5:] == [struct.pack("<i4x", n) for n in (2, 300, 70, 5)] + [struct.pack("<f4x", 0.125)]
    assert first.slots[:17] == second.slots[:17] == third.slots[:17]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slopes": None}, "slopes is a NoneType, no tensor"),
        ({"slopes": {"shape": (7,)}}, "dimension 0 of slopes is 7, the kernel takes 8"),
        ({"slopes": {"dtype": "torch.float16"}}, "slopes is of torch.float16, the kernel takes torch.float32"),
        ({"slopes": {"pointer": 0x4002}}, "slopes starts at an address that is no multiple of 4 bytes"),
        ({"slopes": {"device": "cpu"}}, "slopes is on cpu, not on a CUDA device"),
        ({"slopes": {"device": "cuda:1"}}, "slopes is on cuda:1, q on cuda:0"),
        ({"doc": {"shape": (2, 71)}}, "Sk is 70 in k .* but 71 in doc"),
        ({"doc": {"shape": (2, 70, 1)}}, r"doc has 3 dimensions, expected \(B, Sk\)"),
        ({"doc": {"strides": (1, 2)}}, "the last stride of doc is 2, not 1"),
    ],
)
def test_what_a_kernel_was_not_made_for_is_refused(
    bundle: Bundle,
    gpu: SimpleNamespace,
    qkv: tuple[Any, ...],
    given: dict[str, Any],
    tensor: Callable[..., Any],
    change: dict[str, Any],
    message: str,
) -> None:
    for name, fields in change.items():
        kept = {"shape": given[name].shape, "dtype": given[name].dtype, "pointer": given[name].pointer}
        made = None if fields is None else {**kept, **fields}
        given[name] = None if made is None else tensor(*made.pop("shape"), **made)

    with pytest.raises(LaunchError, match=message):
        bundle(*qkv, **given)
    assert not gpu.driver.launches


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({}, "the tensor slopes is missing", "pass slopes="),
        ({"slope": 1}, "slope is no tensor of the kernel", "did you mean slopes"),
        ({"xyz": 1}, "xyz is no tensor of the kernel", "named tensors are slopes, doc, table"),
        ({"slopes": 1, "tensors": {"slopes": 1}}, "slopes is given twice", "leave it out"),
    ],
)
def test_names_are_checked(
    bundle: Bundle, qkv: tuple[Any, ...], arguments: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(LaunchError, match=message) as caught:
        bundle(*qkv, **arguments)
    assert hint in caught.value.hint


def test_a_kernel_without_named_tensors_takes_none(folder: Path, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    with pytest.raises(LaunchError, match="slopes is no tensor of the kernel") as caught:
        load(folder)(*qkv, slopes=1)
    assert caught.value.hint == "the kernel takes no named tensors"


def test_a_manifest_names_every_input_once(named: Manifest) -> None:
    call = dict(named.call)

    assert problem_with(named) is None
    for wrong in (
        {n: t for n, t in call.items() if n != "doc"},
        {n: t for n, t in call.items() if n != "q"},
        {**call, "doc": "Table"},
        {**{n: t for n, t in call.items() if n != "doc"}, "scale": "Doc"},
    ):
        assert (problem_with(replace(named, call=wrong)) or "").startswith("call:")

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qimeng_attention.errors import BundleError
from qimeng_attention.runtime import GridAxis, Manifest, Requirement, Scalar, Tensor
from qimeng_attention.runtime.manifest import seal
from qimeng_attention.runtime.manifest_json import from_json, to_json


def fields_of(manifest: Manifest) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(to_json(manifest))
    return loaded


def test_a_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    assert from_json(to_json(manifest)) == manifest


def test_the_json_is_what_the_documentation_shows(manifest: Manifest) -> None:
    fields = fields_of(replace(manifest, files={}))

    digest = fields.pop("digest")
    assert len(digest) == 64
    assert fields == {
        "format": 3,
        "kernel": "gqa_causal_d64_bf16",
        "target": "A100",
        "arch": "sm_80",
        "built_arch": "sm_90",
        "threads": 128,
        "shared_bytes": 65536,
        "grid": [
            {"name": "block", "start": 0, "stop": ["ceildiv", "Sq", 128]},
            {"name": "head", "start": 0, "stop": 8},
            {"name": "batch", "start": 0, "stop": "B"},
        ],
        "tensors": [
            {"name": "Q", "dtype": "bf16", "dims": ["B", "Sq", 8, 64], "role": "input", "align": 16},
            {"name": "K", "dtype": "bf16", "dims": ["B", "Sk", 2, 64], "role": "input", "align": 16},
            {"name": "V", "dtype": "bf16", "dims": ["B", "Sk", 2, 64], "role": "input", "align": 16},
            {"name": "Out", "dtype": "bf16", "dims": ["B", "Sq", 8, 64], "role": "output", "align": 16},
            {"name": "Lse", "dtype": "f32", "dims": ["B", 8, "Sq"], "role": "output", "align": 4},
        ],
        "sizes": [{"name": "B"}, {"name": "Sq"}, {"name": "Sk"}],
        "scalars": [{"name": "scale", "dtype": "f32", "op": ">", "bound": 0.0}],
        "maps": [],
        "persistent": False,
        "counter": False,
        "requires": [["Sk", "<=", 1073741824]],
        "call": {"q": "Q", "k": "K", "v": "V"},
        "outputs": ["Out", "Lse"],
        "default_scale": 0.125,
        "provenance": {"package": "0.1.0", "versions": {"nvrtc": "13.2"}, "date": "2026-08-20"},
        "files": {},
        "chosen": {},
        "then": [],
    }


def test_every_flipped_bit_is_noticed(manifest: Manifest) -> None:
    raw = to_json(manifest)

    for position in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(BundleError):
            from_json(bytes(changed))


@pytest.mark.parametrize("end", [0, 1, 100, -1])
def test_a_torn_manifest_is_noticed(manifest: Manifest, end: int) -> None:
    with pytest.raises(BundleError):
        from_json(to_json(manifest)[:end])


def test_a_format_of_the_future_asks_for_an_upgrade(manifest: Manifest) -> None:
    raw = seal({**fields_of(manifest), "format": 4, "more": []})

    with pytest.raises(BundleError, match=r"format 4.*\n.*upgrade"):
        from_json(raw)


def test_a_format_of_the_past_asks_for_a_new_bundle(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match=r"format 0.*\n.*again"):
        from_json(seal({**fields_of(manifest), "format": 0}))


@pytest.mark.parametrize("name", [name for name in Manifest.__dataclass_fields__ if name != "format"])
def test_a_missing_field_is_named(manifest: Manifest, name: str) -> None:
    fields = fields_of(manifest)
    del fields[name]

    with pytest.raises(BundleError, match=f"{name}: is missing"):
        from_json(seal(fields))


MAP = {"tensor": "K", "box": [1, 64, 1, 64], "dimension": 0, "group": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extra": 1}, "extra: is not known"),
        ({"threads": True}, "threads: is of the wrong kind"),
        ({"threads": 0}, "threads"),
        ({"threads": 4096}, "threads"),
        ({"shared_bytes": -1}, "shared_bytes"),
        ({"kernel": "a b"}, "kernel"),
        ({"built_arch": "gfx90a"}, "built_arch"),
        ({"grid": []}, "grid"),
        ({"grid": [{"name": "x", "start": 0}]}, r"grid\[0\]\.stop: is missing"),
        ({"grid": [{"name": "x", "start": 0, "stop": 1, "step": 2}]}, r"grid\[0\]\.step: is not known"),
        ({"grid": [{"name": "x", "start": 0, "stop": ["pow", 2, 3]}]}, r"grid\[0\]\.stop"),
        ({"grid": [{"name": "x", "start": 0, "stop": "Skv"}]}, "Skv is used but not declared"),
        ({"grid": [1]}, "must be an object"),
        ({"sizes": [{"name": "B"}, {"name": "B"}]}, "'B'"),
        ({"sizes": [{"name": "B-1"}]}, "B-1"),
        ({"scalars": [{"name": "scale", "dtype": "f64", "op": None, "bound": 0}]}, "scale"),
        ({"scalars": [{"name": "scale", "dtype": "f32", "op": "~", "bound": 0}]}, "scale"),
        ({"scalars": [{"name": "slope", "dtype": "f32", "op": None, "bound": 0}]}, "none but scale"),
        ({"call": {"q": "Q", "k": "K"}}, "call"),
        ({"call": {"q": "Q", "k": "K", "v": "Out"}}, "call"),
        ({"call": {"q": "Q", "k": "K", "v": 1}}, "call: values must be texts"),
        ({"outputs": ["Out"]}, "outputs"),
        ({"outputs": ["Q"]}, "outputs"),
        ({"outputs": [1]}, "outputs"),
        ({"requires": [["Sq", "divides", "Sk"]]}, "requires"),
        ({"requires": [["Sq"]]}, "requires"),
        ({"requires": [[[], "<", 1]]}, "requires"),
        ({"default_scale": "1"}, "default_scale"),
        ({"files": {"kernel.cubin": "abc"}}, "sha256"),
        ({"files": {"../kernel.cubin": "0" * 64}}, "no file of a bundle"),
        ({"files": {"/etc/passwd": "0" * 64}}, "no file of a bundle"),
        ({"files": {"sub/a.cuh": "0" * 64}}, "no file of a bundle"),
        ({"files": {"..": "0" * 64}}, "no file of a bundle"),
        ({"files": {"a\x00.cuh": "0" * 64}}, "no file of a bundle"),
        ({"files": {"manifest.json": "0" * 64}}, "no file of a bundle"),
        ({"tensors": []}, "output"),
        ({"maps": [{**MAP, "box": [1, 64, 1, 40]}]}, "maps: a row of the box of K must have 64 or 128 bytes"),
        ({"maps": [{**MAP, "box": [1, 64, 64]}]}, "maps: K must be a tensor"),
        ({"maps": [{**MAP, "group": -1}]}, "maps: the group of K must have rows"),
        ({"maps": [{**MAP, "dimension": 4}]}, "maps: the group of K must have rows"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(manifest: Manifest, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        from_json(seal({**fields_of(manifest), **changes}))


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"{}", b'{"format": "1"}', b"\xff\xfe", b"[" * 100_000, b'{"format": 1}']
)
def test_what_is_no_manifest_is_a_bundle_error(raw: bytes) -> None:
    with pytest.raises(BundleError):
        from_json(raw)


def test_a_number_that_json_has_not_is_a_bundle_error(manifest: Manifest) -> None:
    text = to_json(manifest).replace(b'"default_scale": 0.125', b'"default_scale": NaN')

    with pytest.raises(BundleError):
        from_json(text)
    with pytest.raises(BundleError, match="plain JSON"):
        to_json(replace(manifest, default_scale=float("nan")))


def test_a_dtype_or_role_that_is_not_known_is_refused(manifest: Manifest) -> None:
    for wrong in (
        Tensor("Q", "fp8", ("B",), "input"),
        Tensor("Q", "bf16", ("B",), "inout"),
        Tensor("Q", "bf16", (), "input"),
    ):
        with pytest.raises(BundleError, match="Q needs"):
            to_json(replace(manifest, tensors=(wrong, *manifest.tensors[1:])))


def test_an_alignment_below_the_item_is_refused(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="align of Out"):
        to_json(replace(manifest, call={}, outputs=(), tensors=(Tensor("Out", "f32", ("B",), "output", align=2),)))


def test_a_size_that_no_input_has_cannot_be_called(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="Splits is a dimension of no input"):
        to_json(replace(manifest, sizes=(*manifest.sizes, "Splits")))


def test_a_kernel_that_is_only_launched_needs_no_call() -> None:
    copy = Manifest(
        kernel="copy",
        target="A100",
        arch="sm_80",
        built_arch="sm_80",
        threads=1,
        shared_bytes=0,
        grid=(GridAxis("x", 0, "N"),),
        tensors=(Tensor("Y", "f32", ("N",), "output"),),
        sizes=("N", "M"),
        scalars=(Scalar("a"), Scalar("b")),
        requires=(Requirement("N", "!=", "M"),),
    )

    assert from_json(to_json(copy)) == copy

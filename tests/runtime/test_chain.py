"""Bundles of several kernels: what a caller sees, what lies between the kernels, and the order of launches."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.errors import BundleError, LaunchError
from qimeng_attention.runtime import Bundle, GridAxis, Manifest, Scalar, Tensor, load
from qimeng_attention.runtime.manifest import problem_with
from qimeng_attention.runtime.manifest_json import from_json, to_json
from runtime.conftest import FILES, write_folder

Q = Tensor("Q", "bf16", ("B", 8, 64), "input")
K, V = (Tensor(name, "bf16", ("B", "Sk", 2, 64), "input") for name in "KV")
PART = Tensor("Part", "f32", ("B", "Splits", 8, 64), "output")
OUT = Tensor("Out", "bf16", ("B", 8, 64), "output")


def kernel(name: str, tensors: tuple[Tensor, ...], sizes: tuple[str, ...], grid: Any, **more: Any) -> Manifest:
    return Manifest(
        kernel=name,
        target="H200",
        arch="sm_90a",
        built_arch="sm_90a",
        threads=128,
        shared_bytes=0,
        grid=(GridAxis("x", 0, grid), GridAxis("batch", 0, "B")),
        tensors=tensors,
        sizes=sizes,
        scalars=more.pop("scalars", ()),
        **more,
    )


def chain() -> Manifest:
    """Give a kernel that writes parts and one that combines them, with the number of parts worked out."""
    combine = kernel("combine", (replace(PART, role="input"), OUT), ("B", "Splits"), 1)
    return kernel(
        "split",
        (Q, K, V, PART),
        ("B", "Sk", "Splits"),
        "Splits",
        scalars=(Scalar("scale", "f32", ">", 0.0),),
        chosen={"Splits": ("clamp", ("//", 132, ("max", "B", 1)), 1, ("ceildiv", "Sk", 128))},
        then=(combine,),
        call={"q": "Q", "k": "K", "v": "V"},
        outputs=("Out",),
        default_scale=0.125,
    )


CUBINS = {"kernel_2.cu": b"2", "kernel_2.cubin": b"\x7fELF 2"}


class Memory:
    """What the stand-in PyTorch gives as a workspace."""

    def __init__(self, size: int, pointer: int) -> None:
        self.size, self.pointer = size, pointer

    def numel(self) -> int:
        return self.size

    def data_ptr(self) -> int:
        return self.pointer


@pytest.fixture
def bundle(tmp_path: Path, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    import torch

    allocated: list[Memory] = []
    outputs = torch.empty

    def empty(shape: Any, dtype: str, device: Any) -> Any:
        if dtype != "torch.uint8":
            return outputs(shape, dtype, device)
        allocated.append(Memory(shape, 0x4000_0000 + 0x100_0000 * len(allocated)))
        return allocated[-1]

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "uint8", "torch.uint8", raising=False)
    gpu.workspaces = allocated
    gpu.driver.kernels = {b"split", b"combine"}
    gpu.driver.arguments = 9  # the second kernel's
    write_folder(tmp_path / "bundle", chain(), FILES | CUBINS)
    return load(tmp_path / "bundle")


@pytest.fixture
def qkv(tensor: Callable[..., Any]) -> tuple[Any, Any, Any]:
    shapes = ((40, 8, 64), (40, 700, 2, 64), (40, 700, 2, 64))
    q, k, v = (tensor(*shape, pointer=0x100_0000 * (index + 1)) for index, shape in enumerate(shapes))
    return q, k, v


# ------------------------------------------------------------------ manifests
def test_a_caller_sees_neither_parts_nor_their_number() -> None:
    face = chain().face

    assert [t.name for t in face.tensors] == ["Q", "K", "V", "Out"]
    assert face.sizes == ("B", "Sk")
    assert problem_with(chain()) is None
    assert replace(chain(), then=(), chosen={}).face.tensors[-1] == PART  # with no kernel behind it, an output


def test_a_manifest_of_several_kernels_survives_the_disk() -> None:
    digests = dict.fromkeys(("kernel.cubin", "kernel_2.cubin"), "0" * 64)
    manifest = replace(chain(), files=digests)

    assert from_json(to_json(manifest)) == manifest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: replace(m, then=(replace(m.then[0], then=m.then),)), "then: holds at most"),
        (lambda m: replace(m, chosen={"Parts": "B"}), "chosen: Parts"),
        (lambda m: replace(m, chosen={"Splits": "Splits"}), "chosen: Splits"),
        (lambda m: replace(m, then=(replace(m.then[0], built_arch="sm_80"),)), "for one GPU"),
        (lambda m: replace(m, then=(replace(m.then[0], tensors=(Q, OUT)),)), "call: must"),
        (
            lambda m: replace(m, then=(replace(m.then[0], tensors=(replace(PART, dtype="bf16", role="input"), OUT)),)),
            "Part is declared in two ways",
        ),
        (lambda m: replace(m, then=(replace(m.then[0], threads=0),)), "threads"),
        (lambda m: replace(m, files={"kernel.cubin": "0" * 64}), "kernel_2.cubin is missing"),
    ],
)
def test_kernels_that_do_not_fit_each_other_are_refused(change: Any, said: str) -> None:
    made = change(chain())
    if said == "call: must":  # Q is the caller's still, and Part is an output now
        assert problem_with(made) is not None
        return

    assert said in str(problem_with(made))
    with pytest.raises(BundleError, match="manifest"):
        to_json(made)


# ------------------------------------------------------------------ calls
def test_the_kernels_are_launched_in_order(bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    out = bundle(*qkv)

    first, second = gpu.driver.launches
    assert (first.grid, second.grid) == ((3, 40, 1), (1, 40, 1))  # 132 // 40 parts
    assert out is gpu.made[0]
    (workspace,) = gpu.workspaces
    assert workspace.size == 40 * 3 * 8 * 64 * 4
    assert second.slots[0] == struct.pack("<q", workspace.pointer)
    assert second.slots[4] == struct.pack("<q", out.pointer)
    assert second.slots[7:9] == [struct.pack("<i4x", 40), struct.pack("<i4x", 3)]


def test_the_number_of_parts_follows_the_sizes(bundle: Bundle, gpu: SimpleNamespace, tensor: Any) -> None:
    q, k = tensor(1, 8, 64), tensor(1, 200, 2, 64, pointer=0x200_0000)
    v = tensor(1, 200, 2, 64, pointer=0x300_0000)

    bundle(q, k, v)

    assert gpu.driver.launches[0].grid == (2, 1, 1)  # no more than the tiles of keys


def test_a_workspace_is_kept_for_its_stream(bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    bundle(*qkv)
    bundle(*qkv)
    assert len(gpu.workspaces) == 1

    gpu.stream = 78
    bundle(*qkv)
    assert len(gpu.workspaces) == 2

    gpu.capturing = True  # a graph's memory is its own
    bundle(*qkv)
    bundle(*qkv)
    assert len(gpu.workspaces) == 4


def test_a_call_by_name_may_say_how_many_parts(bundle: Bundle, gpu: SimpleNamespace, qkv: Any, tensor: Any) -> None:
    tensors = dict(zip("QKV", qkv, strict=True)) | {"Out": tensor(40, 8, 64, pointer=0x500_0000)}

    bundle.launch(tensors, {"B": 40, "Sk": 700, "Splits": 7}, {"scale": 0.1})
    bundle.launch(tensors, {"B": 40, "Sk": 700}, {"scale": 0.1})

    assert [x.grid[0] for x in gpu.driver.launches[::2]] == [7, 3]
    with pytest.raises(LaunchError, match="Splits = -1 is no size"):
        bundle.launch(tensors, {"B": 40, "Sk": 700, "Splits": -1}, {"scale": 0.1})
    with pytest.raises(LaunchError, match="Parts"):
        bundle.launch(tensors, {"B": 40, "Sk": 700, "Parts": 1}, {"scale": 0.1})


def test_what_is_wrong_with_a_call_is_said_before_any_launch(
    bundle: Bundle, gpu: SimpleNamespace, qkv: Any, tensor: Any
) -> None:
    q, k, v = qkv
    with pytest.raises(LaunchError, match="scale"):
        bundle(q, k, v, scale=-1.0)
    with pytest.raises(LaunchError, match="Sk is 700"):
        bundle(q, k, tensor(40, 701, 2, 64))
    with pytest.raises(LaunchError, match="shares memory"):
        bundle(q, k, v, out=tensor(40, 8, 64, pointer=q.pointer))
    assert gpu.driver.launches == []


def test_a_call_without_entries_launches_nothing(bundle: Bundle, gpu: SimpleNamespace, tensor: Any) -> None:
    bundle(tensor(0, 8, 64), tensor(0, 9, 2, 64), tensor(0, 9, 2, 64))

    assert gpu.driver.launches == []


def test_every_kernel_is_loaded_before_a_capture(bundle: Bundle, gpu: SimpleNamespace) -> None:
    bundle.prepare()

    assert gpu.driver.calls.count("cuModuleGetFunction") == 2
    assert "Splits" in bundle.show()


def test_a_page_shows_the_source_of_every_kernel(bundle: Bundle) -> None:
    from qimeng_attention.report.page import page_of
    from qimeng_attention.runtime.folder import read_folder

    page = page_of(read_folder(bundle.path))

    assert [line for line in page.cpp if line] == [*FILES["kernel.cu"].decode().splitlines(), "2"]

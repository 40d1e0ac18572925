"""Lists made before a call: which kernels make them, what the call then launches, and which lists are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Bundle, GridAxis, Manifest, Requirement, Tensor, load
from qimeng_attention.runtime.lists import listed_tensors, listing_kernels
from qimeng_attention.runtime.manifest import problem_with
from runtime.conftest import FILES, write_folder
from runtime.test_chain import Memory
from runtime.test_chain import chain as decoding

TILES = ("ceildiv", "Sk", 128)
DOC = Tensor("Doc", "i32", ("B", "Sk"), "input")
SEEN = Tensor("Seen", "f32", ("B", "Sq", TILES), "output")
LIST = Tensor("List", "i32", ("B", "Sq", TILES), "output")
Q, K, V = (Tensor(name, "bf16", ("B", "Sk" if name != "Q" else "Sq", 8, 64), "input") for name in "QKV")
OUT = Tensor("Out", "bf16", ("B", "Sq", 8, 64), "output")


def kernel(name: str, *tensors: Tensor, **more: Any) -> Manifest:
    return Manifest(
        kernel=name,
        target="H200",
        arch="sm_90a",
        built_arch="sm_90a",
        threads=128,
        shared_bytes=0,
        grid=(GridAxis("block", 0, "Sq"), GridAxis("batch", 0, "B")),
        tensors=tensors,
        sizes=("B", "Sq", "Sk"),
        scalars=(),
        **more,
    )


def listing() -> Manifest:
    """Give a kernel that counts, one that lists, and one that visits what is listed."""
    behind = (
        kernel("list", replace(SEEN, role="input"), LIST),
        kernel("attend", replace(LIST, role="input"), Q, K, V, OUT),
    )
    call = {"q": "Q", "k": "K", "v": "V", "doc": "Doc"}
    return kernel("classify", DOC, SEEN, then=behind, call=call, outputs=("Out",))


CUBINS = {f"kernel_{n}.{kind}": b"\x7fELF %d" % n for n in (2, 3) for kind in ("cu", "cubin")}


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
    gpu.driver.kernels = {b"classify", b"list", b"attend"}
    gpu.driver.arguments = 8  # the first kernel's
    write_folder(tmp_path / "listing", listing(), FILES | CUBINS)
    return load(tmp_path / "listing")


@pytest.fixture
def call(tensor: Callable[..., Any]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def made(queries: int = 40, keys: int = 300) -> tuple[tuple[Any, ...], dict[str, Any]]:
        lengths = (queries, keys, keys)
        qkv = tuple(tensor(2, n, 8, 64, pointer=0x100_0000 * (i + 1)) for i, n in enumerate(lengths))
        return qkv, {"doc": tensor(2, keys, dtype="torch.int32", pointer=0x900_0000)}

    return made


def test_what_reads_named_tensors_alone_lists() -> None:
    assert problem_with(listing()) is None
    needs = (Requirement("Hq", "==", 8),)  # of a size that the first kernel does not know
    last = replace(listing().then[1], sizes=("B", "Sq", "Sk", "Hq"))
    assert problem_with(replace(listing(), then=(listing().then[0], last), requires=needs)) is not None  # of no input
    assert "Hk is used" in str(problem_with(replace(listing(), requires=(Requirement("Hk", "==", 8),))))
    assert (listing_kernels(listing()), listed_tensors(listing())) == (2, ("List",))
    assert (listing_kernels(decoding()), listed_tensors(decoding())) == (0, ())


def test_a_plain_call_launches_all_and_one_with_lists_the_last(
    bundle: Bundle, gpu: SimpleNamespace, call: Callable[..., Any]
) -> None:
    qkv, named = call()
    bundle(*qkv, **named)
    assert len(gpu.driver.launches) == 3

    lists = bundle.lists(*qkv, **named)
    assert len(gpu.driver.launches) == 5
    assert lists.nbytes == -(-2 * 40 * 3 * 4 // 256) * 256
    assert (lists.sizes, repr(lists)) == (
        {"B": 2, "Sq": 40, "Sk": 300},
        "<Lists of classify for B = 2, Sq = 40, Sk = 300>",
    )

    memory = len(gpu.workspaces)
    gpu.stream = 78  # a stream that has no workspace yet needs none
    bundle(*qkv, **named, lists=lists)
    assert len(gpu.driver.launches) == 6
    assert len(gpu.workspaces) == memory
    assert gpu.driver.launches[-1].slots[0] == struct.pack("<q", lists.memory.pointer)


@pytest.mark.parametrize(
    ("sizes", "said"), [((40, 301), "for Sk = 300, the call has Sk = 301"), ((41, 300), "for Sq = 40, the call has")]
)
def test_lists_for_other_sizes_are_refused(
    bundle: Bundle, gpu: SimpleNamespace, call: Callable[..., Any], sizes: tuple[int, int], said: str
) -> None:
    qkv, named = call()
    lists = bundle.lists(*qkv, **named)
    before = len(gpu.driver.launches)
    qkv, named = call(*sizes)

    with pytest.raises(LaunchError, match=said):
        bundle(*qkv, **named, lists=lists)
    assert len(gpu.driver.launches) == before


def test_what_are_no_lists_of_this_bundle_is_refused(bundle: Bundle, call: Callable[..., Any]) -> None:
    qkv, named = call()
    lists = bundle.lists(*qkv, **named)

    with pytest.raises(LaunchError, match="lists is a str"):
        bundle(*qkv, **named, lists="List")
    with pytest.raises(LaunchError, match="those of other, another bundle"):
        bundle(*qkv, **named, lists=replace(lists, kernel="other"))
    with pytest.raises(LaunchError, match="lie on cuda:1, the call's tensors on cuda:0"):
        bundle(*qkv, **named, lists=replace(lists, device=1))
    with pytest.raises(LaunchError, match="doc is missing"):
        bundle.lists(*qkv)


def test_a_bundle_without_listing_kernels_takes_none(
    folder: Path, tensor: Callable[..., Any], bundle: Bundle, call: Callable[..., Any]
) -> None:
    other = load(folder)
    qkv, named = call()
    lists = bundle.lists(*qkv, **named)
    q = tensor(2, 128, 8, 64)
    kv = [tensor(2, 128, 2, 64, pointer=0x200_0000 * (n + 1)) for n in range(2)]

    with pytest.raises(LaunchError, match="takes no lists"):
        other(q, *kv, lists=lists)
    with pytest.raises(LaunchError, match="takes no lists"):
        other.lists(q, *kv)

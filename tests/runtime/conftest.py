"""What the runtime tests share: a bundle, stand-ins for tensors, for PyTorch and for the CUDA driver."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.runtime import GridAxis, Manifest, Requirement, Scalar, Tensor
from qimeng_attention.runtime import bundle as bundle_module
from qimeng_attention.runtime.manifest_json import to_json

FILES = {
    "spec.json": b'{"Hq": 8, "Hk": 2, "Dqk": 64, "mask": "causal", "score": "score", "softcap": null}',
    "sketch.tl": b"Copy Q from global to shared\n",
    "code.tl": b"Kernel gqa\nTile BM = 128, BN = 64   # rows\n\n"
    b"Schedule\n    ring K stages 2   # two\n    warps 4 along q\n",
    "scheduled.tl": b"Wait K\n",
    "kernel.cu": b'extern "C" __global__ void gqa() {}\n',
    "sm80.cuh": b"#pragma once\n",
    "kernel.cubin": b"\x7fELF kernel",
    "report.json": b'{"registers": 168, "spill_store_bytes": 0, "occupancy": {"blocks_per_sm": 2}}',
    "reasons.json": b"[]",
    "verdict.json": b'{"verdict": "accepted", "worst_error": 0.002}',
}


def example() -> Manifest:
    """Give the manifest of a causal kernel with eight query heads and two key heads."""
    return Manifest(
        kernel="gqa_causal_d64_bf16",
        target="A100",
        arch="sm_80",
        built_arch="sm_90",
        threads=128,
        shared_bytes=65_536,
        grid=(
            GridAxis("block", 0, ("ceildiv", "Sq", 128)),
            GridAxis("head", 0, 8),
            GridAxis("batch", 0, "B"),
        ),
        tensors=(
            Tensor("Q", "bf16", ("B", "Sq", 8, 64), "input"),
            Tensor("K", "bf16", ("B", "Sk", 2, 64), "input"),
            Tensor("V", "bf16", ("B", "Sk", 2, 64), "input"),
            Tensor("Out", "bf16", ("B", "Sq", 8, 64), "output"),
            Tensor("Lse", "f32", ("B", 8, "Sq"), "output"),
        ),
        sizes=("B", "Sq", "Sk"),
        scalars=(Scalar("scale", "f32", ">", 0.0),),
        requires=(Requirement("Sk", "<=", 1 << 30),),
        call={"q": "Q", "k": "K", "v": "V"},
        outputs=("Out", "Lse"),
        default_scale=0.125,
        provenance={"package": "0.1.0", "versions": {"nvrtc": "13.2"}, "date": "2026-08-20"},
        files={name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
    )


@dataclass(frozen=True)
class StandInDevice:
    """A torch.device in all that is asked of one."""

    type: str = "cuda"
    index: int | None = 0

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


@dataclass
class StandIn:
    """A tensor without memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str = "torch.bfloat16"
    device: StandInDevice = field(default_factory=StandInDevice)
    requires_grad: bool = False
    pointer: int = 0x10000

    def stride(self) -> tuple[int, ...]:
        return self.strides

    def data_ptr(self) -> int:
        return self.pointer

    def is_contiguous(self) -> bool:
        return self.strides == stand_in(*self.shape).strides


def stand_in(*shape: int, strides: tuple[int, ...] | None = None, device: str = "cuda:0", **more: Any) -> StandIn:
    """Make a stand-in, contiguous unless strides are given."""
    if strides is None:
        contiguous = [1]
        for extent in reversed(shape[1:]):
            contiguous.append(contiguous[-1] * max(extent, 1))
        strides = tuple(reversed(contiguous))
    kind, _, index = device.partition(":")
    return StandIn(shape, strides, device=StandInDevice(kind, int(index) if index else None), **more)


class StandInDriver:
    """The driver's functions that a launcher calls; keeps what was launched."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=97,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=16,
    )

    def __init__(self, arguments: int, capability: tuple[int, int] = (9, 0)) -> None:
        self.attributes = {75: capability[0], 76: capability[1], 97: 232_448, 16: 132}
        self.arguments, self.kernels = arguments, {b"gqa_causal_d64_bf16"}
        self.launches: list[SimpleNamespace] = []
        self.calls: list[str] = []
        self.contexts: list[int] = []
        self.mode, self.fails = 0, ""
        self.shared: int | None = None
        self.captured: set[int] = set()  # streams
        self.allocated = self.tries = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and name != "cuLaunchKernel":
            self.calls.append(name)
        return object.__getattribute__(self, name)

    def cuInit(self, flags: int) -> tuple[int]:
        return (0,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:
        return 0, ordinal

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        return 0, self.attributes[attribute]

    def cuStreamIsCapturing(self, stream: int) -> tuple[int, int]:
        return 0, int(stream in self.captured)

    def cuMemAlloc(self, count: int) -> tuple[int, int]:
        self.allocated += count
        return 0, 0x7000_0000

    def cuMemsetD8(self, start: int, value: int, count: int) -> tuple[int]:
        return (0,)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, int]:
        return 0, 1000 + device

    def cuCtxGetCurrent(self) -> tuple[int, int]:
        return 0, self.contexts[-1] if self.contexts else 0

    def cuCtxPushCurrent(self, context: int) -> tuple[int]:
        self.contexts.append(context)
        return (0,)

    def cuCtxPopCurrent(self) -> tuple[int, int]:
        return 0, self.contexts.pop()

    def cuThreadExchangeStreamCaptureMode(self, mode: int) -> tuple[int, int]:
        self.mode, before = mode, self.mode
        return 0, before

    def cuModuleLoadData(self, image: bytes) -> tuple[int, bytes]:
        assert self.mode == 2
        return 0, image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[int, Any]:
        return (0, ("function", self.contexts[-1])) if name in self.kernels else (500, "")

    def cuFuncSetAttribute(self, function: tuple[str, int], attribute: int, value: int) -> tuple[int]:
        self.shared = value
        return (0,)

    def cuLaunchKernel(self, function: tuple[str, int], *rest: int) -> tuple[Any]:
        *dims, shared, stream, address, extra = rest
        self.tries += 1
        if self.fails:
            return (SimpleNamespace(name=self.fails),)
        if not self.contexts or self.contexts[-1] != function[1]:
            return (SimpleNamespace(name="CUDA_ERROR_INVALID_CONTEXT"),)
        pointers = (ctypes.c_uint64 * self.arguments).from_address(address)
        slots = [ctypes.string_at(pointer, 8) for pointer in pointers]
        self.launches.append(
            SimpleNamespace(
                function=function,
                grid=tuple(dims[:3]),
                block=tuple(dims[3:]),
                shared=shared,
                stream=stream,
                slots=slots,
                extra=extra,
                context=self.contexts[-1] if self.contexts else 0,
            )
        )
        return (0,)


@pytest.fixture
def manifest() -> Manifest:
    return example()


@pytest.fixture
def tensor() -> Callable[..., StandIn]:
    return stand_in


@pytest.fixture
def driver() -> Callable[..., StandInDriver]:
    return StandInDriver


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the folder of a whole bundle."""
    path = tmp_path / "bundle"
    write_folder(path, example())
    return path


@pytest.fixture
def rewrite() -> Callable[[Path, Manifest], None]:
    return write_folder


def write_folder(path: Path, manifest: Manifest, files: dict[str, bytes] = FILES) -> None:
    """Write a bundle as the store would, in no careful way."""
    path.mkdir(exist_ok=True)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / "manifest.json").write_bytes(to_json(replace(manifest, files=digests)))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Put a stand-in for PyTorch with one GPU, and for the CUDA driver, in the place of the libraries."""
    torch, made = ModuleType("torch"), []
    state = SimpleNamespace(
        driver=StandInDriver(arguments=22), grad=False, made=made, available=True, stream=77, current=0, capturing=False
    )

    def empty_like(other: StandIn) -> StandIn:
        return empty(other.shape, other.dtype, other.device)

    def empty(shape: tuple[int, ...], dtype: str, device: StandInDevice) -> StandIn:
        made.append(stand_in(*shape, dtype=dtype, device=str(device), pointer=0x100_0000 * (10 + len(made))))
        return made[-1]

    torch.__dict__.update(
        empty=empty,
        empty_like=empty_like,
        bfloat16="torch.bfloat16",
        float16="torch.float16",
        float32="torch.float32",
        is_grad_enabled=lambda: state.grad,
        cuda=SimpleNamespace(
            is_available=lambda: state.available,
            current_device=lambda: state.current,
            is_current_stream_capturing=lambda: state.capturing,
        ),
        _C=SimpleNamespace(_cuda_getCurrentRawStream=lambda device: state.stream + device),
    )
    bindings = ModuleType("cuda.bindings")
    bindings.__dict__["driver"] = state.driver
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    _forget()
    yield state
    _forget()


def _forget() -> None:
    names = ("gpu_torch", "cuda_driver", "stream_functions")
    for found in (getattr(bundle_module, name) for name in names):
        found.cache_clear()

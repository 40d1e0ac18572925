from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qimeng_attention.errors import BundleError, LaunchError
from qimeng_attention.runtime import Manifest
from qimeng_attention.runtime.launcher import Launcher, Prepared, Where, runs_on
from qimeng_attention.runtime.packing import ArgumentBuffer, form_of, places_of

VALUES = (
    0x1111,
    153_600,
    512,
    64,
    0x2222,
    8_960,
    128,
    64,
    0x3333,
    2**40,
    128,
    64,
    0x4444,
    153_600,
    512,
    64,
    0x5555,
    2_400,
    300,
    2,
    300,
    70,
    0.125,
)
SLOTS = [
    *(struct.pack("<q", value) for value in VALUES[:19]),
    *(struct.pack("<i4x", value) for value in VALUES[19:22]),
    struct.pack("<f4x", 0.125),
]


@pytest.mark.parametrize(
    ("arch", "capability", "expected"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 6), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90", (8, 0), False),
        ("sm_90", (9, 0), True),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
        ("sm_100a", (10, 0), True),
        ("sm_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("sm_103", (10, 0), False),
        ("sm_120", (12, 0), True),
        ("sm_75", (8, 0), False),
        ("nonsense", (9, 0), False),
    ],
)
def test_a_cubin_runs_where_the_architecture_allows(arch: str, capability: tuple[int, int], expected: bool) -> None:
    assert runs_on(arch, capability) == expected


def test_arguments_have_the_bytes_that_the_kernel_reads(manifest: Manifest) -> None:
    buffer = ArgumentBuffer(form_of(manifest), VALUES)

    pointers = (ctypes.c_uint64 * len(VALUES)).from_address(buffer.address)
    assert [ctypes.string_at(pointer, 8) for pointer in pointers] == SLOTS


def test_pointers_and_scalars_have_their_places(manifest: Manifest) -> None:
    assert places_of(manifest) == ([0, 4, 8, 12, 16], [22])


def test_a_launch_hands_everything_to_the_driver(manifest: Manifest, driver: Callable[..., Any]) -> None:
    cuda = driver(arguments=23)

    Launcher(manifest, b"cubin", cuda).launch(Prepared(1, (3, 8, 2), VALUES), Where(77))

    (launch,) = cuda.launches
    assert launch.grid == (3, 8, 2)
    assert launch.block == (128, 1, 1)
    assert launch.shared == cuda.shared == 65_536
    assert launch.stream == 77
    assert launch.slots == SLOTS
    assert launch.context == 1001
    assert cuda.contexts == []
    assert cuda.mode == 0


def test_a_cubin_is_loaded_once_for_each_device(manifest: Manifest, driver: Callable[..., Any]) -> None:
    cuda = driver(arguments=23)
    launcher = Launcher(manifest, b"cubin", cuda)

    for device in (0, 1, 0, 1, 0):
        launcher.launch(Prepared(device, (1, 1, 1), VALUES), Where(0))

    assert cuda.calls.count("cuModuleLoadData") == 2
    assert len(cuda.launches) == 5


def test_after_the_first_launch_only_the_launch_itself_is_called(
    manifest: Manifest, driver: Callable[..., Any]
) -> None:
    cuda = driver(arguments=23)
    launcher = Launcher(manifest, b"cubin", cuda)
    launcher.load(0)
    cuda.contexts.append(1000)
    cuda.calls.clear()

    launcher.launch(Prepared(0, (1, 1, 1), VALUES), Where(0, current=True))

    assert cuda.calls == []
    assert len(cuda.launches) == 1


@pytest.mark.parametrize("contexts", [[], [1001]])
def test_a_context_that_is_not_pytorchs_is_entered_and_left(
    manifest: Manifest, driver: Callable[..., Any], contexts: list[int]
) -> None:
    cuda = driver(arguments=23)
    launcher = Launcher(manifest, b"cubin", cuda)
    launcher.load(0)
    cuda.contexts += contexts

    launcher.launch(Prepared(0, (1, 1, 1), VALUES), Where(0, current=True))

    (launch,) = cuda.launches
    assert launch.context == 1000
    assert cuda.contexts == contexts


def test_a_failed_launch_in_the_right_context_is_not_tried_again(
    manifest: Manifest, driver: Callable[..., Any]
) -> None:
    cuda = driver(arguments=23)
    launcher = Launcher(manifest, b"cubin", cuda)
    launcher.load(0)
    cuda.contexts.append(1000)
    cuda.fails = "CUDA_ERROR_LAUNCH_FAILED"

    with pytest.raises(LaunchError, match="CUDA_ERROR_LAUNCH_FAILED"):
        launcher.launch(Prepared(0, (1, 1, 1), VALUES), Where(0, current=True))

    assert cuda.tries == 1


def test_another_devices_context_is_entered_and_left(manifest: Manifest, driver: Callable[..., Any]) -> None:
    cuda = driver(arguments=23)
    cuda.contexts.append(1000)

    Launcher(manifest, b"cubin", cuda).launch(Prepared(1, (1, 1, 1), VALUES), Where(0))

    assert cuda.launches[0].context == 1001
    assert cuda.contexts == [1000]


def test_little_shared_memory_needs_no_attribute(manifest: Manifest, driver: Callable[..., Any]) -> None:
    cuda = driver(arguments=23)

    Launcher(replace(manifest, shared_bytes=49_152), b"cubin", cuda).launch(Prepared(0, (1, 1, 1), VALUES), Where(0))

    assert cuda.shared is None
    assert cuda.launches[0].shared == 49_152


def test_a_cubin_of_another_architecture_says_how_to_rebuild(manifest: Manifest, driver: Callable[..., Any]) -> None:
    cuda = driver(arguments=23)

    with pytest.raises(LaunchError, match=r"the cubin is for sm_80, cuda:0 is an sm_90\n.*--arch sm_90"):
        Launcher(replace(manifest, built_arch="sm_80"), b"cubin", cuda).launch(Prepared(0, (1, 1, 1), VALUES), Where(0))

    assert cuda.launches == []


def test_more_shared_memory_than_the_device_has_is_refused(manifest: Manifest, driver: Callable[..., Any]) -> None:
    with pytest.raises(LaunchError, match="needs 300000 bytes of shared memory, cuda:0 has 232448"):
        Launcher(replace(manifest, shared_bytes=300_000), b"cubin", driver(arguments=23)).load(0)


def test_a_cubin_without_the_kernel_is_a_bundle_error(manifest: Manifest, driver: Callable[..., Any]) -> None:
    cuda = driver(arguments=23)

    with pytest.raises(BundleError, match="has no kernel named other"):
        Launcher(replace(manifest, kernel="other"), b"cubin", cuda).load(0)

    assert cuda.contexts == []
    assert cuda.mode == 0


def test_a_refusal_of_the_driver_is_a_launch_error(manifest: Manifest, driver: Callable[..., Any]) -> None:
    cuda = driver(arguments=23)
    cuda.fails = "CUDA_ERROR_ILLEGAL_ADDRESS"

    with pytest.raises(LaunchError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        Launcher(manifest, b"cubin", cuda).launch(Prepared(0, (1, 1, 1), VALUES), Where(0))

    assert cuda.contexts == []


def test_threads_do_not_share_the_arguments(manifest: Manifest, driver: Callable[..., Any]) -> None:
    cuda = driver(arguments=23)
    launcher = Launcher(manifest, b"cubin", cuda)
    inside, go_on = threading.Event(), threading.Event()
    real = cuda.cuLaunchKernel

    def slow(*arguments: Any) -> Any:
        if threading.current_thread() is other:
            inside.set()
            go_on.wait(10)
        return real(*arguments)

    cuda.cuLaunchKernel = slow
    other = threading.Thread(target=launcher.launch, args=(Prepared(0, (1, 1, 1), (7, *VALUES[1:])), Where(1)))
    other.start()
    inside.wait(10)
    launcher.launch(Prepared(0, (1, 1, 1), (9, *VALUES[1:])), Where(2))
    go_on.set()
    other.join()

    first = {launch.stream: launch.slots[0] for launch in cuda.launches}
    assert first == {1: struct.pack("<q", 7), 2: struct.pack("<q", 9)}

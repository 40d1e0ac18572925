"""A cubin on its devices: loaded once on each, launched on a stream.

Nothing here waits for the GPU or allocates its memory after a device's first launch, so that a launch can be
captured in a CUDA graph. `driver` is `cuda.bindings.driver`, or what has its functions.

Not here: checks of the arguments (checks.py).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from qimeng_attention.errors import BundleError, LaunchError
from qimeng_attention.runtime.counters import Counters
from qimeng_attention.runtime.manifest import ARCH, Manifest
from qimeng_attention.runtime.packing import ArgumentBuffer, form_of
from qimeng_attention.runtime.tensor_maps import Box, encode

_DEFAULT_SHARED_BYTES = 48 * 1024  # what a kernel may have without asking; CUDA programming guide


def runs_on(built_arch: str, capability: tuple[int, int]) -> bool:
    """Tell whether a cubin for one architecture runs on a device.

    sm_80 runs on 8.0 and later 8.x; sm_90a on 9.0 alone; sm_100f, of a family, as sm_100 does.
    """
    match = ARCH.fullmatch(built_arch)
    if match is None:
        return False
    major, minor = int(match[1]), int(match[2])
    if match[3] == "a":
        return capability == (major, minor)
    return capability[0] == major and capability[1] >= minor


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: Any
    handle: int  # of the context
    function: Any
    multiprocessors: int
    counters: Counters | None


class Where(NamedTuple):
    """Where a launch goes."""

    stream: int
    capturing: bool = False  # the stream, into a graph
    current: bool = False  # the device is PyTorch's current one in this thread


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What a launch takes but for the stream: made once for the same plan, addresses and scalars."""

    device: int
    grid: tuple[int, int, int]
    values: tuple[int | float, ...]
    boxes: tuple[Box, ...] = ()
    pointers: tuple[int, ...] = ()  # of the manifest's tensors
    buffers: dict[int, ArgumentBuffer] = field(default_factory=dict)  # by the counter's address, 0 without one


class Launcher:
    """Launches one kernel on any device of the process."""

    def __init__(self, manifest: Manifest, cubin: bytes, driver: Any) -> None:
        self._manifest, self._cubin, self._driver = manifest, cubin, driver
        self._form = form_of(manifest)
        self._loaded: dict[int, _Loaded] = {}
        self._lock = threading.Lock()

    def launch(self, prepared: Prepared, where: Where) -> None:
        """Launch the kernel on a stream, which may be one that is being captured.

        Raises:
            LaunchError: the device is not the kernel's, or the driver refused.
        """
        loaded = self._loaded.get(prepared.device) or self.load(prepared.device)
        counter = loaded.counters.at(where.stream, where.capturing) if loaded.counters else 0
        buffer = prepared.buffers.get(counter) or self._buffer(prepared, counter, keep=not where.capturing)
        # NOTE: asking the driver for the context costs a microsecond. PyTorch has made its current device's current;
        # where somebody has changed that since, the driver refuses the function of another context, and nothing ran.
        result = self._start(loaded, prepared.grid, where.stream, buffer) if where.current else None
        if result is None or result:
            entered = self._enter(loaded)
            try:
                if result is None or entered:
                    result = self._start(loaded, prepared.grid, where.stream, buffer)
            finally:
                if entered:
                    self._driver.cuCtxPopCurrent()
        if result:
            raise self._refused("the launch", result)

    def _start(self, loaded: _Loaded, grid: tuple[int, int, int], stream: int, buffer: ArgumentBuffer) -> Any:
        manifest = self._manifest
        (result,) = self._driver.cuLaunchKernel(
            loaded.function,
            min(grid[0], loaded.multiprocessors) if manifest.persistent else grid[0],
            grid[1],
            grid[2],
            manifest.threads,
            1,
            1,
            manifest.shared_bytes,
            stream,
            buffer.address,
            0,
        )
        return result

    def _buffer(self, prepared: Prepared, counter: int, keep: bool) -> ArgumentBuffer:
        """Pack the arguments; those of a captured launch are not kept, since its counter is its own."""
        some = next((p for p in prepared.pointers if p), 0)  # what has no memory is never touched
        maps = [encode(self._driver, box, prepared.pointers[box.tensor] or some) for box in prepared.boxes]
        made = ArgumentBuffer(self._form, prepared.values, maps, counter if self._manifest.counter else None)
        if keep:
            prepared.buffers[counter] = made
        return made

    def load(self, device: int) -> _Loaded:
        """Load the cubin on a device, once.

        Raises:
            LaunchError: the device is not the kernel's, or the driver refused.
            BundleError: the cubin has no such kernel.
        """
        with self._lock:
            if device not in self._loaded:
                self._loaded[device] = self._load(device)
            return self._loaded[device]

    def _load(self, device: int) -> _Loaded:
        driver = self._driver
        self._call("cuInit", 0)
        ordinal = self._call("cuDeviceGet", device)
        self._check_device(device, ordinal)
        context = self._call("cuDevicePrimaryCtxRetain", ordinal)
        self._call("cuCtxPushCurrent", context)
        # NOTE: loading allocates, which a capture forbids unless this thread is relaxed about it.
        mode = self._call(
            "cuThreadExchangeStreamCaptureMode", driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        )
        try:
            function = self._function(self._call("cuModuleLoadData", self._cubin))
            counters = Counters(partial(self._call_in, context)) if self._manifest.counter else None
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", mode)
            self._call("cuCtxPopCurrent")
        count = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        return _Loaded(context, int(context), function, self._call("cuDeviceGetAttribute", count, ordinal), counters)

    def _function(self, module: Any) -> Any:
        driver, name = self._driver, self._manifest.kernel
        result, function = driver.cuModuleGetFunction(module, name.encode())
        if result:
            raise BundleError(
                f"kernel.cubin has no kernel named {name}",
                hint="generate the bundle again",
                file="kernel.cubin",
            )
        if self._manifest.shared_bytes > _DEFAULT_SHARED_BYTES:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, attribute, self._manifest.shared_bytes)
        return function

    def _check_device(self, device: int, ordinal: Any) -> None:
        known, manifest = self._driver.CUdevice_attribute, self._manifest
        major = self._call("cuDeviceGetAttribute", known.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, ordinal)
        minor = self._call("cuDeviceGetAttribute", known.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, ordinal)
        if not runs_on(manifest.built_arch, (major, minor)):
            raise LaunchError(
                f"the cubin is for {manifest.built_arch}, cuda:{device} is an sm_{major}{minor}",
                hint=f"rebuild the kernel with --arch sm_{major}{minor}, or generate it for this GPU",
                built_arch=manifest.built_arch,
                device_arch=f"sm_{major}{minor}",
            )
        most = self._call("cuDeviceGetAttribute", known.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, ordinal)
        if manifest.shared_bytes > most:
            raise LaunchError(
                f"a block needs {manifest.shared_bytes} bytes of shared memory, cuda:{device} has {most}",
                hint="generate the kernel for this GPU",
                shared_bytes=manifest.shared_bytes,
                most=most,
            )

    def _enter(self, loaded: _Loaded) -> bool:
        """Make the device's context current if it is not; True if it has to be left again."""
        result, current = self._driver.cuCtxGetCurrent()
        if not result and int(current) == loaded.handle:
            return False
        self._call("cuCtxPushCurrent", loaded.context)
        return True

    def _call_in(self, context: Any, name: str, *arguments: Any) -> Any:
        self._call("cuCtxPushCurrent", context)
        try:
            return self._call(name, *arguments)
        finally:
            self._call("cuCtxPopCurrent")

    def _call(self, name: str, *arguments: Any) -> Any:
        result, *values = getattr(self._driver, name)(*arguments)
        if result:
            raise self._refused(name, result)
        return values[0] if values else None

    def _refused(self, what: str, result: Any) -> LaunchError:
        name = getattr(result, "name", str(result))
        return LaunchError(
            f"CUDA refused {what} of {self._manifest.kernel}: {name}",
            hint="if an earlier kernel failed, start a new process; else rebuild this one for the GPU",
            cuda_error=name,
        )

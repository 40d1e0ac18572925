"""The arguments of one launch in the form that cuLaunchKernel takes: an array of pointers to values.

Each value has eight bytes of its own, the low ones if it is an int32 or a float32; behind them stand the tensor maps. A
buffer belongs to one thread: the driver has copied the values when the launch returns.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

from qimeng_attention.runtime.manifest import Manifest

SLOT_BYTES = 8
MAP_BYTES = 128  # of a tensor map, which is aligned to 64; CUDA driver API, CUtensorMap


def form_of(manifest: Manifest) -> struct.Struct:
    """Give the form of a kernel's arguments: pointers and strides by tensor, sizes, scalars."""
    tensors = "".join("Q" + "q" * (len(tensor.dims) - 1) for tensor in manifest.tensors)
    return struct.Struct("<" + tensors + "i4x" * len(manifest.sizes) + "f4x" * len(manifest.scalars))


def places_of(manifest: Manifest) -> tuple[list[int], list[int]]:
    """Give the positions of the pointers and of the scalars among the arguments."""
    pointers, position = [], 0
    for tensor in manifest.tensors:
        pointers.append(position)
        position += len(tensor.dims)
    position += len(manifest.sizes)
    return pointers, list(range(position, position + len(manifest.scalars)))


class ArgumentBuffer:
    """Memory for the arguments; `address` is what cuLaunchKernel takes as kernelParams."""

    def __init__(self, form: struct.Struct, maps: int = 0, counter: bool = False) -> None:
        self._form = form
        first = -(-form.size // MAP_BYTES) * MAP_BYTES
        self._memory = ctypes.create_string_buffer(first + (maps + 1) * MAP_BYTES)
        base = -(-ctypes.addressof(self._memory) // MAP_BYTES) * MAP_BYTES
        count = form.size // SLOT_BYTES
        self._maps = [base + first + MAP_BYTES * i for i in range(maps)]
        self._counter = ctypes.c_uint64()
        last = [ctypes.addressof(self._counter)] if counter else []
        addresses = [*(base + SLOT_BYTES * i for i in range(count)), *self._maps, *last]
        self._values = (ctypes.c_char * max(form.size, 1)).from_address(base)
        self._pointers = (ctypes.c_void_p * max(len(addresses), 1))(*addresses)
        self.address = ctypes.addressof(self._pointers)

    def pack(self, values: Sequence[int | float], maps: Sequence[int] = (), counter: int = 0) -> None:
        """Put the next launch's values and counter in place, and copy the tensor maps that lie at these addresses."""
        self._counter.value = counter
        self._form.pack_into(self._values, 0, *values)
        for to, start in zip(self._maps, maps, strict=True):
            ctypes.memmove(to, start, MAP_BYTES)

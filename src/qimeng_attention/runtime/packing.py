"""The arguments of one launch in the form that cuLaunchKernel takes: an array of pointers to values.

Each value has eight bytes of its own, the low ones if it is an int32 or a float32; behind them stand the tensor maps.
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
    """The arguments of one launch; `address` is what cuLaunchKernel takes as kernelParams.

    Nothing in it changes once it is made: any thread may launch with it, again and again.
    """

    def __init__(
        self, form: struct.Struct, values: Sequence[int | float], maps: Sequence[bytes] = (), counter: int | None = None
    ) -> None:
        first = -(-form.size // MAP_BYTES) * MAP_BYTES
        self._memory = ctypes.create_string_buffer(first + (len(maps) + 1) * MAP_BYTES)
        base = -(-ctypes.addressof(self._memory) // MAP_BYTES) * MAP_BYTES
        addresses = [base + SLOT_BYTES * i for i in range(form.size // SLOT_BYTES)]
        form.pack_into((ctypes.c_char * max(form.size, 1)).from_address(base), 0, *values)
        for number, encoded in enumerate(maps):
            addresses.append(base + first + MAP_BYTES * number)
            ctypes.memmove(addresses[-1], encoded, MAP_BYTES)
        if counter is not None:
            self._counter = ctypes.c_uint64(counter)
            addresses.append(ctypes.addressof(self._counter))
        self._pointers = (ctypes.c_void_p * max(len(addresses), 1))(*addresses)
        self.address = ctypes.addressof(self._pointers)

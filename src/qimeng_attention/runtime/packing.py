"""The arguments of one launch in the form that cuLaunchKernel takes: an array of pointers to values.

Each value has eight bytes of its own, the low ones if it is an int32 or a float32. A buffer belongs to one
thread: the driver has copied the values when the launch returns.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

from qimeng_attention.runtime.manifest import Manifest

SLOT_BYTES = 8


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

    def __init__(self, form: struct.Struct) -> None:
        self._form = form
        self._values = ctypes.create_string_buffer(max(form.size, SLOT_BYTES))
        count = form.size // SLOT_BYTES
        base = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * max(count, 1))(*(base + SLOT_BYTES * i for i in range(count)))
        self.address = ctypes.addressof(self._pointers)

    def pack(self, values: Sequence[int | float]) -> None:
        """Put the values of the next launch in place."""
        self._form.pack_into(self._values, 0, *values)

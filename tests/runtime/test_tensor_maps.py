"""Tensor maps: what the driver is told of a tensor, for rows that are whole boxes and for rows that end within one."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.runtime import Manifest, tensor_maps
from qimeng_attention.runtime.manifest import Tensor, TensorMap


class Named:
    """Gives each constant its own name."""

    def __getattr__(self, name: str) -> str:
        return name


class Driver:
    """Takes down what a tensor map is made from."""

    def __init__(self) -> None:
        self.taken: tuple[Any, ...] = ()
        self.encoded = ctypes.create_string_buffer(128)
        for name in ("DataType", "Interleave", "Swizzle", "L2promotion", "FloatOOBfill"):
            setattr(self, f"CUtensorMap{name}", Named())
        self.cuuint64_t = self.cuuint32_t = int

    def cuTensorMapEncodeTiled(self, *taken: Any) -> tuple[int, Any]:
        self.taken = taken
        return 0, SimpleNamespace(getPtr=lambda: ctypes.addressof(self.encoded))


@pytest.mark.parametrize(("width", "box", "swizzle"), [(40, 64, "128B"), (96, 32, "64B"), (128, 64, "128B")])
def test_a_box_is_swizzled_over_its_row_and_the_tensor_keeps_its_own_width(
    manifest: Manifest, width: int, box: int, swizzle: str
) -> None:
    tensor = Tensor("K", "bf16", ("B", "Sk", 2, width), "input", 16)
    kernel = replace(manifest, tensors=(tensor,), maps=(TensorMap("K", (1, 64, 1, box)),))
    shape, strides = (2, 7, 2, width), (7 * 2 * (width + 8), 2 * (width + 8), width + 8, 1)
    driver = Driver()

    (found,) = tensor_maps.boxes_of(kernel, [(shape, strides, None, None)])
    assert tensor_maps.encode(driver, found, 1024) == bytes(128)

    kind, rank, pointer, extents, steps, boxes, _, _, over, *_ = driver.taken
    assert (kind, rank, pointer) == ("CU_TENSOR_MAP_DATA_TYPE_BFLOAT16", 4, 1024)
    assert (extents, boxes) == ([width, 2, 7, 2], [box, 1, 64, 1])
    assert steps == [2 * s for s in reversed(strides[:-1])]
    assert over == f"CU_TENSOR_MAP_SWIZZLE_{swizzle}"

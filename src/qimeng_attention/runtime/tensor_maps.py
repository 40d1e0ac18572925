"""Tensor maps: how the copy engine is told a tensor's address, extents, strides and box.

A tile that reaches past a dimension's end is filled with zeros, and never written there, because the map has every
dimension of the tensor. A box's row is swizzled over its own bytes.

A ragged dimension ends where each copy says. The engine sees it as two of the same stride: a, with as many rows as the
box, and b, with one more than the tensor, from an address that lies a box before the tensor's. A copy of the `rows`
rows behind row `at` starts at a = box - rows and b = at + rows: row i of the box is row at + i of the tensor, and from
i = rows on outside of a. So b tells the engine where the tensor ends, and a where the copy does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime.manifest import ITEM_BYTES, Manifest
from qimeng_attention.runtime.packing import MAP_BYTES

_UNIT = 16  # bytes of which addresses and strides are multiples; CUDA driver API, cuTensorMapEncodeTiled
_TYPES = {"fp16": "FLOAT16", "bf16": "BFLOAT16", "f32": "FLOAT32", "i32": "INT32"}


@dataclass(frozen=True, slots=True)
class Box:
    """One tensor map but for the address; dimensions from the innermost out, as the driver takes them."""

    tensor: int  # its position among the manifest's
    dtype: str
    extents: tuple[int, ...]
    strides: tuple[int, ...]  # bytes, of all dimensions but the innermost
    box: tuple[int, ...]
    before: int = 0  # bytes from where the map begins to the tensor


def boxes_of(
    manifest: Manifest, layouts: Sequence[tuple[tuple[int, ...], tuple[int, ...], Any, Any]]
) -> tuple[Box, ...]:
    """Give the boxes of a call's tensor maps.

    A dimension without elements counts as one that is never reached: the kernel copies no tile of it. The stride of a
    dimension of one element is never used, and may be any that the driver takes.
    """
    names = [tensor.name for tensor in manifest.tensors]
    found = []
    for wanted in manifest.maps:
        index = names.index(wanted.tensor)
        kind, (shape, strides, *_) = manifest.tensors[index], layouts[index]
        row = -(-shape[-1] * kind.item_bytes // _UNIT) * _UNIT
        steps = [s * kind.item_bytes if n > 1 else row for n, s in zip(shape[:-1], strides[:-1], strict=True)]
        extents, box = [max(n, 1) for n in shape], list(wanted.box)
        if wanted.group:
            at = wanted.dimension
            extents[at : at + 1] = [max(extents[at] // wanted.group, 1), wanted.group]
            steps[at : at + 1] = [strides[at] * wanted.group * kind.item_bytes, strides[at] * kind.item_bytes]
            box[at : at + 1] = [1, box[at]]
        before = 0
        if wanted.ragged:
            at = wanted.dimension
            before = steps[at] * box[at]
            extents[at : at + 1] = [shape[at] + 1, box[at]]
            steps[at : at + 1] = [steps[at], steps[at]]
            box[at : at + 1] = [1, box[at]]
        extents, steps, box = (x[::-1] for x in (extents, steps, box))
        found.append(Box(index, kind.dtype, tuple(extents), tuple(steps), tuple(box), before))
    return tuple(found)


def encode(driver: Any, box: Box, pointer: int) -> bytes:
    """Give a tensor map as the copy engine reads it.

    Args:
        driver: `cuda.bindings.driver`.
        box: of a plan.
        pointer: of the tensor; not 0, though a tensor without elements is never touched.

    Raises:
        LaunchError: the driver refused it.
    """
    result, encoded = driver.cuTensorMapEncodeTiled(
        getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_TYPES[box.dtype]}"),
        len(box.extents),
        pointer - box.before,
        [driver.cuuint64_t(n) for n in box.extents],
        [driver.cuuint64_t(n) for n in box.strides],
        [driver.cuuint32_t(n) for n in box.box],
        [driver.cuuint32_t(1) for _ in box.box],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{box.box[0] * ITEM_BYTES[box.dtype]}B"),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if result:
        name = getattr(result, "name", str(result))
        raise LaunchError(
            f"the copy engine takes no tensor of extents {box.extents} and strides {box.strides} bytes "
            f"(innermost first): {name}",
            hint="pass a copy made with .contiguous()",
            cuda_error=name,
        )
    return ctypes.string_at(int(encoded.getPtr()), MAP_BYTES)

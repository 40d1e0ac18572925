"""Tensor maps: how the copy engine is told a tensor's address, extents, strides and box. Encoded once and kept.

A tile that reaches past a dimension's end is filled with zeros, and never written there, because the map has every
dimension of the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime.manifest import Manifest

_MOST_KEPT = 4096  # maps; a process that makes new tensors for each call would otherwise collect them
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
        extents = tuple(max(n, 1) for n in reversed(shape))
        found.append(Box(index, kind.dtype, extents, tuple(reversed(steps)), tuple(reversed(wanted.box))))
    return tuple(found)


class TensorMaps:
    """The tensor maps of one kernel."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._kept: dict[tuple[Box, int], Any] = {}

    def addresses(self, boxes: Sequence[Box], pointers: Sequence[int]) -> list[int]:
        """Give where the maps lie in memory; valid until the next call.

        Args:
            boxes: of a plan.
            pointers: of the manifest's tensors; one without memory is never touched, any other stands for it.

        Raises:
            LaunchError: the driver refused one.
        """
        found = []
        some = next(p for p in pointers if p)
        for box in boxes:
            key = (box, pointers[box.tensor] or some)
            encoded = self._kept.get(key)
            if encoded is None:
                if len(self._kept) >= _MOST_KEPT:
                    self._kept = {}
                encoded = self._kept[key] = self._encode(*key)
            found.append(encoded)
        self._last = found  # they stay alive while the launch reads them
        return [int(x.getPtr()) for x in found]

    def _encode(self, box: Box, pointer: int) -> Any:
        cu = self._driver
        result, encoded = cu.cuTensorMapEncodeTiled(
            getattr(cu.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_TYPES[box.dtype]}"),
            len(box.extents),
            pointer,
            [cu.cuuint64_t(n) for n in box.extents],
            [cu.cuuint64_t(n) for n in box.strides],
            [cu.cuuint32_t(n) for n in box.box],
            [cu.cuuint32_t(1) for _ in box.box],
            cu.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            cu.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            cu.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            cu.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        if result:
            name = getattr(result, "name", str(result))
            raise LaunchError(
                f"the copy engine takes no tensor of extents {box.extents} and strides {box.strides} bytes "
                f"(innermost first): {name}",
                hint="pass a copy made with .contiguous()",
                cuda_error=name,
            )
        return encoded

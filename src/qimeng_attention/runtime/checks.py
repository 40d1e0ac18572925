"""What a call must fulfil before anything is launched, and what follows from its tensors: sizes, grid, arguments.

All that depends on shapes, strides, types and devices alone is a `Plan`, made once per combination of them. What
depends on addresses and scalars is checked at each call. Tensors are known by a small protocol, so nothing here
needs PyTorch or a GPU.

Not here: loading and launching (launcher.py), the GPU's own limits (launcher.py).
"""

from __future__ import annotations

import math
import numbers
import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime.expressions import Expression, evaluate, show
from qimeng_attention.runtime.manifest import Manifest, Requirement, Scalar, Tensor

INT32_MAX = 2**31 - 1
GRID_LIMITS = (
    2**31 - 1,
    65_535,
    65_535,
)  # blocks along x, y, z, on every GPU since 3.0; CUDA programming guide
TORCH_TYPES = {
    "fp16": "torch.float16",
    "bf16": "torch.bfloat16",
    "f32": "torch.float32",
    "i32": "torch.int32",
}
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_CONTIGUOUS = "pass a copy made with .contiguous()"


class TensorLike(Protocol):
    """What is asked of a tensor."""

    @property
    def shape(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def dtype(self) -> Any: ...  # noqa: D102
    @property
    def device(self) -> Any: ...  # noqa: D102
    @property
    def requires_grad(self) -> bool: ...  # noqa: D102
    def stride(self) -> Sequence[int]: ...  # noqa: D102
    def data_ptr(self) -> int: ...  # noqa: D102


# Shape, strides in elements, dtype, device: hashable, so that plans can be kept by it.
Layout: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], Any, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from the layouts of a call's tensors."""

    device: int
    sizes: tuple[int, ...]
    grid: tuple[int, int, int]
    empty: bool  # a grid of no blocks: nothing to launch
    values: tuple[int | float, ...]  # all arguments in order, with 0 for pointers and scalars
    layouts: tuple[Layout, ...]  # of all tensors, contiguous ones for outputs that were not given
    extents: tuple[int, ...]  # bytes from the first element of each tensor to the end of the last


def layout_of(tensor: TensorLike, label: str) -> Layout:
    """Take what a plan depends on from a tensor.

    Raises:
        LaunchError: no tensor, or one without strides.
    """
    try:
        return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)  # type: ignore[return-value]
    except (AttributeError, TypeError):
        raise LaunchError(
            f"{label} is a {type(tensor).__name__}, no tensor", hint="pass a CUDA tensor", argument=label
        ) from None
    except RuntimeError:
        raise LaunchError(f"{label} has no strides", hint="pass a dense tensor", argument=label) from None


def make_plan(
    manifest: Manifest,
    layouts: Sequence[Layout | None],
    labels: Sequence[str],
    given: Mapping[str, int] | None = None,
) -> Plan:
    """Check everything that layouts tell, and work out sizes, grid and arguments.

    Args:
        manifest: of the kernel.
        layouts: one for each tensor of the manifest, None for an output that is still to be allocated.
        labels: what the caller calls each tensor.
        given: sizes; None takes them from the tensors.

    Raises:
        LaunchError: the kernel must not be launched on these.
    """
    pairs = [
        (t, layout, label)
        for t, layout, label in zip(manifest.tensors, layouts, labels, strict=True)
        if layout
    ]
    device = _one_device([(layout, label) for _, layout, label in pairs])
    for tensor, layout, label in pairs:
        _check_kind(tensor, layout, label)
    sizes = _given_sizes(manifest, given) if given is not None else _bind(manifest, pairs)
    for tensor, layout, label in pairs:
        _check_dims(tensor, layout[0], label, sizes)
    for requirement in manifest.requires:
        _check_requirement(requirement, sizes)
    whole = [
        layout or _contiguous(tensor, sizes, pairs[0][1][3])
        for tensor, layout in zip(manifest.tensors, layouts, strict=True)
    ]
    for tensor, layout, label in zip(manifest.tensors, whole, labels, strict=True):
        _check_strides(tensor, layout, label)
    return _finish(manifest, device, sizes, whole)


def check_pointers(manifest: Manifest, plan: Plan, pointers: Sequence[int], labels: Sequence[str]) -> None:
    """Check what addresses tell: alignment, and that no output shares memory with another tensor.

    Raises:
        LaunchError: the kernel must not be launched on these.
    """
    for index, (tensor, pointer) in enumerate(zip(manifest.tensors, pointers, strict=True)):
        if pointer % tensor.align:
            raise LaunchError(
                f"{labels[index]} starts at an address that is no multiple of {tensor.align} bytes",
                hint="pass a copy made with .clone()", argument=labels[index],
            )  # fmt: skip
        if tensor.role == "output":
            _check_alone(manifest, plan, pointers, labels, index)


def check_scalar(scalar: Scalar, value: object) -> float:
    """Give a scalar as the float32 that the kernel gets.

    Raises:
        LaunchError: no number, not finite, or out of its bound.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise LaunchError(
            f"{scalar.name} is a {type(value).__name__}, no number", hint="pass a float", argument=scalar.name
        )
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", float(value)))[0]
    except OverflowError:
        rounded = math.inf
    if not math.isfinite(rounded):
        raise LaunchError(
            f"{scalar.name} = {value} is not finite in float32",
            hint="pass a finite number",
            argument=scalar.name,
        )
    if scalar.op is not None and not COMPARE[scalar.op](rounded, scalar.bound):
        raise LaunchError(
            f"{scalar.name} = {value} is refused: the kernel was made for {scalar.name} {scalar.op} {scalar.bound:g}",
            hint=f"pass another {scalar.name}, or generate the kernel without this bound", argument=scalar.name,
        )  # fmt: skip
    return rounded


def check_names(given: Mapping[str, Any], expected: Sequence[str], kind: str) -> None:
    """Check that exactly the expected names are given.

    Raises:
        LaunchError: one is missing or unknown.
    """
    for name in expected:
        if name not in given:
            raise LaunchError(
                f"the {kind} {name} is missing", hint=f"{kind}s are {', '.join(expected)}", argument=name
            )
    for name in given:
        if name not in expected:
            raise LaunchError(
                f"the {kind} {name} is not known",
                hint=f"{kind}s are {', '.join(expected) or 'none'}",
                argument=name,
            )


# ------------------------------------------------------------------------------------------ devices and types
def _one_device(pairs: Sequence[tuple[Layout, str]]) -> int:
    for (_, _, _, device), label in pairs:
        if device.type != "cuda":
            raise LaunchError(
                f"{label} is on {device}, not on a CUDA device", hint=f"pass {label}.cuda()", argument=label
            )
    first, name = pairs[0][0][3], pairs[0][1]
    for (_, _, _, device), label in pairs:
        if device != first:
            raise LaunchError(
                f"{label} is on {device}, {name} on {first}",
                hint="move all tensors to one device",
                argument=label,
            )
    return int(first.index)


def _check_kind(tensor: Tensor, layout: Layout, label: str) -> None:
    shape, _, dtype, _ = layout
    if str(dtype) != TORCH_TYPES[tensor.dtype]:
        raise LaunchError(
            f"{label} is of {dtype}, the kernel takes {TORCH_TYPES[tensor.dtype]}",
            hint=f"pass {label}.to({TORCH_TYPES[tensor.dtype]})", argument=label,
        )  # fmt: skip
    if len(shape) != len(tensor.dims):
        raise LaunchError(
            f"{label} has {len(shape)} dimensions, expected {_dims(tensor)}",
            hint=f"pass the shape {_dims(tensor)}",
            argument=label,
        )


def _dims(tensor: Tensor) -> str:
    return f"({', '.join(show(dim) for dim in tensor.dims)})"


# ------------------------------------------------------------------------------------------ sizes
def _given_sizes(manifest: Manifest, given: Mapping[str, int]) -> dict[str, int]:
    check_names(given, manifest.sizes, "size")
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INT32_MAX:
            raise LaunchError(
                f"{name} = {value!r} is no size", hint=f"pass an integer from 0 to {INT32_MAX}", argument=name
            )
    return {name: given[name] for name in manifest.sizes}


def _bind(manifest: Manifest, pairs: Sequence[tuple[Tensor, Layout, str]]) -> dict[str, int]:
    """Take each size from the first dimension that is it; others must agree."""
    found: dict[str, tuple[int, str]] = {}
    for tensor, (shape, *_), label in pairs:
        for axis, (dim, extent) in enumerate(zip(tensor.dims, shape, strict=True)):
            if not isinstance(dim, str):
                continue
            value, place = found.setdefault(dim, (extent, f"{label} (dimension {axis})"))
            if value != extent:
                raise LaunchError(
                    f"{dim} is {value} in {place} but {extent} in {label} (dimension {axis})",
                    hint=f"{label} has the dimensions {_dims(tensor)}", argument=label, size=dim,
                )  # fmt: skip
            if extent > INT32_MAX:
                raise LaunchError(
                    f"{dim} = {extent} in {label} is over {INT32_MAX}",
                    hint="split the call",
                    argument=label,
                    size=dim,
                )
    return {name: found[name][0] for name in manifest.sizes}


def _check_dims(tensor: Tensor, shape: Sequence[int], label: str, sizes: Mapping[str, int]) -> None:
    for axis, (dim, extent) in enumerate(zip(tensor.dims, shape, strict=True)):
        expected = _value(dim, sizes)
        if extent != expected:
            name = "" if isinstance(dim, int) else f"{show(dim)} = "
            raise LaunchError(
                f"dimension {axis} of {label} is {extent}, the kernel takes {name}{expected}",
                hint=f"{label} has the dimensions {_dims(tensor)}", argument=label, axis=axis,
            )  # fmt: skip


def _value(expression: Expression, sizes: Mapping[str, int]) -> int:
    try:
        return evaluate(expression, sizes)
    except ZeroDivisionError:
        values = ", ".join(f"{name} = {value}" for name, value in sizes.items())
        raise LaunchError(
            f"{show(expression)} divides by zero ({values})", hint="pass tensors without that zero"
        ) from None


def _check_requirement(requirement: Requirement, sizes: Mapping[str, int]) -> None:
    left, right = _value(requirement.left, sizes), _value(requirement.right, sizes)
    if not COMPARE[requirement.op](left, right):
        text = f"{show(requirement.left)} {requirement.op} {show(requirement.right)}"
        values = ", ".join(f"{name} = {value}" for name, value in sizes.items())
        raise LaunchError(
            f"the kernel needs {text}, which {values} does not fulfil", hint="pass tensors of other sizes"
        )


# ------------------------------------------------------------------------------------------ strides and memory
def _contiguous(tensor: Tensor, sizes: Mapping[str, int], device: Any) -> Layout:
    shape = tuple(_value(dim, sizes) for dim in tensor.dims)
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.append(strides[-1] * max(extent, 1))
    return shape, tuple(reversed(strides)), TORCH_TYPES[tensor.dtype], device


def _check_strides(tensor: Tensor, layout: Layout, label: str) -> None:
    shape, strides, _, _ = layout
    if strides[-1] != 1 and shape[-1] > 1:
        raise LaunchError(
            f"the last stride of {label} is {strides[-1]}, not 1", hint=_CONTIGUOUS, argument=label
        )
    step = tensor.align // tensor.item_bytes
    for axis, (extent, stride) in enumerate(zip(shape[:-1], strides[:-1], strict=True)):
        if extent > 1 and (stride < 0 or stride % step):
            raise LaunchError(
                f"stride {axis} of {label} is {stride} elements, no multiple of {step} (the kernel moves {tensor.align} bytes at once)",
                hint=_CONTIGUOUS, argument=label, axis=axis,
            )  # fmt: skip
    if tensor.role == "output" and _may_overlap(shape, strides):
        raise LaunchError(
            f"elements of {label} share memory", hint="pass an output made with torch.empty", argument=label
        )


def _may_overlap(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Tell whether two elements may have one address: some stride is shorter than what lies within it."""
    if 0 in shape:
        return False
    within = 1
    for stride, extent in sorted(zip(strides, shape, strict=True)):
        if extent > 1:
            if stride < within:
                return True
            within += stride * (extent - 1)
    return False


def _extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Count elements from the first to the end of the last."""
    if 0 in shape:
        return 0
    return 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))


def _check_alone(
    manifest: Manifest, plan: Plan, pointers: Sequence[int], labels: Sequence[str], index: int
) -> None:
    start, end = pointers[index], pointers[index] + plan.extents[index]
    for other, (pointer, extent) in enumerate(zip(pointers, plan.extents, strict=True)):
        if other == index or pointer >= end or pointer + extent <= start or extent == 0 or start == end:
            continue
        items = manifest.tensors[index].item_bytes, manifest.tensors[other].item_bytes
        if items[0] != items[1] or not _interleaved(
            plan.layouts[index], plan.layouts[other], (pointer - start) // items[0]
        ):
            raise LaunchError(
                f"{labels[index]} shares memory with {labels[other]}",
                hint="pass an output of its own",
                argument=labels[index],
            )


def _interleaved(one: Layout, other: Layout, distance: int) -> bool:
    """Tell whether two views that lie within each other, as slices of one packed tensor do, share no element.

    They share none if, modulo a stride that divides every longer stride of both, their inner parts lie apart.
    """
    parts = [
        [(n, s) for n, s in zip(shape, strides, strict=True) if n > 1] for shape, strides, *_ in (one, other)
    ]
    for stride in set(one[1]) & set(other[1]):
        if stride < 2 or any(s % stride for part in parts for _, s in part if s >= stride):
            continue
        inner = [1 + sum((n - 1) * s for n, s in part if s < stride) for part in parts]
        offset = distance % stride
        if inner[0] <= offset and offset + inner[1] <= stride:
            return True
    return False


# ------------------------------------------------------------------------------------------ the plan
def _finish(manifest: Manifest, device: int, sizes: Mapping[str, int], layouts: Sequence[Layout]) -> Plan:
    grid = _grid(manifest, sizes)
    empty = 0 in grid
    outputs = [
        layout[0] for tensor, layout in zip(manifest.tensors, layouts, strict=True) if tensor.role == "output"
    ]
    if empty and any(0 not in shape for shape in outputs):
        raise LaunchError(
            "the grid has no blocks, but there are outputs to write",
            hint="report this kernel: its grid is wrong",
        )
    values: list[int | float] = []
    for _, strides, *_ in layouts:
        values += [0, *strides[:-1]]
    values += [*sizes.values(), *(0.0 for _ in manifest.scalars)]
    extents = tuple(
        _extent(shape, strides) * tensor.item_bytes
        for tensor, (shape, strides, *_) in zip(manifest.tensors, layouts, strict=True)
    )
    return Plan(device, tuple(sizes.values()), grid, empty, tuple(values), tuple(layouts), extents)


def _grid(manifest: Manifest, sizes: Mapping[str, int]) -> tuple[int, int, int]:
    counts = [1, 1, 1]
    for index, axis in enumerate(manifest.grid):
        counts[index] = max(0, _value(axis.stop, sizes) - _value(axis.start, sizes))
        if counts[index] > GRID_LIMITS[index]:
            raise LaunchError(
                f"the grid needs {counts[index]} blocks along {axis.name}, GPUs take {GRID_LIMITS[index]} along {'xyz'[index]}",
                hint="split the call", axis=axis.name,
            )  # fmt: skip
    return counts[0], counts[1], counts[2]

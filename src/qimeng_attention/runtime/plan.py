"""What a call's tensors must fulfil before anything is launched, and what follows: sizes, grid, arguments.

All that depends on shapes, strides, types and devices alone is a `Plan`, made once per combination of them;
addresses are checked at each call. Tensors are known by a small protocol: no PyTorch and no GPU is needed.

Not here: scalars (checks.py), launching and the GPU's own limits (launcher.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime.checks import COMPARE, INT32_MAX
from qimeng_attention.runtime.expressions import Expression, evaluate, show, told_by
from qimeng_attention.runtime.manifest import Manifest, Requirement, Tensor
from qimeng_attention.runtime.overlap import extent_of, interleaved, may_overlap
from qimeng_attention.runtime.tensor_maps import Box, boxes_of

MOST_TILES = INT32_MAX - 2**16  # a persistent block counts past the last tile by a round or two
GRID_LIMITS = (INT32_MAX, 65_535, 65_535)  # blocks along x, y, z since 3.0; CUDA programming guide
TORCH_TYPES = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "i32": "int32",
    "i64": "int64",
    "bool": "bool",
}
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


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What follows from the layouts of a call's tensors; one is equal to itself alone."""

    device: int
    sizes: tuple[int, ...]
    grid: tuple[int, int, int]
    empty: bool  # a grid of no blocks: nothing to launch
    values: tuple[int | float, ...]  # all arguments in order, with 0 for pointers and scalars
    layouts: tuple[Layout, ...]  # of all tensors, contiguous ones for outputs that were not given
    extents: tuple[int, ...]  # bytes from the first element of each tensor to the end of the last
    aligns: tuple[int, ...]  # bytes, of each tensor
    boxes: tuple[Box, ...]  # of the tensor maps
    given_outputs: tuple[int, ...]  # positions of the outputs that the caller allocated
    alike: tuple[str, ...]  # the first input with the same shape, strides and type as each tensor, "" if none has


def layout_of(tensor: TensorLike, label: str) -> Layout:
    """Take what a plan depends on from a tensor.

    Raises:
        LaunchError: no tensor, or one without strides.
    """
    try:
        return (tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)
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
        given: sizes, checked; None takes them from the tensors.

    Raises:
        LaunchError: the kernel must not be launched on these.
    """
    pairs = [(t, layout, label) for t, layout, label in zip(manifest.tensors, layouts, labels, strict=True) if layout]
    device = _one_device([(layout, label) for _, layout, label in pairs])
    for tensor, layout, label in pairs:
        check_kind(tensor, layout, label)
    sizes = given if given is not None else _bind(manifest, pairs)
    for tensor, layout, label in pairs:
        _check_dims(tensor, layout[0], label, sizes)
    for requirement in manifest.requires:
        _check_requirement(requirement, sizes)
    whole = [
        layout or dense_layout(tensor, sizes, pairs[0][1][3])
        for tensor, layout in zip(manifest.tensors, layouts, strict=True)
    ]
    for tensor, layout, label in zip(manifest.tensors, whole, labels, strict=True):
        _check_strides(tensor, layout, label)
    given_outputs = tuple(
        index
        for index, (tensor, layout) in enumerate(zip(manifest.tensors, layouts, strict=True))
        if tensor.role == "output" and layout
    )
    return _finish(manifest, device, sizes, whole, given_outputs)


def check_pointers(manifest: Manifest, plan: Plan, pointers: Sequence[int], labels: Sequence[str]) -> None:
    """Check what addresses tell: that there is memory, aligned, and no output shares it with another tensor.

    Raises:
        LaunchError: the kernel must not be launched on these.
    """
    for index, (pointer, extent, align) in enumerate(zip(pointers, plan.extents, plan.aligns, strict=True)):
        if extent and (pointer == 0 or pointer % align):
            raise _bad_address(labels[index], pointer, align)
    for index in plan.given_outputs:
        _check_alone(manifest, plan, pointers, labels, index)


def _bad_address(label: str, pointer: int, align: int) -> LaunchError:
    if pointer == 0:  # what a fake tensor says
        return LaunchError(f"{label} has no memory", hint="in a traced program call bundle.operator()", argument=label)
    return LaunchError(
        f"{label} starts at an address that is no multiple of {align} bytes",
        hint="pass a copy made with .clone()",
        argument=label,
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


def check_kind(tensor: Tensor, layout: Layout, label: str) -> None:
    """Check type and number of dimensions.

    Raises:
        LaunchError: another type or number than the kernel's.
    """
    shape, _, dtype, _ = layout
    expected = f"torch.{TORCH_TYPES[tensor.dtype]}"
    if str(dtype) != expected:
        raise LaunchError(
            f"{label} is of {dtype}, the kernel takes {expected}",
            hint=f"pass {label}.to({expected})",
            argument=label,
        )
    if len(shape) != len(tensor.dims):
        raise LaunchError(
            f"{label} has {len(shape)} dimensions, expected {_dims(tensor)}",
            hint=f"pass the shape {_dims(tensor)}",
            argument=label,
        )


def _dims(tensor: Tensor) -> str:
    return f"({', '.join(show(dim) for dim in tensor.dims)})"


# ------------------------------------------------------------------------------------------ sizes
def _bind(manifest: Manifest, pairs: Sequence[tuple[Tensor, Layout, str]]) -> dict[str, int]:
    """Take each size from the first dimension that is it, of inputs first; others must agree."""
    found: dict[str, tuple[int, str]] = {}
    for tensor, (shape, *_), label in sorted(pairs, key=lambda pair: pair[0].role):
        for axis, (expression, whole) in enumerate(zip(tensor.dims, shape, strict=True)):
            told = told_by(expression)
            if told is None:
                continue
            dim, extent = told[0], whole - told[1]
            if extent < 0:
                raise LaunchError(
                    f"dimension {axis} of {label} is {whole}, {told[1]} at least",
                    hint=f"{label} has the dimensions {_dims(tensor)}",
                    argument=label,
                    axis=axis,
                )
            value, place = found.setdefault(dim, (extent, f"{label} (dimension {axis})"))
            if value != extent:
                raise LaunchError(
                    f"{dim} is {value} in {place} but {extent} in {label} (dimension {axis})",
                    hint=f"{label} has the dimensions {_dims(tensor)}",
                    argument=label,
                    size=dim,
                )
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
                hint=f"{label} has the dimensions {_dims(tensor)}",
                argument=label,
                axis=axis,
            )


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


# ------------------------------------------------------------------------------------------ memory
def dense_layout(tensor: Tensor, sizes: Mapping[str, int], device: Any) -> Layout:
    """Give the layout of a tensor that the launcher allocates."""
    shape = tuple(_value(dim, sizes) for dim in tensor.dims)
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.append(strides[-1] * max(extent, 1))
    return shape, tuple(reversed(strides)), f"torch.{TORCH_TYPES[tensor.dtype]}", device


def _check_strides(tensor: Tensor, layout: Layout, label: str) -> None:
    shape, strides, _, _ = layout
    if strides[-1] != 1 and shape[-1] > 1:
        raise LaunchError(f"the last stride of {label} is {strides[-1]}, not 1", hint=_CONTIGUOUS, argument=label)
    step = tensor.align // tensor.item_bytes
    for axis, (extent, stride) in enumerate(zip(shape[:-1], strides[:-1], strict=True)):
        if extent > 1 and (stride < 0 or stride % step):
            raise LaunchError(
                f"stride {axis} of {label} is {stride} elements, and the kernel takes multiples of {step}",
                hint=_CONTIGUOUS,
                argument=label,
                axis=axis,
            )
    if tensor.role == "output" and may_overlap(shape, strides):
        raise LaunchError(
            f"elements of {label} share memory", hint="pass an output made with torch.empty", argument=label
        )


def _check_alone(manifest: Manifest, plan: Plan, pointers: Sequence[int], labels: Sequence[str], index: int) -> None:
    start, end = pointers[index], pointers[index] + plan.extents[index]
    for other, (pointer, extent) in enumerate(zip(pointers, plan.extents, strict=True)):
        if other == index or extent == 0 or pointer >= end or pointer + extent <= start:
            continue
        items = manifest.tensors[index].item_bytes, manifest.tensors[other].item_bytes
        views = plan.layouts[index][:2], plan.layouts[other][:2]
        if items[0] != items[1] or not interleaved(*views, (pointer - start) // items[0]):
            raise LaunchError(
                f"{labels[index]} shares memory with {labels[other]}",
                hint="pass an output of its own",
                argument=labels[index],
            )


# ------------------------------------------------------------------------------------------ the plan
def _finish(
    manifest: Manifest,
    device: int,
    sizes: Mapping[str, int],
    layouts: Sequence[Layout],
    given_outputs: tuple[int, ...],
) -> Plan:
    grid = _grid(manifest, sizes)
    pairs = list(zip(manifest.tensors, layouts, strict=True))
    if 0 in grid and any(0 not in layout[0] for tensor, layout in pairs if tensor.role == "output"):
        raise LaunchError(
            "the grid has no blocks, but there are outputs to write",
            hint="report this kernel: its grid is wrong",
        )
    values: list[int | float] = []
    for _, strides, *_ in layouts:
        values += [0, *strides[:-1]]
    values += [*sizes.values(), *(0.0 for _ in manifest.scalars)]
    return Plan(
        device=device,
        sizes=tuple(sizes.values()),
        grid=grid,
        empty=0 in grid,
        values=tuple(values),
        layouts=tuple(layouts),
        extents=tuple(extent_of(shape, strides) * t.item_bytes for t, (shape, strides, *_) in pairs),
        aligns=tuple(tensor.align for tensor in manifest.tensors),
        boxes=boxes_of(manifest, layouts),
        given_outputs=given_outputs,
        alike=tuple(_alike(tensor, layout, pairs) for tensor, layout in pairs),
    )


def _alike(tensor: Tensor, layout: Layout, pairs: Sequence[tuple[Tensor, Layout]]) -> str:
    same = (t.name for t, x in pairs if t.role == "input" and t.dtype == tensor.dtype and x[:2] == layout[:2])
    return next(same, "")


def _grid(manifest: Manifest, sizes: Mapping[str, int]) -> tuple[int, int, int]:
    counts = [max(0, _value(axis.stop, sizes) - _value(axis.start, sizes)) for axis in manifest.grid]
    if manifest.persistent:
        tiles = math.prod(counts)
        if tiles > MOST_TILES:
            raise LaunchError(f"the call has {tiles} tiles, the kernel counts to {MOST_TILES}", hint="split the call")
        return tiles, 1, 1
    for axis, count, most, name in zip(manifest.grid, counts, GRID_LIMITS, "xyz", strict=False):
        if count > most:
            raise LaunchError(
                f"{axis.name} needs a grid of {count} blocks along {name}, GPUs take {most}",
                hint="split the call",
                axis=axis.name,
            )
    counts += [1] * (3 - len(counts))
    return counts[0], counts[1], counts[2]

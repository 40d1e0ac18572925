"""The manifest of a bundle: how its kernel is launched, where it comes from, and what each file's digest is.

The kernel's arguments are, in order: for each tensor a pointer and then the strides (int64, in elements) of
all dimensions but the last, whose stride is 1; each size as an int32; each scalar as a float32; each tensor map,
128 bytes; the address of the tile counter. The grid's first entry is blockIdx.x; a persistent kernel gets at most
one block for each multiprocessor along x, and takes the grid's points in turn.

On disk a manifest has one form, with the digest of its other fields among them, so that a change of any byte
shows. Not here: the other files of a bundle (folder.py), checks of a call (checks.py).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from qimeng_attention.runtime.expressions import Expression, names, told_by

FORMAT = 3
MANIFEST = "manifest.json"
ITEM_BYTES = {"fp16": 2, "bf16": 2, "f32": 4, "i32": 4, "i64": 8, "bool": 1}
ROLES = ("input", "output")
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
MOST_KERNELS = 9  # of a bundle: more than any operator needs
MOST_RANK = 5  # dimensions of a tensor map; CUDA driver API, cuTensorMapEncodeTiled
MOST_BOX = 256  # elements along a dimension; CUDA driver API, cuTensorMapEncodeTiled
SWIZZLES = (64, 128)  # bytes of a box's row, over which it is swizzled in shared memory
CALL = ("q", "k", "v")  # the arguments of Bundle.__call__
OTHER_ARGUMENTS = ("out", "lse", "scale", "return_lse", "tensors", "lists", "self")  # which no tensor may be called
REQUIRED = (
    "spec.json",
    "sketch.tl",
    "code.tl",
    "scheduled.tl",
    "kernel.cu",
    "kernel.cubin",
    "report.json",
    "reasons.json",
)
LEVELS = ("sketch.tl", "code.tl", "scheduled.tl")  # none of them where a kernel came from no TL
OPTIONAL = ("verdict.json", "speed.json")  # besides any number of headers, *.cuh

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
ARCH = re.compile(r"sm_(\d{1,3})(\d)([af]?)")
_KERNEL = re.compile(r"kernel_[2-9]\.(cu|cubin)")
_HEADER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}\.cuh")


@dataclass(frozen=True, slots=True)
class GridAxis:
    """One axis of the grid: `stop - start` blocks."""

    name: str
    start: Expression
    stop: Expression


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor argument."""

    name: str
    dtype: str  # fp16, bf16, f32, i32, i64, bool
    dims: tuple[Expression, ...]
    role: str  # input, output
    align: int = 0  # bytes of which the pointer and each stride are multiples; 0 stands for 16 if items have 16 bits

    def __post_init__(self) -> None:
        if self.align == 0:
            object.__setattr__(self, "align", 16 if self.item_bytes == 2 else self.item_bytes)

    @property
    def item_bytes(self) -> int:
        """Give the size of one element."""
        return ITEM_BYTES.get(self.dtype, 1)


@dataclass(frozen=True, slots=True)
class TensorMap:
    """An argument for the copy engine: a tensor with the box of elements that one instruction moves."""

    tensor: str
    box: tuple[int, ...]  # elements along each dimension
    dimension: int = 0  # the one seen as two, groups and their rows
    group: int = 0  # rows of a group, beyond which a box reads zeros; 0: no dimension is two
    ragged: bool = False  # the dimension is two, so that each copy says how many rows its box has (tensor_maps.py)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A float32 argument; `op` and `bound` say which values the kernel is right for."""

    name: str
    dtype: str = "f32"
    op: str | None = None  # a comparison; None: any finite value
    bound: float = 0.0


@dataclass(frozen=True, slots=True)
class Requirement:
    """What must hold between sizes, such as Hq % Hk == 0."""

    left: Expression
    op: str
    right: Expression


@dataclass(frozen=True)
class Manifest:
    """How a kernel is launched and what it is made of."""

    kernel: str  # its name in the cubin
    target: str  # the GPU it was generated for, "A100"
    arch: str  # the target's, "sm_80"
    built_arch: str  # what the cubin is for, "sm_90"
    threads: int  # per block
    shared_bytes: int  # dynamic, per block
    grid: tuple[GridAxis, ...]
    tensors: tuple[Tensor, ...]
    sizes: tuple[str, ...]
    scalars: tuple[Scalar, ...]
    maps: tuple[TensorMap, ...] = ()
    persistent: bool = False
    counter: bool = False  # the last argument: two int32 in global memory, 0 between launches
    requires: tuple[Requirement, ...] = ()
    call: Mapping[str, str] = field(default_factory=dict)  # q, k, v and named tensors; empty: `launch` only
    outputs: tuple[str, ...] = ()  # what a call gives: the output, then the LSE
    default_scale: float = 1.0  # of a call that names none
    provenance: Mapping[str, Any] = field(default_factory=dict)  # versions, date: plain JSON values
    files: Mapping[str, str] = field(default_factory=dict)  # sha256 in hexadecimal by name
    chosen: Mapping[str, Expression] = field(default_factory=dict)  # sizes that the launcher works out, from others
    then: tuple[Manifest, ...] = ()  # the kernels launched behind this one, on tensors of the same names
    format: int = FORMAT

    @property
    def kernels(self) -> tuple[Manifest, ...]:
        """Give the manifests of all kernels, in the order they are launched."""
        return (replace(self, then=()), *self.then)

    @cached_property
    def face(self) -> Manifest:
        """Give what a caller sees: the tensors that are the caller's, and the sizes they tell; itself for one kernel.

        What one kernel writes and a later one reads is no argument, nor is a size that the launcher works out.
        """
        if not self.then and not self.chosen:
            return self
        tensors: dict[str, Tensor] = {}
        for kernel in self.kernels:
            for tensor in kernel.tensors:
                seen = tensors.setdefault(tensor.name, tensor)
                if seen.role == "output" and tensor.role == "input":
                    tensors[tensor.name] = replace(seen, role="scratch")
        scalars = {scalar.name: scalar for kernel in self.kernels for scalar in kernel.scalars}
        sizes = {size: None for kernel in self.kernels for size in kernel.sizes if size not in self.chosen}
        return replace(
            self,
            grid=(GridAxis("call", 0, 1),),
            tensors=tuple(tensor for tensor in tensors.values() if tensor.role != "scratch"),
            scalars=tuple(scalars.values()),
            sizes=tuple(sizes),
            maps=(),
            persistent=False,
            counter=False,
            chosen={},
            then=(),
        )

    def tensor(self, name: str) -> Tensor:
        """Find a tensor by name."""
        return next(tensor for tensor in self.tensors if tensor.name == name)


def kernel_file(number: int, kind: str) -> str:
    """Name the file of a kernel, counted from 0: kernel.cubin, kernel_2.cubin."""
    return f"kernel{f'_{number + 1}' if number else ''}.{kind}"


def required(files: Collection[str]) -> list[str]:
    """Name the files that a bundle with these must have: all levels of TL, or none of a kernel written in CUDA."""
    in_cuda = not any(level in files for level in LEVELS)
    return [name for name in REQUIRED if not (in_cuda and name in LEVELS)]


def is_file_name(name: object) -> bool:
    """Tell whether a bundle may hold a file of this name besides its manifest."""
    known = isinstance(name, str) and (name in REQUIRED or name in OPTIONAL)
    return known or (isinstance(name, str) and any(p.fullmatch(name) for p in (_HEADER, _KERNEL)))


def problem_with(manifest: Manifest) -> str | None:
    """Say which field of a manifest contradicts another or its kind, None if all is well."""
    for kernel in manifest.kernels:
        own = replace(kernel, requires=())  # what must hold of a call names sizes of all kernels
        if problem := _wrong_value(kernel) or _wrong_argument(kernel) or _wrong_name(own):
            return problem
    return _wrong_name(manifest.face) or _wrong_sequence(manifest) or _wrong_call(manifest.face)


def _wrong_sequence(manifest: Manifest) -> str | None:
    """Say what is wrong between the kernels of one bundle."""
    if len(manifest.then) > MOST_KERNELS - 1 or any(kernel.then for kernel in manifest.then):
        return f"then: holds at most {MOST_KERNELS - 1} kernels, which hold none"
    cubins = [kernel_file(number, "cubin") for number in range(len(manifest.kernels))]
    if manifest.files and not set(cubins) <= set(manifest.files):
        return f"files: {next(name for name in cubins if name not in manifest.files)} is missing"
    for name, expression in manifest.chosen.items():
        if name not in manifest.sizes or set(names(expression)) & set(manifest.chosen):
            return f"chosen: {name} must be a size, worked out from sizes that are not"
    for kernel in manifest.then:
        for tensor in kernel.tensors:
            others = [t for k in manifest.kernels for t in k.tensors if t.name == tensor.name]
            if any((t.dtype, t.dims) != (tensor.dtype, tensor.dims) for t in others):
                return f"tensors: {tensor.name} is declared in two ways"
        if kernel.chosen or (kernel.target, kernel.built_arch) != (manifest.target, manifest.built_arch):
            return "then: kernels of one bundle are for one GPU, and the first says what is chosen"
    return None


def _wrong_value(manifest: Manifest) -> str | None:
    if IDENTIFIER.fullmatch(manifest.kernel) is None:
        return "kernel: must be an identifier"
    for name, arch in (("arch", manifest.arch), ("built_arch", manifest.built_arch)):
        if ARCH.fullmatch(arch) is None:
            return f"{name}: '{arch}' is no architecture such as sm_90"
    if not 1 <= manifest.threads <= 1024:
        return "threads: must be from 1 to 1024"
    if manifest.shared_bytes < 0:
        return "shared_bytes: must not be negative"
    if not len(manifest.grid) >= 1 or (len(manifest.grid) > 3 and not manifest.persistent):
        return "grid: must have 1 to 3 entries"
    if all(tensor.role != "output" for tensor in manifest.tensors):
        return "tensors: one must be an output"
    wrong = [name for name in manifest.files if not is_file_name(name)]
    return f"files: {wrong[0]!r} is no file of a bundle" if wrong else None


def _wrong_argument(manifest: Manifest) -> str | None:
    for tensor in manifest.tensors:
        if tensor.dtype not in ITEM_BYTES or tensor.role not in ROLES or not tensor.dims:
            return f"tensors: {tensor.name} needs dims, a dtype of {', '.join(ITEM_BYTES)} and a role"
        if tensor.align < tensor.item_bytes or tensor.align & (tensor.align - 1):
            return f"tensors: align of {tensor.name} must be a power of two, its items' size or more"
    tensors = {tensor.name: tensor for tensor in manifest.tensors}
    for box in manifest.maps:
        if box.group < 0 or not 0 <= box.dimension < len(box.box):
            return f"maps: the group of {box.tensor} must have rows, along one of its dimensions"
        if box.ragged and (box.group or box.dimension == len(box.box) - 1 or len(box.box) > MOST_RANK - 1):
            return f"maps: {box.tensor} is ragged along one dimension, not the last, of {MOST_RANK - 1} at most"
        kind = tensors.get(box.tensor)
        if kind is None or len(kind.dims) != len(box.box) or not all(1 <= n <= MOST_BOX for n in box.box):
            return f"maps: {box.tensor} must be a tensor, its box from 1 to {MOST_BOX} along each dimension"
        if box.box[-1] * kind.item_bytes not in SWIZZLES:
            return f"maps: a row of the box of {box.tensor} must have {' or '.join(map(str, SWIZZLES))} bytes"
    for scalar in manifest.scalars:
        if scalar.dtype != "f32" or (scalar.op is not None and scalar.op not in COMPARISONS):
            return f"scalars: {scalar.name} needs the dtype f32 and, if bounded, one of {', '.join(COMPARISONS)}"
    if any(requirement.op not in COMPARISONS for requirement in manifest.requires):
        return f"requires: the middle must be one of {', '.join(COMPARISONS)}"
    return None


def _wrong_name(manifest: Manifest) -> str | None:
    given = [*(t.name for t in manifest.tensors), *manifest.sizes, *(s.name for s in manifest.scalars)]
    for name in given:
        if IDENTIFIER.fullmatch(name) is None or given.count(name) > 1:
            return f"'{name}': names of arguments must be identifiers, each given once"
    expressions: list[Expression] = [dim for tensor in manifest.tensors for dim in tensor.dims]
    expressions += [end for axis in manifest.grid for end in (axis.start, axis.stop)]
    expressions += [side for requirement in manifest.requires for side in (requirement.left, requirement.right)]
    unknown = {name for expression in expressions for name in names(expression)} - set(manifest.sizes)
    return f"sizes: {', '.join(sorted(unknown))} is used but not declared" if unknown else None


def _wrong_call(manifest: Manifest) -> str | None:
    roles = {tensor.name: tensor.role for tensor in manifest.tensors}
    if any(roles.get(name) != "output" for name in manifest.outputs) or len(manifest.outputs) > 2:
        return "outputs: must name at most two output tensors, the LSE last"
    if not manifest.call:
        return None
    inputs = [name for name, role in roles.items() if role == "input"]
    if not set(CALL) <= set(manifest.call) or sorted(manifest.call.values()) != sorted(inputs):
        return "call: must map q, k and v, and a name for each other one, to the input tensors, all of them"
    for name in manifest.call:
        if IDENTIFIER.fullmatch(name) is None or name in OTHER_ARGUMENTS:
            return f"call: '{name}' cannot name a tensor"
    if not manifest.outputs or set(manifest.outputs) != set(roles) - set(inputs):
        return "outputs: must name every output tensor"
    if [scalar.name for scalar in manifest.scalars] not in ([], ["scale"]):
        return "scalars: a call gives none but scale"
    told = [told_by(dim) for name in inputs for dim in manifest.tensor(name).dims]
    found = {size[0] for size in told if size is not None}
    missing = [name for name in manifest.sizes if name not in found]
    return f"sizes: {', '.join(missing)} is a dimension of no input" if missing else None


def seal(fields: Mapping[str, Any]) -> bytes:
    """Give the one form that a manifest has on disk."""
    kept = {name: value for name, value in fields.items() if name != "digest"}
    digest = hashlib.sha256(_dump(kept).encode()).hexdigest()
    return (_dump({**kept, "digest": digest}) + "\n").encode()


def _dump(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=1, allow_nan=False)

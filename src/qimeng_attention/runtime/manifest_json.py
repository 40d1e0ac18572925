"""A manifest to JSON and back; what is not exactly a manifest is a BundleError that names the field.

Not here: the model and what its fields may say (manifest.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from qimeng_attention.errors import BundleError
from qimeng_attention.runtime import expressions
from qimeng_attention.runtime.manifest import (
    FORMAT,
    MANIFEST,
    GridAxis,
    Manifest,
    Requirement,
    Scalar,
    Tensor,
    TensorMap,
    problem_with,
    seal,
)

_REBUILD = "generate the bundle again, or restore the file from where it was copied"
_Value = TypeVar("_Value")


def to_json(manifest: Manifest) -> bytes:
    """Give the file's content.

    Raises:
        BundleError: a field makes no sense.
    """
    if (problem := problem_with(manifest)) is not None:
        raise _broken(problem)
    try:
        return seal(_fields(manifest))
    except (TypeError, ValueError) as error:
        raise _broken(f"a value is no plain JSON value ({error})") from None


def from_json(raw: bytes, *, file: str = MANIFEST) -> Manifest:
    """Read the file's content.

    Raises:
        BundleError: not the bytes that were written, another format, or a field that makes no sense.
    """
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise _broken("it is no JSON", file) from None
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), int):
        raise _broken("it has no format number", file)
    if fields["format"] != FORMAT:
        raise _other_format(fields["format"], file)
    try:
        sealed = seal(fields)
    except (ValueError, RecursionError):
        raise _broken("it holds a value that JSON has none for", file) from None
    if raw != sealed:
        raise _broken("its bytes do not match its own digest", file)
    try:
        taken = _Fields(fields)
        manifest = _manifest(taken)
        taken.end()
    except ValueError as error:
        raise _broken(str(error), file) from None
    if (problem := problem_with(manifest)) is not None:
        raise _broken(problem, file)
    return manifest


def _broken(problem: str, file: str = MANIFEST) -> BundleError:
    return BundleError(f"{file} cannot be used: {problem}", hint=_REBUILD, file=file)


def _other_format(found: int, file: str) -> BundleError:
    way = "upgrade qimeng-attention" if found > FORMAT else "generate the bundle again"
    return BundleError(
        f"{file} has format {found}, this version reads format {FORMAT}", hint=way, file=file, format=found
    )


def _fields(manifest: Manifest) -> dict[str, Any]:
    plain = expressions.plain
    return {
        "format": manifest.format,
        "kernel": manifest.kernel,
        "target": manifest.target,
        "arch": manifest.arch,
        "built_arch": manifest.built_arch,
        "threads": manifest.threads,
        "shared_bytes": manifest.shared_bytes,
        "grid": [{"name": a.name, "start": plain(a.start), "stop": plain(a.stop)} for a in manifest.grid],
        "tensors": [
            {**dataclasses.asdict(tensor), "dims": [plain(dim) for dim in tensor.dims]} for tensor in manifest.tensors
        ],
        "sizes": [{"name": name} for name in manifest.sizes],
        "scalars": [dataclasses.asdict(scalar) for scalar in manifest.scalars],
        "maps": [_map_fields(m) for m in manifest.maps],
        "persistent": manifest.persistent,
        "counter": manifest.counter,
        "requires": [[plain(r.left), r.op, plain(r.right)] for r in manifest.requires],
        "call": dict(manifest.call),
        "outputs": list(manifest.outputs),
        "default_scale": manifest.default_scale,
        "provenance": dict(manifest.provenance),
        "files": dict(sorted(manifest.files.items())),
        "chosen": {name: plain(e) for name, e in manifest.chosen.items()},
        "then": [_fields(kernel) for kernel in manifest.then],
    }


def _map_fields(box: TensorMap) -> dict[str, Any]:
    """Give a map's fields; one that is not ragged says nothing of it, as those made before there were any."""
    fields = {**dataclasses.asdict(box), "box": list(box.box)}
    return fields if box.ragged else {name: value for name, value in fields.items() if name != "ragged"}


class _Fields:
    """The fields of one JSON object, taken one by one with their kind; a ValueError names what is wrong."""

    def __init__(self, value: object, place: str = "") -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{place}: must be an object")
        self._left: dict[str, Any] = {name: item for name, item in value.items() if name != "digest"}
        self._place = place

    def take(self, name: str, *kinds: type) -> Any:
        """Take a field of one of these kinds; a bool is no int."""
        if name not in self._left:
            raise ValueError(f"{self._place}{name}: is missing")
        value = self._left.pop(name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{self._place}{name}: is of the wrong kind")
        return value

    def has(self, name: str) -> bool:
        """Tell whether a field is there, and not taken yet."""
        return name in self._left

    def expression(self, name: str) -> expressions.Expression:
        """Take an expression of sizes."""
        return _expression(self.take(name, int, str, list), f"{self._place}{name}")

    def each(self, name: str, make: Callable[[_Fields], _Value]) -> tuple[_Value, ...]:
        """Take a list of objects."""
        made = []
        for index, item in enumerate(self.take(name, list)):
            fields = _Fields(item, f"{self._place}{name}[{index}].")
            made.append(make(fields))
            fields.end()
        return tuple(made)

    def texts(self, name: str) -> dict[str, str]:
        """Take an object whose values are texts."""
        value: dict[str, Any] = self.take(name, dict)
        if not all(isinstance(item, str) for item in value.values()):
            raise ValueError(f"{self._place}{name}: values must be texts")
        return value

    def end(self) -> None:
        """Refuse fields that nobody took."""
        if self._left:
            raise ValueError(f"{self._place}{next(iter(self._left))}: is not known")


def _expression(value: object, place: str) -> expressions.Expression:
    try:
        return expressions.parse(value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _manifest(fields: _Fields) -> Manifest:
    """Read a whole manifest, or that of a kernel which is launched behind another."""
    chosen: dict[str, Any] = fields.take("chosen", dict)
    return Manifest(
        format=fields.take("format", int),
        kernel=fields.take("kernel", str),
        target=fields.take("target", str),
        arch=fields.take("arch", str),
        built_arch=fields.take("built_arch", str),
        threads=fields.take("threads", int),
        shared_bytes=fields.take("shared_bytes", int),
        grid=fields.each("grid", lambda f: GridAxis(f.take("name", str), f.expression("start"), f.expression("stop"))),
        tensors=fields.each("tensors", _tensor),
        sizes=fields.each("sizes", lambda f: str(f.take("name", str))),
        scalars=fields.each("scalars", _scalar),
        maps=fields.each("maps", _map),
        persistent=fields.take("persistent", bool),
        counter=fields.take("counter", bool),
        requires=tuple(_requirement(item) for item in fields.take("requires", list)),
        call=fields.texts("call"),
        outputs=tuple(_text(item, "outputs") for item in fields.take("outputs", list)),
        default_scale=float(fields.take("default_scale", float, int)),
        provenance=fields.take("provenance", dict),
        files=_digests(fields.texts("files")),
        chosen={name: _expression(e, f"chosen.{name}") for name, e in chosen.items()},
        then=fields.each("then", _manifest),
    )


def _tensor(fields: _Fields) -> Tensor:
    return Tensor(
        name=fields.take("name", str),
        dtype=fields.take("dtype", str),
        dims=tuple(_expression(dim, "tensors.dims") for dim in fields.take("dims", list)),
        role=fields.take("role", str),
        align=fields.take("align", int),
    )


def _map(fields: _Fields) -> TensorMap:
    name, box = fields.take("tensor", str), fields.take("box", list)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in box):
        raise ValueError("maps.box: must hold integers")
    ragged = fields.has("ragged") and fields.take("ragged", bool)
    return TensorMap(name, tuple(box), fields.take("dimension", int), fields.take("group", int), ragged)


def _scalar(fields: _Fields) -> Scalar:
    return Scalar(
        name=fields.take("name", str),
        dtype=fields.take("dtype", str),
        op=fields.take("op", str, type(None)),
        bound=float(fields.take("bound", float, int)),
    )


def _requirement(item: object) -> Requirement:
    if not isinstance(item, list) or len(item) != 3 or not isinstance(item[1], str):
        raise ValueError("requires: must be [expression, comparison, expression]")
    return Requirement(_expression(item[0], "requires"), item[1], _expression(item[2], "requires"))


def _text(item: object, place: str) -> str:
    if not isinstance(item, str):
        raise ValueError(f"{place}: must hold texts")
    return item


def _digests(files: Mapping[str, str]) -> Mapping[str, str]:
    for name, digest in files.items():
        if len(digest) != 64 or digest.strip("0123456789abcdef"):
            raise ValueError(f"files: {name!r} has no sha256 in hexadecimal")
    return files

"""A bundle in plain text: operator, tensors, tiles, schedule, launch, resources, verdict, speed, origin.

Each part is what a file of the bundle says; nothing is computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qimeng_attention.plain_text import plain
from qimeng_attention.runtime.expressions import show
from qimeng_attention.runtime.manifest import GridAxis, Manifest

_SPEC = ("dtype", "Hq", "Hk", "Dqk", "Dv", "B", "Sq", "Sk", "mask", "score", "softcap", "weights")
_RESOURCES = (
    "registers",
    "spill_store_bytes",
    "spill_load_bytes",
    "stack_bytes",
    "shared_static_bytes",
    "occupancy",
)


def describe(manifest: Manifest, files: Mapping[str, bytes]) -> str:
    """Give the summary, one part a line, with more lines where a part needs them."""
    built = "" if manifest.built_arch == manifest.arch else f", built for {manifest.built_arch}"
    code = files.get("code.tl", b"").decode("utf-8", "replace").splitlines()
    spec, report = _read(files, "spec.json"), _read(files, "report.json")
    parts = [
        ("kernel", [f"{manifest.kernel} for {manifest.target} ({manifest.arch}{built})"]),
        ("operator", _join(_flat({name: spec[name] for name in _SPEC if spec.get(name) is not None}))),
        (
            "tensors",
            [f"{t.name} ({', '.join(show(dim) for dim in t.dims)}) {t.dtype} {t.role}" for t in manifest.face.tensors],
        ),
        ("scalars", [f"{s.name}{f' {s.op} {s.bound:g}' if s.op else ''}" for s in manifest.scalars]),
        (
            "tiles",
            [line.removeprefix("Tile ").split("#")[0].strip() for line in code if line.startswith("Tile ")],
        ),
        ("schedule", _schedule(code)),
        ("launch", [_launch(kernel) for kernel in manifest.kernels]),
        (
            "resources",
            _join(_flat({name: report[name] for name in _RESOURCES if report.get(name) is not None})),
        ),
        ("verdict", _join(_flat(_read(files, "verdict.json"))) or ["none: the kernel has not been judged"]),
        ("speed", _join(_flat(_read(files, "speed.json")))),
        ("made by", _join(_flat(manifest.provenance))),
    ]
    # SAFETY: a bundle may come from anywhere, and what is given here is printed.
    return plain(
        "\n".join(f"{name if first else '':<10} {line}" for name, lines in parts for first, line in _marked(lines))
    )


def _marked(lines: list[str]) -> Iterator[tuple[bool, str]]:
    return ((index == 0, line) for index, line in enumerate(lines))


def _read(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _flat(fields: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Write the texts, numbers and truth values among the fields, and those one level below."""
    for name, value in fields.items():
        if isinstance(value, str | int | float):
            yield f"{before}{name} = {value}"
        elif isinstance(value, dict) and not before:
            yield from _flat(value, f"{name}.")


def _join(items: Iterator[str]) -> list[str]:
    text = ", ".join(items)
    return [text] if text else []


def _schedule(code: list[str]) -> list[str]:
    """Give the lines of the Schedule block."""
    found: list[str] = []
    inside = False
    for line in code:
        if line.strip() and not line[0].isspace():
            inside = line.split("#")[0].strip() == "Schedule"
        elif inside and (choice := line.split("#")[0].strip()):
            found.append(choice)
    return found


def _launch(manifest: Manifest) -> str:
    counts = (f"{axis.name} {_count(axis)}" for axis in manifest.grid)
    shared = f"{manifest.shared_bytes} bytes of dynamic shared memory"
    return f"grid {', '.join(counts)}; {manifest.threads} threads, {shared}"


def _count(axis: GridAxis) -> str:
    stop = show(axis.stop)
    return stop if axis.start == 0 else f"{stop} - {show(axis.start, inner=True)}"

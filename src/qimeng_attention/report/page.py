"""What is shown of a bundle, gathered once for every way to show it.

Files are read as what they should be and skipped where they are not: a digest says that a file has not changed, not
that it makes sense. Characters that move a cursor or turn a line around are made visible: a bundle may come from
anywhere. Nothing is computed but the picture of the mask and its example.

Not here: how it looks (terminal_page.py, html_page.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qimeng_attention.errors import QimengError
from qimeng_attention.plain_text import cleaned, plain
from qimeng_attention.report.beside import Row, lines_of, pair
from qimeng_attention.report.understood import Understood, understand
from qimeng_attention.runtime import Contents
from qimeng_attention.runtime.expressions import show
from qimeng_attention.runtime.manifest import MOST_KERNELS, Manifest, kernel_file
from qimeng_attention.spec import AttentionSpec

Facts = tuple[tuple[str, str], ...]
_MOST_FAILED = 12  # checks listed
_MOST_COUNTS = 12  # opcodes listed


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a parameter has its value."""

    parameter: str
    value: str
    why: str
    predicted: bool  # by a model, not measured


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that is shown of one bundle."""

    kernel: str
    target: str
    understood: Understood | None  # None: no spec, or one of another version
    launch: Facts
    reasons: tuple[Reason, ...]
    resources: Facts
    verdict: str  # "accepted", "rejected", or "none"
    judged: Facts
    speed: Facts
    predicted: str  # what the planner's model says of the speed; "" where it says nothing
    made_by: Facts
    tl: tuple[str, ...]  # lines of the scheduled program
    cpp: tuple[str, ...]
    rows: tuple[Row, ...]
    levels: tuple[tuple[str, str], ...]  # the levels above it: name and text


def page_of(contents: Contents) -> Page:
    """Gather what is shown of a bundle."""
    manifest, files = contents.manifest, contents.files
    tl, cpp = _text(files, "scheduled.tl"), _sources(files)
    verdict = _json(files, "verdict.json")
    built = "" if manifest.built_arch == manifest.arch else f", built for {manifest.built_arch}"
    return Page(
        kernel=" and ".join(kernel.kernel for kernel in manifest.kernels),
        target=f"{plain(manifest.target)} ({manifest.arch}{built})",
        understood=_understood(files),
        launch=tuple(_launch(contents)),
        reasons=tuple(_reasons(files)),
        resources=tuple(_all_resources(manifest, _json(files, "report.json"))),
        verdict=plain(str(verdict.get("verdict", "none"))),
        judged=tuple(_judged(verdict)),
        speed=tuple(speed_of(_json(files, "speed.json"))),
        predicted=_predicted(files),
        made_by=(*_flat(cleaned(dict(manifest.provenance))), *_written(_json(files, "reasons.json"))),
        tl=tuple(lines_of(tl)),
        cpp=tuple(lines_of(cpp)),
        rows=tuple(pair(tl, cpp)),
        levels=tuple((name, _text(files, name)) for name in ("sketch.tl", "code.tl") if name in files),
    )


# ------------------------------------------------------------------------------------------ reading
def _sources(files: Mapping[str, bytes]) -> str:
    """Give the CuTe C++ of all kernels, in the order they are launched."""
    names = [name for number in range(MOST_KERNELS) if (name := kernel_file(number, "cu")) in files]
    return "\n".join(_text(files, name) for name in names)


def _text(files: Mapping[str, bytes], name: str) -> str:
    return plain(files.get(name, b"").decode("utf-8", "replace").replace("\r\n", "\n").expandtabs(4))


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError):
        return {}
    found = cleaned(value)
    return found if isinstance(found, dict) else {}


def _each(fields: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = fields.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _flat(fields: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, dict) and not before:
            yield from _flat(value, f"{name}.")
        elif isinstance(value, str | int | float) and str(value):
            yield before + str(name), str(value)


def _understood(files: Mapping[str, bytes]) -> Understood | None:
    fields = _json(files, "spec.json")
    try:
        return (
            understand(AttentionSpec.make(**{str(name): value for name, value in fields.items()})) if fields else None
        )
    except QimengError:
        return None


# ------------------------------------------------------------------------------------------ the parts
def _launch(contents: Contents) -> Iterator[tuple[str, str]]:
    manifest, face = contents.manifest, contents.manifest.face
    for kernel in manifest.kernels:
        if manifest.then:
            yield "kernel", kernel.kernel
        axes = (
            f"{a.name} {show(a.stop)}{'' if a.start == 0 else f' - {show(a.start, inner=True)}'}" for a in kernel.grid
        )
        yield "grid", ", ".join(axes) + (", persistent" if kernel.persistent else "")
        yield "block", f"{kernel.threads} threads, {kernel.shared_bytes:,} bytes of dynamic shared memory"
    for name, value in manifest.chosen.items():
        yield "each call", f"{name} = {show(value)}"
    callers = {tensor.name for tensor in face.tensors}
    between = {t.name: t for kernel in manifest.kernels for t in kernel.tensors if t.name not in callers}
    for tensor in (*face.tensors, *between.values()):
        role = tensor.role if tensor.name in callers else "from one kernel to the next"
        yield tensor.name, f"({', '.join(show(dim) for dim in tensor.dims)}) {tensor.dtype} {role}"
    for scalar in face.scalars:
        yield scalar.name, scalar.dtype + (f" {scalar.op} {scalar.bound:g}" if scalar.op else "")
    for r in manifest.requires:
        yield "needs", f"{show(r.left)} {r.op} {show(r.right)}"


def _reasons(files: Mapping[str, bytes]) -> Iterator[Reason]:
    for item in _each(_json(files, "reasons.json"), "reasons"):
        figures = item.get("figures")
        predicted = isinstance(figures, dict) and figures.get("kind") == "prediction"
        parameter, value, why = (str(item.get(name, "")) for name in ("parameter", "value", "why"))
        yield Reason(parameter, value, why, predicted)


def _written(reasons: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say of a program that a model wrote which of its lines are not the model's, and what was refused before."""
    if isinstance(repairs := reasons.get("repairs"), int):
        yield "repairs", str(repairs)
    added = reasons.get("not the author's")
    for line in added if isinstance(added, list) else ():
        yield "not the author's", str(line)
    for before in _each(reasons, "failed before"):
        codes = before.get("codes")
        told = f" ({', '.join(map(str, codes))})" if isinstance(codes, list) and codes else ""
        yield "refused before", f"{before.get('stage')} by {before.get('gate')}{told}"


def _all_resources(manifest: Manifest, report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the resources of each kernel, in the order they run in."""
    reports = [report, *_each(report, "then")]
    for kernel, of in zip(manifest.kernels, reports, strict=False):
        if manifest.then:
            yield "kernel", kernel.kernel
        yield from _resources(of)


def _resources(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if (registers := report.get("registers")) is not None:
        yield "registers", f"{registers} a thread"
    for name, words in (("spill_store_bytes", "spills stored"), ("spill_load_bytes", "spills loaded")):
        if (value := report.get(name)) is not None:
            yield words, f"{value} bytes"
    occupancy = report.get("occupancy")
    if isinstance(occupancy, dict):
        blocks, warps, limit = (occupancy.get(name) for name in ("blocks_per_sm", "warps_per_sm", "limited_by"))
        yield "occupancy", f"{blocks} block(s), {warps} warps an SM, limited by {limit}"
    counts = report.get("counts")
    if isinstance(counts, dict):
        known = sorted(((n, c) for n, c in counts.items() if isinstance(c, int)), key=lambda pair: (-pair[1], pair[0]))
        yield "most frequent", ", ".join(f"{name} {count}" for name, count in known[:_MOST_COUNTS])
    for name in ("warnings", "notes"):
        found = report.get(name)
        for line in found if isinstance(found, list) else ():
            yield name[:-1], str(line)


def _judged(verdict: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("reason", "where", "seconds", "entropy"):
        if name in verdict:
            yield {"entropy": "seed"}.get(name, name), str(verdict[name])
    own = verdict.get("reference")
    if isinstance(own, dict):
        agreement = own.get("agreement")
        cases = agreement.get("cases") if isinstance(agreement, dict) else None
        told = f", which agrees with the description in {cases} cases" if cases else ""
        yield "also against", f"{own.get('name')} ({own.get('framework')}){told}"
    checks = _each(verdict, "checks")
    if near := [c for c in checks if _number(c, "bound") > 0]:
        worst = max(near, key=lambda c: _number(c, "worst_error") / _number(c, "bound"))
        figures = f"error {_number(worst, 'worst_error'):.3g}, bound {_number(worst, 'bound'):.3g}"
        yield "nearest to its bound", f"{worst.get('output')} of {worst.get('case')}: {figures}"
    for clause in _each(verdict, "clauses"):
        shown = (
            "implied by the others" if clause.get("implied") else f"its lack would show in {clause.get('caught_by')}"
        )
        yield "clause", f"{clause.get('name')}: {shown}"
    for check in [c for c in checks if c.get("passed") is not True][:_MOST_FAILED]:
        yield "failed", f"{check.get('case')}: {check.get('reason')}"


def speed_of(measured: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give what was measured, a line each shape."""
    rows = _each(measured, "rows")
    machine = measured.get("measured_on")
    if not rows or not isinstance(machine, dict):
        yield from _flat(measured)
        return
    for row in rows:
        shape = ", ".join(f"{name} = {row[name]:,}" for name in ("B", "Sq", "Sk") if isinstance(row.get(name), int))
        ours = f"{_number(row, 'ours_ms'):g} ms, {_number(row, 'ours_tflops'):g} TFLOP/s"
        ours += f", {_number(row, 'ours_gb_per_s'):,g} GB/s"
        if peer := row.get("peer"):
            ours += f"; {peer} takes {_number(row, 'peer_ms'):g} ms, {_number(row, 'ratio'):.2f} times as long"
        called = f"called from Python {_number(row, 'ours_eager_ms'):g} ms"
        yield shape, f"{ours}; {called}; rounds spread by {_number(row, 'spread'):.1%}"
    yield "measured on", ", ".join(f"{n} {v}" if n in ("torch", "cuda") else str(v) for n, v in machine.items())


def _predicted(files: Mapping[str, bytes]) -> str:
    return next((reason.why for reason in _reasons(files) if reason.predicted), "")


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) else 0.0

"""From a request to a bundle: every stage in order, and what is kept of each.

The one place where stages are strung together. A stage that the machine cannot run (no compiler, no GPU, no folder to
write to) is said in a note, and everything that can still be done is done.
"""

from __future__ import annotations

import datetime
import json
import platform
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from qimeng_attention import __version__
from qimeng_attention.build import Cache
from qimeng_attention.errors import EnvironmentMissing, QimengError, SpecError
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.runtime import Bundle, load
from qimeng_attention.runtime.manifest import GridAxis, Manifest, Requirement, Scalar, Tensor, TensorMap
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.store import write_bundle
from qimeng_attention.workflow import stages
from qimeng_attention.workflow.stages import Results

TL_VERSION = "1"
Report = Callable[[str, Results, float], None]
Progress = Callable[[int, int, str], None]
_ARGUMENTS = {"Q": "q", "K": "k", "V": "v"}


@dataclass
class Outcome:
    """What a run made: the stages' results, the bundle's folder if one was written, and what could not be done."""

    results: Results
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def generate(
    spec: AttentionSpec,
    *,
    target: str = "auto",
    arch: str | None = None,
    out: str | Path | None = None,
    judge: bool = True,
    overwrite: bool = False,
) -> Bundle:
    """Make a verified kernel for an attention operator.

    Args:
        spec: what is asked for.
        target: a GPU's name, or `auto` for the one present.
        arch: build the cubin for another architecture (an A100 program for an sm_90 GPU).
        out: the bundle's folder; by default one named after the kernel in the working directory.
        judge: also judge the program; without it the bundle holds no verdict.
        overwrite: replace a bundle that is there already.

    Raises:
        SpecError: the request makes no sense, or the target cannot do it.
        DiagnosticError: a gate refused the program.
        EnvironmentMissing: no compiler, or `auto` without a GPU.
        JudgeError: the program was rejected; no bundle is written.
    """
    outcome = run(spec, target=target, arch=arch, out=out, judge=judge, overwrite=overwrite)
    if outcome.folder is None:
        raise EnvironmentMissing("; ".join(outcome.notes) or "no bundle was written", hint="see `qimeng doctor`")
    return load(outcome.folder)


def run(
    spec: AttentionSpec | None,
    *,
    target: str = "auto",
    arch: str | None = None,
    out: str | Path | None = None,
    judge: bool = True,
    overwrite: bool = False,
    until: str = "bundle",
    code: str | None = None,
    cache: Cache | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Run the stages up to and with `until`; `code` begins with TL instead of the author.

    Raises:
        QimengError: as `generate`.
    """
    if until not in stages.STAGES:
        raise SpecError(
            f"unknown stage '{until}'",
            hint=f"take one of {', '.join(stages.STAGES)}",
            field="emit",
            value=until,
        )
    found, built_for = stages.find_target(target, arch)
    outcome = Outcome(Results(found, built_for, spec=spec))
    for name, step in _steps(outcome, spec, code, cache, judge, progress):
        start = time.perf_counter()
        try:
            outcome.results = step(outcome.results)
        except EnvironmentMissing as missing:
            outcome.notes.append(str(missing))
            break
        outcome.seconds[name] = time.perf_counter() - start
        if report is not None:
            report(name, outcome.results, outcome.seconds[name])
        if name == until:
            return outcome
    if until == "bundle" and outcome.results.built is not None:
        outcome.folder = save(outcome, out, overwrite)
    return outcome


def _steps(
    outcome: Outcome,
    spec: AttentionSpec | None,
    code: str | None,
    cache: Cache | None,
    judge: bool,
    progress: Progress | None,
) -> list[tuple[str, Callable[[Results], Results]]]:
    def begin(results: Results) -> Results:
        if code is not None:
            return replace(results, code=code, reasons={"author": "given", "reasons": []})
        if spec is None:
            raise SpecError(
                "there is neither a spec nor a program",
                hint="name a spec file, or flags such as --Hq 32",
                field="spec",
                value=None,
            )
        return stages.author(results, spec)

    def verdict(results: Results) -> Results:
        if not judge or results.spec is None or results.checked is None:
            outcome.notes.append("not judged: " + ("no spec says what it should compute" if judge else "switched off"))
            return results
        from qimeng_attention.judge import judge_program

        return replace(
            results,
            verdict=judge_program(results.checked, results.spec, seed=secrets.randbits(32), progress=progress),
        )

    steps: list[tuple[str, Callable[[Results], Results]]] = [
        ("sketch", begin),
        ("code", stages.check_code),
        ("scheduled", stages.apply_schedule),
        ("verdict", verdict),
        ("cute", stages.to_cute),
        ("cubin", lambda r: stages.to_cubin(r, cache)),
    ]
    return steps


# ------------------------------------------------------------------ the bundle


def save(outcome: Outcome, out: str | Path | None, overwrite: bool) -> Path | None:
    """Write the bundle, unless the program was rejected; a folder that cannot be written costs the bundle, not the
    rest."""
    results = outcome.results
    if results.verdict is not None and results.verdict.verdict == "rejected":
        outcome.notes.append("no bundle is written for a rejected program")
        return None
    assert results.translation is not None
    where, name = (Path(), None) if out is None else (Path(out).absolute().parent, Path(out).name)
    try:
        return write_bundle(where, bundle_files(results), manifest_of(results), name=name, overwrite=overwrite)
    except EnvironmentMissing as missing:
        outcome.notes.append(f"no bundle is written: {missing.message}")
        return None


def bundle_files(results: Results) -> dict[str, bytes]:
    """Give every file of a bundle but its manifest."""
    t, b = results.translation, results.built
    assert t is not None
    assert b is not None
    spec = results.spec.model_dump(mode="json") if results.spec else None
    files = {
        "spec.json": _json(spec),
        "sketch.tl": results.sketch.encode(),
        "code.tl": results.code.encode(),
        "scheduled.tl": t.scheduled.encode(),
        "kernel.cu": t.source.encode(),
        "kernel.cubin": b.cubin,
        "report.json": _json({**b.to_json(), **b.report.to_json()}),
        "reasons.json": _json(results.reasons),
    }
    for header in resources.files("qimeng_attention.translate").joinpath("prelude").iterdir():
        if header.name.endswith(".cuh"):
            files[header.name] = header.read_bytes()
    if results.verdict is not None:
        files["verdict.json"] = _json(results.verdict.to_json())
    return files


def _envelope(spec: AttentionSpec | None, sizes: list[str]) -> tuple[Requirement, ...]:
    """Say for which head counts the kernel was asked and judged: others are refused."""
    if spec is None:
        return ()
    return tuple(Requirement(n, "==", getattr(spec, n)) for n in ("Hq", "Hk") if n in sizes)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def manifest_of(results: Results) -> Manifest:
    """Say how the kernel is launched, and where it comes from."""
    t, b = results.translation, results.built
    assert t is not None
    assert b is not None
    facts = t.facts
    names = {x["name"] for x in facts["tensors"]}
    inputs = {x["name"] for x in facts["tensors"] if x["role"] == "input"}
    named = {kernel_name(name): name for name in results.spec.tensors} if results.spec else {}
    arguments = _ARGUMENTS | named
    callable_ = inputs == set(arguments) and "Out" in names  # with other inputs it is called through `launch`
    return Manifest(
        kernel=t.name,
        target=results.target.name,
        arch=results.target.arch,
        built_arch=results.arch,
        threads=t.threads,
        shared_bytes=t.shared_bytes,
        grid=tuple(GridAxis(g["name"], g["start"], g["stop"]) for g in facts["grid"]),
        tensors=tuple(
            Tensor(name=x["name"], dtype=x["dtype"], dims=tuple(x["dims"]), role=x["role"], align=x["align"])
            for x in facts["tensors"]
        ),
        sizes=tuple(facts["sizes"]),
        scalars=tuple(
            Scalar(name=x["name"], dtype=x["dtype"], op=x["op"], bound=x["bound"] or 0.0) for x in facts["scalars"]
        ),
        maps=tuple(TensorMap(m["tensor"], tuple(m["box"])) for m in facts["maps"]),
        persistent=facts["persistent"],
        counter=facts["counter"],
        requires=_envelope(results.spec, facts["sizes"]),
        call={v: k for k, v in arguments.items()} if callable_ else {},
        outputs=tuple(n for n in ("Out", "Lse") if n in names) if callable_ else (),
        default_scale=results.spec.default_scale if results.spec else 1.0,
        provenance={
            "package": __version__,
            "tl": TL_VERSION,
            "python": platform.python_version(),
            **dict(b.versions),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "author": (results.reasons or {}).get("author", ""),
        },
    )


__all__ = ["Outcome", "QimengError", "bundle_files", "generate", "manifest_of", "run", "save"]

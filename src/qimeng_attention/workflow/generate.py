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

from qimeng_attention import __version__, caches
from qimeng_attention.build import Cache
from qimeng_attention.errors import EnvironmentMissing, JudgeError, QimengError, SpecError
from qimeng_attention.judge import OwnFunction, Place, judge_program
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.packed import OFFSETS
from qimeng_attention.runtime import Bundle, load
from qimeng_attention.runtime.expressions import Expression
from qimeng_attention.runtime.manifest import GridAxis, Manifest, Requirement, Scalar, Tensor, TensorMap, kernel_file
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.store import refuse_existing, write_bundle
from qimeng_attention.translate import Translation
from qimeng_attention.workflow import stages
from qimeng_attention.workflow.judgement import agreeing
from qimeng_attention.workflow.stages import Handwritten, Results

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
    reference: Place | None = None,
) -> Bundle:
    """Make a verified kernel for an attention operator.

    Args:
        spec: what is asked for.
        target: a GPU's name, or `auto` for the one present.
        arch: build the cubin for another architecture (an A100 program for an sm_90 GPU).
        out: the bundle's folder; by default one named after the kernel in the working directory.
        judge: also judge the program; without it the bundle holds no verdict.
        overwrite: replace a bundle that is there already.
        reference: a function of your own that computes the same, or its place as `FILE.py:FUNCTION`, which runs in a
            process of its own. It must agree with `spec` in float64, and the program is judged against it too.

    Raises:
        SpecError: the request makes no sense, or the target cannot do it.
        DiagnosticError: a gate refused the program.
        EnvironmentMissing: no compiler, or `auto` without a GPU.
        JudgeError: the program was rejected, or the reference and `spec` differ; no bundle is written.
    """
    with agreeing(reference, spec) as own:
        outcome = run(spec, target=target, arch=arch, out=out, judge=judge, overwrite=overwrite, own=own)
    verdict = outcome.results.verdict
    if verdict is not None and verdict.verdict == "rejected":
        raise JudgeError(f"the program was rejected: {verdict.reason}", hint="please report it with the description")
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
    own: OwnFunction | None = None,
) -> Outcome:
    """Run the stages up to and with `until`; `code` begins with TL instead of the author.

    With a function of the user's `own`, which agrees with the spec, the program is judged against both.

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
    if until == "bundle" and out is not None:
        refuse_existing(Path(out).absolute(), overwrite)  # now, not after the minute that all stages take
    outcome = Outcome(Results(found, built_for, spec=spec))
    for name, step in _steps(outcome, spec, code, cache, _judge(outcome, judge, progress, own)):
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
    verdict: Callable[[Results], Results],
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

    steps: list[tuple[str, Callable[[Results], Results]]] = [
        ("sketch", begin),
        ("code", stages.check_code),
        ("scheduled", stages.apply_schedule),
        ("verdict", verdict),
        ("cute", stages.to_cute),
        ("cubin", lambda r: stages.to_cubin(r, cache)),
    ]
    return steps


def _judge(
    outcome: Outcome, wanted: bool, progress: Progress | None, own: OwnFunction | None
) -> Callable[[Results], Results]:
    def verdict(results: Results) -> Results:
        if not wanted or results.spec is None or not results.kernels:
            outcome.notes.append("not judged: " + ("no spec says what it should compute" if wanted else "switched off"))
            return results
        entropy = secrets.randbits(32)
        found = judge_program(results.kernels, results.spec, seed=entropy, progress=progress, own=own)
        return replace(results, verdict=found)

    return verdict


# ------------------------------------------------------------------ the bundle


def save(outcome: Outcome, out: str | Path | None, overwrite: bool) -> Path | None:
    """Write the bundle, unless the program was rejected; a folder that cannot be written costs the bundle, not the
    rest."""
    results = outcome.results
    if results.verdict is not None and results.verdict.verdict == "rejected":
        outcome.notes.append("no bundle is written for a rejected program")
        return None
    where, name = (Path(), None) if out is None else (Path(out).absolute().parent, Path(out).name)
    try:
        return write_bundle(where, bundle_files(results), manifest_of(results), name=name, overwrite=overwrite)
    except EnvironmentMissing as missing:
        outcome.notes.append(f"no bundle is written: {missing.message}")
        return None


def bundle_files(results: Results) -> dict[str, bytes]:
    """Give every file of a bundle but its manifest."""
    spec = results.spec.model_dump(mode="json") if results.spec else None
    reports = [{**b.to_json(), **b.report.to_json()} for b in results.builds]
    files = {
        "spec.json": _json(spec),
        "report.json": _json(reports[0] | ({"then": reports[1:]} if reports[1:] else {})),
        "reasons.json": _json(results.reasons),
    }
    if not results.handwritten:
        files |= _levels_and_headers(results)
    for number, (t, b) in enumerate(zip(results.translations, results.builds, strict=True)):
        files[kernel_file(number, "cu")], files[kernel_file(number, "cubin")] = t.source.encode(), b.cubin
    if results.verdict is not None:
        files["verdict.json"] = _json(results.verdict.to_json())
    return files


def _levels_and_headers(results: Results) -> dict[str, bytes]:
    """Give the levels of TL that a kernel came from, and the headers that its CuTe C++ includes."""
    levels = {"sketch.tl": results.sketch, "code.tl": results.code, "scheduled.tl": results.scheduled}
    files = {name: text.encode() for name, text in levels.items()}
    for header in resources.files("qimeng_attention.translate").joinpath("prelude").iterdir():
        if header.name.endswith(".cuh"):
            files[header.name] = header.read_bytes()
    return files


def _envelope(spec: AttentionSpec | None, sizes: list[str]) -> tuple[Requirement, ...]:
    """Say for which head counts the kernel was asked and judged: others are refused."""
    if spec is None:
        return ()
    heads = tuple(Requirement(n, "==", getattr(spec, n)) for n in ("Hq", "Hk") if n in sizes)
    if not spec.seqused_k:
        return heads
    capacity: Expression = "Sk" if spec.page_size is None else ("*", caches.MOST_PAGES, spec.page_size)
    return (*heads, Requirement(capacity, "<=", caches.MOST_KEYS)) if spec.Sk is None else heads


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def manifest_of(results: Results) -> Manifest:
    """Say how the kernel is launched, and where it comes from."""
    first, *then = [_kernel_manifest(results, t) for t in results.translations]
    whole = replace(first, then=tuple(then))
    face = whole.face
    names = {t.name for t in face.tensors}
    inputs = {t.name for t in face.tensors if t.role == "input"}
    named = {kernel_name(name): name for name in results.spec.tensors} if results.spec else {}
    packed = {tensor: name for name, tensor in OFFSETS.items()} if results.spec and results.spec.varlen else {}
    cached = caches.arguments(results.spec) if results.spec else {}
    arguments = _ARGUMENTS | packed | named | cached
    callable_ = inputs == set(arguments) and "Out" in names  # with other inputs it is called through `launch`
    return replace(
        whole,
        requires=_envelope(results.spec, list(face.sizes)),
        call={v: k for k, v in arguments.items()} if callable_ else {},
        outputs=tuple(n for n in ("Out", "Lse") if n in names) if callable_ else (),
        default_scale=results.spec.default_scale if results.spec else 1.0,
        provenance={
            "package": __version__,
            **({} if results.handwritten else {"tl": TL_VERSION}),
            "python": platform.python_version(),
            **dict(results.builds[0].versions),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "author": (results.reasons or {}).get("author", ""),
        },
    )


def _kernel_manifest(results: Results, t: Translation | Handwritten) -> Manifest:
    """Say how one kernel is launched."""
    facts = t.facts
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
        maps=tuple(TensorMap(**(m | {"box": tuple(m["box"])})) for m in facts["maps"]),
        persistent=facts["persistent"],
        counter=facts["counter"],
        chosen=facts["chosen"],
    )


__all__ = ["Outcome", "QimengError", "bundle_files", "generate", "manifest_of", "run", "save"]

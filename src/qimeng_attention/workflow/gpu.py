"""The gate that needs a GPU: a callable that judges a bundle, or a folder in which somebody does so.

    square-1f2e3d4c5b6a/bundle/        the kernel, as every bundle
    square-1f2e3d4c5b6a/waiting.json   what it is to be judged against, beside its description
    square-1f2e3d4c5b6a/reference.py   a copy of the function's file, if a function says what is right
    square-1f2e3d4c5b6a/verdict.json   the judge's verdict on it, as `qimeng judge --json` prints it

A run that finds no verdict stops, and goes on from there once it is run again: one visit to a machine with a GPU
serves every kernel that waits. A verdict names the bundle that it is on by its digest; one on another is refused. One
that was made at once is kept there too, so that a run begun again finds it.

Not here: what a bundle holds (generate.py), judging all that waits (waiting.py), how it is judged (judge).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qimeng_attention.errors import BundleError
from qimeng_attention.judge import Verdict
from qimeng_attention.llm.chat import Waiting
from qimeng_attention.runtime import Manifest, read_folder
from qimeng_attention.store import write_bundle
from qimeng_attention.workflow.attempts import Truth
from qimeng_attention.workflow.generate import bundle_files, manifest_of
from qimeng_attention.workflow.stages import Results

BUNDLE, VERDICT, WAITING, REFERENCE = "bundle", "verdict.json", "waiting.json", "reference.py"
README = """# Kernels that wait for a GPU

Each folder here holds a bundle.
On a machine with the GPU it was made for, judge them all:

    qimeng judge-waiting FOLDER

It puts a verdict beside each, and may be stopped and begun again.
Then run the same command as before: it finds the verdicts and goes on.
A verdict belongs to the bundle beside it, byte for byte; on any other it is refused.
"""
Judge = Callable[[Path, Truth], Verdict | None]


@dataclass(frozen=True)
class OnGpu:
    """Where kernels go that only a GPU can judge.

    Without `judge`, or where it gives None since no GPU here runs the kernel, somebody puts a verdict beside each.
    """

    folder: Path
    judge: Judge | None = None


def judged(results: Results, truth: Truth, where: OnGpu) -> Results:
    """Judge a built kernel on a GPU, now or by what somebody found.

    Raises:
        Waiting: there is no verdict yet; it names the folder.
        BundleError: what lies there is no verdict, or one on another kernel.
    """
    place = waiting_place(results, where.folder)
    if not (place / BUNDLE).exists():
        write_bundle(place, bundle_files(results), manifest_of(results), name=BUNDLE)
    (where.folder / "README.md").write_text(README, "utf-8")
    verdict = found_beside(place)
    if verdict is None:
        _say_against_what(place, truth)
        verdict = where.judge(place / BUNDLE, truth) if where.judge is not None else None
        if verdict is None:
            raise Waiting(
                f"{place / BUNDLE} has not been judged on a GPU yet",
                hint=f"run `qimeng judge-waiting {where.folder}` on a machine with the GPU, and then this again",
                folder=str(place),
            )
        put_beside(place, verdict)
    return replace(results, verdict=verdict)


def _say_against_what(place: Path, truth: Truth) -> None:
    """Write what a bundle is judged against, if it is not said yet: the folder may be carried elsewhere."""
    said: dict[str, Any] = {"reference": None, "framework": truth.framework}
    file, _, name = truth.place.rpartition(":")
    if truth.place:
        said["reference"] = f"{REFERENCE}:{name}"
        write_whole(place / REFERENCE, Path(file).read_bytes())
    write_whole(place / WAITING, (json.dumps(said, indent=1) + "\n").encode())


def put_beside(place: Path, verdict: Verdict) -> None:
    """Put a verdict beside its bundle."""
    write_whole(place / VERDICT, (json.dumps(verdict.to_json(), indent=1) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole, or not at all; one that says the same already stays as it is."""
    if path.is_file() and path.read_bytes() == data:
        return
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=".", delete=False) as file:
        file.write(data)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def waiting_place(results: Results, folder: Path) -> Path:
    """Name a kernel's folder: the same source for the same launch and GPU has the same."""
    kernel = results.translations[0]
    said = [kernel.source, kernel.facts, kernel.threads, kernel.shared_bytes, results.target.name, results.arch]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{kernel.name[:64]}-{key}"


def bundle_digest(manifest: Manifest) -> str:
    """Give the digest that a judge names a bundle by: of all its files."""
    return hashlib.sha256(json.dumps(dict(manifest.files), sort_keys=True).encode()).hexdigest()


def found_beside(place: Path) -> Verdict | None:
    """Read the verdict beside a bundle; None if there is none, or an empty file.

    Raises:
        BundleError: what lies there is no verdict, or one on another kernel, or the bundle has changed.
    """
    file = place / VERDICT
    digest = bundle_digest(read_folder(place / BUNDLE).manifest)
    try:
        text = file.read_text("utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} cannot be read: {error}", hint="write it again", file=str(file)) from None
    if not text.strip():
        return None
    try:
        verdict = Verdict.model_validate_json(text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise BundleError(
            f"{file} is no verdict: {reason}", hint="remove it, and judge the bundle again", file=str(file)
        ) from None
    if verdict.digest != digest or verdict.where != "gpu":
        other = f"on {verdict.digest[:12]}, and the bundle is {digest[:12]}" if verdict.where == "gpu" else "of a CPU"
        raise BundleError(
            f"{file} is stale: its verdict is {other}", hint="remove it, and judge the bundle again", file=str(file)
        )
    return verdict

"""The gate that needs a GPU: a callable that judges a bundle, or a folder in which somebody does so.

    square-1f2e3d4c5b6a/bundle/        the kernel, as every bundle
    square-1f2e3d4c5b6a/verdict.json   the judge's verdict on it, as `qimeng judge --json` prints it

A run that finds no verdict stops, and goes on from there once it is run again: one visit to a machine with a GPU
serves every kernel that waits. A verdict names the bundle that it is on by its digest; one on another is refused.

Not here: what a bundle holds (generate.py), how it is judged (judge).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from qimeng_attention.errors import BundleError
from qimeng_attention.judge import Verdict
from qimeng_attention.llm.chat import Waiting
from qimeng_attention.runtime import Manifest, read_folder
from qimeng_attention.store import write_bundle
from qimeng_attention.workflow.attempts import Truth
from qimeng_attention.workflow.generate import bundle_files, manifest_of
from qimeng_attention.workflow.stages import Results

BUNDLE, VERDICT = "bundle", "verdict.json"
README = """# Kernels that wait for a GPU

Each folder here holds a bundle.
On a machine with the GPU it was made for, judge it, and put the verdict beside it:

    qimeng judge NAME/bundle --json > NAME/verdict.json

A bundle whose `spec.json` is null is judged against its operator's function: `--reference FILE.py:FUNCTION`.
Then run the same command as before again: it finds the verdicts and goes on.
A verdict belongs to the bundle beside it, byte for byte; on any other it is refused.
"""
Judge = Callable[[Path, Truth], Verdict]


@dataclass(frozen=True)
class OnGpu:
    """Where kernels go that only a GPU can judge; without `judge`, somebody puts a verdict beside each."""

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
    if where.judge is not None:
        return replace(results, verdict=where.judge(place / BUNDLE, truth))
    return replace(results, verdict=_found(place))


def waiting_place(results: Results, folder: Path) -> Path:
    """Name a kernel's folder: the same source for the same launch and GPU has the same."""
    kernel = results.translations[0]
    said = [kernel.source, kernel.facts, kernel.threads, kernel.shared_bytes, results.target.name, results.arch]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{kernel.name[:64]}-{key}"


def bundle_digest(manifest: Manifest) -> str:
    """Give the digest that a judge names a bundle by: of all its files."""
    return hashlib.sha256(json.dumps(dict(manifest.files), sort_keys=True).encode()).hexdigest()


def _found(place: Path) -> Verdict:
    """Read the verdict beside a bundle."""
    file = place / VERDICT
    digest = bundle_digest(read_folder(place / BUNDLE).manifest)
    try:
        text = file.read_text("utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} cannot be read: {error}", hint="write it again", file=str(file)) from None
    if not text.strip():
        raise Waiting(
            f"{place / BUNDLE} has not been judged on a GPU yet",
            hint=f"judge it there, put the verdict into {file}, and run again",
            folder=str(place),
        )
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

"""The gate that needs a GPU to time: a callable that runs a race, or a folder in which somebody does so.

A race is a folder with both bundles and the sizes of the calls (bench/race.py); its name is a digest of sources, launch
and sizes. A run that finds no timing in it stops, and goes on from there once it is run again: `qimeng race FOLDER` on
a machine with the GPU runs every race that waits below a folder.

Not here: how kernels are timed (bench/race.py), what becomes of a slower one (improvement.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qimeng_attention.bench.race import BEST, CALL, CANDIDATE, TIMING, Race, read_race
from qimeng_attention.llm.chat import Waiting
from qimeng_attention.store import write_bundle
from qimeng_attention.workflow.generate import bundle_files, manifest_of
from qimeng_attention.workflow.stages import Results

Measure = Callable[[Path], Race]
README = """# Kernels that wait to be timed

Each folder here holds a kernel, `best`, and mostly another one that might be faster, `candidate`.
On a machine with the GPU they were made for, one command times all that wait:

    qimeng race FOLDER

It writes `timing.json` beside each pair.
Then run the same command as before again: it finds the times and goes on.
A timing belongs to the bundles beside it, byte for byte, and to the sizes in `call.json`; any other is refused.
"""


@dataclass(frozen=True)
class Races:
    """Where kernels are timed, and at which sizes; without `measure`, somebody puts a timing beside each pair."""

    folder: Path
    sizes: Mapping[str, int]
    measure: Measure | None = None


def raced(best: Results, candidate: Results | None, where: Races) -> Race:
    """Time a kernel, against another one where there is one, now or by what somebody found.

    Raises:
        Waiting: there is no timing yet; it names the folder.
        BundleError: what lies there is no timing, or one of other kernels.
    """
    place = race_place(best, candidate, where)
    for name, results in ((BEST, best), (CANDIDATE, candidate)):
        if results is not None and not (place / name).exists():
            write_bundle(place, bundle_files(results), manifest_of(results), name=name)
    if not (place / CALL).exists():
        (place / CALL).write_text(json.dumps(dict(where.sizes)) + "\n", "utf-8")
        (where.folder / "README.md").write_text(README, "utf-8")
    found = read_race(place)
    if found is None and where.measure is not None:
        found = where.measure(place)
    if found is None:
        raise Waiting(
            f"{place} has not been timed yet",
            hint=f"on a machine with the GPU run `qimeng race {where.folder}`, bring {TIMING} back, and run again",
            folder=str(place),
        )
    return found


def race_place(best: Results, candidate: Results | None, where: Races) -> Path:
    """Name a race's folder: the same sources for the same launch, GPU and sizes have the same."""
    said = [[same_kernel(r) for r in (best, candidate) if r is not None], dict(where.sizes)]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    return where.folder / f"{best.translations[0].name[:64]}-{key}"


def same_kernel(results: Results) -> str:
    """Give a digest of what runs: kernels with one digest are one and the same."""
    kernels = [[_code(t.source), t.facts, t.threads, t.shared_bytes] for t in results.translations]
    said = [kernels, results.target.name, results.arch]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _code(source: str) -> str:
    """Leave out what a compiler does not read: comments name lines of TL, which move with its comments."""
    return "\n".join(text for line in source.splitlines() if (text := line.split("//")[0].rstrip()))

"""Kernels that wait for a GPU, judged where there is one: as a run makes them, or all of a folder.

Kernels run in a process beside this one, the same for one after the other, which is ended when a kernel faults or
hangs. What goes wrong with one bundle is said, and the next is judged.

Not here: what a folder holds (gpu.py), how a bundle is judged (judge).
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qimeng_attention.errors import BundleError, EnvironmentMissing, QimengError, SpecError
from qimeng_attention.judge import Verdict, judge_bundle, judge_bundle_by_function
from qimeng_attention.judge.device import need_gpu
from qimeng_attention.judge.process import Process
from qimeng_attention.runtime import load
from qimeng_attention.workflow.attempts import Truth
from qimeng_attention.workflow.gpu import BUNDLE, WAITING, found_beside, put_beside
from qimeng_attention.workflow.judgement import Against, judge_path, runs_here
from qimeng_attention.workflow.present import detect


def gpu_here() -> tuple[str, str]:
    """Name the GPU of this machine and its architecture; both are empty where there is none."""
    try:
        found = detect()
    except QimengError:
        return "", ""
    return found.name, found.arch


class JudgeHere:
    """Judges bundles as they are made, where there is a GPU that runs them; else gives None, and they wait."""

    def __init__(self) -> None:
        self._process = Process()

    def __enter__(self) -> JudgeHere:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__()

    def __call__(self, bundle: Path, truth: Truth) -> Verdict | None:
        """Judge a bundle.

        Raises:
            BundleError, JudgeError, EnvironmentMissing: as of the judge.
        """
        if not runs_here(load(bundle).manifest.built_arch) or not _has_pytorch():
            return None
        given: dict[str, Any] = {"seed": secrets.randbits(32), "process": self._process}
        if truth.spec is not None:
            return judge_bundle(bundle, truth.spec, own=truth.own, **given)
        assert truth.function is not None
        return judge_bundle_by_function(bundle, truth.function, **given)


def _has_pytorch() -> bool:
    """Tell whether there is a PyTorch that sees the GPU: without it kernels wait, as they do without a GPU."""
    try:
        need_gpu()
    except EnvironmentMissing:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one bundle of a folder."""

    name: str
    outcome: Literal["accepted", "rejected", "inconclusive", "skipped", "failed"]
    reason: str = ""
    seconds: float = 0.0
    before: bool = False  # the verdict was there already

    def to_json(self) -> dict[str, Any]:
        """Give all fields."""
        return {n: getattr(self, n) for n in ("name", "outcome", "reason", "seconds", "before")}


def judge_waiting(
    folder: Path, *, jobs: int = 1, again: bool = False, report: Callable[[Judged, int, int], None] | None = None
) -> list[Judged]:
    """Judge every bundle of a folder that has no verdict, and put one beside each.

    Args:
        folder: as a run left it.
        jobs: how many are judged at the same time; each has a process of its own on the GPU.
        again: judge what has a verdict too.
        report: called after each, with its number and how many there are.

    Raises:
        SpecError: the folder holds no bundle.
        EnvironmentMissing: there is no GPU, or no PyTorch.
    """
    places = sorted(p.parent for p in folder.glob(f"*/{BUNDLE}"))
    if not places:
        raise SpecError(
            f"{folder} holds no bundle that waits", hint="name the folder `gpu` of a run or a study", field="folder"
        )
    need_gpu("copy the folder to a machine with one, and judge it there")
    found = []
    for number, one in enumerate(_each(places, jobs, again), 1):
        found.append(one)
        if report is not None:
            report(one, number, len(places))
    return sorted(found, key=lambda one: one.name)


def _each(places: list[Path], jobs: int, again: bool) -> Iterator[Judged]:
    if jobs == 1:
        with Process() as process:
            for place in places:
                yield judge_place(place, again, process)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin) as pool:
        begun = {pool.submit(_judge_there, place, again): place for place in places}
        for done in as_completed(begun):
            try:
                yield done.result()
            except BrokenProcessPool:
                yield Judged(begun[done].name, "failed", "the process that judged it ended: run the command again")


_THERE: list[Process] = []  # of a process of the pool: the one in which its kernels run, one after the other


def _begin() -> None:
    _THERE.append(Process())
    atexit.register(_THERE[0].__exit__)


def _judge_there(place: Path, again: bool) -> Judged:
    return judge_place(place, again, _THERE[0])


def judge_place(place: Path, again: bool, process: Process) -> Judged:
    """Judge the bundle of one folder; whatever goes wrong is in what is given back."""
    began = time.monotonic()
    try:
        if not again and (there := _verdict_of(place)) is not None:
            return Judged(place.name, there.verdict, there.reason, there.seconds, before=True)
        bundle = load(place / BUNDLE)
        if not runs_here(bundle.manifest.built_arch):
            return Judged(place.name, "skipped", f"built for {bundle.manifest.built_arch}, which this GPU does not run")
        verdict = judge_path(place / BUNDLE, _against(place), None, None, process)
        put_beside(place, verdict)
    except QimengError as error:
        return Judged(place.name, "failed", str(error), round(time.monotonic() - began, 1))
    except Exception as error:  # one bundle must not keep the others from being judged
        return Judged(place.name, "failed", f"{type(error).__name__}: {error}", round(time.monotonic() - began, 1))
    return Judged(place.name, verdict.verdict, verdict.reason, round(time.monotonic() - began, 1))


def _verdict_of(place: Path) -> Verdict | None:
    """Read a verdict that is there; one that is half written or on another bundle is none."""
    try:
        return found_beside(place)
    except BundleError:
        return None


def _against(place: Path) -> Against:
    """Read what a bundle is judged against.

    Raises:
        BundleError: what says so makes no sense.
    """
    file = place / WAITING
    if not file.is_file():
        return Against()
    try:
        said = json.loads(file.read_text("utf-8"))
        reference, framework = said["reference"], str(said["framework"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BundleError(f"{file} makes no sense", hint="run what wrote it again", file=str(file)) from None
    return Against(None, f"{place / reference}" if reference else None, framework)

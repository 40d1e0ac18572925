"""Judging a file or a bundle, for `qimeng judge`: TL on the CPU, a bundle's kernel where there is a GPU."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qimeng_attention.errors import EnvironmentMissing, QimengError, SpecError
from qimeng_attention.judge import (
    OwnFunction,
    Place,
    Progress,
    Reference,
    Verdict,
    agree,
    judge_bundle,
    judge_bundle_by_function,
    judge_function,
    judge_program,
    open_reference,
)
from qimeng_attention.judge.process import Process
from qimeng_attention.runtime import Bundle, load
from qimeng_attention.runtime.launcher import runs_on
from qimeng_attention.runtime.manifest import ARCH
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.types import Checked
from qimeng_attention.workflow.present import detect


@dataclass(frozen=True)
class Against:
    """What a candidate is judged against: a description, a function, or both."""

    spec_file: Path | None = None
    reference: str | None = None  # FILE.py:FUNCTION
    framework: str = "auto"  # what the function takes


def judge_path(
    path: Path, against: Against, seed: int | None, progress: Progress | None, process: Process | None = None
) -> Verdict:
    """Judge a TL file or a bundle; a bundle's own description counts where none is named.

    Args:
        path: of either.
        against: what says what is right.
        seed: entropy; None draws it.
        progress: called before each case.
        process: in which kernels run, where several are judged one after the other.

    Raises:
        SpecError: nothing says what it should compute.
        EnvironmentMissing: a bundle without TL, and no GPU to run it on.
        DiagnosticError: the program is refused before it can be judged.
        JudgeError: the function or the program cannot be judged, or function and description differ.
    """
    entropy = secrets.randbits(32) if seed is None else seed
    bundle = load(path) if path.is_dir() else None
    given = _programs(path) if bundle is None else ()
    spec = _spec(path, bundle, against)
    if spec is None:
        assert against.reference is not None
        with open_reference(against.reference, against.framework) as function:
            return _judge_alone(bundle, given, function, entropy, progress, process)
    if against.reference is None:
        return _judge(bundle, given, spec, None, entropy, progress, process)
    with agreeing(against.reference, spec, against.framework, entropy, progress) as own:
        return _judge(bundle, given, spec, own, entropy, progress, process)


@contextmanager
def agreeing(
    reference: Place | None,
    spec: AttentionSpec | None,
    framework: str = "auto",
    entropy: int | None = None,
    progress: Progress | None = None,
) -> Iterator[OwnFunction | None]:
    """Open a user's function that agrees with a spec; None where there is none.

    Raises:
        SpecError: there is a function, and no spec to compare it with.
        JudgeError: they differ, or the function does something wrong.
    """
    if reference is None:
        yield None
        return
    if spec is None:
        raise SpecError(
            "a reference stands beside a description, and there is none",
            hint="name --spec FILE, or judge the TL file: qimeng judge FILE.tl --reference FILE.py:FUNCTION",
            field="reference",
            value=str(reference),
        )
    with open_reference(reference, framework) as function:
        own = OwnFunction(function, spec)
        agree(own, seed=secrets.randbits(32) if entropy is None else entropy, progress=progress)
        yield own


def _judge_alone(
    bundle: Bundle | None,
    given: Sequence[Checked],
    function: Reference,
    entropy: int,
    progress: Progress | None,
    process: Process | None,
) -> Verdict:
    """Judge what no description covers."""
    if bundle is not None and runs_here(bundle.manifest.built_arch):
        return judge_bundle_by_function(bundle.path, function, seed=entropy, progress=progress, process=process)
    return judge_function(given or _scheduled(bundle), function, seed=entropy, progress=progress)


def _judge(
    bundle: Bundle | None,
    given: Sequence[Checked],
    spec: AttentionSpec,
    own: OwnFunction | None,
    entropy: int,
    progress: Progress | None,
    process: Process | None,
) -> Verdict:
    if bundle is not None and has_gpu():
        return judge_bundle(bundle.path, spec, seed=entropy, progress=progress, own=own, process=process)
    return judge_program(given or _scheduled(bundle), spec, seed=entropy, progress=progress, own=own)


def _scheduled(bundle: Bundle | None) -> Sequence[Checked]:
    """Read the TL that a CPU interprets in a kernel's place."""
    assert bundle is not None
    text = bundle.files.get("scheduled.tl", b"").decode()
    if not text.strip():
        raise EnvironmentMissing(
            f"{bundle.path} was made from CUDA without TL: judging it needs an NVIDIA GPU that runs "
            f"{bundle.manifest.built_arch}, and there is none here",
            hint="judge it on a machine with such a GPU: a CPU interprets TL alone",
        )
    return check_text(text, file=str(bundle.path / "scheduled.tl"))


def _programs(path: Path) -> Sequence[Checked]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"cannot read {path}: {type(error).__name__}",
            hint="name a TL file or a bundle",
            field="file",
            value=str(path),
        ) from None
    return check_text(text, file=str(path))


def _spec(path: Path, bundle: Bundle | None, against: Against) -> AttentionSpec | None:
    """Give the description, or None where a function alone says what is computed."""
    if against.spec_file is not None:
        return AttentionSpec.load(against.spec_file)
    fields = json.loads(bundle.files["spec.json"]) if bundle is not None else None
    if isinstance(fields, dict):
        return AttentionSpec.make(**{k: v for k, v in fields.items() if k in AttentionSpec.model_fields})
    if against.reference is not None:
        return None
    what = (
        "nothing says what the program should compute" if bundle is None else f"{path} was made from TL without a spec"
    )
    raise SpecError(what, hint="name --spec FILE, or --reference FILE.py:FUNCTION", field="spec", value=None)


def has_gpu() -> bool:
    """Tell whether this machine has a GPU that kernels can run on."""
    try:
        detect()
    except QimengError:
        return False
    return True


def runs_here(built_arch: str) -> bool:
    """Tell whether this machine has a GPU that a kernel is built for."""
    try:
        arch = ARCH.fullmatch(detect().arch)
    except QimengError:
        return False
    return arch is not None and runs_on(built_arch, (int(arch[1]), int(arch[2])))

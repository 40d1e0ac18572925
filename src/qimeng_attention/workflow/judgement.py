"""Judging a file or a bundle, for `qimeng judge`: TL on the CPU, a bundle's kernel where there is a GPU."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from qimeng_attention.errors import QimengError, SpecError
from qimeng_attention.judge import (
    Progress,
    Verdict,
    judge_bundle,
    judge_function,
    judge_program,
    load_function,
)
from qimeng_attention.runtime import load
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.workflow.present import detect


def judge_path(
    path: Path, spec_file: Path | None, reference: str | None, seed: int | None, progress: Progress | None
) -> Verdict:
    """Judge a TL file against a spec or a function, or a bundle against its own spec.

    Raises:
        SpecError: nothing says what it should compute.
        DiagnosticError: the program is refused before it can be judged.
        JudgeError: the function or the program cannot be judged.
    """
    entropy = secrets.randbits(32) if seed is None else seed
    if path.is_dir():
        return _judge_folder(path, spec_file, reference, entropy, progress)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"cannot read {path}: {type(error).__name__}",
            hint="name a TL file or a bundle",
            field="file",
            value=str(path),
        ) from None
    programs = check_text(text, file=str(path))
    if reference is not None:
        return judge_function(programs, load_function(reference), seed=entropy, progress=progress)
    if spec_file is None:
        raise SpecError(
            "nothing says what the program should compute",
            hint="name --spec FILE, or --reference FILE.py:FUNCTION",
            field="spec",
            value=None,
        )
    return judge_program(programs, AttentionSpec.load(spec_file), seed=entropy, progress=progress)


def _judge_folder(
    path: Path, spec_file: Path | None, reference: str | None, entropy: int, progress: Progress | None
) -> Verdict:
    bundle = load(path)
    if reference is not None:  # a function knows NumPy alone: the bundle's TL is judged, on the CPU
        given = check_text(bundle.files["scheduled.tl"].decode(), file=str(path / "scheduled.tl"))
        return judge_function(given, load_function(reference), seed=entropy, progress=progress)
    spec = AttentionSpec.load(spec_file) if spec_file is not None else _own_spec(bundle.files["spec.json"], path)
    if has_gpu():
        return judge_bundle(path, spec, seed=entropy, progress=progress)
    programs = check_text(bundle.files["scheduled.tl"].decode(), file=str(path / "scheduled.tl"))
    return judge_program(programs, spec, seed=entropy, progress=progress)


def _own_spec(content: bytes, path: Path) -> AttentionSpec:
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise SpecError(
            f"{path} was made from TL without a spec",
            hint="name --spec FILE, or --reference FILE.py:FUNCTION",
            field="spec",
            value=None,
        )
    return AttentionSpec.make(**{k: v for k, v in fields.items() if k in AttentionSpec.model_fields})


def has_gpu() -> bool:
    """Tell whether this machine has a GPU that kernels can run on."""
    try:
        detect()
    except QimengError:
        return False
    return True

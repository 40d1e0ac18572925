"""The stages of the middle on files: schedule, translate and build, each taking what the one before wrote or a
person edited."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from qimeng_attention.build import Built, build
from qimeng_attention.errors import SpecError
from qimeng_attention.schedule import steps
from qimeng_attention.tl.checker import check, level_of
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import choice_text, print_program
from qimeng_attention.translate import LAUNCH_LINE, Translation, translate
from qimeng_attention.workflow.stages import find_target


def schedule_file(text: str, file: str, target: str | None) -> tuple[str, list[dict[str, Any]]]:
    """Schedule a TL text; give the result, and for each rewriting its choice, class and the lines it changed."""
    program = parse(text, file)
    check(program, target=target, source=text, file=file)
    differences = []
    for step in steps(program, target=target):
        before, after = (print_program(p).splitlines() for p in (step.before, step.after))
        changed = [
            line
            for line in difflib.unified_diff(before, after, lineterm="", n=0)
            if not line.startswith(("---", "+++", "@@"))
        ]
        differences.append(
            {
                "choice": choice_text(step.choice),
                "kind": step.rewriting.kind,
                "difference": "\n".join(changed),
            }
        )
        program = step.after
    return print_program(program), differences


def translate_file(text: str, file: str, target: str | None) -> list[Translation]:
    """Translate a TL text; one that still has a Schedule is scheduled first."""
    program = parse(text, file)
    if any(k.schedule or level_of(k) != "scheduled" for k in program.kernels):
        text, _ = schedule_file(text, file, target)
    return translate(parse(text, file), target=target)


def build_file(text: str, path: Path, target: str, arch: str | None) -> Built:
    """Build a TL file, or a CuTe C++ file that names its launch in a comment."""
    if path.suffix == ".tl":
        named = next((k.target for k in parse(text, str(path)).kernels if k.target), None)
        wanted = named if target == "auto" and named else target
        found, built_for = find_target(wanted, arch)
        t = translate_file(text, str(path), found.name)[0]
        return build(
            t.source,
            name=t.name,
            arch=built_for,
            threads=t.threads,
            shared_bytes=t.shared_bytes,
            target=found,
        )
    launch = re.search(LAUNCH_LINE, text)
    name = re.search(r"__launch_bounds__\([^)]*\)\s+(\w+)\(", text)
    if launch is None or name is None:
        raise SpecError(
            f"{path} does not say how it is launched",
            hint="keep the line `// launch: 128 threads, 65536 bytes of shared memory, for A100`",
            field="file",
            value=str(path),
        )
    found, built_for = find_target(launch[3] if target == "auto" else target, arch)
    return build(text, name=name[1], arch=built_for, threads=int(launch[1]), shared_bytes=int(launch[2]), target=found)

"""Scheduled TL to CuTe C++, statement by statement. Nothing is decided here: every choice stands in the TL.

`translate` takes a scheduled program and gives the source of one kernel, with the facts its launcher needs. Each group
of emitted lines carries the line of TL it came from. What a generation has no lowering for is refused by name (TL701).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from qimeng_attention import targets
from qimeng_attention.errors import Diagnostic, DiagnosticError, Span
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.printer import print_program
from qimeng_attention.tl.types import Checked
from qimeng_attention.translate.abi import launch_facts
from qimeng_attention.translate.emission import emit

# How a source says what its launch needs, so that an edited one can be built again.
LAUNCH_LINE = r"// launch: (\d+) threads, (\d+) bytes of shared memory, for (\w+)"


@dataclass(frozen=True)
class Translation:
    """One kernel in CuTe C++, with what a launcher must know of it."""

    name: str
    source: str
    scheduled: str  # the TL text whose lines the source names
    checked: Checked
    target: Target
    threads: int
    shared_bytes: int  # dynamic shared memory of a block
    facts: dict[str, Any] = field(default_factory=dict)  # grid and arguments, as in a bundle's manifest


def translate(program: s.Program, *, target: str | None = None) -> list[Translation]:
    """Translate every kernel of a scheduled program.

    Args:
        program: scheduled TL; code without a Schedule is refused, since it has no warps yet.
        target: a GPU other than the one the program names.

    Raises:
        DiagnosticError: the program does not pass the checker, or a statement has no lowering (TL701).
    """
    text = print_program(program)
    return [_translate(checked, text, target) for checked in check_text(text, target=target, file="scheduled.tl")]


def _translate(checked: Checked, text: str, override: str | None) -> Translation:
    name = override or checked.target
    if name is None:
        raise refuse(Span(1, 1, 1), "the kernel names no target", "begin it with `Kernel name for a100`", text)
    target = targets.get(name)
    if checked.level != "scheduled":
        raise refuse(
            checked.kernel.span,
            "this is code without a schedule: it says nothing of warps and barriers",
            "run `qimeng schedule` first",
            text,
        )
    emitted = emit(checked, target, hashlib.sha256(text.encode()).hexdigest()[:16], text)
    return Translation(
        checked.kernel.name,
        emitted.source,
        text,
        checked,
        target,
        emitted.threads,
        emitted.shared_bytes,
        launch_facts(checked, emitted.maps),
    )


def refuse(span: Span, message: str, hint: str, text: str) -> DiagnosticError:
    """Make the error for what has no lowering."""
    return DiagnosticError([Diagnostic("TL701", message, hint, span)], source=text, file="scheduled.tl")


__all__ = ["LAUNCH_LINE", "Translation", "translate"]

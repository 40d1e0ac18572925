"""What a model is told of findings: each with the line that it speaks of."""

from __future__ import annotations

from qimeng_attention.errors import Diagnostic, DiagnosticError, Span
from qimeng_attention.workflow import feedback

CODE, BEHIND = "one\ntwo\nthree\n", "one\nbetween\ntwo\nthree\n"
FOUND = [Diagnostic("TL701", "no lowering", "remove it", Span(3, 1, 4))]


def test_a_finding_behind_the_schedule_shows_the_line_of_there() -> None:
    told = feedback.of_error(DiagnosticError(FOUND, source=BEHIND, file="scheduled.tl"), CODE)

    assert told.splitlines() == [
        "(scheduled.tl is the program with its schedule written out.)",
        "scheduled.tl:3:1: error TL701: no lowering",
        "    two",
        "    ^^^",
        "  hint: remove it",
    ]


def test_a_finding_of_the_program_shows_the_programs_line() -> None:
    told = feedback.of_error(DiagnosticError(FOUND, source=CODE, file="code.tl"), CODE)

    assert told.splitlines()[:2] == ["code.tl:3:1: error TL701: no lowering", "    three"]
    assert "scheduled.tl" not in told


def test_findings_behind_the_schedule_are_counted_alike() -> None:
    told = feedback.of_error(DiagnosticError(FOUND * 10, source=BEHIND, file="scheduled.tl"), CODE)

    assert told.count("scheduled.tl:3:1") == 8
    assert told.endswith("\nand 2 more")

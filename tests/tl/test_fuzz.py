"""Two thousand written and two thousand mutated texts: each ends clean or with located findings, soon, and never in a
crash.

Fixed seeds; a text that once failed is named by its number. What passes the checker is scheduled, printed and checked
again.
"""

from __future__ import annotations

import time
from collections import Counter

import pytest

from qimeng_attention.errors import Diagnostic, DiagnosticError
from qimeng_attention.schedule import schedule
from qimeng_attention.tl.checker import check_with_findings
from qimeng_attention.tl.parser import parse, parse_with_findings
from qimeng_attention.tl.printer import print_program
from tl import fuzzing

TEXTS = 2_000
CHUNKS = 8  # of each kind, for the workers of pytest-xdist
SECONDS = 2.0  # of processor time for one text


def outcome(text: str) -> str:
    """Take a text as far as it goes; anything but findings is an exception."""
    program, found = parse_with_findings(text)
    if found:
        return _located(found, "refused by the parser")
    assert parse(print_program(program)) == program
    _, found = check_with_findings(program)
    if any(d.severity == "error" for d in found):
        return _located(found, "refused by the checker")
    _located(found, "")
    try:
        scheduled = schedule(program)
    except DiagnosticError as error:
        return _located(error.diagnostics, "refused by a rewriting")
    _, found = check_with_findings(parse(print_program(scheduled)))
    assert [d for d in found if d.severity == "error"] == [], print_program(scheduled)
    return "clean"


def _located(found: list[Diagnostic], result: str) -> str:
    for d in found:
        assert d.span.line >= 1, d
        assert d.span.column >= 1, d
        assert d.message, d
        assert d.hint, d
    return result


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("kind", ["generated", "mutated"])
def test_no_text_crashes_the_checker(kind: str, chunk: int) -> None:
    write = {"generated": fuzzing.generated, "mutated": fuzzing.mutated}[kind]
    counts: Counter[str] = Counter()
    for seed in range(chunk, TEXTS, CHUNKS):
        text = write(seed)
        start = time.process_time()
        try:
            counts[outcome(text)] += 1
        except Exception as error:
            raise AssertionError(f"{kind} text {seed}:\n{text}") from error
        assert time.process_time() - start < SECONDS, f"{kind} text {seed} takes too long:\n{text}"
    print(f"{kind}, part {chunk}: {dict(counts)}")

    assert counts.total() == TEXTS // CHUNKS
    assert counts["clean"] > 0
    assert counts["refused by the checker"] > 0


def test_what_the_generator_writes_without_a_slip_is_often_clean() -> None:
    texts = [fuzzing.generated(seed) for seed in range(60)]

    outcomes = Counter(outcome(text) for text in texts)

    assert outcomes["clean"] >= 10

"""Each file of diagnostics/ says in its first line what the checker must find in it: code, line and column, and no
more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qimeng_attention import tl
from qimeng_attention.errors import Diagnostic, DiagnosticError
from qimeng_attention.schedule import schedule
from qimeng_attention.tl.checker import check_with_findings
from qimeng_attention.tl.parser import parse_with_findings

FILES = sorted((Path(__file__).parent / "diagnostics").glob("*.tl"))
SOURCE = Path(tl.__file__).parents[1]
EXPECTED = re.compile(r"(error|warning) (TL\d{3}) line (\d+) column (\d+)")


def findings_of(text: str) -> list[Diagnostic]:
    """Parse, check and schedule as far as the text lets one."""
    program, found = parse_with_findings(text)
    if found:
        return found
    _, found = check_with_findings(program)
    if any(d.severity == "error" for d in found):
        return found
    try:
        schedule(program)
    except DiagnosticError as error:
        return found + error.diagnostics
    return found


@pytest.fixture(scope="module", params=FILES, ids=[f.stem for f in FILES])
def case(request: pytest.FixtureRequest) -> tuple[str, str, list[Diagnostic]]:
    text = request.param.read_text("utf-8")
    return text, text.split("\n", 1)[0], findings_of(text)


def test_finds_what_the_first_line_says(case: tuple[str, str, list[Diagnostic]]) -> None:
    _, first_line, found = case

    expected = [(s, code, int(line), int(column)) for s, code, line, column in EXPECTED.findall(first_line)]
    assert first_line == "# ok" or expected

    assert [(d.severity, d.code, d.span.line, d.span.column) for d in found] == expected


def test_every_finding_says_what_to_do(case: tuple[str, str, list[Diagnostic]]) -> None:
    text, _, found = case

    for d in found:
        assert d.message.strip()
        assert d.hint.strip()
        assert len(d.message) < 300
        line = text.expandtabs(4).split("\n")[d.span.line - 1]
        assert d.span.column < d.span.end_column <= len(line) + 2, "the caret lies outside of its line"


def test_text_and_json_carry_the_same_fields(case: tuple[str, str, list[Diagnostic]]) -> None:
    text, _, found = case

    for d in found:
        shown, fields = d.render(text, "file.tl"), d.to_json("file.tl")

        head = (
            f"file.tl:{fields['line']}:{fields['column']}: {fields['severity']} {fields['code']}: {fields['message']}"
        )
        lines = shown.split("\n")
        assert lines[0] == head
        assert lines[1].removeprefix("    ") == text.split("\n")[fields["line"] - 1]
        assert lines[2].index("^") - 4 == fields["column"] - 1
        assert lines[3] == f"  hint: {fields['hint']}"
        assert len(lines) == 4


def test_every_code_has_a_file() -> None:
    sources = [p for folder in ("tl", "schedule") for p in (SOURCE / folder).rglob("*.py")]
    codes = {code for p in sources for code in re.findall(r'"(TL\d\d\d)"', p.read_text("utf-8"))}
    shown = {code for f in FILES for _, code, _, _ in EXPECTED.findall(f.read_text("utf-8").split("\n", 1)[0])}

    assert codes
    assert codes == shown


def test_every_kernel_of_a_file_is_checked() -> None:
    text = (Path(__file__).parent / "diagnostics" / "tl202_transpose_missing.tl").read_text("utf-8")
    twice = text + text.replace("# error", "# again")

    found = findings_of(twice)

    assert [d.code for d in found] == ["TL202", "TL202"]
    assert found[1].span.line == found[0].span.line + text.count("\n")


def test_every_bad_line_of_a_text_is_reported_and_the_rest_is_read() -> None:
    text = "Kernel a\nTyle BM = 3\nSize D\nCopy from nowhere\nfor i 0 : 3\n    Comput x\nGrid b = 0 : 1\n"

    program, found = parse_with_findings(text)

    assert [d.span.line for d in found] == [2, 4, 5, 6]
    assert len(program.kernels[0].body) == 2


def test_a_nearest_name_is_suggested() -> None:
    text = (Path(__file__).parent / "diagnostics" / "tl101_misspelt_name.tl").read_text("utf-8")

    assert findings_of(text)[0].hint == "did you mean 'block'?"


def test_columns_count_tabs_as_four_and_lines_as_the_parser_does() -> None:
    text = "Kernel a\u2028b\n\tSize $\n"

    found = findings_of(text)

    assert [d.span.line for d in found] == [1, 2]
    shown = found[1].render(text).split("\n")
    assert shown[2].index("^") == shown[1].index("$")

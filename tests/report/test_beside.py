"""TL beside C++: every line has a place, and stands beside what it became."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qimeng_attention.report.beside import MARK, Row, lines_of, pair
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import run

TL = "Kernel k\nSize B\nLet a = 1\nLet b = 2\nend\n"


def test_declarations_stand_beside_the_head_and_statements_beside_their_code() -> None:
    rows = pair(TL, "head\n{\n// tl:3 Let a = 1\nint a = 1;\n// tl:4 Let b = 2\nint b = 2;\n}\n")

    assert rows == [Row((1, 2), (1, 2)), Row((3,), (4,)), Row((4,), (6, 7)), Row((5,), ())]


def test_a_line_met_again_is_shown_again() -> None:
    rows = pair(TL, "// tl:3 Let a = 1\nx\n// tl:4 Let b = 2\ny\n// tl:3 Let a = 1\nz\n")

    assert rows[-2] == Row((3,), (6,), again=True)


def test_a_mark_of_another_program_stands_alone() -> None:
    assert pair(TL, "// tl:99 Wait\nx\n")[0] == Row((), (2,))


def test_nothing_beside_nothing() -> None:
    assert pair("", "") == []


@given(
    st.integers(0, 12), st.lists(st.one_of(st.integers(1, 14).map(lambda n: f"  // tl:{n} x"), st.sampled_from("ab")))
)
def test_every_line_is_in_a_row(count: int, source: list[str]) -> None:
    rows = pair("x\n" * count, "\n".join(source))

    first = [n for row in rows if not row.again for n in row.tl]
    assert first == list(range(1, count + 1))
    assert [n for row in rows for n in row.cpp] == [n for n, text in enumerate(source, 1) if not MARK.match(text)]


@pytest.mark.parametrize("target", ["A100", "H200"])
def test_a_translation_stands_beside_its_program(target: str) -> None:
    results = run(AttentionSpec.make(Hq=4, Dqk=64), target=target, until="cute", judge=False).results
    translation = results.translation
    assert translation is not None

    rows = pair(translation.scheduled, translation.source)

    tl = lines_of(translation.scheduled)
    beside = {n for row in rows if row.cpp for n in row.tl}
    plain = {n for n, line in enumerate(tl, 1) if line.strip().startswith(("Compute", "Copy", "Wait", "Reshape"))}
    assert plain <= beside, "each statement that computes, copies or waits stands beside its code"
    for row in rows:
        for number in row.cpp:
            assert not MARK.match(lines_of(translation.source)[number - 1])

"""The program in an answer, and everything that is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qimeng_attention.author.llm.answers import NoProgram, clean, program_of


def test_the_block_of_the_fence_counts_whatever_stands_around_it() -> None:
    assert program_of("words\n```python\nx\n```\n```tl\nKernel a\n```\nmore") == "Kernel a\n"
    assert program_of("```\nKernel a\n```") == "Kernel a\n"
    assert program_of("~~~tl\nKernel a\n~~~") == "Kernel a\n"
    assert program_of("```TL title\r\nKernel a\r\n```\r\n") == "Kernel a\n"


def test_a_draft_before_a_longer_last_block_is_passed_over() -> None:
    assert program_of("```tl\na\n```\n```tl\na\nb\n```") == "a\nb\n"


def test_a_block_that_never_ends_reaches_to_the_end() -> None:
    assert program_of("```tl\nKernel a\nSize B") == "Kernel a\nSize B\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no fenced block"),
        ("Kernel a", "no fenced block"),
        ("```cuda\nx\n```", "blocks fenced by cuda only"),
        ("```tl\na\nb\n```\n```tl\na\n```", "2 blocks"),
        ("```tl\n" + "x" * 100_001 + "\n```", "over 100000 characters"),
    ],
)
def test_other_answers_are_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(NoProgram, match=says):
        program_of(text)


def test_escapes_and_marks_of_direction_are_gone() -> None:
    assert program_of("```tl\nKernel a  # \x1b[31mred\x1b[0m \u202eback\x07\n```") == "Kernel a  # [31mred[0m back\n"


@given(st.text())
def test_any_text_gives_a_program_or_a_typed_refusal(text: str) -> None:
    try:
        program = program_of(text)
    except NoProgram:
        return
    assert program == clean(program)
    assert program.endswith("\n")

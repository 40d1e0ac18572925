"""Programs that a rewriting would change: refused at the choice, or rewritten so that they mean the same."""

from __future__ import annotations

import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import schedule
from qimeng_attention.tl.parser import parse
from schedule.small import MASKS, SIZES, differences, edit, run, run_text, scheduled_text

MACRO = "    Compute OnlineSoftmax S, O, m, l with scale * log2e\n"
WRITTEN_OUT = """    Compute max(m, RowMax(S)) and get m_new
    Compute where(m_new == -inf, 0, m_new) and get m_safe
    Compute exp2(m * (scale * log2e) - m_safe * (scale * log2e)) and get alpha
    Compute exp2(S * (scale * log2e) - m_safe * (scale * log2e)) and get new S
    Compute l * alpha + RowSum(S) and get new l
    Compute O * alpha and get new O
    Compute m_new and get new m
"""
SCALING = "    Compute O * alpha and get new O\n"
RESCALE = "rescale O under GEMM Q, K.T of the next tile"
PIPELINE = [
    "ring K stages 2, V stages 2",
    "roles producer (24 registers), consumer (2 along q, 240 registers)",
    "overlap GEMM P, V of the previous tile with the row statistics of this one",
    RESCALE,
]


def program(*changes: tuple[str, str]) -> str:
    return edit(MASKS["causal"], (MACRO, WRITTEN_OUT), *changes)


def behind(statement: str) -> tuple[str, str]:
    return SCALING, f"{SCALING}    {statement}\n"


@pytest.mark.parametrize(
    ("changes", "choices", "message"),
    [
        ([behind("Compute 0.5 + O and get new O")], PIPELINE, "needs O scaled"),
        ([behind("Compute RowMax(O) and get t")], PIPELINE, "needs O scaled"),
        ([(SCALING, SCALING.replace("*", "-"))], PIPELINE, "no loop starts GEMM"),
        ([], [*PIPELINE, RESCALE], "write this choice once"),
        ([], [*PIPELINE[:3], RESCALE.replace("Q, K.T", "P, V")], "no loop starts GEMM P, V"),
        ([("m * scale + ln(l)", "m")], ["threshold 8"], "would see the maximum"),
        ([behind("Compute S * alpha and get new S")], ["threshold 8"], "would see the maximum"),
        ([("exp2(m * (scale * log2e) - m_safe * (scale * log2e))", "exp2(m * 1 - m_safe * 1)")], ["threshold 8"],
         "would see the maximum"),
        ([], ["threshold 65"], "too large for bf16"),
        ([], ["threshold 8", "threshold 8"], "would see the maximum"),
    ],
)  # fmt: skip
def test_what_would_change_the_result_is_refused(
    changes: list[tuple[str, str]], choices: list[str], message: str
) -> None:
    text = scheduled_text(program(*changes), *choices)

    with pytest.raises(DiagnosticError, match=message) as caught:
        schedule(parse(text))

    (found,) = caught.value.diagnostics
    assert found.code == "TL603"
    assert text.splitlines()[found.span.line - 1].strip() == choices[-1]


@pytest.mark.parametrize("running", ["", " running"])
def test_a_factor_with_a_row_sum_keeps_it_whole(running: str) -> None:
    text = program(("Compute l * alpha + RowSum(S)", "Compute l * RowSum(S) + RowSum(S)"))
    made = schedule(parse(scheduled_text(text, f"sums per lane{running}")))

    for sizes in SIZES[::4]:
        assert differences(run_text(text, sizes), run(made, sizes), "reassociating") == []


def test_a_sum_that_begins_with_something_else_is_left_alone() -> None:
    text = program(("\nfor i", "\nCompute exp2(-m) and get new l\nfor i"))

    with pytest.raises(DiagnosticError, match="no loop keeps a running row sum"):
        schedule(parse(scheduled_text(text, "sums per lane")))


def test_a_threshold_and_a_share_of_exponentials_go_together() -> None:
    choices = ["threshold 2", "approximate exp2 1 of 2", "sums per lane running", *PIPELINE, "grid persistent"]
    made = schedule(parse(scheduled_text(program(), *choices)))

    for sizes in SIZES[::4]:
        assert differences(run_text(program(), sizes), run(made, sizes), "approximate") == []

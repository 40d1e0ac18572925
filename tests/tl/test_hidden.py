"""What hides columns from a sum: two masks behind each other, and `where` in the place of a Mask; and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.tl.checker import check_text

TEXT = (Path(__file__).parent / "diagnostics" / "tl302_loop_misses_a_tile.tl").read_text()
MASK = "    Compute Mask S where k < Sk\n"
SOFTMAX = "    Compute OnlineSoftmax S, O, m, l with scale * log2e\n"
WHOLE = TEXT.replace("0 : Sk // BN", "0 : ceildiv(Sk, BN)")
CAUSAL = TEXT.replace("0 : Sk // BN", "0 : ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)")
SEEN, IN = "k <= q + Sk - Sq", "k < Sk"


def codes(text: str) -> set[str]:
    try:
        check_text(text, target="A100")
    except DiagnosticError as error:
        return {d.code for d in error.diagnostics}
    return set()


def lines(*statements: str) -> str:
    return "".join(f"    {line}\n" for line in statements)


@pytest.mark.parametrize(
    "made",
    [
        f"where({IN}, S, -inf)",
        "where(k >= Sk, -inf, S)",
        f"where({IN}, where(k > 3, S, 0), -inf)",
        f"where(k > 3, where({IN}, S, 0), -inf)",
        f"2 * where({IN}, S, -inf)",
        f"where(not (k >= Sk), S, where({IN}, S, 0))",
    ],
)
def test_a_where_removes_what_lies_past_the_end(made: str) -> None:
    assert codes(WHOLE.replace(MASK, lines(f"Compute {made} and get new S"))) == set()


@pytest.mark.parametrize(
    "made",
    [
        "where(k >= Sk, S, -inf)",
        "where(k <= Sk, S, -inf)",
        "where(q < Sk, S, -inf)",
        f"S + where({IN}, S, -inf)",
        f"where(k > 3, where({IN}, S, 0), S)",
        "where(S > 0, S, 0)",
        f"where({IN}, S, S)",
        f"where({IN} or S > 0, S, 0)",
    ],
)
def test_a_where_that_keeps_it_does_not(made: str) -> None:
    assert codes(WHOLE.replace(MASK, lines(f"Compute {made} and get new S"))) == {"TL205"}


def test_a_where_within_a_reduction_counts_too() -> None:
    assert codes(WHOLE.replace(MASK, lines(f"Compute RowSum(where({IN}, S, 0)) and get r") + MASK)) == set()
    assert codes(WHOLE.replace(MASK, lines("Compute RowSum(where(k <= Sk, S, 0)) and get r") + MASK)) == {"TL205"}


@pytest.mark.parametrize(
    "masks",
    [
        (f"Compute Mask S where {SEEN} and {IN}",),
        (f"Compute Mask S where {SEEN}", f"Compute Mask S where {IN}"),
        (f"Compute Mask S where {IN}", f"Compute Mask S where {SEEN}"),
        (f"Compute Mask S where {IN}", f"Compute where({SEEN}, S, -inf) and get new S"),
        (f"Compute where({SEEN} and {IN}, S, -inf) and get new S",),
        ("Compute where(k > q + Sk - Sq or k >= Sk, -inf, S) and get new S",),
        (f"Compute where({SEEN}, S, -inf) and get new S", f"Compute where({IN}, S, -inf) and get new S"),
        ("if i >= 0", f"    Compute Mask S where {IN}", "if i >= 0", f"    Compute Mask S where {SEEN}"),
    ],
)
def test_what_one_mask_hides_stays_hidden_behind_the_next(masks: tuple[str, ...]) -> None:
    assert codes(CAUSAL.replace(MASK, lines(*masks))) == set()


@pytest.mark.parametrize(
    "masks",
    [
        (f"Compute Mask S where {IN}",),
        (f"Compute Mask S where {SEEN}", "Compute GEMM Q, K.T and get S", f"Compute Mask S where {IN}"),
        (f"Compute Mask S where {SEEN}", "Compute max(S, 0) and get new S", f"Compute Mask S where {IN}"),
        (f"Compute Mask S where {SEEN} else 1", f"Compute Mask S where {IN}"),
        (f"Compute Mask S where {SEEN} else 0", f"Compute Mask S where {IN}"),
        ("Compute Mask S where k <= q + 40 + Sk - Sq", f"Compute Mask S where {IN}"),
        ("if i >= 1", f"    Compute Mask S where {SEEN}", f"Compute Mask S where {IN}"),
        (f"Compute S + where({SEEN}, 1, 0) and get new S", f"Compute where({IN}, S, -inf) and get new S"),
        (f"Compute where({SEEN} and {IN}, S, 0) and get new S",),
        (f"Compute where({SEEN}, S, 0) and get W", "Compute S + W and get new S", f"Compute Mask S where {IN}"),
        (
            "Compute S * 1 and get T",
            f"Compute where({SEEN}, S, -inf) and get new S",
            f"Compute where({IN}, T, -inf) and get new S",
        ),
        (f"Compute where(S > 0 and {SEEN} and {IN}, S, -inf) and get new S", f"Compute Mask S where {IN}"),
    ],
)
def test_a_loop_that_skips_what_no_mask_hides_is_found(masks: tuple[str, ...]) -> None:
    assert codes(CAUSAL.replace(MASK, lines(*masks))) == {"TL302"}


def test_weights_of_0_hide_where_they_become_the_operand() -> None:
    bare = CAUSAL.replace(MASK, "")
    weights = ("Compute exp(S) and get new S", f"Compute where({SEEN} and {IN}, S, 0) and get new S")
    later = ("Compute S + 1 and get new S", f"Compute where({IN}, S, 0) and get new S")

    assert codes(bare.replace(SOFTMAX, lines(*weights))) == set()
    assert codes(bare.replace(SOFTMAX, lines(*weights, *later))) == {"TL302"}


def test_a_program_with_where_for_its_mask_goes_through_every_stage() -> None:
    from qimeng_attention.workflow.stages import Results, apply_schedule, check_code, find_target, to_cute

    masks = (f"Compute Mask S where {SEEN}", f"Compute where({IN}, S, -inf) and get new S")
    text = CAUSAL.split("\n", 1)[1].replace(MASK, lines(*masks))
    schedule = (
        "\nSchedule\n    ring K stages 1, V stages 1\n    prefetch K 1 ahead, V 0 ahead\n    copies async\n"
        "    guard Mask of loop i where it is all true\n    warps 4 along q\n"
    )
    found = Results(*find_target("A100"), code=text + schedule)
    found = to_cute(apply_schedule(check_code(found)))
    assert found.translations

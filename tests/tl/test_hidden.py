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


GATED = WHOLE.replace("Allocate Out in", "Allocate Gate in global (B, Sk, H) f32\nAllocate Out in")
READ_GATE = (
    "Allocate Dim in register (BN k) f32",
    "Copy Gate (BN) in coordinate [batch, k = i * BN, head] from global to register Dim",
)
WEIGHTS = ("Compute max(m, RowMax(S)) and get m_new", "Compute exp2(S - m_new) and get new S")


def gated(gate: str, product: str = "S * G") -> str:
    """Write a program whose weights are multiplied by a vector over the keys."""
    body = (f"Compute Mask S where {SEEN} and {IN}", *WEIGHTS, *READ_GATE, f"Compute {gate} and get G")
    return GATED.replace(MASK + SOFTMAX, lines(*body, f"Compute {product} and get new S"))


def test_a_where_hides_the_end_of_a_vector_over_the_keys() -> None:
    assert codes(gated(f"where({IN}, sigmoid(Dim), 0)")) == set()
    assert codes(gated(f"where({IN}, sigmoid(Dim), 0)", "G * S")) == set()
    assert codes(gated("sigmoid(Dim)", f"where({IN}, S * G, 0)")) == set()


@pytest.mark.parametrize(
    "gate",
    ["sigmoid(Dim)", "where(k <= Sk, sigmoid(Dim), 0)", "where(k >= Sk, sigmoid(Dim), 0)", "where(k > 3, Dim, 0)"],
)
def test_a_vector_that_keeps_the_end_does_not_pass(gate: str) -> None:
    assert codes(gated(gate)) == {"TL205"}


def hint(text: str) -> str:
    with pytest.raises(DiagnosticError) as caught:
        check_text(text, target="A100")
    return next(d.hint for d in caught.value.diagnostics if d.code == "TL205")


def test_the_hint_for_a_product_hides_the_product() -> None:
    whole = f"where({IN}, S * G, 0)"

    assert hint(gated("sigmoid(Dim)")) == f"hide the product itself: Compute {whole} and get new S"
    assert codes(gated("sigmoid(Dim)", whole)) == set()  # what it says works
    assert hint(WHOLE.replace(MASK, "")) == f"add `{IN}` to a Mask above this line"
    masked_wrong = lines("Compute S * scale and get new S", "Compute Mask S where k <= Sk else 0")
    assert hint(WHOLE.replace(MASK + SOFTMAX, masked_wrong)) == f"add `{IN}` to a Mask above this line"


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


PARITY = "(q + Sk - Sq - k) % 2 == 0"
TWICE = "Compute 2 * W - S and get new S"


@pytest.mark.parametrize(
    "weights",
    [
        WEIGHTS,
        (SOFTMAX.strip(),),
        ("Compute exp2(scale * S * 2) and get new S",),
        ("Compute exp(S) and get new S",),
    ],
)
def test_a_copy_of_a_masked_tile_is_hidden_by_its_mask(weights: tuple[str, ...]) -> None:
    masked = (f"Compute Mask S where {SEEN} and {IN}", *weights, "Compute S and get W")
    text = CAUSAL.replace(MASK + SOFTMAX, lines(*masked, f"Compute Mask W where {PARITY} else 0", TWICE))

    assert codes(text) == set()


def test_a_copy_keeps_the_fill_where_nothing_computes_between() -> None:
    masked = (f"Compute Mask S where {SEEN} and {IN}", "Compute S and get W", f"Compute Mask W where {PARITY}")

    assert codes(CAUSAL.replace(MASK, lines(*masked, "Compute W and get new S"))) == set()


@pytest.mark.parametrize("product", ["S * G", "G * S", "2 * (S * G)"])
def test_a_product_of_hidden_weights_is_hidden(product: str) -> None:
    text = gated("sigmoid(Dim)", product)
    causal = text.replace(
        "for i = 0 : ceildiv(Sk, BN)", "for i = 0 : ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)"
    )
    assert causal != text
    again = causal.replace("    Reshape S", f"    Compute Mask S where {IN} else 0\n    Reshape S")

    assert codes(again) == set()
    assert codes(again.replace(product + " and get", "S + G and get")) == {"TL302"}  # a sum of it is not


@pytest.mark.parametrize(
    ("mask", "between"),
    [
        (IN, (*WEIGHTS, "Compute S and get W")),  # no mask hides what the loop skips
        ("k <= q + 40 + Sk - Sq and k < Sk", (*WEIGHTS, "Compute S and get W")),
        (f"{SEEN} and {IN}", (*WEIGHTS, "Compute S + 1 and get W")),
        (f"{SEEN} and {IN}", (*WEIGHTS, "Compute S and get W", "Compute W + 1 and get new W")),
        (f"{SEEN} and {IN}", ("Compute max(S, 1) and get new S", "Compute S and get W")),
        (f"{SEEN} and {IN}", ("Compute exp2(-S) and get new S", "Compute S and get W")),
        (f"{SEEN} and {IN}", ("Compute exp2(S * -1) and get new S", "Compute S and get W")),
        (f"{SEEN} and {IN}", ("Compute exp2(S * m) and get new S", "Compute S and get W")),  # m may be negative
        (f"{SEEN} and {IN}", ("Compute exp2(1 - S) and get new S", "Compute S and get W")),
        (f"{SEEN} and {IN}", ("Compute exp2(S - S) and get new S", "Compute S and get W")),
        (f"{SEEN} and {IN}", ("Compute S and get W",)),  # a 0 among scores of -inf is none
        (f"{SEEN} and {IN} else 1", (*WEIGHTS, "Compute S and get W")),
    ],
)
def test_a_tile_that_is_no_copy_of_what_is_hidden_is_not(mask: str, between: tuple[str, ...]) -> None:
    body = (f"Compute Mask S where {mask}", *between, f"Compute Mask W where {PARITY} else 0", TWICE)

    assert codes(CAUSAL.replace(MASK + SOFTMAX, lines(*body))) == {"TL302"}


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

"""`carry`: where the two halves of a copy stand, what it does not fit, and that a fault in its result is found."""

from __future__ import annotations

import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import schedule, steps
from qimeng_attention.tl.checker import check_with_findings
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from schedule.small import MASKS, SIZES, differences, edit, run, run_text, scheduled_text, text_of

CARRY = "carry K, V through register"
AHEAD = ["prefetch K 1 ahead", CARRY, "warps 2 along q"]
K = "    Copy K (BN, D) in coordinate [batch, k = i * BN, head_k] from global to shared\n"


def made(*choices: str, text: str = MASKS["full"]) -> str:
    return print_program(schedule(parse(scheduled_text(text, *choices))))


def lines(text: str) -> list[str]:
    return [line.split("  #")[0].strip() for line in text.splitlines()]


def codes(text: str) -> set[str]:
    return {d.code for d in check_with_findings(parse(text))[1] if d.severity == "error"}


def test_a_tile_is_on_its_way_while_the_first_product_runs() -> None:
    found = lines(made(*AHEAD))
    product, written = (
        found.index("Compute GEMM Q, K.T at [k = i * BN] and get S"),
        "Copy K_next from register to shared K",
    )

    read = next(i for i, line in enumerate(found) if line.endswith("to register K_next"))
    assert read < product < found.index("Barrier", product) < found.index(written)
    assert found[read - 1] == found[found.index(written) - 1] == "if i + 1 < last"
    assert found.index("Copy V_next from register to shared V") > found.index(written)


def test_the_reading_stands_behind_what_its_coordinate_is_made_of() -> None:
    text = edit(MASKS["full"], (K, "    Let place = i * BN\n" + K.replace("i * BN", "place")))
    found = lines(made(CARRY, text=text))

    assert found.index("Let place = i * BN") < next(i for i, x in enumerate(found) if x.endswith("register K_next"))
    for sizes in SIZES:
        assert differences(run_text(text, sizes), run(parse(made(CARRY, text=text)), sizes), "exact") == [], sizes


def test_every_loop_that_fills_the_tile_is_rewritten() -> None:
    text = made("split loop i where Mask is not all true", CARRY, text=MASKS["causal"])

    assert text.count("from register to shared K\n") == 2


@pytest.mark.parametrize(
    ("text", "choices", "message"),
    [
        (MASKS["full"], ["copies async", CARRY], "copied asynchronously"),
        (
            MASKS["full"],
            ["roles producer (24 registers), consumer (2 along q, 240 registers)", CARRY],
            "a role that copies",
        ),
        (edit(MASKS["full"], (K, K + K)), [CARRY], "not copied once an iteration"),
        (
            edit(MASKS["full"], (K, "    if i > 0\n        if i > 0\n        " + K + K)),
            [CARRY],
            "not copied once an iteration",
        ),
    ],
)
def test_what_it_does_not_fit_is_refused_with_the_reason(text: str, choices: list[str], message: str) -> None:
    with pytest.raises(DiagnosticError, match=message) as caught:
        list(steps(parse(scheduled_text(text, *choices))))

    assert [d.code for d in caught.value.diagnostics] == ["TL603"]


def test_an_8_bit_tile_is_not_carried() -> None:
    with pytest.raises(DiagnosticError, match="no 16-bit matrix"):
        schedule(
            parse(
                text_of("fp8").split("\nSchedule")[0]
                + "\nSchedule\n    carry K through register\n    warps 8 along q\n"
            )
        )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("        Copy K_next from register to shared K", {"TL407"}),
        ("    Barrier", {"TL403", "TL404"}),
        ("    Copy V_next from register to shared V", {"TL204"}),
    ],
)
def test_a_lost_line_is_found(line: str, code: set[str]) -> None:
    text = made(*AHEAD)
    for n, found in enumerate(text.split("\n")):
        if found.split("  #")[0] == line:
            rest = text.split("\n")
            del rest[n - 1 if rest[n - 1].strip() == "if i + 1 < last" else n : n + 1]

            assert codes("\n".join(rest)) & code, (line, codes("\n".join(rest)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    Compute GEMM Q, K.T", "    Compute K_next * 2 and get x\n    Compute GEMM Q, K.T"),
        ("GEMM Q, K.T at [k = i * BN]", "GEMM V_next, K.T at [k = i * BN]"),
        ("    Compute GEMM Q, K.T", "    Copy K from shared to register K_next\n    Compute GEMM Q, K.T"),
        ("    Compute GEMM Q, K.T", "    Compute Mask K_next where k < Sk\n    Compute GEMM Q, K.T"),
    ],
)
def test_only_copies_move_a_tile_in_pieces(old: str, new: str) -> None:
    assert "TL207" in codes(edit(made(*AHEAD), (old, new)))


@pytest.mark.parametrize("changed", ["(BN k, D) bf16 contiguous k", "(BN k, D) f32 contiguous D"])
def test_pieces_are_of_16_bit_rows(changed: str) -> None:
    assert "TL503" in codes(edit(made(*AHEAD), ("(BN k, D) bf16 contiguous D", changed)))


def test_tiles_on_their_way_count_among_the_registers() -> None:
    text = edit(text_of("gqa_causal").split("\nSchedule")[0], ("BN = 64", "BN = 96"))
    narrow = text + "\nSchedule\n    prefetch K 1 ahead\n    warps 4 along q\n"
    schedule(parse(narrow))

    with pytest.raises(DiagnosticError) as caught:
        schedule(parse(narrow + f"    {CARRY}\n"))

    assert [d.code for d in caught.value.diagnostics] == ["TL502"]

"""Programs that do not fit a spec, and kernels that run one after another."""

from __future__ import annotations

import pytest

from judge.programs import CODE, SHORT, edit
from qimeng_attention.errors import JudgeError
from qimeng_attention.judge import judge_program
from qimeng_attention.judge.candidate import digest_of, tiles_of
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text

SPEC = AttentionSpec.make(Hq=4, Hk=2, Dqk=64, mask="causal")
V_PLACE = "Copy V (BN, D) in coordinate [batch, k = i * BN, head // (Hq // Hk)]"
HEAD_FIRST = (
    ("Allocate V in global (B, Sk, Hk, D)", "Allocate V in global (B, Hk, Sk, D)"),
    (V_PLACE, "Copy V (BN, D) in coordinate [batch, head // (Hq // Hk), k = i * BN]"),
)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            (("in global (B, Sq, Hq, D) bf16\nAllocate Lse", "in global (B, Sq, Hq, D) fp16\nAllocate Lse"),),
            "Out is fp16",
        ),
        ((("Size D = 64", "Size D = 32"),), "with the spec's sizes"),
        ((("Size B, Sq, Sk, Hq, Hk", "Size B, Sq, Sk, Hk\nSize Hq = 8"),), "fixes Hq = 8, the spec asks for 4"),
        ((("Size B, Sq, Sk, Hq, Hk", "Size B, Sk, Hq, Hk\nSize Sq = 64"),), "fixes Sq = 64, the spec asks for any"),
        ((("Scalar scale f32 > 0", "Scalar scale f32 > 0\nScalar cap f32 > 0"),), "Scalar cap is no argument"),
        (HEAD_FIRST, "V is not declared as (B, Sk, Hk, Dv)"),
    ],
)
def test_a_program_that_does_not_fit_is_a_judge_error(changes: tuple[tuple[str, str], ...], says: str) -> None:
    with pytest.raises(JudgeError) as caught:
        judge_program(check_text(edit(CODE, *changes), model=False)[0], SPEC)

    assert says in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Out", "Result", "no output Out"),
        ("Lse", "LogSum", "no output Lse"),
        ("Q", "Query", "input Query is no tensor"),
    ],
)
def test_a_role_under_another_name_is_a_judge_error(old: str, new: str, says: str) -> None:
    with pytest.raises(JudgeError) as caught:
        judge_program(check_text(CODE.replace(old, new), model=False)[0], SPEC)

    assert says in caught.value.message


def test_a_program_that_takes_no_scale_is_a_judge_error() -> None:
    text = CODE.replace("Scalar scale f32 > 0\n", "").replace("scale", "0.125")

    with pytest.raises(JudgeError, match="takes no Scalar scale"):
        judge_program(check_text(text)[0], SPEC)


def test_an_output_that_nobody_asks_for_may_be_missing() -> None:
    text = CODE[: CODE.index("Compute where(l == 0, -inf")].replace("Allocate Lse in global (B, Hq, Sq) f32\n", "")
    checked = check_text(text)[0]

    assert judge_program(checked, SPEC.model_copy(update={"outputs": ("O",)}), budget=SHORT).accepted
    with pytest.raises(JudgeError, match="no output Lse"):
        judge_program(checked, SPEC)


def test_kernels_run_in_order_and_read_each_others_outputs() -> None:
    first = CODE.replace("Out", "Part")
    second = """Kernel negate_twice for a100
Size B, Sq, Hq
Size D = 64
Tile BM = 64
Grid block = 0 : ceildiv(Sq, BM), head = 0 : Hq, batch = 0 : B
Allocate Part in global (B, Sq, Hq, D) bf16
Allocate Out in global (B, Sq, Hq, D) bf16
Copy Part (BM, D) in coordinate [batch, q = block * BM, head] from global to register
Compute Part * FACTOR and get X
Copy X (BM, D) in coordinate [batch, q = block * BM, head] from register to global Out
"""
    for factor, verdict in (("1", "accepted"), ("1.02", "rejected")):
        kernels = [check_text(t)[0] for t in (first, second.replace("FACTOR", factor))]

        assert judge_program(kernels, SPEC, budget=SHORT).verdict == verdict


def test_the_digest_is_of_the_text_and_the_tiles_are_read_from_it() -> None:
    plain, other = (check_text(t) for t in (CODE, CODE.replace("BN = 32", "BN = 64")))

    assert digest_of(plain) == digest_of(check_text(CODE))
    assert digest_of(plain) != digest_of(other)
    assert (tiles_of(plain), tiles_of(other)) == ((64, 32), (64, 64))

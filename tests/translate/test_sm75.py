"""The compiler for sm_75's instructions: products in two steps, copies through registers, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.targets.atoms import MMA_ATOMS
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.tl.statements import TABLE
from qimeng_attention.translate import Translation, sm75, translate

PROGRAMS = Path(__file__).parents[2] / "docs" / "design" / "programs"
OF_OTHER_GENERATIONS = {"role", "Release", "Pass", "Fence", "Commit", "Wait", "Apply"}  # Apply is written out before


def _planned(target: str = "T4", **fields: object) -> str:
    return plan(AttentionSpec.make(**{"dtype": "fp16", "Hq": 8, "Hk": 2, **fields}), targets.get(target)).code


def _scheduled(text: str) -> str:
    return print_program(schedule(parse(text)))


def _translated(text: str) -> Translation:
    return translate(schedule(parse(text)))[0]


def test_each_statement_has_a_lowering_or_is_refused_by_name() -> None:
    assert {rule.name for rule in TABLE.values()} == set(sm75.LOWERINGS) | OF_OTHER_GENERATIONS


def test_a_causal_kernel_is_the_one_a_person_reviewed(golden) -> None:
    golden("causal_t4.cu", _translated(_planned(mask="causal", Dqk=64)).source)


def test_two_fragments_of_m16n8k8_side_by_side_are_one_of_m16n8k16() -> None:
    """What lets both generations share a fragment: the first half of a lane's values is of inner index 0 to 7."""
    (shallow,) = [a for a in MMA_ATOMS if a.name == "m16n8k8 fp16"]
    (deep,) = [a for a in MMA_ATOMS if a.name == "m16n8k16 fp16"]

    for ours, whole in ((shallow.a, deep.a), (shallow.b, deep.b)):
        assert ours is not None
        assert whole is not None
        for lane in range(32):
            for value in range(whole.value_count):
                half, within = divmod(value, ours.value_count)
                row, column = ours.at(lane, within)
                assert whole.at(lane, value) == (row, column + 8 * half)
    assert shallow.c == deep.c


def test_products_are_of_depth_8_and_copies_pass_through_registers() -> None:
    source = _translated(_planned(mask="causal")).source

    products = re.findall(r"tl::gemm_\w+<([^>]*)>", source)
    assert len(products) == 2
    assert all(flags.endswith("tl::Depth8") for flags in products)
    assert source.count("tl::load_pieces(") == source.count("tl::store_pieces(") == 2
    assert '#include "sm75.cuh"' in source
    assert not re.search(r"async|commit|wait", source)


@pytest.mark.parametrize("target", ["T4", "RTX8000"])
@pytest.mark.parametrize(
    "fields",
    [
        {"mask": "full", "Dqk": 64},
        {"mask": "window:300", "Dqk": 128},
        {"mask": "causal", "softcap": 30.0, "Hk": 1},
        {"mask": "causal", "score": "score - exp2(-8 * (h + 1) / Hq) * (q_idx + Sk - Sq - kv_idx)"},
        {"mask": "kv_idx < 2048 or kv_idx <= q_idx + Sk - Sq"},
        {"mask": "causal", "Dqk": 192, "Dv": 128},
        {"mask": "causal", "Dqk": 256, "B": 2, "Sq": 1000, "Sk": 1000, "outputs": ["O"]},
        {"mask": "full", "scale_sign": "any", "Dqk": 64},
        {"mask": "(q_idx + Sk - Sq) // 64 >= kv_idx // 64", "Dqk": 64},
    ],
    ids=lambda f: ",".join(f"{k}={v}" for k, v in f.items())[:60] if isinstance(f, dict) else f,
)
def test_every_mask_and_score_is_translated(target: str, fields: dict[str, object]) -> None:
    made = _translated(_planned(target, **fields))

    assert made.target.name == target
    assert made.source.count("{") == made.source.count("}")
    assert made.shared_bytes <= 64 * 1024


def test_an_asynchronous_copy_is_refused_by_name() -> None:
    text = _planned(mask="causal")
    alone = re.sub(r"    carry.*\n", "", text)
    line = "    Copy V (BN, D) in coordinate [batch, k = i * BN, head_k] from global to shared"
    assert line in _scheduled(alone)

    with pytest.raises(DiagnosticError) as by_choice:
        _scheduled(alone.replace("copies sync", "copies async"))
    with pytest.raises(DiagnosticError) as by_hand:
        check_text(_scheduled(alone).replace(line, f"{line} async\n    Commit\n    Wait copies pending 0"))

    for caught in (by_choice, by_hand):
        found = {(d.code, d.message) for d in caught.value.diagnostics}
        assert ("TL504", "T4 has no asynchronous copy") in found


@pytest.mark.parametrize("statement", ["Commit", "Wait copies pending 0"])
def test_what_belongs_to_asynchronous_copies_is_refused_by_name(statement: str) -> None:
    text = _scheduled(_planned(mask="causal")).replace("    Barrier\n", f"    {statement}\n    Barrier\n", 1)

    with pytest.raises(DiagnosticError) as caught:
        translate(parse(text))

    word = statement.split()[0]
    assert [(d.code, d.message) for d in caught.value.diagnostics] == [
        ("TL701", f"sm_75 has no lowering of `{word}` here")
    ]


def test_a_program_of_roles_is_refused() -> None:
    text = (PROGRAMS / "gqa_h200_scheduled.tl").read_text().replace("for h200", "for t4").replace("bf16", "fp16")

    with pytest.raises(DiagnosticError) as caught:
        translate(parse(text))

    assert {"TL504"} <= {d.code for d in caught.value.diagnostics}


def test_a_later_generation_may_carry_tiles_too() -> None:
    made = _translated(_planned(mask="causal").replace("for t4", "for a100"))

    assert "tl::load_pieces(" in made.source
    assert "Depth8" not in made.source
    assert '#include "memory.cuh"' in made.source


def test_a_tile_is_carried_in_its_own_type() -> None:
    text = _scheduled(_planned(mask="causal", Dqk=64).replace("for t4", "for a100"))
    text = text.replace("Allocate V in shared (BN k, D) fp16", "Allocate V in shared (BN k, D) bf16")
    text = text.replace(" as fp16 and get P", " as bf16 and get P")

    with pytest.raises(DiagnosticError) as caught:
        translate(parse(text))

    assert [(d.code, d.hint) for d in caught.value.diagnostics] == [("TL701", "carry the tile in its own type")]

"""What the planner writes for targets without asynchronous copies: it fits, it is right, and bf16 is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.author.planner.model import carries, tilings
from qimeng_attention.errors import SpecError
from qimeng_attention.judge import judge_program
from qimeng_attention.judge.inputs import CPU
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check
from qimeng_attention.tl.parser import parse

TURING = [targets.get("T4"), targets.get("RTX8000")]
by_target = pytest.mark.parametrize("target", TURING, ids=lambda t: t.name)


@by_target
@pytest.mark.parametrize("d", [64, 128, 192, 256])
def test_every_tiling_fits_with_the_tiles_on_their_way(target: targets.Target, d: int) -> None:
    found = tilings(target, d, d, 1)

    assert found
    for t in found:
        threads = 32 * t.warps
        assert t.shared_bytes <= target.shared_per_block_bytes
        assert t.blocks * t.shared_bytes <= target.shared_per_sm_bytes
        assert t.blocks * threads <= target.max_threads_per_sm
        held = (t.rows * (t.columns + d) + t.columns * d) // threads  # S and O, and K and V in halves of a register
        assert held < t.registers <= target.max_registers_per_thread


def test_only_targets_without_asynchronous_copies_carry() -> None:
    assert {n for n in targets.names() if carries(targets.get(n))} == {t.name for t in TURING}


@by_target
def test_bf16_is_refused_with_the_type_there_is(target: targets.Target) -> None:
    with pytest.raises(SpecError, match=f"{target.name} has no bf16") as caught:
        plan(AttentionSpec.make(Hq=4, dtype="bf16"), target)

    assert caught.value.hint == "take one of fp16"
    assert caught.value.details["allowed"] == ["fp16"]


@by_target
def test_the_reasons_say_why_and_that_speeds_are_predictions(target: targets.Target) -> None:
    made = plan(AttentionSpec.make(Hq=4, dtype="fp16"), target)
    reasons = {r.parameter: r for r in made.reasons}

    assert "no asynchronous copy" in reasons["carry"].why
    assert "carry K, V through register" in made.code
    assert reasons["tile"].figures["kind"] == "prediction"


@pytest.mark.parametrize("heads", [(2, 2), (2, 1)], ids=["MHA", "GQA"])
@pytest.mark.parametrize(
    "asked", [{"mask": "full"}, {"mask": "causal"}, {"mask": "window:40"}, {"softcap": 5.0}], ids=str
)
def test_scheduled_programs_pass_the_judge(asked: dict[str, object], heads: tuple[int, int]) -> None:
    spec = AttentionSpec.make(Hq=heads[0], Hk=heads[1], Dqk=64, dtype="fp16", **asked)
    program = schedule(parse(plan(spec, TURING[0]).code))

    verdict = judge_program(check(program), spec, seed=5, budget=replace(CPU, keys=2_000))

    assert verdict.accepted, verdict.reason

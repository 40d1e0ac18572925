"""Head dims in the planner: which are taken, how wide their tiles are, what they cost, and what a refusal says."""

from __future__ import annotations

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.author.planner.groups import group_tilings
from qimeng_attention.author.planner.model import tilings
from qimeng_attention.author.planner.widths import HEAD_DIMS, padded, row_elements
from qimeng_attention.errors import SpecError
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text

PAIRS = [(192, 128), (64, 128), (96, 32), (40, 256), (256, 40), (136, 72)]


def planned(target: str, dqk: int, dv: int = 0, **fields: object) -> str:
    spec = AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": dqk, "Dv": dv or dqk, "mask": "causal", **fields})
    return plan(spec, targets.get(target)).code


@pytest.mark.parametrize("target", ["A100", "L40S", "H200"])
def test_every_head_dim_is_planned_and_checked(target: str) -> None:
    for dqk, dv in [*((d, d) for d in HEAD_DIMS), *PAIRS]:
        checked = check_text(planned(target, dqk, dv), model=False)[0]

        assert checked.tiles["O"].axes[1].size == padded(dv)


@pytest.mark.parametrize(("dim", "shown"), [(4, 32), (24, 32), (36, 40), (100, 104), (250, 256), (264, 256)])
@pytest.mark.parametrize("field", ["Dqk", "Dv"])
def test_other_head_dims_are_refused_with_the_nearest_ones(field: str, dim: int, shown: int) -> None:
    with pytest.raises(SpecError) as caught:
        plan(AttentionSpec.make(**{"Dqk": 64, "Dv": 64, field: dim}), targets.get("A100"))

    assert caught.value.details["nearest"] == shown
    assert caught.value.details["allowed"] == list(range(32, 257, 8))
    assert str(shown) in caught.value.hint
    assert caught.value.hint.count(" or ") == (32 < dim < 256)


def test_a_tile_is_wider_only_where_the_head_dim_is_no_whole_step() -> None:
    whole, wider = planned("A100", 48), planned("A100", 40)

    assert "BD" not in whole
    assert "Tile BD = 48  # D in whole MMA steps of 16; the tile holds 0 from column 40 on" in wider
    assert "Copy K (BN, BD) in coordinate [batch, k = i * BN, head_k, d = 0]" in wider
    assert "Allocate K in global (B, Sk, Hk, D) bf16" in wider
    assert "Allocate O in register (BM q, BD d) f32 = 0" in wider


def test_each_of_two_head_dims_has_its_own_tile() -> None:
    code = planned("A100", 136, 128)

    assert "Tile BDqk = 144" in code
    assert "BDv" not in code
    assert "Copy V (BN, Dv) in coordinate [batch, k = i * BN, head_k] from" in code


def test_the_width_is_among_the_reasons() -> None:
    made = plan(AttentionSpec.make(Dqk=40), targets.get("A100"))

    (reason,) = [r for r in made.reasons if r.parameter == "BD"]
    assert (reason.value, reason.figures) == ("48", {"columns": 40, "padding": 8})


@pytest.mark.parametrize("model", [tilings, group_tilings])
def test_costs_are_those_of_the_tile(model) -> None:
    target = targets.get("H200")

    assert model(target, 40, 40, 1) == model(target, 48, 48, 1)
    assert model(target, 88, 88, 1) == model(target, 96, 96, 1)
    assert model(target, 80, 80, 1)[0].clocks_a_key < model(target, 96, 96, 1)[0].clocks_a_key


def test_rows_in_shared_memory_take_whole_pieces() -> None:
    found = {d: row_elements(d) for d in (32, 40, 64, 72, 96, 104, 136, 160, 192, 200, 256)}

    assert found == {
        32: 32, 40: 64, 64: 64, 72: 96, 96: 96, 104: 128, 136: 160, 160: 160, 192: 192, 200: 224, 256: 256,
    }  # fmt: skip


@pytest.mark.parametrize("target", ["H100", "H200"])
def test_queries_and_keys_of_192_with_values_of_128_fill_the_memory_of_a_hopper_gpu(target: str) -> None:
    gpu = targets.get(target)
    best = group_tilings(gpu, 192, 128, 1)[0]

    assert (best.rows, best.columns, best.staged, best.ahead) == (128, 128, False, False)
    assert 200 * 1024 < best.shared_bytes <= gpu.shared_per_block_bytes
    assert best.instances * best.tensor > 0.95 * best.clocks


def test_of_tiles_that_cost_the_same_one_with_registers_to_spare_is_taken() -> None:
    first, *others = tilings(targets.get("A100"), 96, 96, 1)

    assert (first.columns, first.crowded) == (64, False)
    assert any(t.clocks == first.clocks * t.columns / first.columns and t.crowded for t in others)


def test_queries_and_keys_of_192_with_values_of_128_leave_room_for_two_blocks_on_an_a100() -> None:
    best = tilings(targets.get("A100"), 192, 128, 1)[0]

    assert (best.rows, best.blocks, best.bound) == (128, 2, "tensor cores")

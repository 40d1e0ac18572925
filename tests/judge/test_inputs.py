"""The battery: which cases there are, where their values come from, and whether they are strong enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from judge.programs import SHORT, with_mask
from qimeng_attention.judge import CPU, GPU, Operator, cases, judge_program
from qimeng_attention.judge.families import FAMILIES
from qimeng_attention.judge.inputs import LAYOUTS, draw_seed, values
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.numerics import round_to

TILES = (128, 64)


def spec(**fields: object) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 32, "Hk": 4, "mask": "causal", **fields})


def test_the_short_battery_has_every_kind_of_length_and_value() -> None:
    found = cases(spec(softcap=30), TILES, CPU)

    calls = [c.call for c in found]
    assert {c.family for c in found} == set(FAMILIES)
    assert {c.layout for c in found} == set(LAYOUTS)
    assert {0, 1, 127, 128, 129} <= {c.Sq for c in calls}
    assert {0, 1, 63, 64, 65, 128, 129} <= {c.Sk for c in calls}
    assert any(c.Sq > c.Sk > 0 for c in calls)
    assert any(0 < c.Sq < c.Sk for c in calls)
    assert any((c.Hq, c.Hk) == (32, 4) for c in calls)
    assert any(c.scale != spec().default_scale for c in calls)
    assert len({c.name for c in found}) == len(found)


def test_the_long_battery_is_stratified_over_lengths_and_families() -> None:
    found = cases(spec(), TILES, GPU)

    assert len({(c.call.Sq, c.call.Sk) for c in found}) >= 50
    assert {c.family for c in found} == set(FAMILIES) - {"saturating"}
    assert all((c.call.Hq, c.call.Hk) == (32, 4) for c in found)
    assert max(c.call.Sk for c in found) > 32_768


def test_lengths_that_the_spec_fixes_are_kept() -> None:
    found = cases(spec(B=3, Sq=1, Sk=777), TILES, CPU)

    assert {(c.call.B, c.call.Sq, c.call.Sk) for c in found} == {(3, 1, 777)}


@pytest.mark.parametrize(
    "mask", ["window:3000", "window:3000,5", "q_idx // 700 == kv_idx // 700", "kv_idx < 2048 or kv_idx <= q_idx"]
)
def test_lengths_go_beyond_the_numbers_in_the_mask(mask: str) -> None:
    asked = spec(mask=mask)
    operator = Operator.of(asked)

    seen = [
        operator.visible(c.call, 0, 0, np.arange(c.call.Sq), np.arange(c.call.Sk)) for c in cases(asked, TILES, CPU)
    ]

    assert any(not s.all() and s.any() and s.shape[1] > 700 for s in seen)


def test_values_come_from_the_digest_and_the_entropy() -> None:
    asked = spec()
    operator = Operator.of(asked)
    case = cases(asked, TILES, CPU)[1]

    first, again, other = (values(case, operator, "bf16", draw_seed(d, 1)) for d in ("a", "a", "b"))

    assert draw_seed("a", 1) != draw_seed("a", 2)
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert not any(np.array_equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_values_are_finite_values_of_the_type(family: str, dtype: str) -> None:
    asked = spec(softcap=30, scale_sign="any", dtype=dtype)
    for scale in (asked.default_scale, -0.02, 1.5, 1e-6):
        case = cases(asked, TILES, CPU)[1]
        case = replace(case, family=family, call=replace(case.call, scale=scale))

        found = values(case, Operator.of(asked), dtype, 3)

        for name, a in found.items():
            assert a.shape == case.call.shapes()[name]
            assert np.isfinite(a).all()
            assert np.array_equal(a, round_to(a, dtype))


def logits(family: str) -> np.ndarray:
    asked = spec(softcap=30)
    case = next(c for c in cases(asked, TILES, CPU) if c.family == family)
    x = values(case, Operator.of(asked), "bf16", 9)
    return case.call.scale * np.einsum("qd,kd->qk", x["Q"][0, :, 0], x["K"][0, :, 0])


def test_families_do_what_their_names_say() -> None:
    assert np.abs(logits("huge logits")).max() > 300
    assert np.all(np.abs(logits("logits near -120") + 120) < 15)
    assert np.all(np.abs(logits("logits near -60000") / 60000 + 1) < 0.05)
    assert np.allclose(logits("same keys"), logits("same keys")[:, :1], atol=1e-3)
    assert logits("saturating").std() > 30
    grown = logits("growing logits")
    assert np.all(grown[:, -1] > grown[:, 0] + 30)
    fallen = logits("falling logits")
    assert np.all(fallen[:, -1] < fallen[:, 0] - 30)
    assert np.all(np.sort(logits("needles"), axis=1)[:, -1] > np.sort(logits("needles"), axis=1)[:, -2] + 15)


def test_needles_lie_in_every_tile() -> None:
    top = np.concatenate([logits("needles").argmax(axis=1)])

    assert {int(t) // 64 for t in top} == set(range((logits("needles").shape[1] + 63) // 64))


def test_layouts_hold_the_same_values_with_other_strides() -> None:
    asked = spec()
    case = next(c for c in cases(asked, TILES, CPU) if c.call.Sq > 1 and c.call.Hk > 1)
    plain, wide, turned = (values(replace(case, layout=name), Operator.of(asked), "bf16", 1)["Q"] for name in LAYOUTS)

    assert np.array_equal(plain, wide)
    assert np.array_equal(plain, turned)
    assert len({a.strides for a in (plain, wide, turned)}) == 3


def test_inputs_too_weak_for_a_clause_are_said_to_be() -> None:
    asked = AttentionSpec.make(Hq=2, Dqk=64, mask="window:700")
    checked = check_text(with_mask("k <= q + Sk - Sq and k >= q + Sk - Sq - 700 and k < Sk"))[0]

    weak = judge_program(checked, asked, budget=SHORT)
    strong = judge_program(checked, asked, budget=replace(CPU, keys=1000))

    assert weak.verdict == "inconclusive"
    assert "inputs too weak: no case shows the lack of mask: kv_idx >= q_idx + Sk - Sq - 700" in weak.reason
    assert strong.accepted


def test_a_program_without_the_clause_is_accepted_by_nobody() -> None:
    asked = AttentionSpec.make(Hq=2, Dqk=64, mask="window:700")
    lacking = check_text(with_mask("k <= q + Sk - Sq and k < Sk"))[0]

    assert judge_program(lacking, asked, budget=SHORT).verdict == "inconclusive"
    assert judge_program(lacking, asked, budget=replace(CPU, keys=1000)).verdict == "rejected"


def test_a_clause_that_the_others_imply_cannot_be_missed() -> None:
    asked = AttentionSpec.make(Hq=2, Dqk=64, mask="kv_idx <= q_idx + Sk - Sq and kv_idx < Sk and kv_idx >= 0")
    checked = check_text(with_mask("k <= q + Sk - Sq and k < Sk"))[0]

    verdict = judge_program(checked, asked, budget=SHORT)

    assert verdict.accepted
    assert [c.name for c in verdict.clauses if c.implied] == ["mask: kv_idx < Sk", "mask: kv_idx >= 0"]

"""FlexAttention's callables become specs; what cannot be traced is refused by its name. No PyTorch is needed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from integrations.stand_in import Tensor, stand_in
from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import SpecError
from qimeng_attention.integrations import flex
from qimeng_attention.integrations.flex import FlexOperator, spec_from_flex
from qimeng_attention.integrations.ranges import range_of
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.parser import parse_expression

SLOPES = Tensor(np.linspace(0.1, 0.8, 8), "float32")
DOC = Tensor(np.array([0, 0, 1, 1, 1, 2]), "int64")
SHIFTED = Tensor(np.array([-1, 0, 1]), "int32")
TABLE = Tensor(np.arange(12.0).reshape(3, 4), "bfloat16")
GATE = Tensor(np.array([True, False]), "bool")
PAIRS = Tensor(np.arange(8).reshape(2, 2, 2), "int32")
LEARNED = Tensor(np.array(0.25), "float32")


def score_of(f: Callable[..., Any]) -> str:
    return spec_from_flex(f, Hq=8, Dqk=64).spec.score


def mask_of(f: Callable[..., Any]) -> str:
    return spec_from_flex(mask_mod=f, Hq=8, Dqk=64).spec.mask


@pytest.mark.parametrize(
    ("mod", "text"),
    [
        (lambda s, b, h, q, k: s, "score"),
        (lambda s, b, h, q, k: s - (q - k) * 0.5, "score - (q_idx - kv_idx) * 0.5"),
        (lambda s, b, h, q, k: 2 * s + 1 / (1 + b), "2 * score + 1 / (1 + b)"),
        (lambda s, b, h, q, k: -s + (7 - h) % 4 // 2, "-score + (7 - h) % 4 // 2"),
        (lambda s, b, h, q, k: s * 2 ** -(h + 1), "score * exp2(-(h + 1))"),
        (lambda s, b, h, q, k: s**2 + (s * s) ** 0.5, "score * score + sqrt(score * score)"),
        (lambda s, b, h, q, k: 20 * stand_in.tanh(s / 20), "20 * tanh(score / 20)"),
        (lambda s, b, h, q, k: stand_in.minimum(s, stand_in.exp(s)), "min(score, exp(score))"),
        (lambda s, b, h, q, k: s.clamp(-3, 3), "clamp(score, -3, 3)"),
        (lambda s, b, h, q, k: stand_in.clamp(s, min=0), "max(score, 0)"),
        (lambda s, b, h, q, k: stand_in.log(stand_in.abs(s)), "ln(abs(score))"),
        (lambda s, b, h, q, k: stand_in.where(q == k, s, 0), "where(q_idx == kv_idx, score, 0)"),
        (lambda s, b, h, q, k: s * (q > k), "score * where(q_idx > kv_idx, 1, 0)"),
        (lambda s, b, h, q, k: s + SLOPES[h] * k.float(), "score + SLOPES[h] * kv_idx"),
        (lambda s, b, h, q, k: s + TABLE[h % 3][k % 4], "score + TABLE[h % 3, kv_idx % 4]"),
        (lambda s, b, h, q, k: s + TABLE[-1, stand_in.clamp(k - q, -1, 1) + 1],
         "score + TABLE[2, clamp(kv_idx - q_idx, -1, 1) + 1]"),
        (lambda s, b, h, q, k: s + LEARNED, "score + LEARNED[0]"),
        (lambda s, b, h, q, k: stand_in.masked_fill(s, k > 3, 0.0), "where(kv_idx > 3, 0.0, score)"),
        (lambda s, b, h, q, k: s + (q << 2) - (k >> 1), "score + q_idx * 4 - kv_idx // 2"),
        (lambda s, b, h, q, k: s + (q & 7) - (6 & k), "score + q_idx % 8 - kv_idx // 2 % 4 * 2"),
        (lambda s, b, h, q, k: s + sum(x * y for x, y in PAIRS[b]),
         "score + (PAIRS[b, 0, 0] * PAIRS[b, 0, 1] + PAIRS[b, 1, 0] * PAIRS[b, 1, 1])"),
        (lambda s, b, h, q, k: s + len(TABLE[h]), "score + 4"),
    ],
)  # fmt: skip
def test_a_score_modifier_becomes_an_expression(mod: Callable[..., Any], text: str) -> None:
    assert score_of(mod) == text


@pytest.mark.parametrize(
    ("mod", "text"),
    [
        (lambda b, h, q, k: q >= k, "q_idx >= kv_idx"),
        (lambda b, h, q, k: True, "full"),
        (lambda b, h, q, k: b.new_zeros((), dtype="bool"), "kv_idx < 0"),
        (lambda b, h, q, k: (q >= k) & (q - k < 9) | (k < 4), "q_idx >= kv_idx and q_idx - kv_idx < 9 or kv_idx < 4"),
        (lambda b, h, q, k: ~(q >= k) & b.new_ones((), dtype="bool"), "q_idx < kv_idx"),
        (lambda b, h, q, k: stand_in.logical_not(GATE[b]), "not GATE[b]"),
        (lambda b, h, q, k: (q >= k) ^ (h > 3), "q_idx >= kv_idx and h <= 3 or q_idx < kv_idx and h > 3"),
        (lambda b, h, q, k: (DOC[q] == DOC[k]) & (q >= k) & (DOC[q] == DOC[k]),
         "DOC[q_idx] == DOC[kv_idx] and q_idx >= kv_idx"),
        (lambda b, h, q, k: stand_in.where(h < 2, q >= k, k < 5), "h < 2 and q_idx >= kv_idx or h >= 2 and kv_idx < 5"),
        (lambda b, h, q, k: (q - k).abs() <= 3, "abs(q_idx - kv_idx) <= 3"),
    ],
)  # fmt: skip
def test_a_mask_becomes_a_condition(mod: Callable[..., Any], text: str) -> None:
    assert mask_of(mod) == text


def _decides(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return s if q > k else -s


def _adds_in_place(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    s += 1
    return s


def _writes(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    TABLE[h] *= 2
    return s


@pytest.mark.parametrize(
    ("mod", "message"),
    [
        (_decides, r"decides in Python .* by q_idx > kv_idx"),
        (lambda s, b, h, q, k: min(s, 0), "decides in Python"),
        (_adds_in_place, r"works in place \(\+=\)"),
        (lambda s, b, h, q, k: s.mul_(2), r"works in place \(mul_\)"),
        (lambda s, b, h, q, k: stand_in.add(s, 1, out=s), "works in place .*out="),
        (lambda s, b, h, q, k: stand_in.erf(s), "calls erf, which has no counterpart"),
        (lambda s, b, h, q, k: s.softmax(dim=0), "calls softmax, which has no counterpart"),
        (lambda s, b, h, q, k: stand_in.tanh(s, 1), "calls tanh with arguments"),
        (lambda s, b, h, q, k: s.max(), "reduces a score with max"),
        (lambda s, b, h, q, k: s * random.random(), "gives another expression each time"),
        (lambda s, b, h, q, k: s * float(q), "asks for the number of q_idx"),
        (lambda s, b, h, q, k: s + [1, 2][q], "asks for the number of q_idx"),
        (lambda s, b, h, q, k: s.item(), "asks for the number of score"),
        (lambda s, b, h, q, k: s + SLOPES, r"computes with a whole tensor of shape \(8,\)"),
        (lambda s, b, h, q, k: s + TABLE[h], r"uses TABLE\[h\] as a number"),
        (lambda s, b, h, q, k: s + SLOPES[h, q], r"indexes SLOPES\[h\] once too often|once too often"),
        (lambda s, b, h, q, k: s + TABLE[h, 1:][0], "takes a slice of a tensor"),
        (lambda s, b, h, q, k: s + SLOPES[h / 2], "indexes a tensor by h / 2, no integer"),
        (lambda s, b, h, q, k: s + s.to("int32"), "rounds a floating value to an integer"),
        (lambda s, b, h, q, k: s // 2, "computes // of a floating value"),
        (lambda s, b, h, q, k: s + q % -2, "computes % by a number that is not positive"),
        (lambda s, b, h, q, k: s + (q & 5), "combines the bits of numbers"),
        (lambda s, b, h, q, k: s ** q, "raises to a power"),
        (lambda s, b, h, q, k: s * float("nan"), "uses NaN"),
        (lambda s, b, h, q, k: s + "x", "computes with a str"),
        (lambda s, b, h, q, k: q > k, "gives the condition q_idx > kv_idx, expected a number"),
        (lambda s, b, h, q: s, "fails while it is traced: TypeError"),
        (lambda s, b, h, q, k: s + Tensor([1.0], "float64")[h % 1], "reads a tensor of stand_in.float64"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_refused_by_name(mod: Callable[..., Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"score_mod {message}") as caught:
        score_of(mod)

    assert caught.value.hint
    assert caught.value.details["field"] == "score_mod"


def test_a_mask_that_gives_a_number_is_refused() -> None:
    with pytest.raises(SpecError, match="mask_mod gives the number q_idx - kv_idx, expected a condition"):
        mask_of(lambda b, h, q, k: q - k)


def test_captured_tensors_come_with_their_names_and_types() -> None:
    bias, doc, gate = Tensor(np.zeros((2, 8)), "float16"), Tensor(np.zeros(6), "int32"), GATE

    traced = spec_from_flex(
        lambda s, b, h, q, k: s + bias[b, h] + LEARNED, lambda b, h, q, k: (doc[q] == doc[k]) & gate[b], Hq=8, Dqk=64
    )

    assert {n: t.describe() for n, t in traced.spec.tensors.items()} == {
        "bias": "(2, 8) fp16", "LEARNED": "(1) f32", "doc": "(6) i32", "gate": "(2) bool"
    }  # fmt: skip
    assert traced.tensors["bias"] is bias
    assert traced.tensors["LEARNED"].shape == (1,)


def test_names_that_a_spec_cannot_take_or_that_two_tensors_have_are_changed() -> None:
    def adder(q: Tensor) -> Callable[..., Any]:
        return lambda s, b, h, x, k: s + q[h]

    one, other = adder(SLOPES), adder(Tensor(np.ones(8), "float32"))

    traced = spec_from_flex(lambda s, b, h, x, k: other(one(s, b, h, x, k), b, h, x, k), Hq=8, Dqk=64)

    assert traced.spec.score == "score + q_values[h] + q_values_2[h]"
    assert traced.tensors["q_values"] is SLOPES


def test_dims_name_a_tensors_extents() -> None:
    traced = spec_from_flex(mask_mod=lambda b, h, q, k: DOC[q] == DOC[k], Hq=8, Dqk=64, dims={"DOC": ["Sk"]})

    assert traced.spec.tensors["DOC"].dims == ("Sk",)
    for dims, message in (({"DOC": ["B", "Sk"]}, "names 2 dimensions of 'DOC'"), ({"doc": ["Sk"]}, "names 'doc'")):
        with pytest.raises(SpecError, match=message):
            spec_from_flex(mask_mod=lambda b, h, q, k: DOC[q] == DOC[k], Hq=8, Dqk=64, dims=dims)


def test_a_score_of_minus_infinity_hides_as_a_mask_does() -> None:
    traced = spec_from_flex(
        lambda s, b, h, q, k: stand_in.where(q >= k, s * 2, -float("inf")),
        lambda b, h, q, k: k < 9,
        Hq=8,
        Dqk=64,
    )

    assert (traced.spec.mask, traced.spec.score) == ("kv_idx < 9 and q_idx >= kv_idx", "score * 2")


@pytest.mark.parametrize(
    ("mod", "mask", "score"),
    [
        (lambda s, b, h, q, k: stand_in.where(q < k, -float("inf"), s), "q_idx >= kv_idx", "score"),
        (lambda s, b, h, q, k: stand_in.masked_fill(s + 1, GATE[b], -float("inf")), "not GATE[b]", "score + 1"),
        (lambda s, b, h, q, k: stand_in.where(s > 3, s, -float("inf")), "full", "where(score > 3, score, -inf)"),
        (lambda s, b, h, q, k: stand_in.where(s > 3, -float("inf"), s), "full", "where(score > 3, -inf, score)"),
    ],
)
def test_a_score_hides_by_places_as_a_mask_does_and_by_scores_on_its_own(
    mod: Callable[..., Any], mask: str, score: str
) -> None:
    traced = spec_from_flex(mod, Hq=8, Dqk=64)

    assert (traced.spec.mask, traced.spec.score) == (mask, score)


def test_a_list_that_a_callable_indexes_is_to_be_a_tensor() -> None:
    with pytest.raises(SpecError, match="asks for the number of h") as caught:
        score_of(lambda s, b, h, q, k: s * [1.0, 2.0][h])

    assert "must be a tensor" in caught.value.hint


def test_a_negative_index_counts_from_the_end_unless_it_cannot_be_one() -> None:
    assert score_of(lambda s, b, h, q, k: s + SLOPES[h - 1]) == "score + SLOPES[where(h - 1 < 0, h + 7, h - 1)]"
    assert score_of(lambda s, b, h, q, k: s + SLOPES[-1 - h]) == "score + SLOPES[-1 - h + 8]"
    assert "where" in score_of(lambda s, b, h, q, k: s + SLOPES[SHIFTED[b]])


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("q_idx", 0, None),
        ("q_idx % 4", 0, 3),
        ("clamp(kv_idx - q_idx, -3, 3) + 3", 0, 6),
        ("5 - min(h, 4)", 1, 5),
        ("max(q_idx - 5, 2) * 3", 6, None),
        ("abs(clamp(h - 9, -2, 1))", 0, 2),
        ("(q_idx % 8) // 2", 0, 3),
        ("where(h > 1, 3, h % 2)", 0, 3),
        ("q_idx - kv_idx", None, None),
        ("-(h % 3)", -2, 0),
    ],
)
def test_ranges_hold(text: str, low: int | None, high: int | None) -> None:
    assert range_of(parse_expression(text), {}) == (low, high)


def test_flex_counts_from_the_front_and_the_planned_program_does_too() -> None:
    traced = spec_from_flex(mask_mod=lambda b, h, q, k: q >= k, Hq=4, Hk=2, Dqk=64)
    call = Call(1, 3, 5, 4, 2, 64, 64, 1.0)

    seen = Operator.of(traced.spec).visible(call, 0, 0, np.arange(3), np.arange(5))
    code = plan(traced.spec, targets.get("A100")).code

    assert np.array_equal(seen, np.tri(3, 5, dtype=bool))
    assert "for i = 0 : min(ceildiv(Sk, BN), ceildiv(block * BM + BM, BN))" in code
    assert check_text(code)


def traced_or_refused(mod: Callable[..., Any]) -> FlexOperator | str:
    try:
        return spec_from_flex(mod, Hq=8, Dqk=64)
    except SpecError as error:
        return error.message


def test_every_function_takes_its_operands_or_refuses_with_a_name() -> None:
    """No function of the table fails in another way, whatever kinds of values it gets."""
    from qimeng_attention.integrations.functions import FUNCTIONS

    names = sorted(set(FUNCTIONS) - {"getitem"})
    for name, second in itertools.product(names, ("none", "score", "index", "condition")):

        def mod(s: Any, b: Any, h: Any, q: Any, k: Any, name: str = name, second: str = second) -> Any:
            others = {"none": (), "score": (s,), "index": (q,), "condition": (q > k,)}[second]
            return s + getattr(stand_in, name)(s, *others)

        found = traced_or_refused(mod)

        assert not isinstance(found, str) or "fails while" not in found, (name, second, found)
        assert isinstance(found, str) or Operator.of(found.spec)


def test_importing_the_tracer_imports_no_torch() -> None:
    assert flex.__doc__
    import subprocess
    import sys

    code = "import sys, qimeng_attention.integrations.flex; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The float64 reference against plain loops, its conventions, and specs that make no sense."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qimeng_attention.errors import SpecError
from qimeng_attention.judge import Call, Operator, baseline, reference, truth
from qimeng_attention.judge.clauses import clauses
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import Array, round_to


def call_of(spec: AttentionSpec, rows: int, keys: int, batch: int = 2) -> Call:
    return Call(batch, rows, keys, spec.Hq, spec.Hk, spec.Dqk, spec.Dv, spec.default_scale)


def drawn(call: Call, dtype: str = "bf16") -> list[Array]:
    random = np.random.default_rng(0)
    return [round_to(random.standard_normal(call.shapes()[n], np.float32), dtype) for n in ("Q", "K", "V")]


def by_loops(call: Call, x: list[Array], seen: object, score: object) -> tuple[Array, Array]:
    """Write attention out, element by element, in Python's own arithmetic."""
    q, k, v = x
    out, lse = np.zeros(call.shapes()["Out"]), np.full(call.shapes()["Lse"], -np.inf)
    for b in range(call.B):
        for h in range(call.Hq):
            for i in range(call.Sq):
                g = h // (call.Hq // call.Hk)
                keys = [j for j in range(call.Sk) if seen(call, b, h, i, j)]  # type: ignore[operator]
                logits = [call.scale * float(q[b, i, h].astype(float) @ k[b, j, g].astype(float)) for j in keys]
                weights = [math.exp(score(call, b, h, i, j, s)) for j, s in zip(keys, logits, strict=True)]  # type: ignore[operator]
                if keys:
                    lse[b, h, i] = math.log(sum(weights))
                    out[b, i, h] = sum(w * v[b, j, g].astype(float) for w, j in zip(weights, keys, strict=True)) / sum(
                        weights
                    )
    return out, lse


CASES = {
    "full": ({}, lambda c, b, h, i, j: True, lambda c, b, h, i, j, s: s),
    "causal": ({"mask": "causal"}, lambda c, b, h, i, j: j <= i + c.Sk - c.Sq, lambda c, b, h, i, j, s: s),
    "window": (
        {"mask": "window:2,1"},
        lambda c, b, h, i, j: i + c.Sk - c.Sq - 2 <= j <= i + c.Sk - c.Sq + 1,
        lambda c, b, h, i, j, s: s,
    ),
    "heads and batch": (
        {"mask": "not (h == 1 and kv_idx < b)"},
        lambda c, b, h, i, j: not (h == 1 and j < b),
        lambda c, b, h, i, j, s: s,
    ),
    "soft cap": ({"softcap": 2.0}, lambda c, b, h, i, j: True, lambda c, b, h, i, j, s: 2 * math.tanh(s / 2)),
    "ALiBi": (
        {"mask": "causal", "score": "score - exp2(-8*(h+1)/Hq) * (q_idx + Sk - Sq - kv_idx)"},
        lambda c, b, h, i, j: j <= i + c.Sk - c.Sq,
        lambda c, b, h, i, j, s: s - 2 ** (-8 * (h + 1) / c.Hq) * (i + c.Sk - c.Sq - j),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lengths", [(3, 5), (6, 2), (1, 4), (4, 4)])
def test_the_reference_is_the_definition(name: str, lengths: tuple[int, int]) -> None:
    fields, seen, score = CASES[name]
    spec = AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": 8, "Dv": 4, **fields})
    call = call_of(spec, *lengths)
    x = drawn(call)

    found = truth(Operator.of(spec), call, *x)

    out, lse = by_loops(call, x, seen, score)
    np.testing.assert_allclose(found.out, out, atol=1e-12)
    np.testing.assert_allclose(found.lse, lse, atol=1e-12)


def test_rows_that_see_nothing_give_0_and_minus_infinity() -> None:
    spec = AttentionSpec.make(Hq=1, Dqk=8, mask="causal")
    call = call_of(spec, 5, 2)

    found = truth(Operator.of(spec), call, *drawn(call))

    assert np.all(found.out[:, :3] == 0)
    assert np.all(np.isneginf(found.lse[:, :, :3]))
    assert np.all(np.isfinite(found.lse[:, :, 3:]))
    assert np.all(found.magnitude[:, :3] == 0)


@pytest.mark.parametrize("lengths", [(0, 3), (3, 0), (0, 0)])
def test_lengths_of_0_have_a_meaning(lengths: tuple[int, int]) -> None:
    spec = AttentionSpec.make(Hq=2, Dqk=8, softcap=3.0)
    call = call_of(spec, *lengths)
    x = drawn(call)

    found = truth(Operator.of(spec), call, *x)

    assert found.out.shape == call.shapes()["Out"]
    assert np.all(found.out == 0)
    assert np.all(baseline(Operator.of(spec), call, *x, "bf16") == 0)


def test_rows_in_stretches_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = AttentionSpec.make(Hq=2, Dqk=8, mask="causal", score="score + q_idx - kv_idx")
    call = call_of(spec, 13, 17)
    x = drawn(call)
    whole = truth(Operator.of(spec), call, *x)

    stretches = list(reference.row_chunks(call, 40))
    monkeypatch.setattr(reference, "row_chunks", lambda _: iter(stretches))

    assert len(stretches) == 7
    for name in ("out", "lse", "magnitude", "spread", "slack"):
        np.testing.assert_allclose(getattr(truth(Operator.of(spec), call, *x), name), getattr(whole, name), atol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    spec = AttentionSpec.make(Hq=1, Dqk=8, dtype="fp16")
    call = call_of(spec, 3, 5)
    q, k, v = drawn(call, "fp16")

    found = truth(Operator.of(spec), call, q * 200, k * 200, v)

    assert np.isfinite(found.out).all()
    assert np.abs(found.lse).max() > 1e4


def test_magnitude_is_what_the_weights_carry() -> None:
    spec = AttentionSpec.make(Hq=1, Dqk=8)
    call = call_of(spec, 4, 50, batch=1)
    q, k, v = drawn(call)

    found = truth(Operator.of(spec), call, q, k, v)

    assert np.all(found.magnitude <= np.abs(v).max())
    assert np.all(np.abs(found.out).max(axis=-1) <= found.magnitude)
    assert np.all(found.spread <= found.magnitude)


def test_the_baseline_is_the_same_operator_in_the_specs_precision() -> None:
    spec = AttentionSpec.make(Hq=2, Hk=1, Dqk=32, mask="causal")
    call = call_of(spec, 40, 40)
    x = drawn(call)

    error = np.abs(baseline(Operator.of(spec), call, *x, "bf16") - truth(Operator.of(spec), call, *x).out).max()

    assert 1e-4 < error < 3e-2


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"mask": "kv_idx <="}, "mask", "cannot be read"),
        ({"mask": "kv_idxx <= q_idx"}, "mask", "kv_idxx"),
        ({"mask": "kv_idx + q_idx"}, "mask", "a number"),
        ({"mask": "score > 0"}, "mask", "score"),
        ({"score": "scor * 2"}, "score", "scor"),
        ({"score": "score > 0"}, "score", "a condition"),
        ({"score": "tahn(score)"}, "score", "tahn"),
        ({"score": "tanh(score, 1)"}, "score", "tanh"),
        ({"score": "RowMax(score)"}, "score", "elementwise"),
        ({"score": "slopes[h] * score"}, "score", "slopes"),
        ({"score": "score // 2"}, "score", "//"),
        ({"mask": "kv_idx % (B - 1) == 0"}, "mask", "divides by 0"),
        ({"mask": "kv_idx // (Sk // 64) == 0"}, "mask", "divides by 0"),
        ({"score": "score / (4 // (B - 1))"}, "score", "divides by 0"),
    ],
)
def test_an_expression_that_makes_no_sense_is_a_spec_error(fields: dict[str, str], field: str, says: str) -> None:
    spec = AttentionSpec.make(Hq=2, **fields)

    with pytest.raises(SpecError) as caught:
        Operator.of(spec)

    assert caught.value.details["field"] == field
    assert caught.value.details["value"]
    assert says in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_scale_that_weighs_nothing_is_a_spec_error(scale: float) -> None:
    with pytest.raises(SpecError, match="scale"):
        Operator.of(AttentionSpec.make(Hq=2, scale=scale))


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(SpecError) as caught:
        Operator.of(AttentionSpec.make(Hq=2, mask="kv_id <= q_idx"))

    assert caught.value.details["nearest"] == "kv_idx"


def test_every_clause_of_a_spec_is_named() -> None:
    spec = AttentionSpec.make(
        Hq=4, Hk=2, mask="0 <= kv_idx <= q_idx + Sk - Sq and kv_idx % 7 != 3", softcap=5.0, score="score * 2.0"
    )

    names = {c.name for c in clauses(spec, Operator.of(spec))}

    assert names == {
        "mask: 0 <= kv_idx",
        "mask: kv_idx <= q_idx + Sk - Sq",
        "mask: kv_idx % 7 != 3",
        "mask: aligned at the sequences' ends",
        "scale",
        "the scale of the call",
        "softcap 5",
        "score: score * 2.0",
        "query heads of a group share a key head",
        "a row that sees nothing gives O = 0",
        "a row that sees nothing gives LSE = -inf",
        "LSE is a natural logarithm",
        "LSE is of the modified scores",
    }

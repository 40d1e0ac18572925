"""The judge on weights other than softmax: what the words mean, right programs pass, planted faults are caught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from judge.programs import SHORT
from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.judge import Verdict, judge_program, rule
from qimeng_attention.judge.clauses import clauses
from qimeng_attention.judge.contents import KINDS, draw
from qimeng_attention.judge.inputs import Case, values
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.judge.range import LARGEST
from qimeng_attention.judge.reference import baseline, truth
from qimeng_attention.judge.weighing import of_one_score, softmax
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.numerics import round_to
from qimeng_attention.weights import SINK_DIMS, WEIGHTS

WORDS = [w for w in WEIGHTS if w != "softmax"]
TINY = replace(SHORT, keys=300)


def spec(**fields: object) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": 64, "mask": "causal", **fields})


def code(asked: AttentionSpec, target: str = "A100") -> str:
    return plan(asked, targets.get(target)).code


def judged(text: str, asked: AttentionSpec) -> Verdict:
    return judge_program(check_text(text, model=False), asked, seed=3, budget=TINY)


@pytest.mark.parametrize("queries", [None, 3], ids=["any", "few"])
@pytest.mark.parametrize("word", WORDS)
def test_the_planned_program_is_accepted_and_every_clause_is_shown(word: str, queries: int | None) -> None:
    asked = spec(weights=word, Sq=queries, dtype="fp16" if queries else "bf16")

    verdict = judged(code(asked), asked)

    assert verdict.accepted, verdict.reason
    assert all(c.caught_by or c.implied for c in verdict.clauses)


O_FACTOR = "sigmoid(seen - Sink[head]) / l"
LSE = "max(seen, Sink[head]) + softplus(-abs(seen - Sink[head]))"
SINK_FAULTS = {
    "never read": [(O_FACTOR, "1 / l + 0 * Sink[head]"), (f"Sink[head], {LSE}", "-inf, seen")],
    "counted twice": [(O_FACTOR, "sigmoid(seen - Sink[head] - ln2) / l"), (LSE, f"{LSE} + 0")],
    "of another head": [("Sink[head]", "Sink[head // 2]")],
    "of the first head": [("Sink[head]", "Sink[0]")],
    "not in LSE": [(f"Sink[head], {LSE}", "-inf, seen")],
    "not in O": [(O_FACTOR, "1 / l")],
    "times the scale": [("Sink[head]", "(Sink[head] * scale)")],
    "over the scale": [("Sink[head]", "(Sink[head] / scale)")],
    "to base 2": [("Sink[head]", "(Sink[head] * log2e)")],
    "forgotten where nothing is seen": [("where(l == 0, Sink[head]", "where(l == 0, -inf")],
    "divided by twice": [("O * factor", "O * factor / l")],
}


@pytest.mark.parametrize("fault", SINK_FAULTS)
def test_a_fault_of_a_sink_is_rejected(fault: str) -> None:
    asked = spec(weights="softmax+sink")
    text = code(asked)
    for old, new in SINK_FAULTS[fault]:
        assert old in text
        text = text.replace(old, new)

    assert judged(text, asked).verdict == "rejected"


FEW_FAULTS = {
    "in every part": [
        ("Allocate m in register (BM h) f32 = -inf\nAllocate l in register (BM h) f32 = 0\nLet group",
         "Allocate m in register (BM h) f32 = 0\nAllocate l in register (BM h) f32 = 1\nLet group"),
    ],
    "of a row of the tile": [("Sink[h]", "Sink[h - heads * BM + 1]")],
    "twice": [("sigmoid(seen - Sink[h])", "sigmoid(seen - Sink[h] - ln2)")],
    "not in LSE": [("Sink[h], max(seen, Sink[h]) + softplus(-abs(seen - Sink[h]))", "-inf, seen")],
}  # fmt: skip


@pytest.mark.parametrize("fault", FEW_FAULTS)
def test_a_fault_of_a_sink_with_split_keys_is_rejected(fault: str) -> None:
    asked = spec(weights="softmax+sink", Sq=1)
    text = code(asked)
    for old, new in FEW_FAULTS[fault]:
        assert old in text
        text = text.replace(old, new)

    assert judged(text, asked).verdict == "rejected"


MASKED = "    Compute SigmoidWeights S\n    Compute Mask S where k <= q + Sk - Sq and k < Sk else 0\n"
FAULTS = {
    "masked before the sigmoid": (
        "sigmoid", MASKED,
        "    Compute Mask S where k <= q + Sk - Sq and k < Sk else 0\n    Compute SigmoidWeights S\n",
    ),
    "sigmoid of the raw score": ("sigmoid", "S * scale", "S + 0 * scale"),
    "relu instead of its square": ("relu2", "SquaredReluWeights", "ReluWeights"),
    "square of negative scores too": ("relu2", "Compute SquaredReluWeights S", "Compute S * S and get new S"),
    "square before the scale": (
        "relu2", "    Compute S * scale and get new S\n    Compute SquaredReluWeights S\n",
        "    Compute SquaredReluWeights S\n    Compute S * scale and get new S\n",
    ),
    "no scale": ("relu", "S * scale", "S + 0 * scale"),
    "abs instead of relu": ("relu", "Compute ReluWeights S", "Compute abs(S) and get new S"),
    "relu instead of linear": ("linear", "    Compute Mask", "    Compute ReluWeights S\n    Compute Mask"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_weights_of_one_score_is_rejected(fault: str) -> None:
    word, old, new = FAULTS[fault]
    asked = spec(weights=word)
    text = code(asked)
    assert old in text

    assert judged(text.replace(old, new), asked).verdict == "rejected"


@pytest.mark.parametrize("word", ["sigmoid", "relu", "relu2", "linear"])
def test_softmax_instead_is_rejected(word: str) -> None:
    asked = spec(weights=word)

    verdict = judged(code(spec(outputs=["O"])), asked)

    assert verdict.verdict == "rejected"


def test_parts_that_are_added_twice_are_rejected() -> None:
    asked = spec(weights="sigmoid", Sq=1)
    text = code(asked)
    assert "O + one" in text

    assert judged(text.replace("O + one", "O + one + one"), asked).verdict == "rejected"
    assert judged(text.replace("(split + 1) * share", "(split + 1) * share + 1"), asked).verdict == "rejected"


# ------------------------------------------------------------------ what the words mean


def one_row(word: str, sink: float, scores: list[float]) -> tuple[np.ndarray, float, np.ndarray]:
    """Give O, LSE and the keys' share of one query whose scores are these, with V = 1."""
    asked = AttentionSpec.make(Hq=1, Hk=1, Dqk=32, weights=word, mask="full")
    call = Call(1, 1, len(scores), 1, 1, 32, 32, 1.0)
    q, k = np.zeros((1, 1, 1, 32)), np.zeros((1, len(scores), 1, 32))
    q[..., 0], k[0, :, 0, 0] = 1, scores
    operator = Operator.of(asked)
    if asked.weighing.reads_sink:
        operator = operator.bind({"Sink": np.array([sink])})
    found = truth(operator, call, q, k, np.ones_like(k))
    return found.out[0, 0, 0], float(found.lse[0, 0, 0]), found.magnitude


@pytest.mark.parametrize("scores", [[0.0], [1.0, -2.0, 3.0], [6e4, 5e4], [-6e4], []])
def test_no_sink_is_a_sink_of_minus_infinity(scores: list[float]) -> None:
    with_none, plain = one_row("softmax+sink", -np.inf, scores), one_row("softmax", 0, scores)

    np.testing.assert_array_equal(with_none[0], plain[0])
    assert with_none[1] == plain[1]


def test_a_sink_takes_its_share_and_gives_no_value() -> None:
    out, lse, _ = one_row("softmax+sink", 1.0, [1.0, 1.0])

    np.testing.assert_allclose(out, 2 / 3)
    assert lse == pytest.approx(1 + np.log(3))


def test_a_large_sink_leaves_nothing() -> None:
    out, lse, _ = one_row("softmax+sink", 6e4, [1.0, 1.0])

    assert (out == 0).all()
    assert lse == 6e4


def test_a_row_that_sees_nothing_gives_the_sink() -> None:
    assert one_row("softmax+sink", 2.5, [])[1] == 2.5
    assert one_row("softmax1", 0.0, [])[1] == 0.0
    assert (one_row("softmax+sink", 2.5, [])[0] == 0).all()


@pytest.mark.parametrize(
    ("word", "scores", "want"),
    [
        ("sigmoid", [0.0, 6e4, -6e4], 1.5),
        ("relu", [2.0, -3.0, 0.0], 2.0),
        ("relu2", [2.0, -3.0, 1.0], 5.0),
        ("linear", [2.0, -3.0], -1.0),
        ("softmax1", [0.0, 0.0], 2 / 3),
    ],
)
def test_weights_are_what_the_word_says(word: str, scores: list[float], want: float) -> None:
    np.testing.assert_allclose(one_row(word, 0, scores)[0], want, rtol=1e-12)


def test_hidden_scores_of_any_kind_weigh_0() -> None:
    hidden = np.array([[np.nan, np.inf, -np.inf, 1e308]])
    for word in ("sigmoid", "relu", "relu2", "linear"):
        weighing = Operator.of(spec(weights=word)).weighing
        assert (of_one_score(weighing, hidden, np.zeros(hidden.shape, bool)) == 0).all()
    assert (softmax(hidden, np.zeros(hidden.shape, bool), 1.0)[0] == 0).all()


# ------------------------------------------------------------------ inputs and the rule


def test_sinks_are_drawn_small_large_and_absent() -> None:
    drawn = [draw(np.random.default_rng(1), {"sink": SINK_DIMS}, {"Hq": 64}, kind, "sink")["Sink"] for kind in KINDS]
    every = np.concatenate(drawn)

    assert np.isneginf(every).any()
    assert (every == 6e4).any()
    assert (every == -6e4).any()
    assert not np.isnan(every).any()
    assert not np.isposinf(every).any()


@pytest.mark.parametrize("word", ["relu", "relu2", "linear"])
@pytest.mark.parametrize("family", ["huge logits", "needles", "growing logits", "logits near -60000", "offset ramp"])
def test_inputs_stay_where_fp16_holds_weights_and_outputs(word: str, family: str) -> None:
    operator = Operator.of(spec(weights=word, dtype="fp16"))
    call = Call(1, 40, 300, 4, 2, 64, 64, 0.125)

    x = values(Case("case", call, family), operator, "fp16", 5)

    scores = 0.125 * np.einsum("bqhd,bkhd->bhqk", x["Q"].astype(float), np.repeat(x["K"], 2, axis=2))
    weights = of_one_score(operator.weighing, scores, np.ones(scores.shape, bool))
    assert np.abs(weights).max() < LARGEST["fp16"]
    assert truth(operator, call, x["Q"], x["K"], x["V"]).magnitude.max() < LARGEST["fp16"]


def test_softmax_and_sigmoid_keep_their_inputs() -> None:
    call = Call(1, 9, 40, 4, 2, 64, 64, 0.125)
    case = Case("case", call, "logits near -60000")

    plain = values(case, Operator.of(spec(dtype="fp16")), "fp16", 5)
    sigmoids = values(case, Operator.of(spec(dtype="fp16", weights="sigmoid")), "fp16", 5)

    for name in ("Q", "K", "V"):
        np.testing.assert_array_equal(plain[name], sigmoids[name])


def limits(asked: AttentionSpec, family: str) -> tuple[rule.Limits, np.ndarray]:
    operator, call = Operator.of(asked), Call(1, 20, 200, 4, 2, 64, 64, 0.125)
    x = values(Case("case", call, family), operator, asked.dtype, 5)
    arguments = (operator, call, x["Q"], x["K"], x["V"])
    want = truth(*arguments)
    return rule.out_limits(want, baseline(*arguments, asked.dtype), asked.dtype), want.out


@pytest.mark.parametrize("word", ["sigmoid", "relu", "relu2", "linear"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("family", ["normal", "logits near -120", "zeros", "offset ramp"])
def test_the_bound_has_room_for_rounding_and_for_no_more(word: str, dtype: str, family: str) -> None:
    """The right output rounded once passes; one that is off by a twentieth does not, unless there is nothing to see."""
    found, want = limits(spec(weights=word, dtype=dtype), family)

    assert rule.compare("Out", round_to(want, dtype), want, found).passed
    assert np.isfinite(found.element).all()
    if np.abs(want).max() > 1e-3:
        assert not rule.compare("Out", want * 1.05, want, found).passed


def test_softmax_has_no_drift() -> None:
    operator, call = Operator.of(spec()), Call(1, 20, 30, 4, 2, 64, 64, 0.125)
    x = values(Case("case", call, "normal"), operator, "bf16", 5)

    found = truth(operator, call, x["Q"], x["K"], x["V"])

    assert not found.drift.any()
    assert not found.seen.any()
    assert not found.approximate_drift.any()


def test_a_baseline_that_overflows_allows_nothing() -> None:
    operator, call = Operator.of(spec(weights="linear")), Call(1, 2, 3, 4, 2, 64, 64, 0.125)
    x = values(Case("case", call, "normal"), operator, "bf16", 5)
    want = truth(operator, call, x["Q"], x["K"], x["V"])

    found = rule.out_limits(want, np.full(want.out.shape, np.inf), "fp16")

    assert np.isfinite(found.element).all()
    assert not rule.compare("Out", want.out + 1, want.out, found).passed


@pytest.mark.parametrize(("word", "number"), [("softmax", 0), ("softmax1", 3), ("softmax+sink", 5), ("sigmoid", 2)])
def test_each_word_has_its_clauses(word: str, number: int) -> None:
    asked = spec(weights=word)

    mine = {c.name for c in clauses(asked, Operator.of(asked))}
    plain = {c.name for c in clauses(spec(outputs=asked.outputs), Operator.of(spec(outputs=asked.outputs)))}

    assert len({n for n in mine - plain if "sees nothing" not in n}) == number

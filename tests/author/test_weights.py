"""Programs whose weights are not softmax's: which there are, what their schedules leave out, what few queries get."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import Plan, plan
from qimeng_attention.author.planner.recurrence import recurrence
from qimeng_attention.author.planner.sketch import compose
from qimeng_attention.errors import SpecError
from qimeng_attention.judge.weighing import OF_ONE_SCORE
from qimeng_attention.schedule import schedule, steps
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check, check_text
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.interpreter import interpret_program
from qimeng_attention.tl.macros import library
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.weights import WEIGHTS, WeightsName

WORDS = [w for w in WEIGHTS if w != "softmax"]
OF_ONE = [w.name for w in WEIGHTS.values() if not w.summed]


def spec(**fields: object) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": 64, "mask": "causal", "dtype": "fp16", **fields})


def planned(target: str, **fields: object) -> Plan:
    return plan(spec(**fields), targets.get(target))


# ------------------------------------------------------------------ the words


def test_the_tables_of_words_agree() -> None:
    assert get_args(WeightsName) == tuple(WEIGHTS)
    assert set(OF_ONE_SCORE) == set(OF_ONE)
    assert {w.macro for w in WEIGHTS.values() if w.macro} <= set(library())


def test_the_words_of_the_reference_on_a_gpu_agree() -> None:
    pytest.importorskip("torch")
    from qimeng_attention.judge import reference_torch

    assert set(reference_torch.OF_ONE_SCORE) == set(OF_ONE)


def test_a_misspelt_word_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError) as raised:
        spec(weights="sigmoids")

    assert (raised.value.to_json()["nearest"], raised.value.to_json()["field"]) == ("sigmoid", "weights")


@pytest.mark.parametrize("word", OF_ONE)
def test_weights_of_one_score_have_no_lse(word: str) -> None:
    assert spec(weights=word).outputs == ("O",)
    with pytest.raises(SpecError, match=f"LSE is asked for, but weights: {word}"):
        spec(weights=word, outputs=["O", "LSE"])


def test_a_sink_is_a_named_tensor_of_each_call() -> None:
    made = spec(weights="softmax+sink")

    assert made.tensors["sink"].describe() == "(Hq) f32"
    assert (
        spec(weights="softmax+sink", tensors={"sink": {"dims": ["Hq"], "dtype": "bf16"}}).tensors["sink"].dtype
        == "bf16"
    )
    assert "sink" not in spec(weights="softmax1").tensors


@pytest.mark.parametrize(("dims", "dtype"), [(["Hk"], "f32"), (["B", "Hq"], "f32"), (["Hq"], "i32")])
def test_a_sink_of_another_kind_is_refused(dims: list[str], dtype: str) -> None:
    with pytest.raises(SpecError, match="one number of a floating type for each query head"):
        spec(weights="softmax+sink", tensors={"sink": {"dims": dims, "dtype": dtype}})


@pytest.mark.parametrize("word", WEIGHTS)
def test_a_description_survives_json(word: str) -> None:
    made = spec(weights=word)

    assert AttentionSpec.make(**json.loads(json.dumps(made.model_dump(mode="json")))) == made


def test_kernels_are_named_after_their_weights() -> None:
    names = {spec(weights=word).kernel_name for word in WEIGHTS}

    assert len(names) == len(WEIGHTS)
    assert "gqa_causal_d64_fp16" in names
    assert "gqa_causal_sink_d64_fp16" in names


# ------------------------------------------------------------------ programs


@pytest.mark.parametrize("queries", [None, 2], ids=["any", "few"])
@pytest.mark.parametrize("target", ["T4", "A100", "L40S", "H200"])
@pytest.mark.parametrize("word", WORDS)
def test_every_word_has_a_program_for_every_target(word: str, target: str, queries: int | None) -> None:
    kernels = check_text(planned(target, weights=word, Sq=queries).code, target=target)

    assert len(kernels) == (2 if queries else 1)
    assert kernels[-1].outputs == (("Out", "Lse") if WEIGHTS[word].summed else ("Out",))


@pytest.mark.parametrize("word", OF_ONE)
def test_choices_without_anything_to_rewrite_are_left_out_with_a_reason(word: str) -> None:
    made = planned("H200", weights=word, Dqk=256)
    chosen = {line.split()[0] for line in made.code.split("Schedule\n")[1].splitlines() if line}

    assert not chosen & {"sums", "rescale", "threshold"}
    assert "with the weights of this one" in made.code
    assert [r for r in made.reasons if r.parameter == "carried"]
    assert not [r for r in made.reasons if r.parameter in ("sums", "rescale", "threshold")]


@pytest.mark.parametrize("word", ["softmax+sink", "softmax1"])
def test_a_sink_changes_nothing_in_the_loop(word: str) -> None:
    def loop(code: str) -> str:
        return code[code.index("for i") : code.index("end")]

    for target in ("T4", "A100", "H200"):
        assert loop(planned(target, weights=word).code) == loop(planned(target).code)
        assert planned(target, weights=word).code.split("Schedule")[1] == planned(target).code.split("Schedule")[1]


@pytest.mark.parametrize(
    ("word", "special", "sums"),
    [("softmax", 1, True), ("softmax+sink", 1, True), ("sigmoid", 2, False), ("relu2", 0, False), ("linear", 0, False)],
)
def test_the_planner_sees_what_a_loop_computes(word: str, special: int, sums: bool) -> None:
    found = recurrence(compose(spec(weights=word)))

    assert (found.special(), found.sums, found.scales) == (special, sums, sums)


def test_a_sigmoid_leaves_registers_for_results_on_their_way() -> None:
    def tile(word: str) -> str:
        return next(line for line in planned("A100", weights=word).code.splitlines() if line.startswith("Tile"))

    assert "BN = 128" in tile("relu")
    assert "BN = 64" in tile("sigmoid")


def test_the_kernel_that_weighs_parts_alone_reads_the_sink() -> None:
    first, second = check_text(planned("H200", weights="softmax+sink", Sq=1).code, target="H200", model=False)

    assert "Sink" not in first.inputs
    assert "Sink" in second.inputs


def test_a_sink_that_the_score_reads_too_is_declared_in_both() -> None:
    made = planned("A100", weights="softmax+sink", Sq=1, score="score - sink[h] / 2")

    first, second = check_text(made.code, target="A100", model=False)

    assert "Sink" in first.inputs
    assert "Sink" in second.inputs


def run(text: str, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    kernels = check(parse(text), model=False)
    rng = np.random.default_rng(3)
    fixed = {**kernels[0].fixed, **sizes}
    shapes = {n: [integer(d, fixed) for d in t.dims] for k in kernels for n, t in k.tensors.items() if n in k.inputs}
    inputs = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items() if "Part" not in n}
    return interpret_program(kernels, sizes, inputs, {"scale": 0.2}, seed=5)


@pytest.mark.parametrize("queries", [None, 1], ids=["any", "few"])
@pytest.mark.parametrize("target", ["T4", "A100", "H200"])
@pytest.mark.parametrize("word", ["softmax+sink", "sigmoid", "relu2"])
def test_each_step_of_the_schedule_keeps_the_meaning(word: str, target: str, queries: int | None) -> None:
    text = planned(target, weights=word, Sq=queries, mask="window:90").code
    program = parse(text)
    many = {"Sq": 70, "Hq": 4} if queries is None else {"Splits": 3}
    made = print_program(schedule(program, target=target))
    for keys in (0, 1, 200, 257):
        sizes = {"B": 1, "Sk": keys, "Hk": 2, **many}
        before, after = run(text, sizes), run(made, sizes)
        for name in before:
            np.testing.assert_allclose(after[name], before[name], rtol=0.02, atol=2e-3, equal_nan=True)
    assert {step.choice.words[0] for step in steps(program, target=target)} >= {"ring", "warps"} - (
        {"warps"} if target == "H200" else set()
    )

"""Programs for few queries: keys split over blocks, and a kernel that weighs the parts."""

from __future__ import annotations

import numpy as np
import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.judge import judge_program
from qimeng_attention.judge.inputs import Budget
from qimeng_attention.schedule import schedule, steps
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check, check_text
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.interpreter import interpret_program
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program

# B, Sk, Hk, Splits: no key, one, fewer keys than parts, ends of tiles, more parts than tiles
SHAPES = [
    (1, 0, 1, 1), (1, 0, 1, 3), (1, 1, 1, 1), (1, 1, 2, 4), (1, 2, 1, 7), (2, 127, 1, 2), (1, 128, 1, 2),
    (1, 129, 1, 2), (1, 129, 2, 1), (1, 255, 1, 3), (1, 256, 1, 2), (1, 257, 1, 2), (2, 300, 1, 5), (1, 383, 1, 3),
    (1, 384, 1, 3), (1, 385, 1, 3), (1, 400, 2, 9), (3, 130, 1, 2), (1, 512, 1, 4), (1, 600, 1, 1), (1, 700, 1, 6),
]  # fmt: skip
SMALL = Budget("small", heads=4, keys=300, scores=1 << 16, thorough=False)


def spec_of(**fields: object) -> AttentionSpec:
    return AttentionSpec.make(**{"Sq": 1, "Hq": 4, "Hk": 2, "Dqk": 64, "mask": "full", **fields})


def code_of(target: str = "H200", **fields: object) -> str:
    return plan(spec_of(**fields), targets.get(target)).code


def run(text: str, shape: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    kernels = check(parse(text), model=False)
    sizes = dict(zip(("B", "Sk", "Hk", "Splits"), shape, strict=True))
    rng = np.random.default_rng(sum(shape))
    fixed = {**kernels[0].fixed, **sizes}
    inputs = {
        name: rng.standard_normal([integer(d, fixed) for d in kernels[0].tensors[name].dims]).astype(np.float32)
        for name in "QKV"
    }
    return interpret_program(kernels, sizes, inputs, {"scale": 0.2}, seed=5)


@pytest.mark.parametrize("target", ["H200", "A100"])
def test_few_queries_get_two_kernels(target: str) -> None:
    first, second = check_text(code_of(target), target=target)

    assert first.kernel.name.endswith("_split")
    assert second.kernel.name.endswith("_combine")
    assert (first.inputs, second.outputs) == (("Q", "K", "V"), ("Out", "Lse"))
    assert list(first.chosen) == ["Splits"]


@pytest.mark.parametrize("fields", [{"Sq": None}, {"Sq": 17}, {"Sq": 1, "Hq": 65, "Hk": 1}])
def test_other_calls_get_one(fields: dict[str, object]) -> None:
    assert len(check_text(code_of(**fields), target="H200", model=False)) == 1


@pytest.mark.parametrize(
    ("batch", "heads", "keys", "splits"),
    [(64, 8, 8192, 4), (8, 8, 8192, 2), (1, 8, 131072, 16), (32, 32, 4096, 4), (1, 1, 100, 1), (0, 8, 0, 0)],
)
def test_splits_fill_the_multiprocessors(batch: int, heads: int, keys: int, splits: int) -> None:
    first = check_text(code_of(Hq=heads * 4, Hk=heads, Dqk=128), target="H200", model=False)[0]
    sizes = {**first.fixed, "B": batch, "Hk": heads, "Sk": keys}

    assert integer(first.chosen["Splits"], sizes) == splits


@pytest.mark.parametrize("target", ["H200", "A100"])
def test_each_step_of_the_schedule_keeps_the_meaning(target: str) -> None:
    text = code_of(target)
    program = parse(text)
    before = {shape: run(text, shape) for shape in SHAPES}
    made = print_program(schedule(program, target=target))
    for shape in SHAPES:
        after = run(made, shape)
        for name in ("Out", "Lse"):
            np.testing.assert_allclose(after[name], before[shape][name], rtol=0.02, atol=1e-3, equal_nan=True)
    assert {step.choice.words[0] for step in steps(program, target=target)} >= {"ring", "unroll", "warps"}


@pytest.mark.parametrize("target", ["H200", "A100"])
@pytest.mark.parametrize(
    "fields",
    [
        {"mask": "causal", "Sq": 3},
        {"mask": "window:40"},
        {"softcap": 5.0, "Hk": 4},
        {"score": "score - exp2(-8 * (h + 1) / Hq) * (Sk - 1 - kv_idx)", "dtype": "fp16"},
    ],
)
def test_the_judge_accepts_programs_for_few_queries(target: str, fields: dict[str, object]) -> None:
    verdict = judge_program(check_text(code_of(target, **fields), target=target), spec_of(**fields), budget=SMALL)

    assert verdict.verdict == "accepted", verdict.reason


FAULTS = {
    "a part overlaps the next": ("(split + 1) * share", "(split + 1) * share + 1"),
    "parts are added unweighed": ("one * added", "one"),
    "old parts keep their weight": ("O * kept", "O"),
    "the first part is left out": ("for part = 0", "for part = min(1, Splits - 1)"),
    "another head's keys": ("k = i * BN, group] from", "k = i * BN, 0] from"),
    "an empty part weighs": ("where(l == 0, -inf, m * scale + ln(l))", "where(l == 0, 0, m * scale + ln(l))"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_rejected(fault: str) -> None:
    old, new = FAULTS[fault]
    text = code_of()
    assert old in text

    kernels = check_text(text.replace(old, new), target="H200", model=False)

    assert judge_program(kernels, spec_of(), budget=SMALL).verdict == "rejected"

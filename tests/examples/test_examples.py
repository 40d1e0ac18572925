"""The examples do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from qimeng_attention.judge import Budget, judge_function, judge_program
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check, check_text
from qimeng_attention.tl.parser import parse
from qimeng_attention.translate import translate
from qimeng_attention.workflow import run
from qimeng_attention.workflow.judgement import agreeing

EXAMPLES = Path(__file__).parents[2] / "examples"
OPERATOR = (EXAMPLES / "squared_relu.tl").read_text("utf-8")


def test_there_is_a_test_for_every_example():
    tested = {"causal_gqa.yaml", "window.yaml", "alibi.yaml", "api.py", "squared_relu.tl", "squared_relu.py"}
    tested |= {"documents.yaml", "alibi_slopes.yaml", "decode.yaml", "capped_window.yaml", "capped_window.py"}
    tested |= {"gpt_oss.yaml", "sigmoid.yaml", "block_mask.yaml", "varlen.yaml", "paged.yaml"}

    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == tested


DESCRIPTIONS = ("causal_gqa", "window", "alibi", "documents", "alibi_slopes", "capped_window")
DESCRIPTIONS += ("gpt_oss", "sigmoid", "block_mask", "varlen")


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_becomes_cute(name):
    spec = AttentionSpec.load(EXAMPLES / f"{name}.yaml")
    outcome = run(spec, target="A100", judge=False, until="cute")

    made = outcome.results.translations[-1]  # behind the kernels that list tiles, where there are any
    assert made.name == name
    assert f" {name}(" in made.source


SHORT = Budget("short", heads=1, keys=2200, scores=300_000, thorough=False)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_description_s_program_passes_the_judge_s_short_cases(path):
    spec = AttentionSpec.load(path)
    results = run(spec, target="H200" if spec.Sq else "A100", judge=False, until="scheduled").results

    verdict = judge_program(results.kernels, spec, seed=1, budget=SHORT)

    assert verdict.verdict != "rejected", verdict.reason
    assert len(verdict.checks) >= 20


def test_a_description_and_its_function_agree():
    spec = AttentionSpec.load(EXAMPLES / "capped_window.yaml")

    with agreeing(f"{EXAMPLES / 'capped_window.py'}:attention", spec) as own:
        assert own.function.framework == "numpy"
        assert own.agreement.precision == "float64"


@pytest.mark.parametrize("name", ["decode", "paged"])
def test_decoding_becomes_two_kernels(name):
    outcome = run(AttentionSpec.load(EXAMPLES / f"{name}.yaml"), target="H200", judge=False, until="cute")

    assert [t.name for t in outcome.results.translations] == [f"{name}_split", f"{name}_combine"]


def test_the_operator_translates_for_the_a100():
    (translation,) = translate(schedule(parse(OPERATOR)))

    assert translation.name == "squared_relu"
    assert translation.threads == 128


def test_the_operator_is_accepted_by_its_reference_before_and_after_scheduling():
    reference = f"{EXAMPLES / 'squared_relu.py'}:attention"
    sizes = [{"B": 1, "Sq": 129, "Sk": 65, "Hq": 2, "Hk": 1}, {"B": 2, "Sq": 5, "Sk": 130, "Hq": 2, "Hk": 2}]
    code, scheduled = check_text(OPERATOR), check(schedule(parse(OPERATOR)))

    assert judge_function(code, reference, sizes=sizes).verdict == "accepted"
    assert judge_function(scheduled, reference, sizes=sizes).verdict == "accepted"


def test_the_operator_without_its_else_is_rejected():
    reference = f"{EXAMPLES / 'squared_relu.py'}:attention"
    broken = OPERATOR.replace("k < Sk else 0", "k < Sk")

    assert broken != OPERATOR
    sizes = [{"B": 1, "Sq": 17, "Sk": 33, "Hq": 2, "Hk": 1}]
    assert judge_function(check_text(broken), reference, sizes=sizes).verdict == "rejected"


def test_the_reference_gives_zero_where_no_key_is_seen():
    spec = importlib.util.spec_from_file_location("squared_relu", EXAMPLES / "squared_relu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, s, 2, 4)) for s in (5, 2, 2))
    found = module.attention(q, k, v, 1.0)["Out"]

    assert (found[:, :3] == 0).all()
    assert np.isfinite(found).all()


@pytest.mark.cuda
def test_the_api_script_makes_a_bundle(tmp_path):
    pytest.importorskip("cuda.bindings")
    spec = importlib.util.spec_from_file_location("api", EXAMPLES / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    bundle = module.make(tmp_path / "small_window", judge=False)

    assert bundle.path == tmp_path / "small_window"
    assert bundle.manifest.kernel == "small_window"

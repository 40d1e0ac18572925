"""The references of known requests agree with the planner's programs: two hands, one operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.judge.function import judge_function
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.study.requests import load_requests
from qimeng_attention.tl.checker import check_text
from qimeng_attention.workflow import run

KNOWN = load_requests(Path(__file__).parents[2] / "benchmarks" / "study" / "requests", stratum="known")
SIZES = [{"Sq": 1, "Sk": 150}, {"Sq": 150, "Sk": 150}, {"Sq": 40, "Sk": 20}]
SPECS: dict[str, dict[str, Any]] = {
    "causal_gqa": {"mask": "causal", "outputs": ["O", "LSE"]},
    "window": {"mask": "window:71"},
    "alibi": {"mask": "causal", "score": "score - exp2(-8 * (h + 1) / Hq) * (q_idx + Sk - Sq - kv_idx)"},
    "soft_cap": {"mask": "causal", "softcap": 20},
    "prefix_lm": {"mask": "kv_idx < 96 or kv_idx <= q_idx + Sk - Sq", "outputs": ["O", "LSE"]},
    "sink": {"mask": "causal", "weights": "softmax+sink"},
    "relu2": {"mask": "causal", "weights": "relu2", "score": "score / sqrt(Sk)"},
    "mla_prefill": {"mask": "causal"},
}


def test_every_known_request_is_compared() -> None:
    assert set(SPECS) == {r.name for r in KNOWN}


@pytest.mark.parametrize("request_", KNOWN, ids=lambda r: r.name)
def test_the_planners_program_is_accepted(request_: Any) -> None:
    made = {"outputs": ["O"], "dtype": request_.dtype, **request_.heads, **request_.head_dims, **SPECS[request_.name]}
    code = run(AttentionSpec.make(**made), target=request_.target, until="code").results.code
    program = check_text(code)[0]
    heads = {"B": 1, "Hq": 4, **({"Hk": 2} if "Hk" in program.sizes else {})}

    verdict = judge_function(program, request_.reference, sizes=[{**heads, **s} for s in SIZES], seed=5)

    assert verdict.verdict == "accepted", verdict.reason

"""Verdicts as JSON, and as rows of a results file."""

from __future__ import annotations

import json

from qimeng_attention.bench.results import CorrectnessRow
from qimeng_attention.judge import Check, Verdict

CASE = {
    "B": 1,
    "Hq": 2,
    "Hk": 1,
    "Sq": 3,
    "Sk": 4,
    "Dqk": 64,
    "Dv": 64,
    "dtype": "bf16",
    "mask": "causal",
    "target": "A100",
}


def check(error: float, bound: float, passed: bool = True) -> Check:
    return Check(
        case=f"{error}", output="Out", passed=passed, worst_error=error, bound=bound, mean_error=0.0, mean_bound=1.0
    )


def verdict(*checks: Check) -> Verdict:
    return Verdict(
        verdict="rejected", reason="r", subject="k", where="cpu", digest="0", entropy=1, seed=2, checks=checks
    )


def test_a_verdict_reads_what_it_writes_infinities_too() -> None:
    said = verdict(check(float("inf"), 0.5, passed=False), check(0.1, 0.5))

    text = json.dumps(said.to_json(), allow_nan=False)

    assert Verdict.model_validate(json.loads(text)) == said


def test_the_worst_check_is_nearest_to_its_bound() -> None:
    assert verdict(check(0.1, 0.5), check(0.01, 0.02)).worst == check(0.01, 0.02)
    assert verdict(check(0.1, 0.5), check(0.3, 0.2, passed=False)).worst == check(0.3, 0.2, passed=False)
    assert verdict().worst is None


def test_a_row_fits_the_schema_of_results() -> None:
    for said in (verdict(), verdict(check(0.1, 0.5)), verdict(check(float("inf"), 0.5, passed=False))):
        row = CorrectnessRow.model_validate(json.loads(json.dumps(said.row(CASE), allow_nan=False)))

        assert row.verdict == "rejected"
        assert row.checks == len(said.checks)

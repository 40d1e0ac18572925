"""The judge: does a candidate compute what was asked? Float64 references, adversarial inputs, one acceptance
rule.

`judge_program` takes TL and a spec, `judge_function` TL and a NumPy function; `judge_bundle` and
`judge_bundle_by_function` take a built kernel instead, on a GPU. Each gives a `Verdict`: accepted, rejected, or
inconclusive where the inputs could not tell.
"""

from __future__ import annotations

from qimeng_attention.judge.device import judge_bundle
from qimeng_attention.judge.function import judge_function
from qimeng_attention.judge.inputs import CPU, GPU, Budget, Case, cases
from qimeng_attention.judge.judge import Progress, judge_candidate, judge_program
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.judge.own_function import Agreement, OwnFunction, agree
from qimeng_attention.judge.plain_bundle import judge_bundle_by_function
from qimeng_attention.judge.reference import Truth, baseline, truth
from qimeng_attention.judge.reference_process import Place, Reference, open_reference
from qimeng_attention.judge.verdict import Check, ClauseResult, PropertyResult, Verdict

__all__ = [
    "CPU",
    "GPU",
    "Agreement",
    "Budget",
    "Call",
    "Case",
    "Check",
    "ClauseResult",
    "Operator",
    "OwnFunction",
    "Place",
    "Progress",
    "PropertyResult",
    "Reference",
    "Truth",
    "Verdict",
    "agree",
    "baseline",
    "cases",
    "judge_bundle",
    "judge_bundle_by_function",
    "judge_candidate",
    "judge_function",
    "judge_program",
    "open_reference",
    "truth",
]

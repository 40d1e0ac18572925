"""A function that a program computes with a stated error: the judge allows that error, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from qimeng_attention.errors import SpecError
from qimeng_attention.judge.inputs import CPU
from qimeng_attention.judge.judge import judge_candidate
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.judge.reference import truth
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import APPROXIMATIONS
from qimeng_attention.tl.numerics import Array, round_to
from qimeng_attention.tl.traverse import map_expressions

SPEC = AttentionSpec.make(Hq=2, Hk=2, Dqk=64, mask="causal", softcap=30.0)
ERROR = APPROXIMATIONS["tanh"][1]


@dataclass
class Rough:
    """The reference, with tanh off by a share of its value, rounded as a kernel rounds."""

    off: float
    approximated: frozenset[str]
    name: str = "rough"
    digest: str = "0" * 64
    any_heads: bool = True
    numbers: frozenset[int] = frozenset()

    def run(self, call: Call, tensors: Mapping[str, Array], layout: str) -> dict[str, Array]:
        def turn(e: s.Expr) -> s.Expr:
            return s.Binary("*", e, s.Num(1 + self.off)) if isinstance(e, s.Call) and e.function == "tanh" else e

        exact = Operator.of(SPEC)
        operator = replace(exact, score=map_expressions(exact.score, turn))
        found = truth(operator, call, *(np.asarray(tensors[n]) for n in ("Q", "K", "V")))
        return {"Out": round_to(found.out.astype(np.float32), SPEC.dtype), "Lse": found.lse.astype(np.float32)}


@pytest.mark.parametrize(
    ("off", "approximated", "verdict"),
    [
        (0.0, frozenset(), "accepted"),
        (ERROR, frozenset({"tanh"}), "accepted"),
        (-ERROR, frozenset({"tanh"}), "accepted"),
        (ERROR, frozenset(), "rejected"),
        (4 * ERROR, frozenset({"tanh"}), "rejected"),
    ],
)
def test_a_stated_error_is_allowed_and_no_larger_one(off: float, approximated: frozenset[str], verdict: str) -> None:
    found = judge_candidate(Rough(off, approximated), SPEC, (64, 64), seed=3, budget=CPU)

    assert found.verdict == verdict, found.reason


def test_nothing_is_allowed_where_the_function_is_not_of_scores() -> None:
    operator = replace(Operator.of(replace_score("score - exp2(-h) * kv_idx")), approximated=frozenset({"exp2"}))

    assert operator.rough is not None
    assert operator.rough.score == operator.score


def replace_score(score: str) -> AttentionSpec:
    return AttentionSpec.make(Hq=2, Hk=2, Dqk=64, mask="causal", score=score)


@pytest.mark.parametrize("function", [other for other, _ in APPROXIMATIONS.values()])
def test_a_specification_cannot_ask_for_an_approximation(function: str) -> None:
    with pytest.raises(SpecError, match="asks for an approximation"):
        Operator.of(replace_score(f"{function}(score)"))

"""Reference-free properties: which apply follows from the spec's expressions, and what they catch alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from qimeng_attention.judge import Call, Operator, Verdict, judge_candidate, truth
from qimeng_attention.judge.inputs import Budget
from qimeng_attention.judge.properties import PROPERTIES
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import Array, round_to

NO_CASES = Budget("none", heads=2, keys=-1, scores=-1, thorough=True)  # properties alone
Fault = Callable[[Call, dict[str, Array], dict[str, Array]], dict[str, Array]]


class FromReference:
    """A candidate that gives the reference's own outputs, with a fault put in."""

    name, digest, any_heads, numbers = "reference", "0" * 64, True, frozenset[int]()
    approximated = frozenset[str]()

    def __init__(self, spec: AttentionSpec, fault: Fault = lambda call, x, out: out) -> None:
        self.spec, self.operator, self.fault = spec, Operator.of(spec), fault

    def run(self, call: Call, tensors: Mapping[str, Array], layout: str) -> dict[str, Array]:
        x = {n: np.array(a) for n, a in tensors.items()}
        want = truth(self.operator, call, x["Q"], x["K"], x["V"])
        out = self.fault(call, x, {"Out": want.out, "Lse": want.lse})
        return {"Out": round_to(out["Out"], self.spec.dtype), "Lse": out["Lse"].astype(np.float32)}


def asked(fault: Fault = lambda call, x, out: out, **fields: object) -> Verdict:
    spec = AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": 64, **fields})
    return judge_candidate(FromReference(spec, fault), spec, (64, 32), seed=1, budget=NO_CASES)


def applying(**fields: object) -> set[str]:
    return {p.name for p in asked(**fields).properties if p.applies}


NAMES = {p.name for p in PROPERTIES}
ORDER = "the order of the keys does not matter"
TWO = "two keys are weighed by the sigmoid of their difference"
HEADS = "heads do not mix"
BATCH = "batch entries do not mix"
HIDDEN = "keys that a row does not see cannot change it"
TWICE = "giving every key twice changes nothing"
REPEATED = "grouped heads equal repeated keys"


@pytest.mark.parametrize(
    ("fields", "without"),
    [
        ({"mask": "causal"}, set()),
        ({}, {HIDDEN}),
        ({"mask": "causal", "score": "score - kv_idx * 0.1"}, {ORDER, TWO}),
        ({"mask": "causal", "score": "score * (h + 1)"}, {TWO, HEADS}),
        ({"mask": "causal", "score": "score * (b + 1)"}, {TWO, BATCH}),
        ({"mask": "causal", "score": "score * (Hq // Hk)"}, {TWO, REPEATED}),
        ({"mask": "causal", "Hq": 2}, {REPEATED}),
        ({"mask": "causal", "Sk": 50}, {TWO, TWICE}),
        ({"mask": "window:20"}, {ORDER}),
    ],
)
def test_what_applies_follows_from_the_expressions(fields: dict[str, object], without: set[str]) -> None:
    found = applying(**fields)

    assert not without & found
    assert NAMES - found <= without | {TWO}


def test_the_reference_has_every_property_asked_of_it() -> None:
    assert all(p.passed for p in asked(mask="causal").properties)


def leaking(call: Call, x: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
    return {**out, "Out": out["Out"] + 1e-3 * x["V"][:, -1:].mean()}


def unnormalised(call: Call, x: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
    return {**out, "Out": out["Out"] * 1.03}


def mixing_batch(call: Call, x: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
    return {**out, "Out": out["Out"] + 0.02 * np.arange(call.B)[:, None, None, None]}


def mixing_heads(call: Call, x: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
    return {**out, "Out": out["Out"] + 0.02 * np.arange(call.Hq)[:, None]}


def temperature(call: Call, x: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
    want = truth(Operator.of(AttentionSpec.make(Hq=4, Hk=2, Dqk=64)), call, x["Q"] * np.float32(1.1), x["K"], x["V"])
    return {"Out": want.out, "Lse": want.lse}


def first_key_twice(call: Call, x: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
    more = {n: np.concatenate([x[n][:, :1], x[n]], axis=1) for n in ("K", "V")}
    longer = Call(call.B, call.Sq, call.Sk + 1, call.Hq, call.Hk, call.Dqk, call.Dv, call.scale)
    want = truth(Operator.of(AttentionSpec.make(Hq=4, Hk=2, Dqk=64)), longer, x["Q"], more["K"], more["V"])
    return {"Out": want.out, "Lse": want.lse}


def nothing(call: Call, x: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
    return {n: np.full(a.shape, np.nan) for n, a in out.items()}


@pytest.mark.parametrize(
    ("fault", "mask", "by"),
    [
        (leaking, "causal", HIDDEN),
        (unnormalised, "full", "values of 1 give 1"),
        (mixing_batch, "full", BATCH),
        (mixing_heads, "full", HEADS),
        (temperature, "full", TWO),
        (first_key_twice, "full", ORDER),
        (nothing, "full", "a dominating key gives its value"),
    ],
)
def test_a_property_catches_what_it_is_for_without_any_values(fault: Fault, mask: str, by: str) -> None:
    verdict = asked(fault, mask=mask)

    assert verdict.verdict == "rejected"
    assert by in {p.name for p in verdict.properties if not p.passed}

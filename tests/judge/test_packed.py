"""Packed sequences: right programs accepted, planted bugs rejected, offsets that make no sense harmless."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import DiagnosticError
from qimeng_attention.judge import judge_program
from qimeng_attention.judge.inputs import Budget
from qimeng_attention.judge.meaning import Call
from qimeng_attention.judge.packed import arrange
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program

SMALL = Budget("small", heads=2, keys=120, scores=1 << 12, thorough=False)
FIRST = replace(SMALL, failures=1)  # one case that fails is enough
VARIANTS: dict[str, dict[str, object]] = {
    "causal": {},
    "full, one key head, values wider than keys": {"mask": "full", "Hk": 1, "Dv": 64},
    "window, soft cap, no LSE": {"mask": "window:20", "softcap": 5.0, "outputs": ["O"]},
    "slopes and a bias of each sequence": {
        "score": "score - slopes[h] * (q_idx + Sk - Sq - kv_idx) + bias[b]",
        "tensors": {
            "slopes": {"dims": ["Hq"], "dtype": "f32"},
            "bias": {"dims": ["B"], "dtype": "f32"},
        },
    },
    "three sequences": {"B": 3},
}


def spec_of(**fields: object) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": 32, "mask": "causal", "varlen": True, **fields})


def small(text: str) -> str:
    """The same program with tiles that the interpreter gets through quickly."""
    return re.sub(r"Tile BM = \d+, BN = \d+", "Tile BM = 16, BN = 16", text)


@cache
def code() -> str:
    text = small(plan(spec_of(), targets.get("A100")).code)
    return text.split("\nSchedule\n")[0] + "\n"


@pytest.mark.parametrize("variant", VARIANTS)
def test_programs_for_packed_sequences_are_accepted(variant: str) -> None:
    spec = spec_of(**VARIANTS[variant])
    text = small(plan(spec, targets.get("A100")).code).replace("warps 4", "warps 1")

    verdict = judge_program(check_text(text), spec, seed=3, budget=SMALL)

    assert verdict.verdict == "accepted", verdict.reason


@pytest.mark.parametrize(("target", "dtype"), [("A100", "bf16"), ("T4", "fp16")])
def test_the_schedule_of_packed_sequences_keeps_the_meaning(target: str, dtype: str) -> None:
    spec = spec_of(dtype=dtype)
    text = small(plan(spec, targets.get(target)).code).replace("warps 4", "warps 1")

    scheduled = print_program(schedule(parse(text)))

    assert "if block * BM < Sq" in scheduled
    verdict = judge_program(check_text(scheduled), spec, seed=3, budget=SMALL)
    assert verdict.verdict == "accepted", verdict.reason


@pytest.mark.slow
def test_roles_keep_the_meaning() -> None:
    spec = spec_of(Dqk=64)

    scheduled = print_program(schedule(parse(plan(spec, targets.get("H200")).code)))

    verdict = judge_program(check_text(scheduled), spec, seed=3, budget=replace(SMALL, keys=300, scores=1 << 15))
    assert verdict.verdict == "accepted", verdict.reason


# ------------------------------------------------------------------ planted bugs

_Q = "[q = block * BM : Sq at at_q + block * BM, head]"
_V = "Copy V (BN, D) in coordinate [k = i * BN : Sk at at_k + i * BN, head_k]"
BUGS = {
    "stores end where the tensor does": (f"{_Q} from register", _Q.replace(" : Sq", "") + " from register"),
    "LSE is stored past the end": ("[head, q = block * BM : Sq at", "[head, q = block * BM at"),
    "V is read past the end": (_V, _V.replace(" : Sk", "")),
    "causal from the first key on": ("k <= q + Sk - Sq", "k <= q"),
    "queries begin where keys do": ("Let at_q = clamp(StartQ[batch]", "Let at_q = clamp(StartK[batch]"),
    "keys begin where queries do": ("Let at_k = clamp(StartK[batch]", "Let at_k = clamp(StartQ[batch]"),
    "as many keys as queries": ("Let Sk = clamp(StartK[batch + 1], at_k, Tk) - at_k", "Let Sk = Sq"),
    "a sequence too far": ("Find batch = 0 : B", "Find batch = min(1, B) : B"),
    "slots without a spare one": (" + batch * BM < (slot + 1) * BM", " < (slot + 1) * BM"),
    "slots too near": ("batch * BM < (slot + 1) * BM", "batch * (BM - 1) < (slot + 1) * BM"),
    "the last block is left out": ("slot = 0 : Tq // BM + B", "slot = 0 : Tq // BM"),
    "one length for all": ("clamp(StartQ[batch + 1], at_q, Tq)", "clamp(StartQ[1], at_q, Tq)"),
    "another sequence's values": (_V, _V.replace("at at_k + i * BN", "at i * BN")),
    "keys are not masked at the end": ("k <= q + Sk - Sq and k < Sk", "k <= q + Sk - Sq"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_refused_or_rejected(bug: str) -> None:
    old, new = BUGS[bug]
    assert old in code()
    spec = spec_of(**({"mask": "full"} if bug.startswith("keys are not") else {}))
    text = code().replace(old, new)
    if spec.mask == "full":
        text = text.replace("k <= q + Sk - Sq", "k >= 0").replace("ceildiv(block * BM + BM + Sk - Sq, BN)", "Sk")
    try:
        kernels = check_text(text)
    except DiagnosticError:
        return

    assert judge_program(kernels, spec, seed=3, budget=FIRST).verdict == "rejected"


def test_every_way_of_packing_is_met() -> None:
    calls = [
        Call(b, sq, sk, 2, 2, 32, 32, 1.0)
        for b in (1, 2)
        for sq, sk in ((1, 1), (17, 17), (16, 48), (5, 0), (3, 1), (2, 9), (4, 4), (6, 2), (7, 1))
    ]
    plans = [arrange(call, (16, 16), None) for call in calls]

    lengths = {x.queries for p in plans for x in p.sequences if x.entry is None}
    assert {0, 1, 16, 17, 35} <= lengths
    assert any(p.before and p.behind for p in plans)
    assert any(all(x.entry is not None for x in p.sequences) for p in plans)
    for plan_, call in zip(plans, calls, strict=True):
        assert [x.entry for x in plan_.sequences if x.entry is not None] == list(range(call.B))


# ------------------------------------------------------------------ offsets that make no sense


def run(starts_q: list[int], starts_k: list[int], tokens: int = 70) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    checked = check_text(code())[0]
    rng = np.random.default_rng(1)
    inputs = {n: rng.standard_normal((tokens, h, 32)).astype(np.float32) for n, h in (("Q", 4), ("K", 2), ("V", 2))}
    inputs |= {"StartQ": np.array(starts_q), "StartK": np.array(starts_k)}
    sizes = {"B": len(starts_q) - 1, "Tq": tokens, "Tk": tokens, "Hq": 4, "Hk": 2}
    given = interpret(checked, sizes, inputs, {"scale": 0.2}, partial=True)
    return ~np.isnan(given["Lse"]).any(axis=0), given


@pytest.mark.parametrize(
    ("starts", "written"),
    [
        ([0, 70], (0, 70)),
        ([20, 50], (20, 50)),
        ([-40, 30, 60], (0, 60)),  # negative: held at 0
        ([0, 30, 5_000], (0, 70)),  # past the end: held there
        ([10, 10, 10], (0, 0)),
        ([60, 40, 20], (0, 0)),  # falling: no rows
        ([2**31 - 1, -(2**31)], (0, 0)),
        ([-(2**31), 2**31 - 1], (0, 70)),
        ([90, 95], (0, 0)),
    ],
)
def test_offsets_are_held_within_the_tensor(starts: list[int], written: tuple[int, int]) -> None:
    rows, given = run(starts, [0] * (len(starts) - 1) + [70])

    assert np.flatnonzero(rows).tolist() == list(range(*written))
    assert np.isfinite(given["Out"][rows]).all()


def test_keys_out_of_range_are_none() -> None:
    rows, given = run([0, 30, 70], [80, 90, 40])

    assert rows.all()
    assert not given["Out"].any()
    assert np.isneginf(given["Lse"]).all()

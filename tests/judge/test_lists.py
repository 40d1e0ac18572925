"""The judge on programs that list tiles before they visit them: what a list may get wrong is rejected."""

from __future__ import annotations

from typing import Any

import pytest

from judge.programs import SHORT
from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.judge import Verdict, judge_program
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text

DOC = {"doc": {"dims": ["B", "Sk"], "dtype": "i32"}}
SPECS: dict[str, dict[str, Any]] = {
    "documents": {"mask": "kv_idx <= q_idx + Sk - Sq and doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]", "tensors": DOC},
    "both ways": {"mask": "doc[b, q_idx] == doc[b, kv_idx]", "tensors": DOC},
    "blocks": {
        "mask": "blocks[q_idx // 64, kv_idx // 64]",
        "tensors": {"blocks": {"dims": ["NQ", "NK"], "dtype": "bool"}},
    },
    "heads": {"mask": "kv_idx < reach[h, b]", "tensors": {"reach": {"dims": ["Hq", "B"], "dtype": "i32"}}},
    "rests": {"mask": "(q_idx - kv_idx) % 4 == 0"},
}
VISITED = "Let visited = min(Visited[batch, block], ceildiv(max(Sk, 1), BN * BJ) * BJ)"
FAULTS = {
    "a tile is dropped": ("documents", VISITED, VISITED.replace("Visited[batch, block]", "Visited[batch, block] - 1")),
    "what is cut is taken for whole": ("documents", "where(seen == BM * BN,", "where(seen > 0,"),
    "a tile with few hidden pairs is taken for whole": ("documents", "seen == BM * BN", "seen >= BM * BN // 2"),
    "a tile with few pairs is taken for empty": ("documents", "where(seen > 0,", "where(seen > 20,"),
    "the last ragged tile is dropped": ("both ways", "Let last = ceildiv(Sk, BN)", "Let last = Sk // BN"),
    "keys past the end count as seen": ("both ways", "where(tile * BN + part * BP + n < Sk, more, 0.0)", "more"),
    "lists of another entry": ("documents", "List[batch, block, j]", "List[B - 1 - batch, block, j]"),
    "lists of another head": ("heads", "List[batch, head, block, j]", "List[batch, Hq - 1 - head, block, j]"),
    "lists of another block": ("blocks", "List[block, j]", "List[ceildiv(Sq, BM) - 1 - block, j]"),
    "whole tiles first": ("documents", "(all == 1, next_whole, next_cut)", "(all == 1, next_cut, next_whole)"),
    "only one part is counted": ("documents", "seen + second + third + fourth", "seen + second + third"),
}  # fmt: skip


def spec_of(name: str) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 2, "Hk": 2, "Dqk": 32, **SPECS[name]})


CODE = {name: plan(spec_of(name), targets.get("A100")).code for name in SPECS}


def judged(text: str, name: str) -> Verdict:
    return judge_program(check_text(text, model=False), spec_of(name), budget=SHORT)


@pytest.mark.parametrize("name", SPECS)
def test_planned_programs_are_accepted(name: str) -> None:
    verdict = judged(CODE[name], name)

    assert verdict.accepted, verdict.reason
    assert all(c.caught_by or c.implied for c in verdict.clauses)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_rejected(fault: str) -> None:
    name, old, new = FAULTS[fault]
    assert old in CODE[name]

    assert judged(CODE[name].replace(old, new), name).verdict == "rejected"

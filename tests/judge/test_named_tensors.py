"""The judge on specs with named tensors: right programs pass, planted faults are caught, contents are hostile."""

from __future__ import annotations

import numpy as np
import pytest

from judge.programs import SHORT
from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import JudgeError
from qimeng_attention.judge import Verdict, judge_program
from qimeng_attention.judge.clauses import clauses
from qimeng_attention.judge.contents import KINDS, draw
from qimeng_attention.judge.further import MOST, further
from qimeng_attention.judge.inputs import CPU
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.judge.reference import truth
from qimeng_attention.named_tensors import declared
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text

SPEC = AttentionSpec.make(
    Hq=4,
    Hk=2,
    Dqk=64,
    mask="kv_idx <= q_idx + Sk - Sq and doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]",
    score="score - slopes[h] * (q_idx + Sk - Sq - kv_idx)",
    tensors={"doc": {"dims": ["B", "Sk"], "dtype": "i64"}, "slopes": {"dims": ["Hq"], "dtype": "f32"}},
)
CODE = plan(SPEC, targets.get("A100")).code


def judged(text: str, spec: AttentionSpec = SPEC) -> Verdict:
    return judge_program(check_text(text, model=False), spec, budget=SHORT)


def edited(old: str, new: str) -> str:
    assert old in CODE
    return CODE.replace(old, new)


def test_the_planned_program_is_accepted_and_every_clause_is_shown() -> None:
    verdict = judged(CODE)

    assert verdict.accepted, verdict.reason
    assert all(c.caught_by for c in verdict.clauses)
    assert {"tensor slopes is read", "tensor doc is read", "slopes[h] follows h", "doc[b, kv_idx] follows b"} <= {
        c.name for c in verdict.clauses
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Doc[batch, q + Sk - Sq] == Doc[batch, k]", "Doc[batch, k] == Doc[batch, k]"),
        ("Doc[batch, q + Sk - Sq] == Doc[batch, k]", "Doc[batch, q + Sk - Sq] <= Doc[batch, k]"),
        ("Doc[batch, q + Sk - Sq]", "Doc[batch, q]"),
        ("Doc[batch, k]", "Doc[0, k]"),
        ("Doc[batch, k]", "Doc[batch, k + 1]"),
        ("Doc[batch, q + Sk - Sq] == Doc[batch, k]", "Doc[batch, q + Sk - Sq] % 65536 == Doc[batch, k] % 65536"),
        ("Slopes[head]", "Slopes[head // 2]"),
        ("Slopes[head]", "Slopes[0]"),
        ("- Slopes[head] * (q + Sk - Sq - k)", "- 0 * Slopes[head]"),
    ],
    ids=["never compared", "sorted ids", "rows of the front", "first entry", "next key", "few bits", "key heads",
         "first head", "never read"],
)  # fmt: skip
def test_a_planted_fault_is_rejected(old: str, new: str) -> None:
    assert judged(edited(old, new)).verdict == "rejected"


def test_a_program_without_the_tensor_or_with_another_shape_is_refused() -> None:
    for text, what in (
        (CODE.replace("Slopes[head]", "0.5").replace("Allocate Slopes in global (Hq) f32\n", ""), "no input Slopes"),
        (edited("Slopes in global (Hq)", "Slopes in global (Hk)"), r"Slopes is not declared as \(Hq\) f32"),
        (edited("Doc in global (B, Sk) i64", "Doc in global (B, Sk) i32"), "Doc is i32, the spec asks for i64"),
    ):
        with pytest.raises(JudgeError, match=what):
            judged(text)


def test_a_row_out_of_all_documents_sees_nothing() -> None:
    """Queries before the first key read 0, which is an id as any other; the causal clause hides all keys from them."""
    call = Call(1, 5, 2, 4, 2, 64, 64, 0.125)
    q, k, v = (np.ones((1, n, h, 64), np.float32) for n, h in ((5, 4), (2, 2), (2, 2)))
    operator = Operator.of(SPEC).bind({"Doc": np.zeros((1, 2), np.int64), "Slopes": np.ones(4)})

    found = truth(operator, call, q, k, v)

    assert np.isneginf(found.lse[0, :, :3]).all()
    assert np.isfinite(found.lse[0, :, 3:]).all()


def test_an_element_outside_reads_0() -> None:
    spec = AttentionSpec.make(
        Hq=1, Hk=1, score="score + table[kv_idx - 1]", tensors={"table": {"dims": ["N"], "dtype": "f32"}}
    )
    call = Call(1, 1, 4, 1, 1, 64, 64, 1.0, (("N", 2),))
    operator = Operator.of(spec).bind({"Table": np.array([3.0, 5.0])})

    scores = operator.modified(call, 0, 0, np.arange(1), np.arange(4), np.zeros((1, 4)))

    assert scores.tolist() == [[0, 3, 5, 0]]


def test_contents_are_documents_of_one_and_of_all_and_in_no_order() -> None:
    tensors = declared(
        {
            "doc": {"dims": ["B", "Sk"], "dtype": "i64"},
            "ends": {"dims": ["B"], "dtype": "i32"},
            "gate": {"dims": ["Sk"], "dtype": "bool"},
            "bias": {"dims": ["Hq"], "dtype": "f16"},
        }
    )
    sizes = {"B": 2, "Sq": 70, "Sk": 90, "Hq": 4, "Hk": 2}
    drawn = {kind: draw(np.random.default_rng(1), tensors, sizes, kind) for kind in KINDS}

    assert all({n: a.shape for n, a in d.items()} == {"Doc": (2, 90), "Ends": (2,), "Gate": (90,), "Bias": (4,)}
               for d in drawn.values())  # fmt: skip
    assert len(np.unique(drawn["same"]["Doc"])) == 1
    assert len(np.unique(drawn["alone"]["Doc"][0])) == 90
    assert (np.diff(drawn["documents"]["Doc"]) >= 0).all()
    assert (np.diff(drawn["unsorted"]["Doc"]) < 0).any()
    assert np.abs(drawn["unsorted"]["Doc"]).max() >= 1 << 32
    assert drawn["same"]["Gate"].all()
    assert drawn["random"]["Bias"].dtype == np.float32


def test_one_entry_implies_that_its_index_is_followed() -> None:
    spec = SPEC.model_copy(update={"B": 1})
    verdict = judge_program(check_text(plan(spec, targets.get("A100")).code, model=False), spec, budget=SHORT)

    assert verdict.accepted, verdict.reason
    assert {c.name for c in verdict.clauses if c.implied} == {
        "doc[b, q_idx + Sk - Sq] follows b",
        "doc[b, kv_idx] follows b",
    }


def test_each_tensor_and_each_index_is_a_clause() -> None:
    names = [c.name for c in clauses(SPEC, Operator.of(SPEC))]

    assert [n for n in names if "follows" in n] == [
        "doc[b, q_idx + Sk - Sq] follows b",
        "doc[b, q_idx + Sk - Sq] follows q_idx + Sk - Sq",
        "doc[b, kv_idx] follows b",
        "doc[b, kv_idx] follows kv_idx",
        "slopes[h] follows h",
    ]


# Keys beyond the window are seen where they are sinks of the entry: only long sequences with few sinks show it.
SINKS = AttentionSpec.make(
    Hq=2,
    Dqk=64,
    mask="q_idx >= kv_idx and (q_idx - kv_idx < 500 or kv_idx < sinks[b])",
    tensors={"sinks": {"dims": ["B"], "dtype": "i32"}},
)


def test_a_clause_that_short_sequences_hide_is_looked_for_in_longer_ones() -> None:
    code = plan(SINKS, targets.get("A100")).code
    own = "q - k < 500 or k < Sinks[batch]"
    assert own in code

    right = judge_program(check_text(code), SINKS)
    lacking = judge_program(check_text(code.replace("Sinks[batch]", "Sinks[0]"), model=False), SINKS)

    assert right.accepted, right.reason
    assert all(c.caught_by for c in right.clauses)
    assert lacking.verdict == "rejected"


def test_further_cases_keep_within_the_budget() -> None:
    operator, tiles = Operator.of(SINKS), (128, 64)
    found = list(further(SINKS, operator, tiles, CPU))

    assert [c.call.Sk for c in found] == [1001] * 6 + [629] * 6
    assert {c.contents for c in found} == set(KINDS)
    assert len(found) == MOST
    assert {c.call.Sk for c in further(SINKS, operator, tiles, SHORT)} == {385}


def test_entries_and_heads_are_exchanged_with_their_tensors() -> None:
    """One visible key leaves a gate's numbers in LSE by rounding alone: not what a mix of entries looks like."""
    gated = AttentionSpec.make(
        Hq=2,
        Dqk=64,
        mask="q_idx >= kv_idx",
        score="score + gate[b, h, q_idx] - gate[b, h, kv_idx]",
        tensors={"gate": {"dims": ["B", "Hq", "Sk"], "dtype": "f32"}},
    )
    code = plan(gated, targets.get("A100")).code

    right = [judge_program(check_text(code), gated, seed=seed, budget=SHORT) for seed in (1, 2)]
    mixes = judge_program(check_text(code.replace("Gate[batch,", "Gate[0,"), model=False), gated, budget=SHORT)

    assert [v.verdict for v in right] == ["accepted", "accepted"], [v.reason for v in right]
    assert {"batch entries do not mix", "heads do not mix"} <= {p.name for p in right[0].properties if p.applies}
    assert "batch entries do not mix" in {p.name for p in mixes.properties if not p.passed}

"""The judge judged: planted bugs must be refused or rejected, right programs accepted."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from judge.programs import BUGS, CODE, SHIPPED, SHORT, edit, with_mask, with_score
from qimeng_attention.errors import DiagnosticError
from qimeng_attention.judge import CPU, Verdict, judge_program
from qimeng_attention.schedule import schedule, steps
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check, check_text
from qimeng_attention.tl.parser import parse

ALIBI = "score - exp2(-8*(h+1)/Hq) * (q_idx + Sk - Sq - kv_idx)"


def spec(**fields: object) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": 64, "mask": "causal", **fields})


def judged(text: str, asked: AttentionSpec, seed: int = 7) -> Verdict:
    return judge_program(check_text(text)[0], asked, seed=seed, budget=SHORT)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_refused_or_rejected(bug: str) -> None:
    try:
        checked = check_text(edit(CODE, *BUGS[bug]))[0]
    except DiagnosticError:
        return

    verdict = judge_program(checked, spec(), seed=7, budget=SHORT)

    assert verdict.verdict == "rejected"
    assert verdict.reason


RIGHT = {
    "causal": (CODE, spec()),
    "causal in fp16": (CODE.replace("bf16", "fp16"), spec(dtype="fp16")),
    "causal, no LSE asked for": (CODE, spec(outputs=["O"])),
    "full": (with_mask("k < Sk"), spec(mask="full")),
    "window": (
        with_mask("k <= q + Sk - Sq and k >= q + Sk - Sq - 200 and k < Sk"),
        spec(mask="window:200"),
    ),
    "documents": (
        with_mask("q // 150 == k // 150 and k < Sk"),
        spec(mask="q_idx // 150 == kv_idx // 150"),
    ),
    "prefix": (
        with_mask("(k < 300 or k <= q + Sk - Sq) and k < Sk"),
        spec(mask="kv_idx < 300 or kv_idx <= q_idx + Sk - Sq"),
    ),
    "soft cap": (with_score("30.0 * tanh(S * scale / 30.0)"), spec(softcap=30)),
    "ALiBi": (
        with_score("S * scale - exp2(-8 * (head + 1) / Hq) * (q + Sk - Sq - k)"),
        spec(score=ALIBI),
    ),
    "scales of any sign": (with_score("S * scale"), spec(scale_sign="any")),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_is_accepted(name: str) -> None:
    text, asked = RIGHT[name]

    verdict = judged(text, asked)

    assert verdict.verdict == "accepted", verdict.reason
    assert all(c.caught_by or c.implied for c in verdict.clauses)


@pytest.mark.parametrize("name", ["soft cap", "ALiBi", "window", "documents"])
def test_a_right_program_is_rejected_for_another_spec(name: str) -> None:
    text, asked = RIGHT[name]

    for other in (spec(), spec(mask="full"), asked.model_copy(update={"mask": "kv_idx != 1", "score": "score"})):
        assert judged(text, other).verdict == "rejected"


def test_a_length_that_only_the_program_names_is_looked_beyond() -> None:
    switched = with_mask("k <= q + Sk - Sq and (Sk < 2000 or k < 1990) and k < Sk")

    assert judge_program(check_text(switched)[0], spec(), budget=replace(CPU, keys=1900)).accepted
    assert judge_program(check_text(switched)[0], spec(), budget=replace(CPU, keys=2100)).verdict == "rejected"


def test_the_shipped_program_is_accepted_as_code_and_scheduled() -> None:
    asked = spec(Dqk=128)
    program = parse(SHIPPED.read_text("utf-8"))

    verdicts = [judge_program(check(p)[0], asked) for p in (program, schedule(program))]

    assert [v.verdict for v in verdicts] == ["accepted", "accepted"], [v.reason for v in verdicts]


@pytest.mark.slow
def test_every_rewriting_of_the_shipped_program_is_accepted() -> None:
    for step in steps(parse(SHIPPED.read_text("utf-8"))):
        verdict = judge_program(check(step.after, model=False)[0], spec(Dqk=128))

        assert verdict.accepted, f"{step.rewriting.name}: {verdict.reason}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_other_seeds_accept_the_right_program_too(seed: int) -> None:
    assert judged(CODE, spec(), seed).accepted


def test_a_program_that_faults_is_rejected_with_its_diagnostic() -> None:
    text = with_mask("k + 5 > 0")

    verdict = judge_program(check_text(text, model=False)[0], spec(mask="full"), budget=SHORT)

    assert verdict.verdict == "rejected"
    assert {d["code"] for c in verdict.checks for d in c.diagnostics} == {"TL205"}
    assert "columns past the end" in verdict.reason


def test_the_verdict_holds_what_it_rests_on() -> None:
    seen: list[tuple[int, int, str]] = []
    checked = check_text(CODE)[0]

    verdict = judge_program(checked, spec(), seed=11, budget=SHORT, progress=lambda *step: seen.append(step))

    assert verdict.entropy == 11
    assert len(verdict.digest) == 64
    assert {c.name for c in verdict.clauses} >= {"scale", "mask: kv_idx <= q_idx + Sk - Sq"}
    assert seen[0][0] == 0
    assert seen[-1][:2] == (len(seen) - 1, len(seen) - 1)
    assert Verdict.model_validate(json.loads(json.dumps(verdict.to_json()))) == verdict


def test_a_judgement_can_be_repeated() -> None:
    first, second = judged(CODE, spec()), judged(CODE, spec())

    assert first.model_copy(update={"seconds": 0.0}) == second.model_copy(update={"seconds": 0.0})


def test_a_program_made_for_the_heads_of_the_spec_is_judged_with_them() -> None:
    text = CODE.replace("head // (Hq // Hk)", "head // 4")

    verdict = judged(text, spec(Hq=8))

    assert verdict.accepted, verdict.reason
    assert all("Hq=8 Hk=2" in c.case for c in verdict.checks)
    assert judged(text, spec()).verdict == "rejected"


def test_fixed_sizes_are_judged_as_they_are() -> None:
    text = edit(CODE, ("Size B, Sq, Sk, Hq, Hk", "Size B, Sk\nSize Sq = 1, Hq = 4, Hk = 2"))

    verdict = judged(text, spec(Sq=1))

    assert verdict.accepted, verdict.reason
    assert all("Sq=1 " in c.case for c in verdict.checks)

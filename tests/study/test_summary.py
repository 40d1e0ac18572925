"""What samples say together: failures stay, before and after repair are told apart, nothing is mixed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qimeng_attention.bench.results import Results, StudyRow
from qimeng_attention.cli import app
from qimeng_attention.errors import SpecError
from qimeng_attention.study import plots, tables
from qimeng_attention.study.kinds import KINDS, code_of_verdict, kind_of, kinds_of
from qimeng_attention.study.record import GATES, Attempt, Sample
from qimeng_attention.study.results import results_of
from qimeng_attention.study.samples import read_samples, record
from qimeng_attention.study.summary import choose, summarise

from .conftest import MakeSample

DIAGNOSTICS = Path(__file__).parents[2] / "docs" / "tl" / "diagnostics.md"


@pytest.fixture
def trial(make: MakeSample) -> list[Sample]:
    return [
        make("a", (None,), sample=0),
        make("a", ("checks", None), sample=1),
        make("b", ("checks", "judged", "judged", "judged"), sample=0),
        make("b", ("parses", "checks", None), sample=1, codes="TL001"),
        make("k", (None,), sample=0, stratum="known"),
        make("a", ("compiles", "judged"), sample=0, method="vanilla", codes="Q300"),
    ]


def test_the_summary_counts_before_and_after_repair(trial: list[Sample]) -> None:
    found = summarise(trial)

    cell = found["two-stage"]["unseen"]
    assert (cell["pass1"], cell["pass1_before"], cell["passk"], cell["k"]) == (0.75, 0.25, 1.0, 2)
    assert (cell["requests"], cell["n"], cell["accepted"], cell["repairs_median"]) == (2, 4, 3, 1.5)
    assert cell["pass1_interval"][0] < 0.75 < cell["pass1_interval"][1]
    assert found["two-stage"]["known"]["pass1"] == 1
    assert found["vanilla"]["unseen"]["pass1"] == 0
    assert list(found) == ["two-stage", "vanilla"]


def test_gates_are_counted_after_each_repair(trial: list[Sample]) -> None:
    cells = summarise(trial)
    gates = cells["two-stage"]["unseen"]["gates"]

    assert [g["parses"]["passed"] for g in gates] == [3, 4, 4, 4]
    assert [g["checks"]["passed"] for g in gates] == [1, 3, 4, 4]
    assert [g["judged"]["passed"] for g in gates] == [1, 2, 3, 3]
    assert {n["of"] for g in gates for n in g.values()} == {4}
    assert list(cells["vanilla"]["unseen"]["gates"][0]) == ["compiles", "judged"]


def test_a_method_of_two_languages_is_counted_by_its_own_gates(make: MakeSample, tmp_path: Path) -> None:
    samples = [
        make("a", ("interprets", "compiles", None), method="translated", taken_over=["sketch", "code"]),
        make("a", (None,), method="two-stage"),
    ]
    for sample in samples:
        record(tmp_path / "samples.jsonl", sample)
    found = summarise(read_samples([tmp_path / "samples.jsonl"]))["translated"]["unseen"]

    passed = [{g: n["passed"] for g, n in after.items()} for after in found["gates"]]
    assert passed[0] == {"parses": 1, "checks": 1, "compiles": 0, "interprets": 0, "judged": 0}
    assert passed[1] == {"parses": 1, "checks": 1, "compiles": 0, "interprets": 1, "judged": 0}
    assert passed[2] == dict.fromkeys(passed[0], 1)
    assert "schedules" not in passed[0]
    rows = results_of(samples).rows
    assert [r.taken_over for r in rows if isinstance(r, StudyRow)] == [["sketch", "code"], []]
    assert "translated" in tables.markdown(results_of(samples).summary)


@pytest.mark.parametrize(
    ("code", "kind"),
    [("LM300", "answer without a program"), ("LM310", "cannot be launched"), ("LM311", "another file included")],
)
def test_what_is_wrong_with_an_answer_has_a_kind(code: str, kind: str) -> None:
    assert kind_of(code) == kind


def test_a_sample_without_an_answer_is_a_failure(make: MakeSample) -> None:
    silent = Sample(
        request="a", stratum="unseen", method="two-stage", model="m", sample=1, attempts=[Attempt(fault="truncated")]
    )

    cell = summarise([make("a"), silent])["two-stage"]["unseen"]

    assert (cell["pass1"], cell["n"]) == (0.5, 2)
    assert cell["kinds"] == cell["kinds_left"] == {"no answer: truncated": 1}
    assert cell["gates"][0]["parses"] == {"passed": 1, "of": 2}


def test_tokens_that_nobody_knows_are_counted_not_taken_for_none(make: MakeSample) -> None:
    attempt = make().attempts[0].model_copy(update={"output_tokens": None})
    other = make(sample=1).model_copy(update={"attempts": [attempt]})

    cell = summarise([make(), other])["two-stage"]["unseen"]

    assert (cell["output_tokens"], cell["output_tokens_unknown"]) == (10, 1)
    assert (cell["usd"], cell["usd_unknown"]) == (None, 2)


def test_kinds_are_counted_once_an_attempt_and_what_is_left_apart(trial: list[Sample]) -> None:
    cell = summarise(trial)["two-stage"]["unseen"]

    assert cell["kinds"] == {"reshape omitted": 5, "not written as TL": 2}
    assert cell["kinds_left"] == {"reshape omitted": 1}


def test_models_rounds_and_too_few_samples_are_refused(make: MakeSample) -> None:
    two_models = [make(), make(model="other")]
    with pytest.raises(SpecError, match="more than one model: m, other"):
        summarise(two_models)
    assert summarise(choose(two_models, model="m"))["two-stage"]["unseen"]["n"] == 1
    with pytest.raises(SpecError, match="more than one round"):
        summarise([make(), make(round=2)])
    with pytest.raises(SpecError, match="pass@2"):
        summarise([make("a"), make("a", sample=1), make("b")], k=2)
    with pytest.raises(SpecError, match="both known and unseen"):
        summarise([make(), make(sample=1, stratum="known")])
    with pytest.raises(SpecError, match="no samples"):
        summarise([])
    with pytest.raises(SpecError, match="of that model and round"):
        choose([make()], round_=2)


# ------------------------------------------------------------------ kinds


def test_every_code_of_the_language_has_one_kind() -> None:
    codes = re.findall(r"^## (TL\d{3})$", DIAGNOSTICS.read_text("utf-8"), re.MULTILINE)
    listed = [code for codes in KINDS.values() for code in codes]

    assert len(codes) > 40
    assert len(listed) == len(set(listed))
    assert [c for c in codes if kind_of(c).startswith("other")] == []
    assert {c for c in listed if c.startswith("TL")} == set(codes)


def test_the_papers_failures_have_names() -> None:
    assert kind_of("TL201") == "reshape omitted"
    assert kind_of("TL202") == kind_of("TL203") == "transpose confused"
    assert kind_of("TL101") == "hallucinated call or name"
    assert kind_of("TL999") == "other: TL999"


def test_a_failure_without_a_code_is_still_a_failure(make: MakeSample) -> None:
    assert kinds_of(Attempt(outcomes={"compiles": "failed"})) == ["unexplained: compiles"]
    assert kinds_of(make().attempts[0]) == []


@pytest.mark.parametrize(
    ("verdict", "reason", "code"),
    [
        ("rejected", "normal: Out[0, 1] is nan (never written), expected 0.5", "rejected: NaN"),
        ("rejected", "normal: Out[0, 1] is -inf, expected 0", "rejected: infinity"),
        ("rejected", "normal: Out[0, 1] is 0.5, expected 1", "rejected"),
        ("inconclusive", "inputs too weak", "inconclusive"),
    ],
)
def test_a_verdict_has_a_code(verdict: str, reason: str, code: str) -> None:
    assert code_of_verdict(verdict, reason) == code
    assert not kind_of(code).startswith("other")


# ------------------------------------------------------------------ files, tables, pictures, the command


def test_the_results_file_holds_every_sample_and_the_summary(trial: list[Sample], tmp_path: Path) -> None:
    made = results_of(trial)

    again = Results.load(made.save(tmp_path))

    assert again == made
    assert len(again.rows) == len(trial)
    assert all(isinstance(row, StudyRow) for row in again.rows)
    assert again.summary["two-stage"]["unseen"]["pass1"] == 0.75
    assert again.summary["facts"]["by_request"]["b"] == {"two-stage": [0, 1, 2]}
    failed = [row for row in again.rows if isinstance(row, StudyRow) and not row.accepted]
    assert len(failed) == 2
    assert failed[0].gates[-1]["judged"] == "failed"


def test_the_tables_show_failures_and_intervals(trial: list[Sample]) -> None:
    text = tables.markdown(summarise(trial))

    assert "| two-stage | unseen | 2 | 4 | 0.25 (" in text
    assert "| vanilla | unseen | 1 | 1 |" in text
    assert "| reshape omitted | 5 / 1 |" in text
    assert "| does not compile |  | 2 / 1 |" in text
    assert all(line.count("|") == text.splitlines()[0].count("|") for line in text.split("\n\n")[0].splitlines())
    assert "| two-stage | unseen | 1,000 | 100 | unknown | 5.0 | 1.2 |" in text
    for gate in GATES:
        assert gate in text


def test_the_picture_is_the_same_each_time(trial: list[Sample], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the report extra")
    summary = summarise(trial)

    one, two = (plots.draw(summary, tmp_path / name).read_bytes() for name in ("1.svg", "2.svg"))

    assert one == two
    assert len(one) > 5_000


def _run(*args: Any) -> Any:
    return CliRunner().invoke(app, ["study", "summary", *map(str, args)])


def test_the_command_summarises(trial: list[Sample], tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    for sample in trial:
        record(path, sample)

    shown = _run(path)
    as_json = _run(path, "--json", "--results", tmp_path, "--name", "study_round1")

    assert shown.exit_code == 0, shown.output
    assert "reshape omitted" in shown.stdout
    assert json.loads(as_json.stdout)["two-stage"]["unseen"]["k"] == 2
    assert Results.load(tmp_path / "study_round1.json").name == "study_round1"
    assert "| two-stage | unseen |" in _run(path, "--markdown").stdout


def test_the_command_refuses_in_a_line(tmp_path: Path) -> None:
    refused = _run(tmp_path / "none.jsonl", "--json")

    assert refused.exit_code == 2
    assert "holds no samples" in json.loads(refused.stdout)["message"]
    assert "Example: qimeng study summary" in _run("--help").stdout

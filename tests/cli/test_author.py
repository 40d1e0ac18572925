"""`generate --author`: a request in words, offline, from a recorded conversation; what is refused, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qimeng_attention.cli import app
from qimeng_attention.runtime import load

WORDS = "causal GQA 32/8, head dim 128, bf16, with softcap 30, for an A100"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["generate", *words])


@pytest.mark.cuda
def test_words_become_a_judged_bundle_without_a_network(here: Path) -> None:
    result = run(WORDS, "--author", "replay", "--yes", "--run", "run", "--out", "out", "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["understood"]["spec"]["softcap"] == 30.0
    assert found["understood"]["target"] == "A100"
    assert [s["solved"] for s in found["samples"]] == [True]
    assert found["verdict"]["verdict"] == "accepted"
    bundle = load(here / "out")
    assert bundle.manifest.target == "A100"
    assert "Kernel gqa_causal_softcap_d128_bf16 for a100" in bundle.files["code.tl"].decode()
    assert bundle.files["sketch.tl"]
    reasons = json.loads(bundle.files["reasons.json"])
    assert reasons["repairs"] == 0
    assert (here / "run" / "transcript.jsonl").is_file()


@pytest.mark.cuda
def test_a_run_begun_again_asks_nothing_twice(here: Path) -> None:
    arguments = (WORDS, "--author", "replay", "--yes", "--run", "run", "--out", "out", "--force", "--quiet")
    assert run(*arguments).exit_code == 0
    before = (here / "run" / "transcript.jsonl").read_text()

    assert run(*arguments).exit_code == 0
    assert (here / "run" / "transcript.jsonl").read_text() == before


@pytest.mark.usefixtures("here")
def test_words_without_a_model_are_refused_with_the_way_out() -> None:
    result = run(WORDS)

    assert result.exit_code == 2
    assert "--author" in result.output


@pytest.mark.usefixtures("here")
def test_flags_beside_words_are_refused_by_name() -> None:
    result = run(WORDS, "--author", "replay", "--yes", "--Hq", "8")

    assert result.exit_code == 2
    assert "(Hq) would not count" in result.output


@pytest.mark.usefixtures("here")
def test_without_a_terminal_nothing_is_made_unless_told_so() -> None:
    result = run(WORDS, "--author", "replay", "--run", "run", "--out", "out")

    assert result.exit_code == 2
    assert "--yes" in result.output
    assert "30.0 * tanh(score / 30.0)" in result.output
    assert not Path("out").exists()


@pytest.mark.usefixtures("here")
def test_words_that_nobody_recorded_name_those_that_are() -> None:
    result = run("a window of 5 keys for a T4", "--author", "replay", "--yes", "--run", "run")

    assert result.exit_code == 2
    assert WORDS in result.output


def test_a_folder_of_answers_waits_and_goes_on(here: Path) -> None:
    arguments = (WORDS, "--author", "file:answers", "--yes", "--run", "run", "--out", "out")
    first = run(*arguments)

    assert first.exit_code == 4
    (prompt,) = (here / "answers").glob("001-understand-*.prompt.md")
    assert WORDS in prompt.read_text()
    answer = prompt.with_name(prompt.name.replace("prompt", "answer"))
    answer.write_text("```yaml\nkind: refused\nwhy: it asks for dropout\n```\n<!-- end -->\n")
    second = run(*arguments)
    assert second.exit_code == 2
    assert "it asks for dropout" in second.output


def test_all_samples_ask_before_the_run_waits(here: Path) -> None:
    spec = ("--Hq", "2", "--Dqk", "64", "--target", "A100", "--samples", "3")
    result = run(*spec, "--author", "file:answers", "--yes", "--run", "run", "--out", "out")

    assert result.exit_code == 4
    assert sorted(p.name[4:13] for p in (here / "answers").glob("*.prompt.md")) == [
        "sketch-s0",
        "sketch-s1",
        "sketch-s2",
    ]


@pytest.mark.usefixtures("here")
def test_no_call_is_made_beyond_the_budget() -> None:
    result = run(WORDS, "--author", "command:cat", "--yes", "--run", "run", "--max-calls", "0")
    assert result.exit_code == 2
    result = run(WORDS, "--author", "command:cat", "--yes", "--run", "run", "--max-tokens", "10")
    assert result.exit_code == 5

"""`generate --author`: a request in words, offline, from a recorded conversation; what is refused, and how."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.cli import app
from qimeng_attention.judge import Verdict
from qimeng_attention.judge.device import digest_of_bundle
from qimeng_attention.runtime import load, read_folder
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import judgement
from qimeng_attention.workflow.gpu import BUNDLE, bundle_digest, put_beside

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


# ------------------------------------------------------------------ faster, by rounds
@pytest.mark.cuda
def test_improving_stops_at_the_first_race_and_goes_on_with_its_timing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judgement, "runs_here", lambda arch: False)
    arguments = ("--Hq", "2", "--Dqk", "64", "--mask", "causal", "--target", "H200", "--run", "run", "--out", "out")
    arguments += ("--improve", "1", "--improver", "file:answers", "--at", "B=1,S=512")
    first = run(*arguments)

    assert first.exit_code == 4
    assert "qimeng race" in first.output
    (place,) = (p for p in (here / "run" / "races").iterdir() if p.is_dir())
    assert json.loads((place / "call.json").read_text()) == {"B": 1, "S": 512}
    digest = digest_of_bundle(load(place / "best").manifest)
    found = {"bundles": {"best": digest}, "sizes": {"B": 1, "S": 512}, "device": "a GPU", "driver": "1", "torch": "2"}
    found |= {"date": "2026-11-28", "ms": {"best": 0.25}, "same": [1.0] * 61}
    (place / "timing.json").write_text(json.dumps(found))
    second = run(*arguments)
    assert second.exit_code == 4
    (prompt,) = (here / "answers").glob("*.prompt.md")
    assert "0.25 ms a call at B = 1, S = 512 on an a GPU" in prompt.read_text()
    prompt.with_name(prompt.name.replace("prompt", "answer")).write_text("Nothing helps.\n<!-- end -->\n")
    third = run(*arguments)
    assert third.exit_code == 4  # a repair is asked for
    (again,) = (p for p in (here / "answers").glob("*.prompt.md") if p != prompt)
    again.with_name(again.name.replace("prompt", "answer")).write_text("Nothing.\n<!-- end -->\n")
    last = run(*arguments, "--json")
    assert last.exit_code == 0, last.output
    record = json.loads(load(here / "out").files["reasons.json"])["improved"]
    assert record["rounds"][0]["outcome"].startswith("Refused (answer)")
    assert record["gain"] == 1.0
    assert '"about": "improve"' in (here / "run" / "transcript.jsonl").read_text()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--Hq", "2"), "--improver"),
        (("--Hq", "2", "--improver", "file:a", "--at", "B"), "'B' is no size"),
        (("--Hq", "2", "--improver", "file:a", "--emit", "code"), "--emit"),
        ((WORDS, "--author", "replay", "--yes", "--method", "vanilla"), "two-stage"),
    ],
)
def test_what_cannot_be_improved_is_refused_at_once(more: tuple[str, ...], said: str) -> None:
    result = run(*more, "--target", "H200", "--improve", "2")

    assert result.exit_code == 2
    assert said in result.output
    assert not Path("runs").exists()


def test_races_need_a_gpu_and_say_so(here: Path) -> None:
    assert CliRunner().invoke(app, ["race", "."]).exit_code == 0
    (here / "call.json").write_text('{"B": 1, "S": 64}')
    result = CliRunner().invoke(app, ["race", "."])

    if result.exit_code == 3:
        assert "PyTorch" in result.output or "GPU" in result.output
    else:
        assert result.exit_code == 2  # there is a GPU, and no bundle
        assert "best" in result.output


# ------------------------------------------------------------------ a model that translates its own TL
MODEL = """\
import pathlib, sys
asked = sys.stdin.read()
stages = {"It will be translated": "atoms", "Translate a program": "translation", "You design a fused": "sketch"}
print(pathlib.Path(next((s for words, s in stages.items() if words in asked), "code")).read_text())
"""


@pytest.mark.cuda
def test_a_translation_waits_for_a_gpu_and_becomes_a_bundle_without_tl(here: Path) -> None:
    spec = AttentionSpec.make(Hq=8, Hk=2, Dqk=64, dtype="bf16", outputs=["O"])
    source = (Path(__file__).parents[1] / "workflow" / "plain.cu").read_text()
    code = plan(spec, targets.get("A100")).code
    Path("sketch").write_text("a sketch")
    Path("code").write_text(f"```tl\n{code}```")
    Path("atoms").write_text("```cuda\nusing Mma = int;\n```")
    Path("translation").write_text(f"```cuda\n{source.replace('plain(', spec.kernel_name + '(')}```")
    Path("model.py").write_text(MODEL)
    Path("spec.yaml").write_text("Hq: 8\nHk: 2\nDqk: 64\ndtype: bf16\noutputs: [O]\n")
    model = ("--author", f"command:{sys.executable} model.py", "--method", "translated", "--yes", "--run", "run")
    result = run("spec.yaml", "--target", "A100", *model, "--out", "out")
    assert result.exit_code == 4, result.output
    assert "qimeng judge-waiting run/gpu" in result.output.replace("\n", " ")
    (place,) = (here / "run" / "gpu").glob(f"{spec.kernel_name}-*")
    put_beside(place, accepted(place / BUNDLE))

    result = run("spec.yaml", "--target", "A100", *model, "--out", "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [a["stage"] for a in found["samples"][0]["attempts"]] == ["code", "translation"]
    bundle = load(here / "out")
    assert "code.tl" not in bundle.files
    reasons = json.loads(bundle.files["reasons.json"])
    assert reasons["translated from"] == code
    assert reasons["instructions"] == "using Mma = int;\n"
    assert reasons["failed before"] == []


def accepted(bundle: Path) -> Verdict:
    digest = bundle_digest(read_folder(bundle).manifest)
    return Verdict(
        verdict="accepted", reason="as asked", subject="k", where="gpu", digest=digest, entropy=1, seed=1, checks=()
    )

"""Pages of a model's run: all that was said and what came of it, nothing invented, and nothing of it acts."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from qimeng_attention.author.llm.render import repair_prompt
from qimeng_attention.cli import app
from qimeng_attention.llm.chat import Message, Refused, Reply, Request, Usage
from qimeng_attention.llm.recorded import Recorded
from qimeng_attention.llm.transcript import Transcript, load
from qimeng_attention.report import RunPage, run_page, run_to_html, show_run
from qimeng_attention.study.record import Attempt, Sample, outcomes_up_to
from qimeng_attention.study.samples import record

SHIPPED = "causal-gqa-softcap"
FIRST = "Words.\n```tl\nKernel k for a100\n```\n"
HOSTILE = "</pre><script>alert(1)</script> {{ 7*7 }} \x1b]0;title\x07\x1b[2J \u202e [bold]x[/bold] & ' \""
FINDING = "code.tl:1:1: error TL101: unknown name 'x'"


class Answers:
    name = "answers"

    def __init__(self, *ends: Reply | Refused) -> None:
        self.ends = list(ends)

    def complete(self, request: Request) -> Reply:
        end = self.ends.pop(0)
        if isinstance(end, Refused):
            raise end
        return end


def said(text: str, tokens: int | None = None) -> Reply:
    return Reply(text, "a model", Usage(tokens, tokens, None))


def recorded(path: Path, *, notes: bool, words: str = "causal", answer: str = FIRST) -> Path:
    """Write a run: an answer that the checker refuses, and its repair."""
    with Transcript(path, words=words, facts={"method": "one-stage"}) as transcript:
        client = Recorded(Answers(said(answer, 7), said(FIRST)), transcript)
        asked = (Message("user", "Write it."),)
        client.complete(Request(asked, "code"))
        turns = (*asked, Message("assistant", answer), Message("user", repair_prompt("check", FINDING)))
        client.complete(Request(turns, "repair 1"))
        if notes:
            gates = {"sample": 0, "codes": [], "plain_schedule": True}
            transcript.note_once("attempt", stage="code", passed=["answer", "parse"], failed="check", findings=HOSTILE,
                                 **gates)  # fmt: skip
            transcript.note_once("attempt", stage="repair 1", passed=["answer"], failed="", findings="", **gates)
            transcript.note_once("outcome", samples=[], kept=0, bundle="out", verdict="accepted")
    return path


def terminal(page: RunPage, *, full: bool = False) -> str:
    console = Console(file=io.StringIO(), width=160, highlight=False)
    show_run(console, page, full=full)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def show(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["show", *arguments])


def test_notes_say_what_came_of_each_answer(tmp_path: Path) -> None:
    page = run_page(load(recorded(tmp_path / "a.jsonl", notes=True)), "a")

    assert [(a.stage, a.known, a.failed, a.passed) for a in page.attempts] == [
        ("code", "noted", "check", ("answer", "parse")),
        ("repair 1", "noted", "", ("answer",)),
    ]
    assert dict(page.outcome) == {"repairs": "1", "verdict": "accepted", "bundle": "out"}
    assert page.last is page.attempts[1]
    shown = terminal(page)
    assert "refused by check, after answer, parse" in shown
    assert "passed every gate" in shown


def test_without_notes_it_is_what_the_model_was_told_and_the_last_answers_end_is_unknown(tmp_path: Path) -> None:
    page = run_page(load(recorded(tmp_path / "a.jsonl", notes=False)), "a")

    first, last = page.attempts
    assert (first.known, first.failed, first.codes, first.findings) == ("told", "check", ("TL101",), FINDING)
    assert (last.known, last.failed) == ("unknown", "")
    assert dict(page.outcome)["outcome"] == "the transcript does not say"
    assert "passed every gate" not in terminal(page)


@pytest.mark.parametrize(("gate", "failed"), [("answer", "answer"), ("judge", "judge"), ("build", "build")])
def test_what_each_gate_told_is_read_back(tmp_path: Path, gate: str, failed: str) -> None:
    with Transcript(tmp_path / "a.jsonl") as transcript:
        client = Recorded(Answers(said(FIRST), said(FIRST)), transcript)
        asked = (Message("user", "Write it."),)
        client.complete(Request(asked, "code"))
        told = Message("user", repair_prompt(gate, "what was found"))
        client.complete(Request((*asked, Message("assistant", FIRST), told), "repair 1"))

    first = run_page(load(tmp_path / "a.jsonl"), "a").attempts[0]
    assert (first.failed, first.findings.strip()) == (failed, "what was found")


def test_what_nobody_reported_stays_unknown(tmp_path: Path) -> None:
    page = run_page(load(recorded(tmp_path / "a.jsonl", notes=True)), "a")

    assert [(c.input_tokens, c.usd) for c in page.calls] == [(7, None), (None, None)]
    assert dict(page.total)["input tokens"] == "7 and 1 call unknown"
    assert dict(page.total)["usd"] == "2 calls unknown"
    assert page.to_json()["calls"][1]["input_tokens"] is None


def test_a_fault_and_a_call_without_an_end_are_told(tmp_path: Path) -> None:
    with Transcript(tmp_path / "a.jsonl") as transcript:
        request = Request((Message("user", "x"),), "code")
        with pytest.raises(Refused):
            Recorded(Answers(Refused(f"no {HOSTILE}")), transcript).complete(request)
        transcript.asked("answers", Request((Message("user", "y"),), "code"), None)
    page = run_page(load(tmp_path / "a.jsonl"), "a")

    assert [c.end for c in page.calls] == ["refused", "stopped in the middle"]
    assert page.attempts == ()
    assert "stopped in the middle" in terminal(page)


def test_lines_that_the_model_did_not_write_are_marked(tmp_path: Path) -> None:
    program = "Kernel k for a100\nSize B\n"
    page = run_page(load(recorded(tmp_path / "a.jsonl", notes=True, answer=f"```tl\n{program}```")), "a")

    first = page.attempts[0]
    assert first.program[:2] == ("Kernel k for a100", "Size B")
    assert {first.program[n - 1].strip() for n in first.added} >= {"Schedule"}
    assert not any(n in first.added for n in (1, 2))
    written = "```tl\nKernel k for a100\nSize B\n\nSchedule\n    warps 4 along q\n```"
    other = run_page(load(recorded(tmp_path / "b.jsonl", notes=True, answer=written)), "b")
    assert other.attempts[0].added == frozenset()


def test_prompts_hold_only_what_is_new_in_a_conversation(tmp_path: Path) -> None:
    page = run_page(load(recorded(tmp_path / "a.jsonl", notes=True)), "a")

    assert [[role for role, _ in c.prompt] for c in page.calls] == [["user"], ["user"]]
    assert "TL101" in page.calls[1].prompt[0][1]
    assert page.calls[1].prompt_characters > page.calls[0].prompt_characters
    assert "Write it." not in terminal(page)
    assert "Write it." in terminal(page, full=True)


def test_hostile_words_are_text(tmp_path: Path) -> None:
    answer = f"{HOSTILE}\n```tl\nKernel k for a100\n# {HOSTILE}\n```"
    path = recorded(tmp_path / "a.jsonl", notes=True, words=HOSTILE, answer=answer)
    page = run_page(load(path), HOSTILE)

    text = run_to_html(page)
    for drawn in (text, terminal(page, full=True)):
        assert not any(c in drawn for c in "\x1b\x07\u202e")
        assert "7*7" in html.unescape(drawn)
    assert "<script" not in text
    assert "[bold]x[/bold]" in terminal(page)
    assert HOSTILE in load(path).words


def test_show_takes_a_name_a_file_or_a_runs_folder(tmp_path: Path) -> None:
    recorded(tmp_path / "run" / "transcript.jsonl", notes=True)
    out = tmp_path / "run.html"

    for what in (SHIPPED, str(tmp_path / "run"), str(tmp_path / "run" / "transcript.jsonl")):
        assert show(what).exit_code == 0
    assert show(SHIPPED, "--html", str(out)).exit_code == 0
    assert "https:" not in out.read_text("utf-8")
    found = json.loads(show(str(tmp_path / "run"), "--json").stdout)
    assert found["run"] == "run"
    assert "prompt" not in found["calls"][0]
    assert json.loads(show(str(tmp_path / "run"), "--json", "--full").stdout)["calls"][0]["answer"] == FIRST


def test_show_lists_what_ships_and_an_unknown_name_does_too() -> None:
    listed, unknown = show("--json"), show("causal-gqa")

    assert SHIPPED in [r["name"] for r in json.loads(listed.stdout)]
    assert unknown.exit_code == 2
    assert SHIPPED in unknown.output


def test_a_folder_of_several_transcripts_names_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        recorded(tmp_path / f"{name}.jsonl", notes=False)

    shown = show(str(tmp_path))
    assert shown.exit_code == 2
    assert "b.jsonl" in shown.output


def test_the_same_note_is_written_once(tmp_path: Path) -> None:
    for _ in range(2):
        with Transcript(tmp_path / "a.jsonl") as transcript:
            transcript.note_once("attempt", seconds=1.5, sample=0, passed=("a",))
            transcript.note_once("attempt", seconds=2.5, sample=0, passed=("a",))
    assert len(load(tmp_path / "a.jsonl").notes) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"input_tokens": 7', '"input_tokens": "many"'),
        ('"sample": 0, "attempt"', '"sample": "x", "attempt"'),
        ('"passed": ["answer", "parse"]', '"passed": 5'),
        ('"seconds": 0.0', '"seconds": []'),
        ('"text": "Write it."', '"text": 5'),
    ],
)
def test_a_transcript_with_other_kinds_of_things_is_refused(tmp_path: Path, before: str, after: str) -> None:
    path = recorded(tmp_path / "a.jsonl", notes=True)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))

    shown = show(str(path), "--full")
    assert (shown.exit_code, "internal error" in shown.output) == (2, False)


def test_of_a_studys_transcript_the_samples_say_what_came_of_it(tmp_path: Path) -> None:
    recorded(tmp_path / "transcripts" / "round1" / "one-stage" / "sink-s0.jsonl", notes=False)
    record(
        tmp_path / "samples.jsonl",
        Sample(
            request="sink",
            stratum="known",
            method="one-stage",
            model="m",
            sample=0,
            attempts=[Attempt(outcomes=outcomes_up_to("checks")), Attempt(outcomes=outcomes_up_to(None))],
            target="A100",
            judged_on="cpu",
        ),
    )

    shown = show(str(tmp_path / "transcripts"))
    assert shown.exit_code == 0
    assert "accepted after 1 repairs, for A100, judged on cpu" in shown.output

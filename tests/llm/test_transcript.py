from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.scripted import Scripted, reply, request
from qimeng_attention.llm import chat
from qimeng_attention.llm.budget import Budget
from qimeng_attention.llm.recorded import Recorded
from qimeng_attention.llm.redact import redactor
from qimeng_attention.llm.transcript import Transcript, TranscriptError, load

SECRET = "very-secret-value-1"


def test_everything_that_was_said_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one.jsonl"
    asked = chat.Request(chat.conversation("é\n```", system="s"), "repair 1", 2, 500, 0.5, 60.0)
    fault = chat.RateLimited("slow", hint="later", raw="{}", wait_s=3.0)
    with Transcript(path, words="causal GQA", facts={"method": "two-stage"}) as transcript:
        client = Recorded(Scripted([fault, reply("Kernel é")]), transcript, clock=lambda: 5.0)
        with pytest.raises(chat.RateLimited):
            client.complete(asked)
        client.complete(asked)
        transcript.note("gate", gate="check", passed=False, codes=["TL204"])

    record = load(path)

    assert (record.words, record.facts) == ("causal GQA", {"method": "two-stage"})
    first, second = record.calls
    assert (first.request, first.digest, first.client, first.attempt) == (asked, asked.digest, "openai:gpt-4o", 1)
    assert isinstance(first.end, chat.RateLimited)
    assert (first.end.message, first.end.hint, first.end.raw, first.end.wait_s) == ("slow", "later", "{}", 3.0)
    assert (first.may_cost, second.may_cost, second.attempt) == (False, True, 2)
    assert isinstance(second.end, chat.Reply)
    assert (second.end.text, second.end.model, second.usage.output_tokens) == ("Kernel é", "gpt-4o", 50)
    assert record.notes[0]["codes"] == ["TL204"]


def test_an_answer_is_on_the_disk_before_anybody_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    with Transcript(path) as transcript:
        text = Recorded(Scripted([reply("no fence")]), transcript).complete(request()).text
        stored = load(path).calls[0].end  # the file is open still

    assert isinstance(stored, chat.Reply)
    assert stored.text == text


def test_lines_are_only_ever_added(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    with Transcript(path) as transcript:
        Recorded(Scripted([reply()]), transcript).complete(request())
    before = path.read_bytes()
    with Transcript(path) as transcript:
        Recorded(Scripted([reply("other")]), transcript).complete(request(sample=1))

    assert path.read_bytes().startswith(before)
    assert before.count(b'"event": "run"') == path.read_bytes().count(b'"event": "run"') == 1


def test_secrets_are_not_stored_wherever_they_turn_up(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    clean = redactor({"MY_API_KEY": SECRET, "EDITOR": "vim-of-mine", "GIT_AUTHOR_NAME": "vim-of-mine"})
    shaped = "sk-ant-0123456789abcdefghij"
    fault = chat.Misconfigured(f"key {SECRET}", hint=SECRET, raw=f"Bearer {shaped} {SECRET}")
    said = chat.Reply(f"{SECRET} {shaped}", "m", facts={"a": [{"b": f"x{SECRET}x"}], SECRET: 1})
    with Transcript(path, words=SECRET, facts={"k": SECRET}, clean=clean) as transcript:
        client = Recorded(Scripted([fault, said]), transcript)
        for _ in range(1):
            with pytest.raises(chat.Misconfigured):
                client.complete(request(f"my key is {SECRET}, my editor vim-of-mine"))
        client.complete(request(SECRET, stage=SECRET))
        transcript.note("x", y=(SECRET,))

    text = path.read_text("utf-8")

    assert SECRET not in text
    assert shaped not in text
    assert "[MY_API_KEY]" in text
    assert "vim-of-mine" in text


def test_a_secret_is_found_in_raw_json_too() -> None:
    clean = redactor({"SOME_TOKEN": 'quote"and\\slash', "ANOTHER_TOKEN": 'quote"and\\slash-longer'})

    assert clean({"raw": json.dumps({"said": 'quote"and\\slash-longer'})}) == {"raw": '{"said": "[ANOTHER_TOKEN]"}'}


def test_a_line_that_was_cut_off_is_passed_over_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    with Transcript(path) as transcript:
        Recorded(Scripted([reply()]), transcript).complete(request())
    whole = path.read_bytes()
    said = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in (said + 1, said + 40, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert len(load(path).calls) == 1

        client = Scripted([reply("again")])
        with Transcript(path) as transcript:
            budget = Budget()
            answer = Recorded(client, transcript, budget).complete(request())

        ends = [c.end for c in load(path).calls]
        assert answer.text == ("Kernel k" if end == len(whole) - 1 else "again")
        assert (ends[0] is None) == (answer.text == "again")
        assert budget.spent.unknown_tokens_calls == (ends[0] is None)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"event": "said", "call": 9}', '{"event": "new"}', "null", ""], ids=range(6)
)
def test_an_edited_line_is_refused_with_its_number(line: str, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    with Transcript(path) as transcript:
        Recorded(Scripted([reply()]), transcript).complete(request())
    lines = path.read_text("utf-8").splitlines()
    for place in (1, len(lines)):
        path.write_text("\n".join([*lines[:place], line, *lines[place:]]) + "\n", "utf-8")
        with pytest.raises(TranscriptError, match=f"line {place + 1} of"):
            load(path)


def test_a_transcript_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    with Transcript(path), pytest.raises(TranscriptError, match="another process"):
        Transcript(path)
    with Transcript(path):
        pass


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"event": "run", "format": 9, "words": "", "facts": {}, "date": "x"}) + "\n", "utf-8")

    with pytest.raises(TranscriptError, match="line 1"):
        load(path)

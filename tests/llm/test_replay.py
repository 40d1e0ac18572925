from __future__ import annotations

from pathlib import Path

import pytest

from llm.scripted import Scripted, reply, request
from qimeng_attention.llm import chat
from qimeng_attention.llm.budget import Budget
from qimeng_attention.llm.clients import careful
from qimeng_attention.llm.replay import ReplayClient
from qimeng_attention.llm.transcript import Transcript, TranscriptError


def record(path: Path, words: str, *ends: chat.Reply | chat.ClientFault, text: str = "Write it.") -> None:
    with Transcript(path, words=words) as transcript:
        client = Scripted(ends)
        for n in range(len(ends)):
            try:
                careful(client, transcript).complete(request(text, sample=n))
            except chat.ClientFault:
                continue


def test_a_recorded_conversation_is_answered_as_it_was_and_costs_nothing(tmp_path: Path) -> None:
    record(tmp_path / "a" / "one.jsonl", "causal GQA", reply("one"), reply("two"))
    replay, budget = ReplayClient(tmp_path), Budget(max_usd=0.0)
    with Transcript(tmp_path / "again.jsonl") as transcript:
        said = careful(replay, transcript, budget).complete(request(sample=1))

    assert (said.text, said.model, said.usage.usd) == ("two", "gpt-4o", 0.0)
    assert said.facts["recorded"] == "one.jsonl"
    assert said.facts["recorded_date"].startswith("20")


def test_a_fault_that_was_the_end_is_told_again(tmp_path: Path) -> None:
    record(tmp_path / "one.jsonl", "w", chat.Truncated("too long"))

    with pytest.raises(chat.Truncated, match="too long"):
        ReplayClient(tmp_path / "one.jsonl").complete(request())


def test_what_was_not_recorded_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    for n in range(12):
        record(tmp_path / f"{n:02d}.jsonl", f"request {n}", reply())
    record(tmp_path / "x.jsonl", "", reply(), text="Write   that.\n")

    with pytest.raises(chat.NoRecording) as e:
        ReplayClient(tmp_path).complete(request("other"))

    assert [line.strip() for line in e.value.message.splitlines()[1:]] == [
        *[f"request {n}" for n in range(10)],
        "and 3 more",
    ]
    assert e.value.details["recorded"][-1] == "Write that."
    assert e.value.exit_code == 2


def test_no_transcripts_are_told_from_none_that_fits(tmp_path: Path) -> None:
    with pytest.raises(chat.NoRecording, match="there are no transcripts"):
        ReplayClient(tmp_path).complete(request())
    with pytest.raises(TranscriptError, match="there is no"):
        ReplayClient(tmp_path / "nothing")

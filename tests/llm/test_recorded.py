from __future__ import annotations

from pathlib import Path

import pytest

from llm.scripted import Scripted, reply, request
from qimeng_attention.llm import chat
from qimeng_attention.llm.budget import Budget
from qimeng_attention.llm.clients import careful
from qimeng_attention.llm.recorded import Recorded
from qimeng_attention.llm.transcript import Transcript, load


def test_the_same_conversation_is_asked_once_and_another_sample_again(tmp_path: Path) -> None:
    client = Scripted([reply("one"), reply("two")])
    with Transcript(tmp_path / "t.jsonl") as transcript:
        recorded = Recorded(client, transcript)
        texts = [recorded.complete(request(sample=n)).text for n in (0, 0, 1, 0)]

    assert texts == ["one", "one", "two", "one"]
    assert len(client.asked) == 2


def test_another_model_is_asked_itself(tmp_path: Path) -> None:
    with Transcript(tmp_path / "t.jsonl") as transcript:
        Recorded(Scripted([reply("one")]), transcript).complete(request())
        other = Scripted([reply("two")], name="anthropic:x")

        assert Recorded(other, transcript).complete(request()).text == "two"


def test_a_refusal_is_told_again_not_asked_again(tmp_path: Path) -> None:
    with Transcript(tmp_path / "t.jsonl") as transcript, pytest.raises(chat.Refused):
        careful(Scripted([chat.Refused("no", raw="words")]), transcript).complete(request())
    client = Scripted([])
    with Transcript(tmp_path / "t.jsonl") as transcript, pytest.raises(chat.Refused, match="no") as e:
        careful(client, transcript).complete(request())

    assert not client.asked
    assert (e.value.raw, e.value.recorded) == ("words", True)


def test_a_truncated_answer_is_asked_again_with_more_room_only(tmp_path: Path) -> None:
    client = Scripted([chat.Truncated("too long"), reply()])
    with Transcript(tmp_path / "t.jsonl") as transcript:
        recorded = Recorded(client, transcript)
        for _ in range(2):
            with pytest.raises(chat.Truncated):
                recorded.complete(request(max_tokens=1000))
        assert len(client.asked) == 1

        assert recorded.complete(request(max_tokens=2000)).text == "Kernel k"


def test_what_earlier_runs_spent_counts_once_however_many_clients_share_it(tmp_path: Path) -> None:
    with Transcript(tmp_path / "t.jsonl") as transcript:
        Recorded(Scripted([reply()]), transcript).complete(request())
    budget = Budget(max_calls=2)
    with Transcript(tmp_path / "t.jsonl") as transcript:
        first = Recorded(Scripted([reply("b")]), transcript, budget)
        Recorded(Scripted([reply()], name="anthropic:x"), transcript, budget)

        assert (budget.spent.calls, budget.spent.tokens) == (1, 150)
        first.complete(request(sample=1))
        with pytest.raises(chat.BudgetReached):
            first.complete(request(sample=2))

    kinds = [c.end.kind if isinstance(c.end, chat.ClientFault) else "said" for c in load(tmp_path / "t.jsonl").calls]
    assert kinds == ["said", "said", "budget reached"]


def test_waiting_for_somebody_is_no_call(tmp_path: Path) -> None:
    budget = Budget(max_calls=1)
    with Transcript(tmp_path / "t.jsonl") as transcript:
        client = Recorded(Scripted([*[chat.Waiting("not yet")] * 3, reply()], name="file:f"), transcript, budget)
        sizes = set()
        for _ in range(3):
            with pytest.raises(chat.Waiting):
                client.complete(request())
            sizes.add((tmp_path / "t.jsonl").stat().st_size)

        assert len(sizes) == 1
        assert client.complete(request()).text == "Kernel k"
    assert budget.spent.calls == 1
    assert len(load(tmp_path / "t.jsonl").calls) == 1


def test_the_cost_is_worked_out_where_tokens_and_a_price_are_known(tmp_path: Path) -> None:
    pytest.importorskip("genai_prices", reason="the extra llm is not installed")
    with Transcript(tmp_path / "t.jsonl") as transcript:
        known = Recorded(Scripted([reply()]), transcript).complete(request())
        unknown = Recorded(Scripted([reply()], name="ollama:x"), transcript).complete(request())

    assert known.usage.usd == pytest.approx((100 * 2.5 + 50 * 10) / 1e6)
    assert unknown.usage.usd is None

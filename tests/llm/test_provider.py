from __future__ import annotations

import asyncio
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic_ai", reason="the extra llm is not installed")

import httpx2

from llm.wire import Server, anthropic, openai
from qimeng_attention.llm import chat
from qimeng_attention.llm.budget import Budget
from qimeng_attention.llm.provider import PROVIDERS, ProviderClient, SamplingDropped
from qimeng_attention.llm.recorded import Recorded
from qimeng_attention.llm.transcript import Transcript, load

ASKED = chat.Request(chat.conversation("hi", "first", "again", system="sys"), "code", max_tokens=500)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in PROVIDERS.values():
        if provider.key:
            monkeypatch.setenv(provider.key, "key-of-the-test")


@pytest.mark.parametrize(
    ("name", "url", "limit"),
    [
        ("openai:gpt-4o", "api.openai.com", "max_completion_tokens"),
        ("deepseek:deepseek-chat", "api.deepseek.com", "max_tokens"),
        ("ollama:qwen3", "localhost:11434", "max_tokens"),
        ("vllm:Qwen/Qwen3", "localhost:8000", "max_completion_tokens"),
    ],
)
def test_what_speaks_openais_protocol_is_asked_the_whole_conversation(name: str, url: str, limit: str) -> None:
    server = Server(lambda _: openai("Kernel k"))
    said = ProviderClient(name, transport=server.transport()).complete(ASKED)

    sent = server.asked[0]
    assert server.headers[0]["host"].startswith(url)
    assert [(m["role"], m["content"]) for m in sent["messages"]] == [
        ("system", "sys"),
        ("user", "hi"),
        ("assistant", "first"),
        ("user", "again"),
    ]
    assert sent[limit] == 500
    assert sent["model"] == name.partition(":")[2]
    assert (said.text, said.model, said.usage) == ("Kernel k", "gpt-4o-2024-08-06", chat.Usage(1200, 300))
    assert said.facts["id"] == "chatcmpl-1"
    assert "messages" not in said.facts["sent"]
    assert "key-of-the-test" not in str(said)


def test_anthropic_is_asked_in_its_own_words() -> None:
    server = Server(lambda _: anthropic("Kernel k"))
    said = ProviderClient("anthropic:claude-opus-4-8", transport=server.transport()).complete(ASKED)

    assert server.asked[0]["system"] == "sys"
    assert server.asked[0]["max_tokens"] == 500
    assert [m["role"] for m in server.asked[0]["messages"]] == ["user", "assistant", "user"]
    assert (said.text, said.usage) == ("Kernel k", chat.Usage(1200, 300))


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (anthropic("Kern", stop="max_tokens"), chat.Truncated),
        (anthropic("no", stop="refusal"), chat.Refused),
        (anthropic(""), chat.Empty),
        (429, chat.RateLimited),
        (529, chat.ServerFault),
        (500, chat.ServerFault),
        (401, chat.Misconfigured),
        (400, chat.Misconfigured),
        (413, chat.Misconfigured),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else str(v)[:3],
)
def test_anthropics_faults_have_their_classes(made: Any, fault: type[chat.ClientFault]) -> None:
    response = made
    if isinstance(made, int):
        words = {"type": "error", "error": {"type": "x_error", "message": "words of the provider"}}
        response = httpx2.Response(made, json=words)
    server = Server(lambda _: response)

    with pytest.raises(fault) as e:
        ProviderClient("anthropic:claude-opus-4-8", transport=server.transport()).complete(ASKED)
    assert type(e.value) is fault
    assert e.value.raw
    assert "words of the provider" not in str(e.value)
    assert len(server.asked) == 1


def test_a_truncated_answer_keeps_what_came_and_what_it_cost() -> None:
    server = Server(lambda _: openai("Kernel ha", finish_reason="length"))
    with pytest.raises(chat.Truncated) as e:
        ProviderClient("openai:gpt-4o", transport=server.transport()).complete(ASKED)

    assert "Kernel ha" in e.value.raw
    assert e.value.usage == chat.Usage(1200, 300)


def test_a_temperature_that_a_provider_refuses_is_left_out_with_one_warning() -> None:
    refused = {"error": {"message": "Unsupported value: 'temperature'", "param": "temperature"}}
    server = Server(lambda n: openai("Kernel k") if n else httpx2.Response(400, json=refused))
    client = ProviderClient("openai:gpt-4o", transport=server.transport())
    with pytest.warns(SamplingDropped, match="temperature"):
        said = client.complete(replace(ASKED, temperature=0.7))
    client.complete(replace(ASKED, temperature=0.7))  # a second warning would be an error

    assert said.facts["dropped"] == ["temperature"]
    assert ["temperature" in sent for sent in server.asked] == [True, False, False]


def test_a_model_known_to_take_no_temperature_is_not_sent_one() -> None:
    server = Server(lambda _: anthropic("Kernel k"))
    client = ProviderClient("anthropic:claude-opus-4-8", transport=server.transport())
    with pytest.warns(SamplingDropped):
        client.complete(replace(ASKED, temperature=0.7))

    assert "temperature" not in server.asked[0]


def test_a_temperature_that_is_taken_is_sent_without_a_word() -> None:
    server = Server(lambda _: openai("Kernel k"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ProviderClient("openai:gpt-4o", transport=server.transport()).complete(replace(ASKED, temperature=0.0))

    assert server.asked[0]["temperature"] == 0.0


def test_a_server_that_says_nothing_is_left_in_time() -> None:
    async def silent(_: Any) -> Any:
        await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(chat.TimedOut):
        ProviderClient("openai:gpt-4o", transport=httpx2.MockTransport(silent)).complete(replace(ASKED, timeout_s=0.3))

    assert time.monotonic() - began < 10


def test_a_caller_inside_a_loop_of_its_own_is_answered() -> None:
    server = Server(lambda _: openai("Kernel k"))

    async def caller() -> str:
        return ProviderClient("openai:gpt-4o", transport=server.transport()).complete(ASKED).text

    assert asyncio.run(caller()) == "Kernel k"


def test_threads_that_share_a_client_stay_within_the_budget(tmp_path: Path) -> None:
    server, budget = Server(lambda _: openai("Kernel k")), Budget(max_calls=5)
    with Transcript(tmp_path / "t.jsonl") as transcript:
        client = Recorded(ProviderClient("openai:gpt-4o", transport=server.transport()), transcript, budget)

        def ask(sample: int) -> str:
            try:
                return client.complete(replace(ASKED, sample=sample)).text
            except chat.BudgetReached as fault:
                return fault.kind

        with ThreadPoolExecutor(8) as pool:
            ends = list(pool.map(ask, range(12)))

    assert sorted(ends) == ["Kernel k"] * 5 + ["budget reached"] * 7
    assert len(server.asked) == 5
    assert len(load(tmp_path / "t.jsonl").calls) == 12


def test_an_answer_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qimeng_attention.llm.provider.MOST_HEARD", 1000)
    server = Server(lambda _: openai("x" * 2000))

    with pytest.raises(chat.CutOff):
        ProviderClient("openai:gpt-4o", transport=server.transport()).complete(ASKED)

from __future__ import annotations

import random

import pytest

from llm.scripted import Scripted, reply, request
from qimeng_attention.llm import chat
from qimeng_attention.llm.retry import Retried


def retried(client: Scripted, waits: list[float], **more: float) -> Retried:
    return Retried(
        client,
        clock=lambda: sum(waits),
        sleep=waits.append,
        rng=random.Random(1),
        **more,  # type: ignore[arg-type]
    )


def test_what_the_provider_asks_for_is_waited_and_a_little_more() -> None:
    waits: list[float] = []
    client = Scripted([chat.RateLimited("slow", wait_s=7.0), reply()])

    assert retried(client, waits).complete(request()).text == "Kernel k"
    assert 7.0 <= waits[0] <= 7.7


def test_a_wait_is_capped() -> None:
    waits: list[float] = []
    retried(Scripted([chat.RateLimited("slow", wait_s=9e9), reply()]), waits).complete(request())

    assert waits == [120.0]


def test_without_a_word_of_the_provider_waits_double() -> None:
    waits: list[float] = []
    retried(Scripted([*[chat.ServerFault("no")] * 3, reply()]), waits).complete(request())

    assert all(low <= wait <= 2 * low for wait, low in zip(waits, (1.0, 2.0, 4.0), strict=True))


FINAL = [chat.ClientFault, chat.Truncated, chat.Refused, chat.Misconfigured, chat.Waiting, chat.Stale]


@pytest.mark.parametrize("fault", [*FINAL, chat.NoRecording, chat.BudgetReached], ids=lambda c: c.kind)
def test_what_cannot_be_helped_is_not_asked_again(fault: type[chat.ClientFault]) -> None:
    client = Scripted([fault("no"), reply()])
    with pytest.raises(fault):
        retried(client, []).complete(request())

    assert len(client.asked) == 1


def test_tries_and_patience_come_to_an_end() -> None:
    client = Scripted([chat.Empty("no")] * 9)
    with pytest.raises(chat.Empty):
        retried(client, [], tries=3).complete(request())
    assert len(client.asked) == 3

    client = Scripted([chat.RateLimited("no", wait_s=60.0)] * 9)
    with pytest.raises(chat.RateLimited):
        retried(client, [], patience_s=100.0).complete(request())
    assert len(client.asked) == 2

"""Each kind of fault that a provider can bring, a hundred times with other details, below everything that reads it."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic_ai", reason="the extra llm is not installed")

from llm.wire import KEY, KINDS, Kind, Server, good, openai
from qimeng_attention.llm import chat
from qimeng_attention.llm.budget import Budget
from qimeng_attention.llm.provider import ProviderClient
from qimeng_attention.llm.recorded import Recorded
from qimeng_attention.llm.retry import Retried
from qimeng_attention.llm.transcript import Transcript, load

pytestmark = pytest.mark.filterwarnings("ignore:Failed to extract usage")  # the library's word on nonsense
SEEDS = range(100)
NAME = "openai:gpt-4o"
FINAL = {  # what no second try would change
    *("no credit", "truncated", "all tokens thought", "refused"),
    *("400", "401", "403", "404", "413", "too long"),
}
PROMPT = "Write causal attention in TL."


class NoProgram(Exception):
    """The stub of the answers' parser refuses an answer."""


def program_of(text: str) -> str:
    found = re.findall(r"```tl\n(.*?)```", text, re.DOTALL)
    if len(found) != 1:
        raise NoProgram
    return found[0]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("os.fsync", lambda _: None)  # thousands of lines


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def request(sample: int = 0) -> chat.Request:
    return chat.Request(chat.conversation(PROMPT, system="You write TL."), "sketch", sample, max_tokens=2000)


class Canned:
    """The ends that a provider's client came to, told again: nothing but the wire is left out."""

    name = NAME

    def __init__(self, plan: Callable[[int], chat.Reply | chat.ClientFault]) -> None:
        self.plan, self.asked = plan, 0

    def complete(self, _: chat.Request) -> chat.Reply:
        self.asked += 1
        end = self.plan(self.asked - 1)
        if isinstance(end, chat.ClientFault):
            raise copy.copy(end)
        return end


@functools.cache
def end_of(name: str, seed: int) -> chat.Reply | chat.ClientFault:
    """Give what the client of a provider makes of a fault."""
    make = KINDS[name].make if name else good
    try:
        return ProviderClient(NAME, transport=Server(lambda _: make(random.Random(seed))).transport()).complete(
            request()
        )
    except chat.ClientFault as fault:
        return fault


def run(
    inner: chat.Client, path: Path, budget: Budget, seed: int, time: Time, tries: int = 4
) -> tuple[str | chat.ClientFault, Transcript]:
    """Ask once, as a run does; give the answer or the fault in which it ends."""
    transcript = Transcript(path, words=PROMPT)
    client = Retried(
        Recorded(inner, transcript, budget),
        tries=tries,
        clock=lambda: time.now,
        sleep=time.sleep,
        rng=random.Random(seed),
    )
    try:
        return client.complete(request()).text, transcript
    except chat.ClientFault as fault:
        return fault, transcript
    finally:
        transcript.close()


def provider(server: Server) -> ProviderClient:
    return ProviderClient(NAME, transport=server.transport())


def plan_of(kind: Kind, seed: int, faults: int) -> Callable[[int], Any]:
    """Fail a number of times, then answer."""
    rng = random.Random(seed)
    return lambda n: kind.make(rng) if n < faults else good(rng)


@pytest.mark.parametrize("name", KINDS)
def test_every_fault_has_a_typed_end_within_the_budget_and_each_try_in_the_ledger(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    for seed in SEEDS:
        rng = random.Random(seed)
        faults, time, path = rng.randrange(1, 7), Time(), tmp_path / f"{seed}.jsonl"
        max_usd = rng.choice([None, 0.021, 0.03, 0.05, 1.0])  # one call's worst case is 0.0204
        budget = Budget(max_usd, max_tokens=rng.choice([None, 3000, 9000]), max_calls=rng.choice([None, 1, 3]))
        server = Server(plan_of(kind, seed, faults))

        end, transcript = run(provider(server), path, budget, seed, time)

        if isinstance(end, chat.ClientFault):
            assert type(end) in (*kind.ends, chat.BudgetReached), (seed, end)
        elif kind.parser:
            with pytest.raises(NoProgram):
                program_of(end)
        else:
            assert program_of(end) == "Kernel k\n"
        within(budget)
        if name in ("fewer tokens than none", "tokens not reported"):
            assert (budget.spent.tokens, budget.spent.unknown_tokens_calls) == (0, len(server.asked))
        calls = load(path).calls
        assert len([c for c in calls if c.reserved]) == len(server.asked)
        assert len(calls) == len(server.asked) + isinstance(end, chat.BudgetReached)
        assert [c.attempt for c in calls] == list(range(1, len(calls) + 1))
        assert all(c.end is not None for c in calls)
        assert [type(c.end) for c in calls] == [type(c.end) for c in transcript.calls]
        if name in FINAL:
            assert len(server.asked) <= 1, "asked again, though it cannot help"
        elif kind.ends and not isinstance(end, chat.BudgetReached):
            assert len(server.asked) == min(faults + 1, 4)
        assert all(0 <= wait <= 132 for wait in time.waits)
        assert KEY not in path.read_text("utf-8")


def within(budget: Budget) -> None:
    """What was spent, and what may have been, is within every limit."""
    s = budget.spent
    assert budget.max_usd is None or s.usd + s.unknown_usd <= budget.max_usd + 1e-12
    assert budget.max_tokens is None or s.tokens + s.unknown_tokens <= budget.max_tokens
    assert budget.max_calls is None or s.calls <= budget.max_calls


class Stopped(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("name", KINDS)
def test_a_run_stopped_after_any_call_goes_on_and_pays_nothing_twice(name: str, tmp_path: Path) -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        faults, stop = rng.randrange(1, 7), rng.randrange(1, 5)
        plan = [end_of(name, rng.randrange(8)) for _ in range(faults)]
        whole = Canned(lambda n, plan=plan: plan[n] if n < len(plan) else end_of("", 0))
        expected, _ = run(whole, tmp_path / f"{seed}-whole.jsonl", Budget(), seed, Time())
        time, path, client = Time(), tmp_path / f"{seed}.jsonl", Canned(whole.plan)

        with pytest.MonkeyPatch.context() as patch:
            stop_after(stop, patch)
            first = Budget(max_usd=1.0)
            with contextlib.suppress(Stopped):
                run(client, path, first, seed, time)
        before, paid = client.asked, paid_ends(path)
        budget = Budget(max_usd=1.0)
        end, _ = run(client, path, budget, seed, time)

        assert paid_ends(path)[: len(paid)] == paid
        if paid and final(paid[-1]):
            assert client.asked == before, "a paid call was made again"
        tried = [c.end for c in load(tmp_path / f"{seed}-whole.jsonl").calls]
        if len(paid_ends(tmp_path / f"{seed}-whole.jsonl")) == len(tried):  # each of them may be charged
            assert client.asked == len(tried), "a run that was stopped made other calls"
            assert type(end) is type(expected)
        spent = budget.spent
        assert spent.calls == client.asked
        assert spent.usd >= first.spent.usd
        assert spent.unknown_usd >= first.spent.unknown_usd
        third = client.asked
        again, _ = run(client, path, Budget(), seed, time)
        if not isinstance(end, chat.ClientFault):
            assert again == end
            assert client.asked == third


def stop_after(writes: int, patch: pytest.MonkeyPatch) -> None:
    """End the process once so many calls have an end in the transcript."""
    left = [writes]
    for name in ("said", "failed"):
        real = getattr(Transcript, name)

        def write(self: Transcript, *rest: Any, real: Any = real) -> None:
            real(self, *rest)
            left[0] -= 1
            if not left[0]:
                raise Stopped

        patch.setattr(Transcript, name, write)


def paid_ends(path: Path) -> list[tuple[str, bool]]:
    """Give what may have been charged: its text or kind, and whether it is an end or may be tried again."""
    ends = [c.end for c in load(path).calls]
    return [
        (e.text, True) if isinstance(e, chat.Reply) else (e.kind, not e.retry)
        for e in ends
        if isinstance(e, chat.Reply) or (e is not None and e.may_cost)
    ]


def final(end: tuple[str, bool]) -> bool:
    return end[1]


def test_an_unknown_price_is_refused_by_name_before_the_call(tmp_path: Path) -> None:
    server = Server(lambda _: good(random.Random()))
    for seed in SEEDS:
        name = f"openai:nobody-knows-{seed}"
        with Transcript(tmp_path / f"{seed}.jsonl") as transcript:
            client = Recorded(ProviderClient(name, transport=server.transport()), transcript, Budget(max_usd=1.0))
            with pytest.raises(chat.BudgetReached, match=name):
                client.complete(request())

    assert not server.asked


def test_a_call_that_was_stopped_in_its_middle_counts_at_its_worst_case(tmp_path: Path) -> None:
    def stop(_: int) -> Any:
        raise Stopped

    path, first = tmp_path / "run.jsonl", Budget(max_usd=1.0)
    with pytest.raises(Stopped):
        run(provider(Server(stop)), path, first, 0, Time())
    budget = Budget(max_usd=1.0)
    end, _ = run(provider(Server(lambda _: good(random.Random()))), path, budget, 0, Time())

    assert isinstance(end, str)
    assert budget.spent.calls == 2
    assert budget.spent.unknown_usd == pytest.approx(first.worst(NAME, request()).usd)


def test_a_provider_that_reports_more_than_was_allowed_is_asked_no_more(tmp_path: Path) -> None:
    server = Server(lambda _: openai("x", tokens=(10, 10**9)))
    budget = Budget(max_usd=1.0)
    with Transcript(tmp_path / "run.jsonl") as transcript:
        client = Recorded(ProviderClient(NAME, transport=server.transport()), transcript, budget)
        client.complete(request())
        with pytest.raises(chat.BudgetReached):
            client.complete(request(sample=1))

    assert budget.spent.usd > 1.0
    assert len(server.asked) == 1

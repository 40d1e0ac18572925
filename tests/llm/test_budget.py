from __future__ import annotations

import contextlib
import threading

import pytest

from llm.scripted import request
from qimeng_attention.llm.budget import Budget
from qimeng_attention.llm.chat import BudgetReached, Usage
from qimeng_attention.llm.prices import FREE, Price, parse_price, price_of

NAME = "openai:x"
PRICE = Price(1000.0, 10_000.0)  # a tenth of a cent and a cent for each token


def test_the_worst_case_counts_every_byte_as_a_token_and_the_whole_answer() -> None:
    worst = Budget(prices={NAME: PRICE}).worst(NAME, request("é" * 100, max_tokens=50))

    assert worst.input_tokens == 200 + 16 + 64
    assert worst.output_tokens == 50
    assert worst.usd == pytest.approx(0.28 + 0.5)


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"max_calls": 0}, "1 calls"), ({"max_tokens": 1000}, "1,089 tokens"), ({"max_usd": 10.0}, "\\$10.0890")],
    ids=["calls", "tokens", "dollars"],
)
def test_a_call_that_may_not_fit_is_refused_with_what_is_left(limits: dict[str, float], words: str) -> None:
    budget = Budget(**limits, prices={NAME: PRICE})  # type: ignore[arg-type]

    with pytest.raises(BudgetReached, match=words) as e:
        budget.reserve(NAME, request())

    assert e.value.exit_code == 5
    assert "left" in e.value.message


def test_what_is_held_for_calls_under_way_is_not_given_twice() -> None:
    budget = Budget(max_tokens=2000)
    held = budget.reserve(NAME, request())
    with pytest.raises(BudgetReached):
        budget.reserve(NAME, request())
    budget.settle(held, NAME, Usage(10, 5))

    assert budget.reserve(NAME, request()).tokens == 1089


def test_threads_that_reserve_at_once_stay_within_the_limit() -> None:
    budget, given = Budget(max_calls=5), []

    def take() -> None:
        with contextlib.suppress(BudgetReached):
            given.append(budget.reserve(NAME, request()))

    threads = [threading.Thread(target=take) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(given) == 5


def test_an_unknown_price_is_refused_by_name_where_dollars_are_limited() -> None:
    with pytest.raises(BudgetReached, match="no price is known of file:answers"):
        Budget(max_usd=1.0).reserve("file:answers", request())

    assert Budget(max_tokens=10_000).reserve("file:answers", request()).usd is None


def test_a_price_that_the_user_states_wins() -> None:
    budget = Budget(max_usd=1.0, prices={"file:answers": Price(0.0, 0.0)})

    assert budget.reserve("file:answers", request()).usd == 0.0


def test_what_nobody_reported_is_shown_as_unknown_and_counts_at_its_worst_case() -> None:
    budget = Budget(prices={NAME: PRICE})
    budget.settle(budget.reserve(NAME, request()), NAME, Usage(10, 5))
    budget.settle(budget.reserve(NAME, request()), NAME, Usage())

    assert budget.line() == (
        "2 calls, 15 tokens and those of 1 calls unknown (at most 1,089), $0.0600 and the cost of 1 calls unknown"
        " (at most $10.0890)"
    )


def test_a_client_without_a_price_has_an_unknown_cost_not_none() -> None:
    budget = Budget(max_calls=3)
    budget.settle(budget.reserve("command:x", request()), "command:x", Usage())

    assert budget.line() == "1 of 3 calls, 0 tokens and those of 1 calls unknown (at most 1,089), cost unknown"


def test_a_call_that_was_not_charged_gives_its_reservation_back() -> None:
    budget = Budget(prices={NAME: PRICE})
    budget.settle(budget.reserve(NAME, request()), NAME, Usage(), charged=False)
    budget.settle(budget.reserve(NAME, request()), NAME, Usage(), charged=False, counts=False)

    assert budget.line() == "1 call, 0 tokens, $0.0000"


def test_prices_come_from_the_list_and_are_not_guessed() -> None:
    pytest.importorskip("genai_prices", reason="the extra llm is not installed")
    known = price_of("openai:gpt-4o")

    assert known is not None
    assert known.usd(1_000_000, 0) > 0
    assert price_of("openai:no-such-model") is None
    assert price_of("ollama:qwen3") is None
    assert price_of("replay") is FREE


def test_a_stated_price_is_two_numbers() -> None:
    assert parse_price("3, 15") == Price(3.0, 15.0)
    for wrong in ("3", "3,-1", "a,b", "1,2,3", "inf,1", "nan,1"):
        with pytest.raises(ValueError, match=r"price|float"):
            parse_price(wrong)

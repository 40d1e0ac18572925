"""How much may be spent, and how much was: calls, tokens, US dollars.

Before a call its worst case is reserved: every byte of the prompt a token, the answer as long as it may be. If the
reservation does not fit, the call is not made. After it, what was reported takes the reservation's place; where
nothing was reported and the try may have been charged, the reservation stays, and is shown as unknown.

Not here: prices (prices.py), what was said (transcript.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qimeng_attention.llm.chat import BudgetReached, Request, Usage
from qimeng_attention.llm.prices import Pricing, price_of

# NOTE: a token of the byte-level vocabularies in use holds at least one byte, so bytes bound the prompt's tokens.
# What a chat template adds to each turn is a handful; 16 and 64 leave room.
TOKENS_PER_TURN, TOKENS_PER_CONVERSATION = 16, 64


@dataclass(frozen=True, slots=True)
class Reservation:
    """The worst case of one call; `usd` is None where no price is known."""

    input_tokens: int
    output_tokens: int
    usd: float | None

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.input_tokens + self.output_tokens


@dataclass(slots=True)
class Spent:
    """Sums over calls; what nobody reported is in the second half, at its worst case."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    unknown_tokens_calls: int = 0
    unknown_tokens: int = 0
    unknown_usd_calls: int = 0
    unknown_usd: float = 0.0


class Budget:
    """Limits and what was spent of them; shared by any number of clients and threads."""

    def __init__(
        self,
        max_usd: float | None = None,
        max_tokens: int | None = None,
        max_calls: int | None = None,
        *,
        prices: Mapping[str, Pricing] | None = None,  # by a client's name; they win over the list
        lookup: Callable[[str], Pricing | None] = price_of,
    ) -> None:
        self.max_usd, self.max_tokens, self.max_calls = max_usd, max_tokens, max_calls
        self._prices, self._lookup = dict(prices or {}), lookup
        self.spent = Spent()
        self._held: list[Reservation] = []
        self._restored: set[str] = set()
        self._lock = threading.Lock()

    def price(self, name: str) -> Pricing | None:
        """Give the price of a client, None where nobody knows it."""
        return self._prices[name] if name in self._prices else self._lookup(name)

    def worst(self, name: str, request: Request) -> Reservation:
        """Give the most that a call may use."""
        said = sum(len(m.text.encode("utf-8", "surrogatepass")) + TOKENS_PER_TURN for m in request.messages)
        tokens = said + TOKENS_PER_CONVERSATION
        price = self.price(name)
        return Reservation(tokens, request.max_tokens, price.usd(tokens, request.max_tokens) if price else None)

    def reserve(self, name: str, request: Request) -> Reservation:
        """Hold the worst case of a call.

        Raises:
            BudgetReached: it does not fit, or its price is unknown where money is limited.
        """
        worst = self.worst(name, request)
        with self._lock:
            if self.max_usd is not None and worst.usd is None:
                raise BudgetReached(
                    f"no price is known of {name}, so ${self.max_usd:g} cannot be kept to",
                    hint="state the price of its tokens, or limit tokens and calls instead of dollars",
                    limit="usd",
                )
            for what, limit, used, more in self._limits(worst):
                if limit is not None and used + more > limit:
                    left = what(max(0, limit - used))
                    raise BudgetReached(
                        f"the next call may take {what(more)}, and {left} of {what(limit)} are left",
                        hint="raise the limit, and run again: calls that were made are not made again",
                        limit=what(limit),
                    )
            self._held.append(worst)
        return worst

    def settle(self, worst: Reservation, name: str, usage: Usage, *, charged: bool = True, counts: bool = True) -> None:
        """Put what was used in the reservation's place: nothing unless it is `charged`, no call unless it `counts`."""
        with self._lock:
            self._held.remove(worst)
            self._add(worst, name, usage, charged=charged, counts=counts)

    def restore(
        self, worst: Reservation, name: str, usage: Usage, *, charged: bool = True, counts: bool = True
    ) -> None:
        """Count a call that an earlier run made."""
        with self._lock:
            self._add(worst, name, usage, charged=charged, counts=counts)

    def once(self, source: str) -> bool:
        """Tell whether a source of earlier calls is seen for the first time, so that it is not counted twice."""
        with self._lock:
            new = source not in self._restored
            self._restored.add(source)
            return new

    def line(self) -> str:
        """Give what was spent in one line, for progress and reports."""
        s = self.spent
        calls = f"{s.calls:,}{_of(self.max_calls, ',')} call{'' if s.calls == 1 and self.max_calls is None else 's'}"
        tokens = f"{s.tokens:,}{_of(self.max_tokens, ',')} tokens"
        if s.unknown_tokens_calls:
            tokens += f" and those of {s.unknown_tokens_calls:,} calls unknown (at most {s.unknown_tokens:,})"
        usd = f"${s.usd:.4f}{_of(self.max_usd, '.2f', '$')}"
        if s.unknown_usd_calls and s.unknown_usd_calls == s.calls and not s.unknown_usd:
            usd = "cost unknown"
        elif s.unknown_usd_calls:
            most = f" (at most ${s.unknown_usd:.4f})" if s.unknown_usd else ""
            usd += f" and the cost of {s.unknown_usd_calls:,} calls unknown{most}"
        return f"{calls}, {tokens}, {usd}"

    def _limits(self, worst: Reservation) -> list[tuple[Callable[[float], str], float | None, float, float]]:
        """Give each limit with how to say it, what is used or held of it, and what the call would add."""
        s, held = self.spent, self._held
        usd = s.usd + s.unknown_usd + sum(r.usd or 0.0 for r in held)
        tokens = s.tokens + s.unknown_tokens + sum(r.tokens for r in held)
        return [
            (lambda n: f"{n:,.0f} calls", self.max_calls, s.calls + len(held), 1),
            (lambda n: f"{n:,.0f} tokens", self.max_tokens, tokens, worst.tokens),
            (lambda n: f"${n:.4f}", self.max_usd, usd, worst.usd or 0.0),
        ]

    def _add(self, worst: Reservation, name: str, usage: Usage, *, charged: bool, counts: bool) -> None:
        s = self.spent
        s.calls += counts
        if not charged:
            return
        known = usage.input_tokens is not None and usage.output_tokens is not None
        if known:
            s.tokens += (usage.input_tokens or 0) + (usage.output_tokens or 0)
        else:
            s.unknown_tokens_calls += 1
            s.unknown_tokens += worst.tokens
        usd = self.usd(name, usage)
        if usd is not None:
            s.usd += usd
        else:
            s.unknown_usd_calls += 1
            s.unknown_usd += worst.usd or 0.0

    def usd(self, name: str, usage: Usage) -> float | None:
        """Give what a call cost, None where nobody knows."""
        if usage.usd is not None:
            return usage.usd
        price = self.price(name)
        if price is None or usage.input_tokens is None or usage.output_tokens is None:
            return None
        return price.usd(usage.input_tokens, usage.output_tokens)


def _of(limit: float | None, form: str, sign: str = "") -> str:
    return "" if limit is None else f" of {sign}{limit:{form}}"

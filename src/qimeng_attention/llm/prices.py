"""What tokens cost: a price that the user states, or the list that comes with genai-prices; never a guess.

Not here: what was spent (budget.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

LISTED = ("openai", "anthropic", "deepseek")  # providers whose prices the list knows


class Pricing(Protocol):
    """Something that says what a number of tokens costs."""

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Give the price in US dollars."""
        ...


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens."""

    input_usd: float
    output_usd: float

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Give the price in US dollars."""
        return (input_tokens * self.input_usd + output_tokens * self.output_usd) / 1e6


FREE = Price(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Listed:
    """The price of a model in the list of genai-prices, tiers included."""

    provider: str
    model: str

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Give the price in US dollars.

        Raises:
            LookupError: the list has no such model.
        """
        from genai_prices import Usage, calc_price

        tokens = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        return float(calc_price(tokens, self.model, provider_id=self.provider).total_price)


def price_of(name: str) -> Pricing | None:
    """Give what a client costs by its name, None where nobody knows."""
    kind, _, model = name.partition(":")
    if kind == "replay":
        return FREE
    if kind not in LISTED:
        return None
    try:
        price = Listed(kind, model)
        price.usd(1, 1)
    except (ImportError, LookupError):
        return None
    return price


def parse_price(text: str) -> Price:
    """Read `IN,OUT`, US dollars for a million tokens of the prompt and of the answer.

    Raises:
        ValueError: it is something else.
    """
    parts = [float(part) for part in text.split(",")]
    if len(parts) != 2 or not all(0 <= part < float("inf") for part in parts):
        raise ValueError(f"a price is IN,OUT in US dollars for a million tokens, not {text!r}")
    return Price(*parts)

"""The price book: what a model's tokens cost, and since when. Pure integers from rate to amount.

Rates are micro-units of the currency per million tokens (0.30 USD per million = 300,000). Cached tokens are part of the
prompt and have their own rate, thoughts cost as output, prompt tokens of the API's own tools as input. The classes are
multiplied exactly, added, and divided once, rounding half up: an error of at most half a micro-unit a call.

A model that no price matches has no cost: the caller must show "unknown", never zero.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sandboxd.model.money import Money
from sandboxd.model.usage import TokenCounts

_PER: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Micro-units of the currency per million tokens, for prompts above a length."""

    above_prompt_tokens: int = 0
    """These rates hold for calls with more prompt tokens than this; 0 is the base, which every price needs."""
    input: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one model, or a family of models, costs in a span of time."""

    id: str
    """Stable name of this entry, kept on every ledger row that it priced."""
    model: str
    """Model name, or a shell pattern such as `gemini-2.5-flash-*`."""
    currency: str
    """ISO 4217 code."""
    rates: Sequence[Rates]
    """Base first, then longer contexts, ascending."""
    valid_from: datetime
    """First moment, included."""
    valid_until: datetime | None = None
    """First moment at which it no longer holds; None for an open end."""

    def __post_init__(self) -> None:
        """Refuse a price that could not be applied to every call."""
        steps = [rate.above_prompt_tokens for rate in self.rates]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            raise ValueError(f"price {self.id}: rates must begin at 0 prompt tokens and ascend")
        if any(min(rate.input, rate.cached, rate.output) < 0 for rate in self.rates):
            raise ValueError(f"price {self.id}: a rate is negative")

    def covers(self, model: str, *, at: datetime) -> bool:
        """Tell whether this price is meant for that model at that moment."""
        if at < self.valid_from or (self.valid_until is not None and at >= self.valid_until):
            return False
        return fnmatch.fnmatchcase(model, self.model)

    def overlaps(self, other: Price) -> bool:
        """Tell whether both are meant for the same models and hold at the same moment."""
        begins_before_it_ends = other.valid_until is None or self.valid_from < other.valid_until
        ends_after_it_begins = self.valid_until is None or other.valid_from < self.valid_until
        return self.model == other.model and begins_before_it_ends and ends_after_it_begins

    def amount(self, tokens: TokenCounts) -> Money:
        """Price the tokens of one call."""
        rates = [
            rate for rate in self.rates if rate.above_prompt_tokens == 0 or tokens.prompt > rate.above_prompt_tokens
        ][-1]
        cached = min(tokens.cached, tokens.prompt)
        exact = (
            (tokens.prompt - cached + tokens.tool_use) * rates.input
            + cached * rates.cached
            + (tokens.output + tokens.thoughts) * rates.output
        )
        return Money(micros=(exact + _PER // 2) // _PER, currency=self.currency)


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedCall:
    """The cost of a call, and the entry that gave it."""

    cost: Money
    price_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBook:
    """All prices that are known. Of several that cover a call the most specific wins, then the newest."""

    prices: Sequence[Price] = ()

    def find(self, model: str, *, at: datetime) -> Price | None:
        """Find the price of a model at a moment: an exact name beats a pattern, more literal characters beat fewer."""
        found = [price for price in self.prices if price.covers(model, at=at)]
        return max(found, key=lambda price: (*_specificity(price.model), price.valid_from, price.id), default=None)

    def price(self, tokens: TokenCounts, *, model: str, model_version: str | None, at: datetime) -> PricedCall | None:
        """Price one call by the moment it began.

        Args:
            tokens: What it used.
            model: Model that the request named; it counts where the answering one has no price of its own.
            model_version: Model that answered: an alias such as `gemini-flash-latest` is priced as what it stands for.
            at: When the call began.

        Returns:
            None where neither name has a price: the cost is unknown, not zero.
        """
        found = (self.find(model_version, at=at) if model_version else None) or self.find(model, at=at)
        return PricedCall(cost=found.amount(tokens), price_id=found.id) if found else None


def _specificity(pattern: str) -> tuple[bool, int]:
    literal = len(pattern) - sum(pattern.count(sign) for sign in "*?[]")
    return (not any(sign in pattern for sign in "*?["), literal)

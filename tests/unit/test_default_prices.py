"""The list prices that a price book is born with."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sandboxd.model.pricing import PriceBook
from sandboxd.model.usage import TokenCounts
from sandboxd.persistence.prices import default_prices

NOW = datetime(2026, 11, 23, tzinfo=UTC)
BOOK = PriceBook(prices=tuple(default_prices()))


def test_every_price_has_an_id_of_its_own() -> None:
    ids = [price.id for price in BOOK.prices]

    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("model", "prompt", "micros"),
    [
        ("gemini-2.5-pro", 200_000, 250_000 + 10_000),
        ("gemini-2.5-pro", 200_001, 500_003 + 15_000),
        ("gemini-2.5-flash", 1_000_000, 300_000 + 2_500),
        ("gemini-2.5-flash-001", 1_000_000, 300_000 + 2_500),
        ("gemini-2.5-flash-lite", 1_000_000, 100_000 + 400),
        ("gemini-3-pro-preview", 100_000, 200_000 + 12_000),
        ("gemini-3-flash-preview", 1_000_000, 500_000 + 3_000),
    ],
)
def test_a_model_costs_its_list_price(model: str, prompt: int, micros: int) -> None:
    tokens = TokenCounts(prompt=prompt, output=400, thoughts=600, total=prompt + 1000)

    priced = BOOK.price(tokens, model=model, model_version=None, at=NOW)

    assert priced is not None
    assert (priced.cost.micros, priced.cost.currency) == (micros, "USD")


@pytest.mark.parametrize("model", ["gemini-2.5-flash-image", "gemini-2.5-flash-live", "gemini-9", "gpt"])
def test_a_model_that_the_list_does_not_know_has_no_price(model: str) -> None:
    assert BOOK.find(model, at=NOW) is None

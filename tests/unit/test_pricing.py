"""The price book: which price, and how much."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model.money import Money
from sandboxd.model.pricing import Price, PriceBook, PricedCall, Rates
from sandboxd.model.usage import NO_TOKENS, TokenCounts
from sandboxd.monitor.list_prices import list_prices

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
COUNTS = st.integers(min_value=0, max_value=10**9)
RATES = st.integers(min_value=0, max_value=10**8)


def a_price(model: str = "gemini-2.5-flash", **changes: object) -> Price:
    fields: dict[str, object] = {
        "id": model,
        "model": model,
        "currency": "USD",
        "rates": (Rates(input=300_000, cached=30_000, output=2_500_000),),
        "valid_from": NOON,
    }
    return Price(**{**fields, **changes})  # type: ignore[arg-type]


def test_cached_tokens_are_priced_apart_thoughts_as_output_and_tool_use_as_input() -> None:
    tokens = TokenCounts(prompt=1_000_000, cached=400_000, output=100_000, thoughts=300_000, tool_use=50_000)

    amount = a_price().amount(tokens)

    assert amount == Money(micros=600_000 * 3 // 10 + 400_000 * 3 // 100 + 1_000_000 + 15_000, currency="USD")


@given(
    prompt=COUNTS, cached=COUNTS, output=COUNTS, thoughts=COUNTS, tool_use=COUNTS, fresh=RATES, rate=RATES, out=RATES
)
def test_an_amount_is_exact_to_half_a_micro_unit(
    prompt: int, cached: int, output: int, thoughts: int, tool_use: int, fresh: int, rate: int, out: int
) -> None:
    tokens = TokenCounts(prompt=prompt, cached=min(cached, prompt), output=output, thoughts=thoughts, tool_use=tool_use)
    price = a_price(rates=(Rates(input=fresh, cached=rate, output=out),))

    exact = Fraction(
        (prompt - tokens.cached + tool_use) * fresh + tokens.cached * rate + (output + thoughts) * out, 1_000_000
    )

    assert abs(price.amount(tokens).micros - exact) <= Fraction(1, 2)


@pytest.mark.parametrize(("prompt", "micros"), [(200_000, 250_000), (200_001, 500_003)])
def test_a_long_prompt_has_its_own_rates(prompt: int, micros: int) -> None:
    price = a_price(
        rates=(
            Rates(input=1_250_000, cached=0, output=0),
            Rates(above_prompt_tokens=200_000, input=2_500_000, cached=0, output=0),
        )
    )

    assert price.amount(TokenCounts(prompt=prompt)).micros == micros


def test_the_most_specific_price_wins() -> None:
    book = PriceBook(prices=[a_price("*"), a_price("gemini-*"), a_price("gemini-2.5-flash"), a_price("gemini-2.5-fl*")])

    found = [book.find(model, at=NOON) for model in ("gemini-2.5-flash", "gemini-2.5-flash-x", "gemini-9", "other")]

    assert [price.id if price else None for price in found] == ["gemini-2.5-flash", "gemini-2.5-fl*", "gemini-*", "*"]


def test_a_price_holds_from_its_first_moment_until_its_last() -> None:
    book = PriceBook(
        prices=[
            a_price(id="old", valid_until=NOON + timedelta(days=1)),
            a_price(id="new", valid_from=NOON + timedelta(days=1)),
        ]
    )

    def at(moment: datetime) -> str | None:
        price = book.find("gemini-2.5-flash", at=moment)
        return price.id if price else None

    assert at(NOON - timedelta(microseconds=1)) is None
    assert at(NOON) == "old"
    assert at(NOON + timedelta(days=1, microseconds=-1)) == "old"
    assert at(NOON + timedelta(days=1)) == "new"


def test_of_two_prices_for_the_same_the_newer_one_holds() -> None:
    book = PriceBook(prices=[a_price(id="b"), a_price(id="a", valid_from=NOON + timedelta(hours=1))])

    price = book.find("gemini-2.5-flash", at=NOON + timedelta(hours=2))

    assert price is not None
    assert price.id == "a"


def test_a_model_without_a_price_has_no_cost_and_one_with_a_price_and_no_tokens_costs_nothing() -> None:
    book = PriceBook(prices=[a_price()])

    assert book.price(TokenCounts(prompt=1), model="unknown", model_version=None, at=NOON) is None
    assert book.price(NO_TOKENS, model="gemini-2.5-flash", model_version=None, at=NOON) == PricedCall(
        cost=Money(micros=0, currency="USD"), price_id="gemini-2.5-flash"
    )


def test_an_alias_is_priced_as_the_model_that_answered() -> None:
    book = PriceBook(prices=[a_price("gemini-flash-latest"), a_price("gemini-3-flash")])

    def priced(version: str | None) -> str | None:
        call = book.price(NO_TOKENS, model="gemini-flash-latest", model_version=version, at=NOON)
        return call.price_id if call else None

    assert [priced("gemini-3-flash"), priced("gemini-unknown"), priced(None)] == [
        "gemini-3-flash", "gemini-flash-latest", "gemini-flash-latest",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rates",
    [
        (),
        (Rates(above_prompt_tokens=5, input=1, cached=1, output=1),),
        (Rates(input=1, cached=1, output=1), Rates(input=2, cached=2, output=2)),
        (Rates(input=-1, cached=1, output=1),),
    ],
)
def test_a_price_that_could_not_be_applied_is_refused(rates: tuple[Rates, ...]) -> None:
    with pytest.raises(ValueError, match="price"):
        a_price(rates=rates)


@pytest.mark.parametrize(
    ("model", "price_id"),
    [
        ("gemini-2.5-flash", "list-2026-07-gemini-2.5-flash"),
        ("gemini-2.5-flash-lite", "list-2026-07-gemini-2.5-flash-lite"),
        ("gemini-2.5-flash-001", "list-2026-07-gemini-2.5-flash-dated"),
        ("gemini-2.5-flash-preview-05-20", "list-2026-07-gemini-2.5-flash-preview-dated"),
        ("gemini-3.1-pro-preview", "list-2026-07-gemini-3.1-pro-preview"),
        ("gemini-3.1-pro-preview-customtools", "list-2026-07-gemini-3.1-pro-preview-customtools"),
        ("gemini-3.5-flash-lite", "list-2026-07-gemini-3.5-flash-lite"),
        ("gemini-3.8-flash", "list-2026-11-gemini-3.8-flash"),
        ("gemini-9-flash-practice", "practice-as-if-gemini-2.5-flash"),
        ("gemini-2.5-flash-image", None),
        ("gemini-9-flash", None),
    ],
)
def test_the_list_prices_cover_a_models_names_and_not_its_siblings(model: str, price_id: str | None) -> None:
    found = PriceBook(prices=list_prices()).find(model, at=NOON)

    assert (found.id if found else None) == price_id


def test_an_introductory_price_ends_and_the_full_one_follows_without_a_gap() -> None:
    book = PriceBook(prices=list_prices())
    new_year = datetime(2027, 1, 1, tzinfo=UTC)

    found = [book.find("gemini-3.8-flash", at=at) for at in (new_year - timedelta(microseconds=1), new_year)]

    assert [price.rates[0].output for price in found if price] == [3_750_000, 7_500_000]

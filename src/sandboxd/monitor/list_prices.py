"""List prices of the Gemini Developer API (paid tier, text), as its pricing page had them in 2026, in USD.

A start for a new price book, so that a fresh installation shows costs. They are not a contract: an operator checks them
and adds its own with a later `valid_from`. What differs by modality (audio input, image output) is not in them, and
neither are cache storage and grounding fees. Models without an entry have an unknown cost, which the ledger flags.

Patterns cover dated and preview names of a model, and not its siblings: `gemini-2.5-flash-image` has other
prices than `gemini-2.5-flash`, so it must not match. Source: https://ai.google.dev/gemini-api/docs/pricing
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from sandboxd.model.pricing import Price, Rates

_FROM: Final = datetime(2025, 1, 1, tzinfo=UTC)
_FULL_PRICE: Final = datetime(2027, 1, 1, tzinfo=UTC)
"""When the introductory price of Gemini 3.8 Flash ends."""
_LONG: Final = 200_000


def _base(*, input: int, cached: int, output: int) -> tuple[Rates, ...]:  # noqa: A002 - the API's own word
    return (Rates(input=input, cached=cached, output=output),)


def _long(*, input: int, cached: int, output: int) -> Rates:  # noqa: A002 - the API's own word
    return Rates(above_prompt_tokens=_LONG, input=input, cached=cached, output=output)


_PRO_3: Final = (
    *_base(input=2_000_000, cached=200_000, output=12_000_000),
    _long(input=4_000_000, cached=400_000, output=18_000_000),
)
_MODELS: Final = {
    "gemini-3.5-flash": _base(input=1_500_000, cached=150_000, output=9_000_000),
    "gemini-3.5-flash-lite": _base(input=300_000, cached=30_000, output=2_500_000),
    "gemini-3.1-pro": _PRO_3,
    "gemini-3.1-flash-lite": _base(input=250_000, cached=25_000, output=1_500_000),
    "gemini-3-pro": _PRO_3,
    "gemini-3-flash": _base(input=500_000, cached=50_000, output=3_000_000),
    "gemini-2.5-pro": (
        *_base(input=1_250_000, cached=125_000, output=10_000_000),
        _long(input=2_500_000, cached=250_000, output=15_000_000),
    ),
    "gemini-2.5-flash": _base(input=300_000, cached=30_000, output=2_500_000),
    "gemini-2.5-flash-lite": _base(input=100_000, cached=10_000, output=400_000),
    "gemini-2.0-flash": _base(input=100_000, cached=25_000, output=400_000),
    "gemini-2.0-flash-lite": _base(input=75_000, cached=75_000, output=300_000),
}
_SUFFIXES: Final = {"": "", "-dated": "-[0-9]*", "-preview": "-preview", "-preview-dated": "-preview-[0-9]*"}


def list_prices() -> tuple[Price, ...]:
    """Return the start of a price book; ids are stable, so that seeding can be repeated."""
    return tuple(_prices())


def _prices() -> Iterator[Price]:
    for model, rates in _MODELS.items():
        for name, suffix in _SUFFIXES.items():
            yield Price(
                id=f"list-2026-07-{model}{name}",
                model=f"{model}{suffix}",
                currency="USD",
                rates=rates,
                valid_from=_FROM,
            )
    # The Gemini CLI's own name for that model with its tools.
    yield Price(
        id="list-2026-07-gemini-3.1-pro-preview-customtools",
        model="gemini-3.1-pro-preview-customtools",
        currency="USD",
        rates=_PRO_3,
        valid_from=_FROM,
    )
    for name, suffix in _SUFFIXES.items():
        yield Price(
            id=f"list-2026-11-gemini-3.8-flash{name}",
            model=f"gemini-3.8-flash{suffix}",
            currency="USD",
            rates=_base(input=750_000, cached=75_000, output=3_750_000),
            valid_from=_FROM,
            valid_until=_FULL_PRICE,
        )
        yield Price(
            id=f"list-2027-gemini-3.8-flash{name}",
            model=f"gemini-3.8-flash{suffix}",
            currency="USD",
            rates=_base(input=1_500_000, cached=150_000, output=7_500_000),
            valid_from=_FULL_PRICE,
        )
    # The practice model calls itself MODEL-practice. Its tokens cost nobody anything; they are shown at these rates.
    yield Price(
        id="practice-as-if-gemini-2.5-flash",
        model="*-practice",
        currency="USD",
        rates=_MODELS["gemini-2.5-flash"],
        valid_from=_FROM,
    )

"""Money as integers: millionths of a currency's unit. No floating point ever touches an amount."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """An amount in one currency. Amounts of two currencies are never added."""

    micros: int
    """Millionths of one unit: 1 USD is 1,000,000."""
    currency: str
    """ISO 4217 code, for example `USD`."""

"""The price book on PostgreSQL. The prices that it is born with are in `monitor/list_prices.py`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from typing_extensions import override

from sandboxd.model.pricing import Price, PriceBook, Rates
from sandboxd.monitor.ports import PriceBookStore
from sandboxd.persistence.engine import Database
from sandboxd.persistence.escape import dump_json, load_json

_LOAD: Final = "SELECT id, model, currency, rates::text AS rates, valid_from, valid_until FROM prices ORDER BY id"
_ADD: Final = """
    INSERT INTO prices (id, model, currency, rates, valid_from, valid_until)
    VALUES ($1, $2, $3, $4::text::jsonb, $5, $6) ON CONFLICT DO NOTHING
"""
_END: Final = """
    UPDATE prices SET valid_until = greatest($2, valid_from) WHERE id = $1 AND valid_until IS NULL
"""


class PostgresPriceBookStore(PriceBookStore):
    """Prices in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def load(self) -> PriceBook:
        rows = await self._database.fetch(_LOAD)
        return PriceBook(
            prices=tuple(
                Price(
                    id=row["id"],
                    model=row["model"],
                    currency=row["currency"],
                    rates=tuple(Rates(**step) for step in load_json(row["rates"])),
                    valid_from=row["valid_from"],
                    valid_until=row["valid_until"],
                )
                for row in rows
            )
        )

    @override
    async def add(self, prices: Sequence[Price]) -> None:
        async with self._database.raw() as connection:
            await connection.executemany(_ADD, [_values(price) for price in prices])

    @override
    async def end(self, price_id: str, *, at: datetime) -> None:
        async with self._database.raw() as connection:
            await connection.execute(_END, price_id, at)


def _values(price: Price) -> tuple[Any, ...]:  # Any: one value a column
    rates = [
        {
            "above_prompt_tokens": step.above_prompt_tokens,
            "input": step.input,
            "cached": step.cached,
            "output": step.output,
        }
        for step in price.rates
    ]
    return (price.id, price.model, price.currency, dump_json(rates), price.valid_from, price.valid_until)

"""The price book on PostgreSQL. The prices that it is born with are in `monitor/list_prices.py`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.price_ports import PriceRepository
from sandboxd.model.pricing import Price, PriceBook, Rates
from sandboxd.monitor.ports import PriceBookStore
from sandboxd.persistence.engine import Database
from sandboxd.persistence.errors import translated
from sandboxd.persistence.escape import dump_json, load_json
from sandboxd.persistence.sandbox_rows import Row
from sandboxd.persistence.tables import PriceRow
from sandboxd.persistence.tables.base import table

_PRICES: Final = table(PriceRow)
_ALONE: Final = text("SELECT pg_advisory_xact_lock(1_935_828_325, 0)")
"""Whoever changes the price book does so alone."""

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
        return PriceBook(prices=tuple(_read({**row, "rates": load_json(row["rates"])}) for row in rows))

    @override
    async def add(self, prices: Sequence[Price]) -> None:
        async with self._database.raw() as connection:
            await connection.executemany(_ADD, [_values(price) for price in prices])

    @override
    async def end(self, price_id: str, *, at: datetime) -> None:
        async with self._database.raw() as connection:
            await connection.execute(_END, price_id, at)


class PostgresPriceRepository(PriceRepository):
    """The price book of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def all(self, *, for_update: bool = False) -> Sequence[Price]:
        statement = select(_PRICES).order_by(_PRICES.c.model, _PRICES.c.valid_from, _PRICES.c.id)
        with translated():
            if for_update:
                await self._connection.execute(_ALONE)
            rows = (await self._connection.execute(statement)).mappings().all()
        return [_read(row) for row in rows]

    @override
    async def add(self, price: Price) -> None:
        columns = ("id", "model", "currency", "rates", "valid_from", "valid_until")
        values = dict(zip(columns, _values(price), strict=True)) | {"rates": _rates(price)}
        with translated():
            await self._connection.execute(insert(_PRICES).values(values))

    @override
    async def set_end(self, price: str, *, at: datetime) -> None:
        with translated():
            await self._connection.execute(update(_PRICES).where(_PRICES.c.id == price).values(valid_until=at))


def _read(row: Row) -> Price:
    return Price(
        id=row["id"],
        model=row["model"],
        currency=row["currency"],
        rates=tuple(Rates(**step) for step in row["rates"]),
        valid_from=row["valid_from"],
        valid_until=row["valid_until"],
    )


def _rates(price: Price) -> list[dict[str, int]]:
    return [
        {
            "above_prompt_tokens": step.above_prompt_tokens,
            "input": step.input,
            "cached": step.cached,
            "output": step.output,
        }
        for step in price.rates
    ]


def _values(price: Price) -> tuple[Any, ...]:  # Any: one value a column
    rates = dump_json(_rates(price))
    return (price.id, price.model, price.currency, rates, price.valid_from, price.valid_until)

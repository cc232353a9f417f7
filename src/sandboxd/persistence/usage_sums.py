"""Sums of the ledger, made by the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import asyncpg

from sandboxd.model.money import Money
from sandboxd.monitor.ports import UsageDimension, UsageFilter, UsageSummaryRow
from sandboxd.persistence.escape import load_json, unescape
from sandboxd.persistence.usage_rows import TOKEN_COLUMNS, conditions, read_tokens

Connection: TypeAlias = "asyncpg.Connection[Any]"  # Any: rows are records of any shape

_EXPRESSIONS: Final = {
    UsageDimension.CLIENT: "client",
    UsageDimension.FREELANCER: "freelancer",
    UsageDimension.SANDBOX: "sandbox",
    UsageDimension.SESSION: "coalesce(session, '')",
    UsageDimension.MODEL: "model",
    UsageDimension.DAY: "to_char(start_time AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
_COUNTS: Final = {
    "calls": "true",
    "open_calls": "state = 'OPEN'",
    "estimated_calls": "state = 'ESTIMATED'",
    "failed_calls": "error_reason IS NOT NULL",
    "unpriced_calls": "state <> 'OPEN' AND cost_micros IS NULL AND total_tokens > 0",
}


async def summarise(
    connection: Connection, where: UsageFilter, *, by: Sequence[UsageDimension], limit: int
) -> Sequence[UsageSummaryRow]:
    """Sum the calls that match, by dimensions; without any there is exactly one row."""
    values: list[Any] = []  # Any: parameters of a statement
    rows = await connection.fetch(_statement(conditions(where, values), by, limit), *values)
    return [
        UsageSummaryRow(
            key=tuple(unescape(row[f"d{number}"]) for number in range(len(by))),
            **{name: row[name] for name in _COUNTS},
            tokens=read_tokens(row),
            costs=[
                Money(micros=micros, currency=currency) for currency, micros in sorted(load_json(row["costs"]).items())
            ],
        )
        for row in rows
    ]


def _statement(condition: str, by: Sequence[UsageDimension], limit: int) -> str:
    """Sum by dimensions and currency first, then put the currencies of one key beside each other."""
    names = [f"d{number}" for number in range(len(by))]
    dimensions = "".join(f'{_EXPRESSIONS[one]} COLLATE "C" AS {name}, ' for one, name in zip(by, names, strict=True))
    inner = ", ".join(
        [f"count(*) FILTER (WHERE {what}) AS {name}" for name, what in _COUNTS.items()]
        + [f"sum({name}) AS {name}" for name in TOKEN_COLUMNS]
    )
    outer = ", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in (*_COUNTS, *TOKEN_COLUMNS))
    listed = "".join(f"{name}, " for name in names)
    grouped = f"GROUP BY {', '.join(names)}" if names else ""
    return f"""
        WITH parts AS (
            SELECT {dimensions}currency, sum(cost_micros) AS cost, {inner}
            FROM usage_events WHERE {condition} GROUP BY {listed}currency
        )
        SELECT {listed}{outer},
            coalesce(jsonb_object_agg(currency, cost) FILTER (WHERE currency IS NOT NULL), '{{}}')::text AS costs
        FROM parts {grouped}
        ORDER BY {"coalesce(sum(cost), 0) DESC, sum(total_tokens) DESC, " if names else ""}{listed}1 LIMIT {limit}
    """  # noqa: S608  every word is one of the constants above; values are parameters

"""Sums of the intervals in which sandboxes held compute and storage, made by the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from typing_extensions import override

from sandboxd.model.metering import (
    ResourceDimension,
    ResourceFilter,
    ResourceKind,
    ResourceSum,
    ResourceSummary,
)
from sandboxd.monitor.resource_ports import ResourceLedger
from sandboxd.persistence.engine import Database

_EXPRESSIONS: Final = {
    **{one: one.value for one in ResourceDimension},
    ResourceDimension.DAY: "to_char(day, 'YYYY-MM-DD')",
}
# Each interval is cut to what was asked for, and at every midnight in between.
_PARTS: Final = """
    WITH cut AS (
        SELECT i.*, greatest(i.opened_time, $2) AS begins,
            least(coalesce(i.closed_time, clock_timestamp()), $3, clock_timestamp()) AS ends
        FROM usage_intervals AS i
        WHERE i.client = $1 AND i.kind = $4 AND i.opened_time < coalesce($3, 'infinity')
            AND (i.closed_time IS NULL OR i.closed_time > coalesce($2, '-infinity'))
            AND ($5::text IS NULL OR i.freelancer = $5) AND ($6::text IS NULL OR i.sandbox = $6)
    ), parts AS (
        SELECT cut.*, day, least(cut.ends, day + interval '1 day') - greatest(cut.begins, day) AS span
        FROM cut, generate_series(date_trunc('day', cut.begins), cut.ends, interval '1 day') AS day
        WHERE cut.ends > cut.begins AND day < cut.ends
    )
"""
_FIGURES: Final = """
    coalesce(sum(span), interval '0') AS span,
    coalesce(round(sum(extract(epoch FROM span) * (size_bytes / 1e6::numeric))), 0)::bigint AS megabyte_seconds,
    count(DISTINCT sandbox) AS sandboxes
"""


class PostgresResourceLedger(ResourceLedger):
    """Intervals in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def summarise(
        self, where: ResourceFilter, *, kind: ResourceKind, by: Sequence[ResourceDimension], limit: int
    ) -> ResourceSummary:
        names = [f"d{number}" for number in range(len(by))]
        dimensions = [f'{_EXPRESSIONS[one]} COLLATE "C" AS {name}' for one, name in zip(by, names, strict=True)]
        listed = ", ".join(names)
        values = (where.client, where.start_from, where.start_before, kind.value, where.freelancer, where.sandbox)
        # One statement, one moment: the total is that of the rows. It is the row without a key.
        grouping = f"GROUP BY GROUPING SETS (({listed}), ())" if by else ""
        statement = f"""
            {_PARTS}, keyed AS (SELECT span, size_bytes, sandbox{"".join(f", {one}" for one in dimensions)} FROM parts)
            SELECT {"".join(f"{name}, " for name in names)}{f"GROUPING({names[0]})" if by else "1"} AS total, {_FIGURES}
            FROM keyed {grouping}
            ORDER BY total DESC, span DESC{"".join(f", {name}" for name in names)} LIMIT {limit + 1}
        """  # noqa: S608  every word is one of the constants above; values are parameters
        total, *rows = await self._database.fetch(statement, *values)
        return ResourceSummary(
            rows=tuple(_read(row, tuple(row[name] for name in names)) for row in rows), total=_read(total, ())
        )


def _read(row: Mapping[str, Any], key: tuple[str, ...]) -> ResourceSum:
    return ResourceSum(key=key, span=row["span"], megabyte_seconds=row["megabyte_seconds"], sandboxes=row["sandboxes"])

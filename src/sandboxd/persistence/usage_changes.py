"""What changed in the ledger since a cursor, in the order of transactions.

A transaction's number is given when it begins to write, and it may commit after one with a larger number. So only what
lies below the oldest transaction that still runs is read: nothing can appear there any more.
"""

from __future__ import annotations

from typing import Any, Final

from sandboxd.model.budget import BudgetId
from sandboxd.model.errors import FieldViolation, InvalidRequestError
from sandboxd.model.ids import FreelancerId, SandboxId
from sandboxd.monitor.ports import SaidNotice, UsageChanges, UsageCursor, UsageFilter
from sandboxd.persistence.budget_notices import WITH_BUDGET, read_notice
from sandboxd.persistence.engine import Database
from sandboxd.persistence.usage_rows import conditions, read_usage_event

_HORIZON: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon"
MAX_NOTICES: Final = 1000
"""Of one read; they are few, and what is beyond is left out."""


async def read_changes(
    database: Database, where: UsageFilter, *, after: UsageCursor | None, limit: int
) -> UsageChanges:
    """Read one page of what changed; see `UsageLedger.changes`."""
    horizon: int = (await database.fetch_one(_HORIZON))["horizon"]
    if after is None:
        now = UsageCursor(transaction=horizon, event="", notices=horizon)
        return UsageChanges(events=(), notices=(), cursor=now, more=False)
    if max(after.transaction, after.notices) > horizon:
        raise InvalidRequestError(
            "The cursor does not belong to this database. Watch again without one, and list what you may have missed.",
            violations=[FieldViolation(field="cursor", description="must come from this installation's WatchUsage")],
        )
    values: list[Any] = []  # Any: parameters of a statement
    condition = conditions(where, values)
    values += [after.transaction, after.event, horizon]
    first, second, third = (f"${len(values) - back}" for back in (2, 1, 0))
    statement = f"""
        SELECT * FROM usage_events
        WHERE {condition} AND settled_by IS NOT NULL AND (settled_by, id) > ({first}, {second}) AND settled_by < {third}
        ORDER BY settled_by, id LIMIT {limit + 1}
    """  # noqa: S608  constants; values are parameters
    rows = await database.fetch(statement, *values)
    events = [
        (
            read_usage_event(row),
            UsageCursor(transaction=row["settled_by"], event=row["id"], notices=after.notices),
        )
        for row in rows[:limit]
    ]
    if len(rows) > limit:
        return UsageChanges(events=events, notices=(), cursor=events[-1][1], more=True)
    notices = await _notices(database, where, after=after.notices, before=horizon)
    cursor = UsageCursor(transaction=horizon, event="", notices=horizon)
    return UsageChanges(events=events, notices=notices, cursor=cursor, more=False)


async def _notices(database: Database, where: UsageFilter, *, after: int, before: int) -> list[SaidNotice]:
    statement = f"""
        {WITH_BUDGET.format(source="budget_notices")}
        WHERE n.client = $1 AND n.written_by >= $2 AND n.written_by < $3
            AND ($4::text IS NULL OR n.freelancer = $4) AND ($5::text IS NULL OR n.sandbox = $5)
        ORDER BY n.written_by, n.id LIMIT {MAX_NOTICES}
    """
    rows = await database.fetch(statement, where.client, after, before, where.freelancer, where.sandbox)
    return [
        SaidNotice(
            budget=BudgetId(row["budget"]),
            freelancer=FreelancerId(row["freelancer"]),
            sandbox=SandboxId(row["sandbox"]),
            notice_time=row["notice_time"],
            notice=read_notice(row),
        )
        for row in rows
    ]

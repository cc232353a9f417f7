"""The rows of budgets, used within one transaction. What moves their sums is the trigger of the migration `budgets`.

The trigger takes a lock of the client shared, and who sets or recounts a budget takes it alone: so a recount never
misses a call that is being written, and a call never misses a budget that is being set.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.budget_ports import BudgetFilter, BudgetRepository
from sandboxd.manager.ports import MAX_PAGE_SIZE
from sandboxd.model.accounting_errors import BudgetNotFoundError
from sandboxd.model.budget import Budget, BudgetId, BudgetPeriod, BudgetStatus, BudgetTarget
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.persistence.errors import translated
from sandboxd.persistence.paging import make_token, read_token
from sandboxd.persistence.sandbox_rows import Row

LOCK_CLASS: Final = 1_935_828_324
"""First half of the key of a client's lock; the trigger has the same number."""
_ALONE: Final = text(f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, hashtext(:client))")
_PUT: Final = text("""
    INSERT INTO budgets (id, client, freelancer, sandbox, period, unit, limit_amount, thresholds, counted_from,
        create_time, update_time)
    VALUES (:id, :client, :freelancer, :sandbox, :period, :unit, :limit, :thresholds, :starts, :at, :at)
    ON CONFLICT (client, freelancer, sandbox, period, unit)
        DO UPDATE SET limit_amount = excluded.limit_amount, thresholds = excluded.thresholds,
            update_time = excluded.update_time
    RETURNING *
""")
_STATUS: Final = """
    SELECT b.*, coalesce(a.reserved, 0) AS reserved, coalesce(a.spent, 0) AS spent,
        sandboxd_budget_period(b.period, :at) AS starts
    FROM budgets AS b LEFT JOIN budget_accounts AS a
        ON a.budget = b.id AND a.period_start = sandboxd_budget_period(b.period, :at)
    WHERE b.client = :client
"""
_FIND: Final = text("""
    SELECT * FROM budgets WHERE client = :client AND freelancer = :freelancer AND sandbox = :sandbox
        AND period = :period AND unit = :unit
""")
_OF_CLIENT: Final = text("SELECT * FROM budgets WHERE client = :client ORDER BY id")
_DELETE: Final = text("DELETE FROM budgets WHERE id = :id AND client = :client")
# Both sides of the comparison: what is counted, and what the ledger says; a period that is on one side only counts as 0
# on the other.
_RECOUNT: Final = text("""
    WITH said AS (
        SELECT sandboxd_budget_period(:period, u.start_time) AS starts,
            sum(sandboxd_budget_reserved(u, :unit)) AS reserved, sum(sandboxd_budget_spent(u, :unit)) AS spent
        FROM usage_events AS u
        WHERE u.client = :client AND u.start_time >= CAST(CAST(:since AS date) AS timestamp) AT TIME ZONE 'UTC'
            AND (:freelancer = '' OR u.freelancer = :freelancer) AND (:sandbox = '' OR u.sandbox = :sandbox)
        GROUP BY 1
    ), counted AS (
        SELECT * FROM budget_accounts WHERE budget = :id AND period_start >= :since
    ), wrong AS (
        SELECT coalesce(said.starts, counted.period_start) AS starts, coalesce(said.reserved, 0)::bigint AS reserved,
            coalesce(said.spent, 0)::bigint AS spent
        FROM said FULL JOIN counted ON counted.period_start = said.starts
        WHERE (coalesce(said.reserved, 0), coalesce(said.spent, 0))
            <> (coalesce(counted.reserved, 0), coalesce(counted.spent, 0))
    )
    INSERT INTO budget_accounts (budget, period_start, reserved, spent, warned)
    SELECT :id, starts, reserved, spent, 0 FROM wrong
    ON CONFLICT (budget, period_start) DO UPDATE SET reserved = excluded.reserved, spent = excluded.spent
""")
# After a limit was raised, a threshold that is not reached any more may be passed again.
_FORGET_WARNING: Final = text("""
    UPDATE budget_accounts AS a SET warned = (
        SELECT coalesce(max(one), 0) FROM budgets AS b, unnest(b.thresholds) AS one
        WHERE b.id = a.budget AND one <= a.warned AND a.spent::numeric * 100 >= b.limit_amount::numeric * one)
    WHERE a.budget = :id AND a.period_start >= :since AND a.warned > 0
""")


class PostgresBudgetRepository(BudgetRepository):
    """Budgets of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def put(
        self, target: BudgetTarget, *, limit: int, thresholds: tuple[int, ...], new: BudgetId, at: datetime
    ) -> Budget:
        starts = target.period.start(at)
        values = {**_target_values(target), "id": new, "limit": limit, "thresholds": list(thresholds), "at": at}
        await self._alone(target.client)
        with translated():
            row = (await self._connection.execute(_PUT, {**values, "starts": starts})).mappings().one()
        budget = read_budget(row)
        await self._recount(budget, since=max(row["counted_from"], starts))
        return budget

    @override
    async def find(self, target: BudgetTarget) -> Budget | None:
        with translated():
            row = (await self._connection.execute(_FIND, _target_values(target))).mappings().one_or_none()
        return read_budget(row) if row else None

    @override
    async def get(self, budget: BudgetId, *, client: ClientId, at: datetime) -> BudgetStatus:
        statement = text(f"{_STATUS} AND b.id = :id")
        values = {"client": client, "id": budget, "at": at}
        with translated():
            row = (await self._connection.execute(statement, values)).mappings().one_or_none()
        if row is None:
            raise BudgetNotFoundError(budget)
        return _read_status(row)

    @override
    async def list(self, where: BudgetFilter, *, at: datetime, page_size: int, page_token: str) -> Page[BudgetStatus]:
        size = max(1, min(page_size, MAX_PAGE_SIZE))
        this = f"budgets {where!r}"
        statement, values = _STATUS, dict[str, Any](client=where.client, at=at)  # Any: parameters
        if where.freelancer is not None:
            statement += """ AND (b.freelancer = :freelancer OR b.sandbox IN (
                SELECT s.id FROM sandboxes AS s WHERE s.client = :client AND s.freelancer = :freelancer))"""
            values["freelancer"] = where.freelancer
        if where.sandbox is not None:
            statement += " AND b.sandbox = :sandbox"
            values["sandbox"] = where.sandbox
        if page_token:
            _, values["after"] = read_token(page_token, of=this)
            statement += " AND b.id > :after"
        with translated():
            found = await self._connection.execute(text(f"{statement} ORDER BY b.id LIMIT {size + 1}"), values)
            rows = found.mappings().all()
        more = len(rows) > size
        token = make_token(rows[size - 1]["create_time"], rows[size - 1]["id"], of=this) if more else ""
        return Page(items=[_read_status(row) for row in rows[:size]], next_token=token)

    @override
    async def delete(self, budget: BudgetId, *, client: ClientId) -> None:
        await self._alone(client)
        with translated():
            deleted = await self._connection.execute(_DELETE, {"id": budget, "client": client})
        if deleted.rowcount == 0:
            raise BudgetNotFoundError(budget)

    @override
    async def recount(self, client: ClientId, *, at: datetime) -> tuple[int, int]:
        await self._alone(client)
        with translated():
            rows = (await self._connection.execute(_OF_CLIENT, {"client": client})).mappings().all()
        corrected = 0
        for row in rows:
            budget = read_budget(row)
            period = budget.target.period
            before = period.start(_midnight(period.start(at), at) - timedelta(days=1))
            corrected += await self._recount(budget, since=max(row["counted_from"], before))
        return len(rows), corrected

    async def _alone(self, client: ClientId) -> None:
        with translated():
            await self._connection.execute(_ALONE, {"client": client})

    async def _recount(self, budget: Budget, *, since: date) -> int:
        values = {**_target_values(budget.target), "id": budget.id, "since": since}
        with translated():
            wrong = await self._connection.execute(_RECOUNT, values)
            await self._connection.execute(_FORGET_WARNING, {"id": budget.id, "since": since})
        return wrong.rowcount


def read_budget(row: Row) -> Budget:
    """A budget from its row."""
    return Budget(
        id=BudgetId(row["id"]),
        target=BudgetTarget(
            client=ClientId(row["client"]),
            freelancer=FreelancerId(row["freelancer"]) if row["freelancer"] else None,
            sandbox=SandboxId(row["sandbox"]) if row["sandbox"] else None,
            period=BudgetPeriod(row["period"]),
            unit=row["unit"],
        ),
        limit=row["limit_amount"],
        thresholds=tuple(row["thresholds"]),
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def _read_status(row: Row) -> BudgetStatus:
    return BudgetStatus(
        budget=read_budget(row), period_start=row["starts"], reserved=row["reserved"], spent=row["spent"]
    )


def _target_values(target: BudgetTarget) -> dict[str, Any]:  # Any: parameters of a statement
    return {
        "client": target.client,
        "freelancer": target.freelancer or "",
        "sandbox": target.sandbox or "",
        "period": target.period.value,
        "unit": target.unit,
    }


def _midnight(day: date, like: datetime) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=like.tzinfo)

"""What was said about budgets: thresholds that the trigger of the ledger found passed, and refusals noted here."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import asyncpg

from sandboxd.model.budget import BudgetLevel, BudgetNotice, BudgetNoticeCode, BudgetPeriod
from sandboxd.model.pool import POOLED
from sandboxd.monitor.ports import CallRefusal, CallStart
from sandboxd.persistence.escape import escape, unescape
from sandboxd.persistence.rows import Row

Connection: TypeAlias = "asyncpg.Connection[Any]"  # Any: rows are records of any shape

WITH_BUDGET: Final = """
    SELECT n.*, b.period, b.unit, b.freelancer AS of_freelancer, b.sandbox AS of_sandbox
    FROM {source} AS n JOIN budgets AS b ON b.id = n.budget
"""
NOTICES_OF_TURN: Final = f"{WITH_BUDGET.format(source='budget_notices')} WHERE n.turn = $1 ORDER BY n.notice_time, n.id"
# Once for each turn; where the call belongs to none, once an hour.
_NOTE: Final = f"""
    WITH hint AS (
        SELECT id FROM sessions WHERE id = $7 AND sandbox = $6 AND delete_time IS NULL
    ), newest AS (
        SELECT t.id, t.state FROM hint JOIN turns AS t ON t.session = hint.id ORDER BY t.number DESC LIMIT 1
    ), said AS (
        SELECT concat_ws('/', b.id, p.starts, $2::text, coalesce(n.id, to_char($3::timestamptz, 'DDHH24'))) AS id,
            b.id AS budget, b.client, $2::text AS code, p.starts AS period_start, 0 AS threshold, b.limit_amount,
            coalesce(a.spent, 0) AS spent, coalesce(a.reserved, 0) AS reserved,
            coalesce((SELECT freelancer FROM sandboxes WHERE id = $6 AND $5 = '{POOLED}'), $5::text) AS freelancer,
            $6::text AS sandbox, n.id AS turn, $8::text AS model, clock_timestamp() AS notice_time,
            pg_current_xact_id()::text::bigint AS written_by
        FROM budgets AS b
            CROSS JOIN LATERAL (SELECT sandboxd_budget_period(b.period, $3) AS starts) AS p
            LEFT JOIN budget_accounts AS a ON a.budget = b.id AND a.period_start = p.starts
            LEFT JOIN newest AS n ON n.state IN ('QUEUED', 'RUNNING')
        WHERE b.id = $1 AND b.client = $4
    ), kept AS (
        INSERT INTO budget_notices (id, budget, client, code, period_start, threshold, limit_amount, spent, reserved,
            freelancer, sandbox, turn, model, notice_time, written_by)
        SELECT * FROM said ON CONFLICT DO NOTHING
    )
    {WITH_BUDGET.format(source="said")}
"""  # noqa: S608  constant text
_CODES: Final = {
    CallRefusal.BUDGET_SPENT: BudgetNoticeCode.BUDGET_SPENT,
    CallRefusal.PRICE_UNKNOWN: BudgetNoticeCode.PRICE_UNKNOWN,
}


async def note_refusal(
    connection: Connection, call: CallStart, reason: CallRefusal, *, budget: str
) -> BudgetNotice | None:
    """Keep that a budget refused a call, and say so; None where the budget is gone meanwhile."""
    identity = call.identity
    row = await connection.fetchrow(
        _NOTE,
        budget,
        _CODES[reason].value,
        call.start_time,
        identity.client,
        identity.freelancer,
        identity.sandbox,
        call.session_hint,
        escape(call.model),
    )
    return read_notice(row) if row else None


def read_notice(row: Row) -> BudgetNotice:
    """A notice from its row and that of its budget."""
    level = BudgetLevel.SANDBOX if row["of_sandbox"] else BudgetLevel.CLIENT
    period = BudgetPeriod(row["period"])
    return BudgetNotice(
        code=BudgetNoticeCode(row["code"]),
        level=BudgetLevel.FREELANCER if row["of_freelancer"] else level,
        period=period,
        unit=row["unit"],
        limit=row["limit_amount"],
        spent=row["spent"],
        reserved=row["reserved"],
        threshold=row["threshold"],
        resets=period.end(row["period_start"]),
        model=unescape(row["model"]),
    )

"""The usage ledger on PostgreSQL: what the gateway writes, and what the stream reads of a turn."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import asyncpg
import structlog
from typing_extensions import override

from sandboxd.model.budget import BudgetNotice
from sandboxd.model.errors import DatabaseUnavailableError, UsageEventNotFoundError
from sandboxd.model.events import Notice, Usage
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.pool import POOLED
from sandboxd.model.usage import CallError, GatewayId, ModelMethod, UsageEvent, UsageEventId, UsageState
from sandboxd.monitor.ports import (
    MAX_PAGE_SIZE,
    MAX_SUMMARY_ROWS,
    CallProgress,
    CallRefusal,
    CallRefused,
    CallStart,
    OpenedCall,
    Settlement,
    UsageChanges,
    UsageCursor,
    UsageDimension,
    UsageFilter,
    UsageLedger,
    UsagePage,
    UsageSummary,
)
from sandboxd.persistence.budget_notices import NOTICES_OF_TURN, note_refusal, read_notice
from sandboxd.persistence.engine import Database
from sandboxd.persistence.escape import escape
from sandboxd.persistence.presence import channel
from sandboxd.persistence.usage_changes import read_changes
from sandboxd.persistence.usage_rows import TOKEN_COLUMNS, conditions, read_usage_event, token_values
from sandboxd.persistence.usage_sums import summarise
from sandboxd.stream.ports import TurnLedger, TurnUsage

log = structlog.get_logger(__name__)

# The newest turn of the hinted session counts, if it can still take calls. The part after UNION answers a repeated
# call from the row that was there before this statement.
_OPEN: Final = f"""
    WITH life AS (
        SELECT i.sandbox, s.freelancer FROM incarnations AS i JOIN sandboxes AS s ON s.id = i.sandbox
        JOIN clients AS c ON c.id = s.client JOIN freelancers AS f ON f.client = s.client AND f.id = s.freelancer
        WHERE i.id = $6 AND i.end_time IS NULL AND s.id = $5 AND s.client = $3 AND $4 IN (s.freelancer, '{POOLED}')
            AND c.state = 'ACTIVE' AND f.state = 'ACTIVE'
    ), hint AS (
        SELECT id FROM sessions WHERE id = $7 AND sandbox = $5 AND delete_time IS NULL
    ), newest AS (
        SELECT t.id, t.state, t.traceparent FROM hint JOIN turns AS t ON t.session = hint.id
        ORDER BY t.number DESC LIMIT 1
    ), made AS (
        INSERT INTO usage_events (
            id, gateway, client, freelancer, sandbox, incarnation, session, turn, method, model, state,
            reserved_prompt_tokens, reserved_output_tokens, start_time, reserved_cost_micros, reserved_currency)
        SELECT $1, $2, $3, life.freelancer, $5, $6, (SELECT id FROM hint),
            (SELECT id FROM newest WHERE state IN ('QUEUED', 'RUNNING')), $8, $9, 'OPEN', $10, $11, $12,
            $13, $14
        FROM life
        ON CONFLICT (id) DO NOTHING RETURNING session, turn
    )
    SELECT session, turn, (SELECT traceparent FROM newest WHERE newest.id = made.turn) AS traceparent FROM made
    UNION ALL SELECT u.session, u.turn, t.traceparent FROM usage_events AS u LEFT JOIN turns AS t ON t.id = u.turn
    WHERE u.id = $1
"""  # noqa: S608  constant text
_OPENED: Final = """
    SELECT u.session, u.turn, t.traceparent FROM usage_events AS u LEFT JOIN turns AS t ON t.id = u.turn
    WHERE u.id = $1
"""
_SUSPENDED: Final = f"""
    SELECT EXISTS (SELECT 1 FROM clients WHERE id = $1 AND state <> 'ACTIVE')
        OR EXISTS (SELECT 1 FROM freelancers WHERE client = $1 AND state <> 'ACTIVE' AND id = CASE $2
            WHEN '{POOLED}' THEN (SELECT freelancer FROM sandboxes WHERE id = $3) ELSE $2 END)
"""  # noqa: S608  constant text
_TOKENS_SET: Final = ", ".join(f"{name} = ${index}" for index, name in enumerate(TOKEN_COLUMNS, start=2))
_PROGRESS: Final = f"""
    UPDATE usage_events SET {_TOKENS_SET}, model_version = $8, first_byte_time = $9 WHERE id = $1 AND state = 'OPEN'
"""  # noqa: S608  constant text
_SETTLE: Final = f"""
    WITH known AS (SELECT sandbox FROM usage_events WHERE id = $1), changed AS (
        UPDATE usage_events SET {_TOKENS_SET}, state = $8, model_version = $9, http_status = $10, finish_reason = $11,
            block_reason = $12, cost_micros = $13, currency = $14, price = $15, first_byte_time = $16, end_time = $17,
            error_reason = $18, settled_by = pg_current_xact_id()::text::bigint
        WHERE id = $1 AND (state = 'OPEN' OR (
            state = 'ESTIMATED' AND error_reason = '{CallError.GATEWAY_LOST.value}'
            AND $18 IS DISTINCT FROM '{CallError.GATEWAY_LOST.value}'))
        RETURNING id
    )
    SELECT sandbox, EXISTS (SELECT 1 FROM changed) AS changed FROM known
"""  # noqa: S608  constant text
_BEAT: Final = """
    INSERT INTO gateways (id, beat_time) VALUES ($1, clock_timestamp())
    ON CONFLICT (id) DO UPDATE SET beat_time = excluded.beat_time
"""
_ORPHANS: Final = """
    SELECT u.* FROM usage_events AS u LEFT JOIN gateways AS g ON g.id = u.gateway
    WHERE u.state = 'OPEN' AND (g.id IS NULL OR g.beat_time <= clock_timestamp() - $1::interval)
    ORDER BY u.id LIMIT $2
"""
_REFUSALS: Final = {"SB001": CallRefusal.BUDGET_SPENT, "SB002": CallRefusal.PRICE_UNKNOWN}
"""What the trigger that counts budgets raises."""
_ONE: Final = "SELECT * FROM usage_events WHERE id = $1"
_OF_TURN: Final = "SELECT * FROM usage_events WHERE turn = $1 ORDER BY id"


class PostgresUsageLedger(UsageLedger):
    """Model calls in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def open_call(self, call: CallStart) -> OpenedCall | CallRefused:
        identity, cost = call.identity, call.reserved_cost
        async with self._database.raw() as connection:
            try:
                row = await connection.fetchrow(
                    _OPEN,
                    call.id,
                    call.gateway,
                    identity.client,
                    identity.freelancer,
                    identity.sandbox,
                    identity.incarnation,
                    call.session_hint,
                    call.method.value,
                    escape(call.model),
                    call.reserved.prompt_tokens,
                    call.reserved.output_tokens,
                    call.start_time,
                    cost.micros if cost else None,
                    cost.currency if cost else None,
                )
            except asyncpg.PostgresError as error:
                reason = _REFUSALS.get(error.sqlstate or "")
                if reason is None:
                    raise
                notice = await note_refusal(connection, call, reason, budget=error.detail or "")
                return CallRefused(reason=reason, message=notice.message if notice else "")
            # The same call, sent twice at once: the second one waited for the first and does not see its row yet.
            row = row or await connection.fetchrow(_OPENED, call.id)
            if row is None:
                suspended = await connection.fetchval(
                    _SUSPENDED, identity.client, identity.freelancer, identity.sandbox
                )
                return CallRefused(reason=CallRefusal.SUSPENDED if suspended else CallRefusal.INCARNATION_ENDED)
        return OpenedCall(
            session=SessionId(row["session"]) if row["session"] else None,
            turn=TurnId(row["turn"]) if row["turn"] else None,
            traceparent=row["traceparent"] or "",
        )

    @override
    async def record_progress(self, event: UsageEventId, progress: CallProgress) -> None:
        async with self._database.raw() as connection:
            await connection.execute(
                _PROGRESS,
                event,
                *token_values(progress.tokens),
                _escaped(progress.model_version),
                progress.first_byte_time,
            )

    @override
    async def settle_call(self, event: UsageEventId, settlement: Settlement) -> bool:
        cost = settlement.cost
        async with self._database.raw() as connection:
            row = await connection.fetchrow(
                _SETTLE,
                event,
                *token_values(settlement.tokens),
                settlement.state.value,
                _escaped(settlement.model_version),
                settlement.http_status,
                _escaped(settlement.finish_reason),
                _escaped(settlement.block_reason),
                cost.micros if cost else None,
                cost.currency if cost else None,
                settlement.price_id,
                settlement.first_byte_time,
                settlement.end_time,
                settlement.error_reason.value if settlement.error_reason else None,
            )
        if row is None:
            raise UsageEventNotFoundError(event)
        await self._wake(row["sandbox"])
        changed: bool = row["changed"]
        return changed

    async def _wake(self, sandbox: str) -> None:
        """Tell who waits for usage of the sandbox; after the commit, because a NOTIFY serialises commits."""
        try:
            async with self._database.raw() as connection:
                await connection.execute("SELECT pg_notify($1, $2)", channel("usage"), sandbox)
        except DatabaseUnavailableError as error:
            log.warning("ledger.wake_lost", error=str(error))  # only a hint: whoever waits also looks by itself

    @override
    async def beat(self, gateway: GatewayId) -> None:
        async with self._database.raw() as connection:
            await connection.execute(_BEAT, gateway)

    @override
    async def orphaned_calls(self, *, silent_for: timedelta, limit: int) -> Sequence[UsageEvent]:
        return [read_usage_event(row) for row in await self._database.fetch(_ORPHANS, silent_for, limit)]

    @override
    async def get_event(self, event: UsageEventId) -> UsageEvent:
        row = await self._database.fetch_one(_ONE, event)
        if row is None:
            raise UsageEventNotFoundError(event)
        return read_usage_event(row)

    @override
    async def list_events(
        self, where: UsageFilter, *, page_size: int, after: UsageEventId | None = None, newest_first: bool = False
    ) -> UsagePage:
        size = max(1, min(page_size, MAX_PAGE_SIZE))
        values: list[Any] = []  # Any: parameters of a statement
        condition = conditions(where, values)
        if after is not None:
            values.append(after)
            condition += f" AND id {'<' if newest_first else '>'} ${len(values)}"
        order = "DESC" if newest_first else "ASC"
        statement = f"SELECT * FROM usage_events WHERE {condition} ORDER BY id {order} LIMIT {size + 1}"  # noqa: S608
        events = [read_usage_event(row) for row in await self._database.fetch(statement, *values)]
        return UsagePage(events=events[:size], next_after=events[size - 1].id if len(events) > size else None)

    @override
    async def summarise(
        self, where: UsageFilter, *, by: Sequence[UsageDimension], limit: int = MAX_SUMMARY_ROWS
    ) -> UsageSummary:
        # One snapshot for both statements: the total must be that of the rows.
        async with (
            self._database.raw() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            rows = await summarise(connection, where, by=by, limit=min(limit, MAX_SUMMARY_ROWS))
            (total,) = await summarise(connection, where, by=(), limit=1)
        return UsageSummary(rows=rows, total=total)

    @override
    async def turn_usage(self, turn: TurnId) -> Sequence[UsageEvent]:
        return [read_usage_event(row) for row in await self._database.fetch(_OF_TURN, turn)]

    @override
    async def changes(self, where: UsageFilter, *, after: UsageCursor | None, limit: int) -> UsageChanges:
        return await read_changes(self._database, where, after=after, limit=limit)

    @override
    async def turn_notices(self, turn: TurnId) -> Sequence[BudgetNotice]:
        return [read_notice(row) for row in await self._database.fetch(NOTICES_OF_TURN, turn)]


class PostgresTurnLedger(TurnLedger):
    """The ledger as the stream reads it."""

    def __init__(self, ledger: UsageLedger) -> None:
        self._ledger = ledger

    @override
    async def turn_usage(self, turn: TurnId) -> TurnUsage:
        rows = await self._ledger.turn_usage(turn)
        notices = await self._ledger.turn_notices(turn)
        ended = [row for row in rows if row.state is not UsageState.OPEN]
        answers = [row for row in ended if row.method is not ModelMethod.COUNT_TOKENS]
        return TurnUsage(
            calls=[_usage(row) for row in ended],
            open_calls=len(rows) - len(ended),
            finish_reason=(answers[-1].finish_reason or "") if answers else "",
            block_reason=(answers[-1].block_reason or "") if answers else "",
            notices=[Notice(code=one.code.value, message=one.message) for one in notices],
        )


def _usage(row: UsageEvent) -> Usage:
    return Usage(
        usage_event=row.id,
        model=row.model,
        prompt_tokens=row.tokens.prompt,
        cached_tokens=row.tokens.cached,
        output_tokens=row.tokens.output,
        thoughts_tokens=row.tokens.thoughts,
        tool_use_tokens=row.tokens.tool_use,
        total_tokens=row.tokens.total,
        cost_micros=row.cost.micros if row.cost else None,
        currency=row.cost.currency if row.cost else "",
        http_status=row.http_status,
        estimated=row.state is UsageState.ESTIMATED,
    )


def _escaped(text: str | None) -> str | None:
    return None if text is None else escape(text)

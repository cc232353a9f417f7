"""A ledger and a price book in memory, with the weather that the real ones have: down, hanging, answer lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sandboxd.model.budget import BudgetNotice
from sandboxd.model.errors import DatabaseUnavailableError, UsageEventNotFoundError
from sandboxd.model.ids import IncarnationId, SandboxId, SessionId, TurnId
from sandboxd.model.metering import ResourceDimension, ResourceFilter, ResourceKind, ResourceSum, ResourceSummary
from sandboxd.model.money import Money
from sandboxd.model.pricing import Price, PriceBook
from sandboxd.model.session import TurnState
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.model.usage import NO_TOKENS, CallError, GatewayId, UsageEvent, UsageEventId, UsageState
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
    UsagePage,
    UsageSummary,
    UsageSummaryRow,
)


@dataclass(kw_only=True)
class FakeSession:
    sandbox: SandboxId
    deleted: bool = False
    turn: TurnId | None = None
    turn_state: TurnState | None = None
    traceparent: str = ""


@dataclass(kw_only=True)
class FakeUsageLedger:
    incarnations: dict[IncarnationId, SandboxIdentity] = field(default_factory=dict)
    ended: set[IncarnationId] = field(default_factory=set)
    sessions: dict[SessionId, FakeSession] = field(default_factory=dict)
    over_budget: set[SandboxId] = field(default_factory=set)
    suspended: set[str] = field(default_factory=set)
    """Clients and freelancers."""
    rows: dict[UsageEventId, UsageEvent] = field(default_factory=dict)
    beats: dict[GatewayId, datetime] = field(default_factory=dict)
    settled: list[UsageEventId] = field(default_factory=list)
    """In the order of their settlements; the place, from 1, stands for the transaction."""
    progress_count: int = 0
    down: bool = False
    answer_lost: bool = False
    """Commits, and then fails as if the answer had been lost."""
    hanging: asyncio.Event | None = None
    """While set, every call waits for it."""

    async def _weather(self) -> None:
        if self.hanging is not None:
            await self.hanging.wait()
        if self.down:
            raise DatabaseUnavailableError("The ledger does not answer. Try again.")

    def _lost(self) -> None:
        if self.answer_lost:
            raise DatabaseUnavailableError("The ledger's answer was lost. Try again.")

    async def open_call(self, call: CallStart) -> OpenedCall | CallRefused:
        await self._weather()
        if (row := self.rows.get(call.id)) is None:
            known = self.incarnations.get(call.identity.incarnation)
            if known != call.identity or call.identity.incarnation in self.ended:
                return CallRefused(reason=CallRefusal.INCARNATION_ENDED)
            if {call.identity.client, call.identity.freelancer} & self.suspended:
                return CallRefused(reason=CallRefusal.SUSPENDED)
            if call.identity.sandbox in self.over_budget:
                return CallRefused(reason=CallRefusal.BUDGET_SPENT)
            row = self.rows[call.id] = self._row(call)
        self._lost()
        known_session = self.sessions.get(row.session) if row.session and row.turn else None
        traceparent = known_session.traceparent if known_session else ""
        return OpenedCall(session=row.session, turn=row.turn, traceparent=traceparent)

    def _row(self, call: CallStart) -> UsageEvent:
        session = self.sessions.get(call.session_hint) if call.session_hint else None
        if session is not None and (session.sandbox != call.identity.sandbox or session.deleted):
            session = None
        running = session is not None and session.turn_state in {TurnState.QUEUED, TurnState.RUNNING}
        return UsageEvent(
            id=call.id,
            gateway=call.gateway,
            client=call.identity.client,
            freelancer=call.identity.freelancer,
            sandbox=call.identity.sandbox,
            incarnation=call.identity.incarnation,
            session=call.session_hint if session else None,
            turn=session.turn if session and running else None,
            method=call.method,
            model=call.model,
            model_version=None,
            state=UsageState.OPEN,
            http_status=None,
            finish_reason=None,
            block_reason=None,
            tokens=NO_TOKENS,
            cost=None,
            price_id=None,
            reserved=call.reserved,
            start_time=call.start_time,
            first_byte_time=None,
            end_time=None,
            error_reason=None,
        )

    async def record_progress(self, event: UsageEventId, progress: CallProgress) -> None:
        await self._weather()
        row = self.rows.get(event)
        if row is not None and row.state is UsageState.OPEN:
            self.progress_count += 1
            self.rows[event] = replace(
                row,
                tokens=progress.tokens,
                model_version=progress.model_version,
                first_byte_time=progress.first_byte_time,
            )

    async def settle_call(self, event: UsageEventId, settlement: Settlement) -> bool:
        await self._weather()
        row = self.rows.get(event)
        if row is None:
            raise UsageEventNotFoundError(event)
        swept = row.state is UsageState.ESTIMATED and row.error_reason is CallError.GATEWAY_LOST
        corrected = swept and settlement.error_reason is not CallError.GATEWAY_LOST
        changes = row.state is UsageState.OPEN or corrected
        if changes:
            self.settled.append(event)
            self.rows[event] = replace(
                row,
                state=settlement.state,
                tokens=settlement.tokens,
                model_version=settlement.model_version,
                http_status=settlement.http_status,
                finish_reason=settlement.finish_reason,
                block_reason=settlement.block_reason,
                cost=settlement.cost,
                price_id=settlement.price_id,
                first_byte_time=settlement.first_byte_time,
                end_time=settlement.end_time,
                error_reason=settlement.error_reason,
            )
        self._lost()
        return changes

    async def beat(self, gateway: GatewayId) -> None:
        await self._weather()
        self.beats[gateway] = datetime.now(UTC)

    async def orphaned_calls(self, *, silent_for: timedelta, limit: int) -> Sequence[UsageEvent]:
        await self._weather()
        line = datetime.now(UTC) - silent_for
        orphans = [
            row
            for row in self.rows.values()
            if row.state is UsageState.OPEN and not (row.gateway in self.beats and self.beats[row.gateway] > line)
        ]
        return sorted(orphans, key=lambda row: row.id)[:limit]

    async def get_event(self, event: UsageEventId) -> UsageEvent:
        await self._weather()
        if event not in self.rows:
            raise UsageEventNotFoundError(event)
        return self.rows[event]

    async def list_events(
        self, where: UsageFilter, *, page_size: int, after: UsageEventId | None = None, newest_first: bool = False
    ) -> UsagePage:
        await self._weather()
        size = min(page_size, MAX_PAGE_SIZE)
        rows = sorted(self._matching(where), key=lambda row: row.id, reverse=newest_first)
        if after is not None:
            rows = [row for row in rows if (row.id < after if newest_first else row.id > after)]
        return UsagePage(events=rows[:size], next_after=rows[size - 1].id if len(rows) > size else None)

    async def summarise(
        self, where: UsageFilter, *, by: Sequence[UsageDimension], limit: int = MAX_SUMMARY_ROWS
    ) -> UsageSummary:
        await self._weather()
        rows = self._matching(where)
        groups: dict[tuple[str, ...], list[UsageEvent]] = {}
        for row in rows:
            groups.setdefault(tuple(_value(row, dimension) for dimension in by), []).append(row)
        sums = [_sum(key, group) for key, group in groups.items()]
        sums.sort(key=lambda one: (-sum(cost.micros for cost in one.costs), -one.tokens.total, one.key))
        return UsageSummary(rows=sums[: min(limit, MAX_SUMMARY_ROWS)], total=_sum((), rows))

    async def turn_usage(self, turn: TurnId) -> Sequence[UsageEvent]:
        await self._weather()
        return sorted(self._matching(UsageFilter(turn=turn)), key=lambda row: row.id)

    async def changes(self, where: UsageFilter, *, after: UsageCursor | None, limit: int) -> UsageChanges:
        await self._weather()
        head = UsageCursor(transaction=len(self.settled) + 1, event="", notices=len(self.settled) + 1)
        if after is None:
            return UsageChanges(events=(), notices=(), cursor=head, more=False)
        wanted = {row.id for row in self._matching(where)}
        found = [
            (self.rows[event], UsageCursor(transaction=number, event=event, notices=number))
            for number, event in enumerate(self.settled, start=1)
            if event in wanted and (number, event) > (after.transaction, after.event)
        ]
        if len(found) > limit:
            return UsageChanges(events=found[:limit], notices=(), cursor=found[limit - 1][1], more=True)
        return UsageChanges(events=found, notices=(), cursor=head, more=False)

    async def turn_notices(self, turn: TurnId) -> Sequence[BudgetNotice]:
        await self._weather()
        return []

    def _matching(self, where: UsageFilter) -> list[UsageEvent]:
        exact = ("client", "freelancer", "sandbox", "session", "turn", "model")
        return [
            row
            for row in self.rows.values()
            if all(getattr(where, name) in {None, getattr(row, name)} for name in exact)
            and (not where.states or row.state in where.states)
            and (where.start_from is None or row.start_time >= where.start_from)
            and (where.start_before is None or row.start_time < where.start_before)
        ]


@dataclass(kw_only=True)
class FakeResourceLedger:
    summary: ResourceSummary = field(
        default_factory=lambda: ResourceSummary(
            rows=(), total=ResourceSum(key=(), span=timedelta(0), megabyte_seconds=0, sandboxes=0)
        )
    )
    asked: list[tuple[ResourceFilter, ResourceKind, Sequence[ResourceDimension]]] = field(default_factory=list)

    async def summarise(
        self, where: ResourceFilter, *, kind: ResourceKind, by: Sequence[ResourceDimension], limit: int
    ) -> ResourceSummary:
        self.asked.append((where, kind, by))
        return self.summary


@dataclass(kw_only=True)
class FakePriceBookStore:
    prices: dict[str, Price] = field(default_factory=dict)
    down: bool = False

    async def load(self) -> PriceBook:
        if self.down:
            raise DatabaseUnavailableError("The price book does not answer. Try again.")
        return PriceBook(prices=tuple(self.prices.values()))

    async def add(self, prices: Sequence[Price]) -> None:
        for price in prices:
            self.prices.setdefault(price.id, price)

    async def end(self, price_id: str, *, at: datetime) -> None:
        price = self.prices.get(price_id)
        if price is not None and price.valid_until is None:
            self.prices[price_id] = replace(price, valid_until=at)


def _value(row: UsageEvent, dimension: UsageDimension) -> str:
    if dimension is UsageDimension.DAY:
        return row.start_time.astimezone(UTC).date().isoformat()
    return getattr(row, dimension.value) or ""


def _sum(key: tuple[str, ...], rows: Sequence[UsageEvent]) -> UsageSummaryRow:
    costs: dict[str, int] = {}
    for row in rows:
        if row.cost is not None:
            costs[row.cost.currency] = costs.get(row.cost.currency, 0) + row.cost.micros
    return UsageSummaryRow(
        key=key,
        calls=len(rows),
        open_calls=sum(row.state is UsageState.OPEN for row in rows),
        estimated_calls=sum(row.state is UsageState.ESTIMATED for row in rows),
        failed_calls=sum(row.error_reason is not None for row in rows),
        unpriced_calls=sum(row.unpriced for row in rows),
        tokens=sum((row.tokens for row in rows), NO_TOKENS),
        costs=[Money(micros=micros, currency=currency) for currency, micros in sorted(costs.items())],
    )

"""Live usage on a real PostgreSQL: nothing is missed, whatever commits when, and totals follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sandboxd.api.grpc.rpc import closed_at_end
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.manager.usage_watch import UsageNews, UsageWatch
from sandboxd.model.budget import TOKENS, BudgetId, BudgetPeriod, BudgetTarget
from sandboxd.model.errors import InvalidRequestError
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.model.usage import CallError, TokenCounts, UsageEvent, UsageEventId, UsageState
from sandboxd.monitor.ports import SaidNotice, UsageCursor, UsageFilter, UsageSummaryRow
from sandboxd.persistence.budgets import PostgresBudgetRepository
from sandboxd.persistence.engine import Database
from tests.contract.postgres_worlds import PostgresLedgerWorld
from tests.contract.usage_world import NOON, a_call, a_settlement, an_id, an_identity
from tests.fakes.manager import FakeWakeups


@pytest.fixture
def world(database: Database) -> PostgresLedgerWorld:
    return PostgresLedgerWorld(database=database)


async def a_settled_call(world: PostgresLedgerWorld, identity: SandboxIdentity, *, total: int = 100) -> UsageEventId:
    call = a_call(identity)
    await world.ledger.open_call(call)
    await world.ledger.settle_call(call.id, a_settlement(tokens=TokenCounts(prompt=total, total=total)))
    return call.id


async def news_until_quiet(
    world: PostgresLedgerWorld, where: UsageFilter, after: UsageCursor | None
) -> tuple[list[UsageEvent], UsageCursor]:
    events: list[UsageEvent] = []
    cursor = after
    while True:
        page = await world.ledger.changes(where, after=cursor, limit=2)
        events += [event for event, _ in page.events]
        cursor = page.cursor
        if not page.more:
            return events, cursor


async def test_changes_are_read_page_by_page_after_a_cursor_and_only_ones_own(world: PostgresLedgerWorld) -> None:
    mine, foreign = an_identity(), an_identity()
    for identity in (mine, foreign):
        await world.given_incarnation(identity)
    where = UsageFilter(client=mine.client)
    await a_settled_call(world, mine)
    nothing, start = await news_until_quiet(world, where, None)
    ids = [await a_settled_call(world, mine) for _ in range(5)]
    await a_settled_call(world, foreign)

    first, cursor = await news_until_quiet(world, where, start)
    second, _ = await news_until_quiet(world, where, cursor)
    page = await world.ledger.changes(where, after=start, limit=2)
    rest, _ = await news_until_quiet(world, where, page.events[0][1])

    assert nothing == []
    assert [event.id for event in first] == ids
    assert second == []
    assert [event.id for event in rest] == ids[1:]


async def test_a_correction_comes_again_with_the_new_figures(world: PostgresLedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    where, call = UsageFilter(sandbox=identity.sandbox, client=identity.client), a_call(identity)
    _, start = await news_until_quiet(world, where, None)
    await world.ledger.open_call(call)
    lost = a_settlement(state=UsageState.ESTIMATED, error_reason=CallError.GATEWAY_LOST)
    await world.ledger.settle_call(call.id, lost)
    guessed, cursor = await news_until_quiet(world, where, start)
    await world.ledger.settle_call(call.id, a_settlement(tokens=TokenCounts(total=7)))

    corrected, _ = await news_until_quiet(world, where, cursor)

    assert [event.state for event in guessed] == [UsageState.ESTIMATED]
    assert [(event.id, event.tokens.total) for event in corrected] == [(call.id, 7)]


async def test_what_commits_late_is_not_missed(world: PostgresLedgerWorld, database: Database) -> None:
    """A transaction that began to write first and commits last lies before what has been read already."""
    identity = an_identity()
    await world.given_incarnation(identity)
    where, slow = UsageFilter(client=identity.client), a_call(identity)
    await world.ledger.open_call(slow)
    _, start = await news_until_quiet(world, where, None)
    settle = """
        UPDATE usage_events SET state = 'SETTLED', end_time = now(), settled_by = pg_current_xact_id()::text::bigint
        WHERE id = $1
    """

    async with database.raw() as connection:
        writing = connection.transaction()
        await writing.start()
        await connection.execute(settle, slow.id)
        fast = await a_settled_call(world, identity)
        early, cursor = await news_until_quiet(world, where, start)
        await writing.commit()
    late, _ = await news_until_quiet(world, where, cursor)

    assert [event.id for event in [*early, *late]] == [slow.id, fast]


async def test_a_cursor_of_another_database_is_refused(world: PostgresLedgerWorld) -> None:
    cursor = UsageCursor(transaction=2**62, event="", notices=0)

    with pytest.raises(InvalidRequestError) as error:
        await world.ledger.changes(UsageFilter(), after=cursor, limit=1)

    assert [one.field for one in error.value.violations] == ["cursor"]


async def until(news: AsyncIterator[UsageNews], total: int) -> list[UsageNews]:
    """The news up to the totals that hold so many tokens."""
    found = []
    async with asyncio.timeout(20):
        async for one in news:
            found.append(one)
            if isinstance(one.body, UsageSummaryRow) and one.body.tokens.total == total:
                return found
    raise AssertionError("the watch ended")


async def test_a_watch_sends_totals_then_calls_notices_and_totals_and_goes_on_after_a_cursor(
    world: PostgresLedgerWorld, database: Database
) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    target = BudgetTarget(client=identity.client, period=BudgetPeriod.DAY, unit=TOKENS)
    async with database.begin() as connection:
        await PostgresBudgetRepository(connection).put(
            target, limit=20_000, thresholds=(1,), new=BudgetId(an_id("bdg")), at=NOON
        )
    await a_settled_call(world, identity, total=10)
    wakeups = FakeWakeups()
    watch = UsageWatch(ledger=world.ledger, wakeups=wakeups, clock=SystemClock(), rest=0.01, totals_every=0.05)
    where = UsageFilter(client=identity.client, start_from=NOON)

    news = watch.watch(where, after=None)
    async with closed_at_end(news):
        first = await until(news, 10)
        made = await a_settled_call(world, identity, total=300)
        await wakeups.notify("usage", identity.sandbox)
        second = await until(news, 310)
    missed = await a_settled_call(world, identity, total=1)
    news = watch.watch(where, after=second[-1].cursor)
    async with closed_at_end(news):
        third = await until(news, 311)

    assert [type(one.body) for one in first] == [UsageSummaryRow]
    assert [one.body.id for one in second if isinstance(one.body, UsageEvent)] == [made]
    notices = [one.body for one in second if isinstance(one.body, SaidNotice)]
    assert [(one.notice.code.value, one.notice.threshold, one.sandbox) for one in notices] == [
        ("BUDGET_LOW", 1, identity.sandbox)
    ]
    assert [one.body.id for one in third if isinstance(one.body, UsageEvent)] == [missed]
    assert replace(second[-1].cursor, event="") == second[-1].cursor

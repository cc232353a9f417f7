"""PostgreSQL commits, and its answer never arrives: whoever asked does not know, asks again, and nothing is doubled.

A proxy swallows the very bytes of the answer and cuts the connection. What this process was told is an error; what the
database has is the deed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.manager.ports import RequestOutcome
from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.model.events import Text
from sandboxd.model.ids import IncarnationId
from sandboxd.model.usage import TokenCounts, UsageState
from sandboxd.monitor.ports import OpenedCall, UsageFilter
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.ledger import PostgresUsageLedger
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from sandboxd.stream.group_commit import GroupCommit
from sandboxd.stream.ports import Appended, Entry
from tests.contract.journal_world import an_event, an_id
from tests.contract.postgres_worlds import PostgresLedgerWorld
from tests.contract.test_unit_of_work import NOON, a_record, a_sandbox
from tests.contract.usage_world import SOME_TOKENS, a_call, a_settlement, an_identity
from tests.fault_proxy import FaultProxy, before_postgres, url_through
from tests.integration.test_database_weather import begun, texts

COMMITTED = b"COMMIT\0"
"""The server's answer to COMMIT."""
READY = b"Z\0\0\0\x05I"
"""The server's answer to a statement outside a transaction: it is committed, and the session is idle."""


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[FaultProxy]:
    async with before_postgres(postgres_url).running() as made:
        yield made


@pytest.fixture
async def stormy(proxy: FaultProxy, postgres_url: str) -> AsyncIterator[Database]:
    """The same database as `database`, through the proxy."""
    made = Database(make_engine(DatabaseSettings(url=url_through(proxy, postgres_url), application_name="stormy")))
    yield made
    await made.close()


async def test_a_journal_append_that_was_committed_unheard_is_in_the_log_once(
    database: Database, stormy: Database, proxy: FaultProxy
) -> None:
    journal = PostgresJournal(stormy)
    mine, session = await begun(database)
    entry = Entry(conversation=replace(mine, consumed=1), events=[an_event(session.id, 2, Text(text="a"))])
    lost = proxy.lose_answer(after=b"COMMIT", answer=COMMITTED)

    with pytest.raises(DatabaseUnavailableError):
        await journal.append([entry])
    committed = await texts(PostgresJournal(database), session)
    again = await journal.append([entry])

    assert lost.lost.is_set()
    assert committed == ["a"], "the answer was lost before the commit: the test shows nothing"
    assert list(again) == [Appended.DURABLE]
    assert await texts(journal, session) == ["a"]


async def test_the_group_commit_repeats_lost_answers_and_every_conversation_goes_on(
    database: Database, stormy: Database, proxy: FaultProxy
) -> None:
    journal = PostgresJournal(stormy)
    commit = GroupCommit(journal)
    running = asyncio.create_task(commit.run())
    worlds = [await begun(database) for _ in range(8)]
    losses = 0

    for number in range(10):
        lost = proxy.lose_answer(after=b"COMMIT", answer=COMMITTED)
        entries = [
            Entry(
                conversation=replace(mine, consumed=number + 1),
                events=[an_event(session.id, number + 2, Text(text=str(number)))],
            )
            for mine, session in worlds
        ]
        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*(commit.append(entry) for entry in entries))
        assert set(outcomes) == {Appended.DURABLE}
        losses += lost.lost.is_set()
    commit.close()
    await running

    assert losses == 10
    for _, session in worlds:
        assert await texts(journal, session) == [str(number) for number in range(10)]


async def test_a_unit_of_work_that_was_committed_unheard_is_found_by_its_request_id(
    database: Database, stormy: Database, proxy: FaultProxy
) -> None:
    units, calm = PostgresUnitsOfWork(stormy), PostgresUnitsOfWork(database)
    sandbox = a_sandbox()
    record = a_record(sandbox)
    lost = proxy.lose_answer(after=b"COMMIT", answer=COMMITTED)

    async def create() -> None:
        async with units.begin() as work:
            await work.freelancers.ensure(sandbox.client, sandbox.freelancer, at=NOON)
            await work.sandboxes.add(sandbox)
            assert await work.requests.claim(record) is None
            await work.commit()

    with pytest.raises(DatabaseUnavailableError):
        await create()
    async with units.begin() as work:
        repeated = await work.requests.claim(record)
        found = await work.sandboxes.get(sandbox.id)
        await work.requests.finish(record.client, record.request_id, RequestOutcome(sandbox=found))
        await work.commit()
    async with calm.begin() as work:
        finished = await work.requests.get(record.client, record.request_id)

    assert lost.lost.is_set()
    assert repeated is not None, "the request was done a second time"
    assert found.id == sandbox.id
    assert finished is not None
    assert finished.outcome is not None


async def test_a_call_that_was_opened_unheard_is_one_row_and_is_answered_alike(
    database: Database, stormy: Database, proxy: FaultProxy
) -> None:
    world = PostgresLedgerWorld(database=database)
    identity = an_identity()
    await world.given_incarnation(identity)
    ledger = PostgresUsageLedger(stormy)
    call = a_call(identity)
    lost = proxy.lose_answer(after=call.id.encode(), answer=READY)

    with pytest.raises(DatabaseUnavailableError):
        await ledger.open_call(call)
    written = (await world.ledger.list_events(UsageFilter(sandbox=identity.sandbox), page_size=10)).events
    again = await ledger.open_call(call)
    rows = (await world.ledger.list_events(UsageFilter(sandbox=identity.sandbox), page_size=10)).events

    assert lost.lost.is_set()
    assert [row.id for row in written] == [call.id], "the answer was lost before the commit: the test shows nothing"
    assert again == OpenedCall(session=None, turn=None)
    assert [(row.id, row.state) for row in rows] == [(call.id, UsageState.OPEN)]


async def test_a_call_that_was_settled_unheard_is_settled_once_and_to_the_token(
    database: Database, stormy: Database, proxy: FaultProxy
) -> None:
    world = PostgresLedgerWorld(database=database)
    identity = an_identity()
    await world.given_incarnation(identity)
    ledger = PostgresUsageLedger(stormy)
    call, settlement = a_call(identity), a_settlement(price_id=None)
    await ledger.open_call(call)
    lost = proxy.lose_answer(after=call.id.encode(), answer=READY)

    with pytest.raises(DatabaseUnavailableError):
        await ledger.settle_call(call.id, settlement)
    settled = await world.ledger.get_event(call.id)
    repeated = await ledger.settle_call(call.id, settlement)
    other = await ledger.settle_call(call.id, replace(settlement, tokens=TokenCounts(prompt=1, total=1)))

    assert lost.lost.is_set()
    assert settled.state is UsageState.SETTLED, "the answer was lost before the commit: the test shows nothing"
    assert (repeated, other) == (False, False)
    assert (await world.ledger.get_event(call.id)).tokens == SOME_TOKENS


async def test_an_owner_that_did_not_hear_that_it_is_the_owner_takes_the_conversation_again(
    database: Database, stormy: Database, proxy: FaultProxy
) -> None:
    journal = PostgresJournal(stormy)
    first, session = await begun(database, owner="somebody else")
    lost = proxy.lose_answer(after=first.sandbox.encode(), answer=READY)

    with pytest.raises(DatabaseUnavailableError):
        await journal.acquire(first.sandbox, owner="me", lease=timedelta(seconds=60), force=True)
    mine = await journal.acquire(first.sandbox, owner="me", lease=timedelta(seconds=60))

    assert lost.lost.is_set()
    assert mine is not None
    assert mine.epoch == first.epoch + 2, "each acquisition is an epoch of its own"
    placed = replace(mine, incarnation=IncarnationId(an_id("inc")), process="p", consumed=1)
    entry = Entry(conversation=placed, events=[an_event(session.id, 2, Text(text="mine"))])
    stale = Entry(conversation=replace(first, consumed=1), events=[an_event(session.id, 2, Text(text="stale"))])
    assert [*await journal.append([stale]), *await journal.append([entry])] == [Appended.STALE, Appended.DURABLE]
    assert await texts(journal, session) == ["mine"]

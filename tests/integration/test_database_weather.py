"""What PostgreSQL's own failures do to the journal and the units of work: nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.model.events import SessionOpened, Text
from sandboxd.model.ids import IncarnationId, RequestId, SandboxId
from sandboxd.model.session import Session
from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.presence import ReplicaPresence
from sandboxd.persistence.sessions import PostgresSessions
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from sandboxd.stream.ports import Appended, Command, Conversation, Entry
from tests.contract.journal_world import CLIENT, FREELANCER, a_sandbox_id, a_session, an_event, an_id
from tests.contract.postgres_worlds import insert_sandbox
from tests.eventually import eventually

LEASE = timedelta(seconds=60)


async def begun(
    database: Database, *, owner: str = "one", sandbox: SandboxId | None = None
) -> tuple[Conversation, Session]:
    """A conversation with an owner and a session."""
    sandbox = sandbox or a_sandbox_id()
    await insert_sandbox(database, sandbox, client=CLIENT, freelancer=FREELANCER)
    mine = await PostgresJournal(database).acquire(sandbox, owner=owner, lease=LEASE)
    assert mine is not None
    session = a_session(sandbox)
    command = Command(client=CLIENT, request_id=RequestId(an_id("req")), body_hash=b"", session=session.id)
    opened = an_event(session.id, 1, SessionOpened())
    await PostgresSessions(database).create(session, opened=opened, command=command)
    return replace(mine, incarnation=IncarnationId(an_id("inc")), process="p"), session


async def durably(journal: PostgresJournal, entry: Entry) -> Appended:
    """Append as the group commit does: again and again while nothing is known."""
    async with asyncio.timeout(20):
        while True:
            try:
                (outcome,) = await journal.append([entry])
            except DatabaseUnavailableError:
                await asyncio.sleep(0.01)
            else:
                return outcome


async def texts(journal: PostgresJournal, session: Session) -> list[str]:
    found = await journal.events(session.id, after=1, limit=10_000)
    assert [event.sequence for event in found] == list(range(2, 2 + len(found)))
    return [event.body.text for event in found if isinstance(event.body, Text)]


async def test_connections_that_are_cut_at_any_moment_lose_and_double_nothing(
    database: Database, postgres_url: str
) -> None:
    journal = PostgresJournal(database)
    mine, session = await begun(database)
    other = Database(make_engine(DatabaseSettings(url=postgres_url, application_name="cutter")))
    cuts = 0
    chance = random.Random(1)

    for number in range(60):
        entry = Entry(
            conversation=replace(mine, consumed=number + 1),
            events=[an_event(session.id, number + 2, Text(text=str(number)))],
        )
        appending = asyncio.create_task(durably(journal, entry))
        await asyncio.sleep(chance.uniform(0, 0.006))
        async with other.raw() as connection:
            cuts += await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name = 'tests' AND datname = current_database()"
            )
        assert await appending is Appended.DURABLE
    await other.close()

    assert cuts > 20, "the connections were hardly ever cut: the test shows nothing"
    assert await texts(journal, session) == [str(number) for number in range(60)]


async def test_a_read_is_not_troubled_by_a_connection_that_was_cut_just_before(
    database: Database, postgres_url: str
) -> None:
    journal = PostgresJournal(database)
    _, session = await begun(database)
    other = Database(make_engine(DatabaseSettings(url=postgres_url, application_name="cutter")))
    cuts = 0

    for _ in range(100):
        async with other.raw() as connection:
            cuts += await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name = 'tests' AND datname = current_database()"
            )
        assert await journal.head(session.id) == 1
    await other.close()

    assert cuts >= 100, "not every read met a connection that had been cut"


async def test_a_lease_is_renewed_in_the_middle_of_appends_and_closes_no_circle_with_them(database: Database) -> None:
    # An append locks in the order of the names; the rows lie in another order on disk.
    journal = PostgresJournal(database)
    earlier, later = sorted(a_sandbox_id() for _ in range(2))
    for sandbox in (later, earlier):
        await begun(database, sandbox=sandbox)
    lock = "SELECT 1 FROM conversations WHERE sandbox = $1 FOR NO KEY UPDATE"

    async with database.raw() as appending, appending.transaction():
        await appending.execute(lock, earlier)
        renewing = asyncio.create_task(journal.renew([later, earlier], owner="one", lease=LEASE), name="renew")
        await eventually(lambda: waits_for_a_lock(database))
        await appending.execute(f"SET LOCAL lock_timeout = '500ms'; {lock.replace('$1', repr(later))}")

    assert set(await renewing) == {later, earlier}


async def waits_for_a_lock(database: Database) -> bool:
    async with database.raw() as connection:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
        )


async def test_of_two_owners_only_the_later_one_writes(database: Database) -> None:
    journal = PostgresJournal(database)
    first, session = await begun(database)
    written: list[str] = []

    async def write(mine: Conversation, name: str) -> None:
        for number in range(1000):
            head = await journal.head(session.id)
            entry = Entry(
                conversation=replace(mine, consumed=head, process=name),
                events=[an_event(session.id, head + 1, Text(text=f"{name} {number}"))],
            )
            (outcome,) = await journal.append([entry])
            if outcome is Appended.STALE:
                return
            written.append(f"{name} {number}")
            if name == "second" and number == 20:
                return

    stalled = asyncio.create_task(write(first, "first"))
    while len(written) < 10:
        await asyncio.sleep(0.001)
    second = await journal.acquire(first.sandbox, owner="two", lease=LEASE, force=True)
    assert second is not None
    await asyncio.gather(stalled, write(second, "second"))

    log = await texts(journal, session)
    assert log == written
    assert log == sorted(log, key=lambda text: text.startswith("second")), "the first wrote after the second"


async def test_a_batch_survives_an_entry_that_cannot_be_stored(database: Database) -> None:
    journal = PostgresJournal(database)
    (good, session), (bad, _) = await begun(database), await begun(database)
    entries = [
        Entry(conversation=replace(bad, consumed=-1)),
        Entry(conversation=replace(good, consumed=1), events=[an_event(session.id, 2, Text(text="fine"))]),
        Entry(conversation=replace(bad, snapshot={"not": object()})),
    ]

    outcomes = await journal.append(entries)

    assert list(outcomes) == [Appended.STALE, Appended.DURABLE, Appended.STALE]
    assert await texts(journal, session) == ["fine"]


async def test_a_row_that_stays_locked_ends_the_wait_with_an_error(database: Database, postgres_url: str) -> None:
    mine, _ = await begun(database)
    settings = DatabaseSettings(url=postgres_url, lock_timeout=timedelta(milliseconds=200))
    impatient = Database(make_engine(settings))

    async with database.begin() as connection:
        await connection.exec_driver_sql("LOCK TABLE conversations IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseUnavailableError):
            await PostgresJournal(impatient).append([Entry(conversation=mine)])

    assert list(await PostgresJournal(impatient).append([Entry(conversation=mine)])) == [Appended.DURABLE]
    await impatient.close()


async def test_a_pool_with_no_free_connection_is_unavailable(postgres_url: str) -> None:
    settings = DatabaseSettings(
        url=postgres_url, pool_size=1, pool_overflow=0, pool_timeout=timedelta(milliseconds=100)
    )
    small = Database(make_engine(settings))

    async with small.raw():
        with pytest.raises(DatabaseUnavailableError):
            await PostgresJournal(small).unattended(limit=1)

    assert list(await PostgresJournal(small).unattended(limit=1)) == []
    await small.close()


async def test_a_cancelled_append_leaves_the_pool_usable(database: Database) -> None:
    journal = PostgresJournal(database)
    mine, session = await begun(database)
    for number in range(20):
        entry = Entry(conversation=replace(mine, consumed=number), events=[])
        task = asyncio.create_task(journal.append([entry]))
        await asyncio.sleep(0.0003 * number)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    outcome = await durably(
        journal,
        Entry(conversation=replace(mine, consumed=99), events=[an_event(session.id, 2, Text(text="still here"))]),
    )

    assert outcome is Appended.DURABLE
    assert await texts(journal, session) == ["still here"]


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "pg", durable=False)
    await server.start()
    yield server
    await server.stop()


async def test_a_restart_of_postgresql_is_an_outage_and_nothing_more(own_server: EmbeddedPostgres) -> None:
    url = own_server.url()
    await migrations.upgrade(url)
    settings = DatabaseSettings(url=url)
    database = Database(make_engine(settings))
    journal = PostgresJournal(database)
    presence = ReplicaPresence(settings, replica="one")
    task = asyncio.create_task(presence.run())
    await presence.wait_held()
    mine, session = await begun(database)
    entry = Entry(conversation=replace(mine, consumed=1), events=[an_event(session.id, 2, Text(text="a"))])

    await own_server.stop()
    with pytest.raises(DatabaseUnavailableError):
        await journal.append([entry])
    with pytest.raises(DatabaseUnavailableError):
        async with PostgresUnitsOfWork(database).begin() as work:
            await work.sandboxes.get(mine.sandbox)
    await own_server.start()

    assert list(await journal.append([entry])) == [Appended.DURABLE]
    async with asyncio.timeout(10):
        await presence.wait_held()
    assert await journal.acquire(mine.sandbox, owner="two", lease=LEASE) is None, "the living owner was robbed"
    assert await texts(journal, session) == ["a"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await database.close()

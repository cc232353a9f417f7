"""PostgreSQL hung, slow, out of connections or disk: every wait ends, the pool is bounded, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import asyncpg
import psutil
import pytest
from sqlalchemy import text

from sandboxd.model.errors import DatabaseUnavailableError, SandboxNotFoundError
from sandboxd.model.events import Text
from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine, plain_url
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.presence import ReplicaPresence
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from sandboxd.stream.group_commit import GroupCommit
from sandboxd.stream.ports import Appended, Entry
from tests.contract.journal_world import a_sandbox_id, an_event
from tests.eventually import eventually
from tests.fault_proxy import FaultProxy, before_postgres, url_through
from tests.integration.test_database_weather import begun, durably, texts
from tests.small_disk import small_disk

STATEMENT, SILENCE, PATIENCE = 0.5, 2.0, 0.7
"""Seconds: the server's limit of a statement, the driver's on top of it, and the wait for the pool or a connection."""
MARGIN = 4.0
"""Seconds that a loaded machine may add."""


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[FaultProxy]:
    async with before_postgres(postgres_url).running() as made:
        yield made


def hasty(url: str) -> DatabaseSettings:
    return DatabaseSettings(
        url=url,
        application_name="hasty",
        pool_size=3,
        pool_overflow=1,
        pool_timeout=timedelta(seconds=PATIENCE),
        connect_timeout=timedelta(seconds=PATIENCE),
        statement_timeout=timedelta(seconds=STATEMENT),
        silence_timeout=timedelta(seconds=SILENCE),
    )


@pytest.fixture
async def stormy(proxy: FaultProxy, postgres_url: str) -> AsyncIterator[Database]:
    made = Database(make_engine(hasty(url_through(proxy, postgres_url))))
    yield made
    await made.close()


def ways_in(database: Database) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every way by which work reaches the database."""

    async def unit() -> None:
        async with PostgresUnitsOfWork(database).begin() as work:
            with pytest.raises(SandboxNotFoundError):
                await work.sandboxes.get(a_sandbox_id())
            await work.commit()

    async def begin() -> None:
        async with database.begin() as connection:
            await connection.execute(text("SELECT 1"))

    async def raw() -> None:
        async with database.raw() as connection:
            await connection.fetchval("SELECT 1")

    return {"unit": unit, "begin": begin, "raw": raw, "fetch": lambda: database.fetch("SELECT 1")}


async def warmed(database: Database) -> None:
    """Every place of the pool has a connection that works."""
    both = asyncio.Barrier(4)

    async def one() -> None:
        async with database.raw() as connection:
            await both.wait()
            await connection.fetchval("SELECT 1")

    await asyncio.gather(*(one() for _ in range(4)))


async def outcomes_of(work: Callable[[], Awaitable[object]], *, times: int) -> list[object]:
    return await asyncio.gather(*(asyncio.ensure_future(work()) for _ in range(times)), return_exceptions=True)


@pytest.mark.parametrize("way", ["unit", "begin", "raw", "fetch"])
async def test_a_silent_database_is_unavailable_at_the_deadline_and_back_at_once(
    stormy: Database, proxy: FaultProxy, way: str
) -> None:
    await warmed(stormy)
    work = ways_in(stormy)[way]
    proxy.silent = True

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await work()
    cancelling = time.monotonic() - began
    began = time.monotonic()
    found = await outcomes_of(work, times=20)
    took = time.monotonic() - began
    proxy.silent = False
    await eventually(lambda: proxy.connections <= 4)
    after = await outcomes_of(work, times=8)

    assert {type(one) for one in found} == {DatabaseUnavailableError}
    assert took < STATEMENT + SILENCE + 2 * PATIENCE + MARGIN
    assert cancelling < 1.5, "a caller who gave up had to wait for the silent server"
    assert after == [after[0]] * 8, "the database answers again"
    assert not isinstance(after[0], BaseException)


async def test_a_server_whose_processes_stand_still_is_an_outage_and_nothing_more(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", durable=False)
    url = await server.start()
    try:
        await migrations.upgrade(url)
        database = Database(make_engine(hasty(url)))
        journal = PostgresJournal(database)
        mine, session = await begun(database)
        entry = Entry(conversation=replace(mine, consumed=1), events=[an_event(session.id, 2, Text(text="a"))])
        with standing_still(server):
            began = time.monotonic()
            found = await outcomes_of(lambda: journal.append([entry]), times=8)
            took = time.monotonic() - began
        outcome = await durably(journal, entry)

        assert {type(one) for one in found} == {DatabaseUnavailableError}
        assert took < STATEMENT + SILENCE + 2 * PATIENCE + MARGIN
        assert outcome is Appended.DURABLE
        assert await texts(journal, session) == ["a"], "what the server did when it was thawed is there once"
        await database.close()
    finally:
        await server.stop()


@contextmanager
def standing_still(server: EmbeddedPostgres) -> Iterator[None]:
    """SIGSTOP for the server and all its children."""
    pid = server.pid()
    assert pid is not None
    family = [psutil.Process(pid)]
    family += family[0].children(recursive=True)
    for process in family:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in reversed(family):
            if process.is_running():
                process.send_signal(signal.SIGCONT)


async def test_a_presence_whose_server_falls_silent_is_lost_and_held_again(
    proxy: FaultProxy, postgres_url: str
) -> None:
    presence = ReplicaPresence(hasty(url_through(proxy, postgres_url)), replica="one")
    task = asyncio.create_task(presence.run())
    async with asyncio.timeout(10):
        await presence.wait_held()

    proxy.silent = True
    await eventually(lambda: not presence.held, within=15, what="the silence is noticed by the beat")
    proxy.silent = False
    await eventually(lambda: presence.held, within=20, what="the lock is ours again")

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_slow_database_slows_the_journal_and_loses_and_doubles_nothing(
    database: Database, proxy: FaultProxy, postgres_url: str
) -> None:
    """300 ms for each round trip, as between continents: many conversations share each one of them."""
    slow = Database(make_engine(DatabaseSettings(url=url_through(proxy, postgres_url))))
    journal = PostgresJournal(slow)
    commit = GroupCommit(journal)
    running = asyncio.create_task(commit.run())
    worlds = [await begun(database) for _ in range(40)]
    await asyncio.gather(*(journal.head(session.id) for _, session in worlds))
    proxy.latency = 0.15

    began = time.monotonic()
    for number in range(2):
        entries = [
            Entry(
                conversation=replace(mine, consumed=number + 1),
                events=[an_event(session.id, number + 2, Text(text=str(number)))],
            )
            for mine, session in worlds
        ]
        outcomes = await asyncio.gather(*(commit.append(entry) for entry in entries))
        assert set(outcomes) == {Appended.DURABLE}
    took = time.monotonic() - began
    proxy.latency = 0
    commit.close()
    await running
    await slow.close()

    assert 0.6 < took < 20, "each append in a transaction of its own would take minutes"
    for _, session in worlds:
        assert await texts(PostgresJournal(database), session) == ["0", "1"]


async def test_a_server_that_is_out_of_connections_is_unavailable_until_one_is_free(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", durable=False)
    url = await server.start()
    try:
        await migrations.upgrade(url)
        database = Database(make_engine(hasty(url)))
        journal = PostgresJournal(database)
        async with AsyncExitStack() as crowd:
            taken = await crowded(crowd, url)
            found = await outcomes_of(lambda: journal.unattended(limit=1), times=20)
        # The server lets a place go in its own time.
        await eventually(lambda: answers(journal), within=10)

        assert taken >= 50
        assert {type(one) for one in found} == {DatabaseUnavailableError}
        await database.close()
    finally:
        await server.stop()


async def crowded(crowd: AsyncExitStack, url: str) -> int:
    """Take every connection that the server gives."""
    for taken in range(500):
        try:
            connection = await asyncpg.connect(plain_url(url), timeout=10)
        except asyncpg.TooManyConnectionsError:
            return taken
        crowd.push_async_callback(connection.close, timeout=5)
    raise AssertionError("the server was never full")


async def answers(journal: PostgresJournal) -> bool:
    try:
        return list(await journal.unattended(limit=1)) == []
    except DatabaseUnavailableError:
        return False


async def test_a_database_whose_disk_is_full_refuses_and_keeps_all_that_it_acknowledged(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=160) as disk:
        server = EmbeddedPostgres(disk.path / "pg")
        url = await server.start()
        try:
            await migrations.upgrade(url)
            database = Database(make_engine(hasty(url)))
            journal = PostgresJournal(database)
            mine, session = await begun(database)
            written = 0
            entry: Entry | None = None
            disk.fill(leave=64 << 10)
            for number in range(400):
                body = Text(text=f"{number} " + os.urandom(48 << 10).hex())
                entry = Entry(
                    conversation=replace(mine, consumed=number + 1), events=[an_event(session.id, number + 2, body)]
                )
                try:
                    assert list(await journal.append([entry])) == [Appended.DURABLE]
                except DatabaseUnavailableError:
                    break
                written += 1
            else:
                pytest.fail("the disk was never full: the test shows nothing")
            refused = await outcomes_of(lambda: journal.append([entry]), times=3)

            disk.make_room()
            await server.start()  # a server that could not write its log has ended: whoever watches it starts it again
            outcome = await durably(journal, entry)

            assert {type(one) for one in refused} == {DatabaseUnavailableError}
            assert outcome is Appended.DURABLE
            numbers = [int(found.split(" ")[0]) for found in await texts(journal, session)]
            assert numbers == list(range(written + 1)), "all that was acknowledged, and the one that was repeated, once"
            await database.close()
        finally:
            disk.make_room()
            await server.stop()

"""Three hundred streams that are cut at once come back at once, through a small pool, for a few queries each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.model.events import SessionOpened, TurnCompleted
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from tests.contract.postgres_worlds import insert_sandbox
from tests.stream_world import SANDBOX, Client, Replica, StreamWorld

STREAMS = 300
POOL = 5


class CountingDatabase(Database):
    """Counts how often a connection is taken, and how many are at the same time."""

    taken = 0
    present = 0
    most = 0

    @override
    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        async with super().begin() as connection:
            self.taken += 1
            yield connection

    @override
    @asynccontextmanager
    async def raw(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        async with super().raw() as connection:
            self.taken += 1
            self.present += 1
            self.most = max(self.most, self.present)
            try:
                yield connection
            finally:
                self.present -= 1


@asynccontextmanager
async def counted(settings: DatabaseSettings) -> AsyncIterator[CountingDatabase]:
    database = CountingDatabase(make_engine(settings))
    await insert_sandbox(database, SANDBOX, client="acme", freelancer="ada")
    try:
        yield database
    finally:
        await database.close()


async def all_open(replica: Replica, clients: list[Client]) -> list[Client]:
    """Every session again, from its beginning, all at the same moment."""
    return await asyncio.gather(*(replica.open(client.session) for client in clients))


async def test_three_hundred_streams_come_back_at_once(postgres_url: str) -> None:
    settings = DatabaseSettings(
        url=postgres_url, application_name="tests", pool_size=POOL, pool_overflow=0, pool_timeout=timedelta(seconds=5)
    )
    async with counted(settings) as database:
        world = StreamWorld(database=database)
        async with world.replica() as replica:
            clients = list(await asyncio.gather(*(replica.open() for _ in range(STREAMS))))
            for client in clients:
                await client.until(SessionOpened, within=30)
        database.taken = database.most = 0  # the replica has died: every stream is cut
        async with world.replica() as replica:
            began = time.monotonic()
            back = await all_open(replica, clients)
            await asyncio.gather(*(client.until(SessionOpened, within=30) for client in back))
            took, per_stream = time.monotonic() - began, database.taken / STREAMS

    assert took < 30, "seconds, even on a loaded machine"
    assert per_stream <= 6, "queries of one reconnect"
    assert database.most <= POOL
    assert [client.sequences for client in back] == [[1]] * STREAMS


async def test_the_feed_keeps_a_bounded_part_of_a_log_whoever_comes_back(postgres_url: str) -> None:
    """A hundred watchers at the beginning of one long log read it in pages, and nothing of it stays."""
    async with counted(DatabaseSettings(url=postgres_url, pool_size=POOL, pool_overflow=0)) as database:
        world = StreamWorld(database=database)
        async with world.replica() as replica:
            client = await replica.open()
            await client.prompt("say " + "word " * 700)
            await client.until(TurnCompleted, within=60)

            watchers = await asyncio.gather(*(replica.open(client.session, watch_only=True) for _ in range(100)))
            for watcher in watchers:
                await watcher.until(TurnCompleted, within=30)

            kept = len(replica.feed._rings[client.session].events)

    assert client.sequences[-1] > 512
    assert kept <= 256
    assert all(watcher.sequences == client.sequences for watcher in watchers)

"""A replica's connection: its lock, its hints, and what happens when PostgreSQL cuts it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from sandboxd.model.ids import SandboxId
from sandboxd.persistence.engine import Database, DatabaseSettings
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.presence import ReplicaPresence
from sandboxd.persistence.replicas import PostgresReplicas
from sandboxd.stream.ports import Holder
from tests.contract.postgres_worlds import insert_sandbox
from tests.eventually import eventually
from tests.fault_proxy import before_postgres, url_through


@asynccontextmanager
async def living(url: str, replica: str, *, address: str = "") -> AsyncIterator[ReplicaPresence]:
    presence = ReplicaPresence(DatabaseSettings(url=url), replica=replica, address=address)
    task = asyncio.create_task(presence.run())
    try:
        async with asyncio.timeout(10):
            await presence.wait_held()
        yield presence
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def cut(database: Database) -> None:
    """PostgreSQL ends the connections of all replicas."""
    async with database.raw() as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '% presence'"
            " AND datname = current_database()"
        )


async def hear(reader: AsyncIterator[str]) -> str:
    async with asyncio.timeout(5):
        return await anext(reader)


async def test_a_hint_reaches_everybody_who_listens_on_its_topic(postgres_url: str) -> None:
    async with living(postgres_url, "one") as one, living(postgres_url, "two") as two:
        readers = [presence.listen("usage") for presence in (one, two)]
        deaf = one.listen("events")

        await one.notify("usage", "sbx-1")
        await two.notify("events", "ses-1")

        assert [await hear(reader) for reader in readers] == ["sbx-1", "sbx-1"]
        assert await hear(deaf) == "ses-1"


async def test_hints_are_joined_while_the_reader_is_busy(postgres_url: str) -> None:
    async with living(postgres_url, "one") as one, living(postgres_url, "two") as two:
        reader = one.listen("usage")
        for _ in range(3):
            for payload in ("a", "b"):
                await two.notify("usage", payload)
        await two.notify("usage", "end")

        heard = []
        while "end" not in heard:
            heard.append(await hear(reader))

        assert heard == ["a", "b", "end"]


async def test_a_topic_that_nobody_hears_is_refused(postgres_url: str) -> None:
    async with living(postgres_url, "one") as one:
        with pytest.raises(ValueError, match="weather"):
            one.listen("weather")


async def test_a_cut_connection_is_made_again_with_lock_and_ears(postgres_url: str, database: Database) -> None:
    async with living(postgres_url, "one") as one:
        reader = one.listen("usage")

        await cut(database)
        await eventually(lambda: not one.held)
        async with asyncio.timeout(10):
            await one.wait_held()
        await one.notify("usage", "after")

        assert await hear(reader) == "after"


async def test_a_second_process_of_the_same_name_waits_for_the_first(postgres_url: str) -> None:
    second = ReplicaPresence(DatabaseSettings(url=postgres_url), replica="one")
    async with living(postgres_url, "one"):
        task = asyncio.create_task(second.run())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await second.wait_held()

    async with asyncio.timeout(5):
        await second.wait_held()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_replicas_find_each_other_while_they_live(postgres_url: str, database: Database) -> None:
    replicas = PostgresReplicas(database)
    async with living(postgres_url, "one", address="127.0.0.1:1"), living(postgres_url, "mute"):
        async with living(postgres_url, "two", address="127.0.0.1:2"):
            assert [one.replica for one in await replicas.others(than="one")] == ["two"]

        async def gone() -> bool:
            return await replicas.others(than="one") == []

        await eventually(gone)
        async with living(postgres_url, "three", address="127.0.0.1:3"):
            rows = await kept(database)

    assert rows == {"one", "three"}  # whoever comes sweeps the dead out


async def test_the_holder_of_a_conversation_is_found_while_it_lives(postgres_url: str, database: Database) -> None:
    replicas, journal = PostgresReplicas(database), PostgresJournal(database)
    sandbox = SandboxId("sbx-1")
    await insert_sandbox(database, sandbox, client="acme", freelancer="ada")
    assert await replicas.holder(sandbox) is None
    async with living(postgres_url, "one", address="127.0.0.1:1"):
        await journal.acquire(sandbox, owner="one", lease=timedelta(seconds=15))

        assert await replicas.holder(sandbox) == Holder(replica="one", address="127.0.0.1:1")

    async def gone() -> bool:
        return await replicas.holder(sandbox) is None

    await eventually(gone)


async def kept(database: Database) -> set[str]:
    async with database.raw() as connection:
        return {row["id"] for row in await connection.fetch("SELECT id FROM replicas")}


async def test_how_long_the_lock_has_been_lost_is_known_and_forgotten_once_it_is_back(postgres_url: str) -> None:
    proxy = before_postgres(postgres_url)
    async with proxy.running(), living(url_through(proxy, postgres_url), "one") as presence:
        assert presence.lost_for == timedelta()
        proxy.refusing = True
        proxy.cut()

        await eventually(lambda: presence.lost_for > timedelta(seconds=0.2), within=5)
        proxy.refusing = False

        await eventually(lambda: presence.held, within=10)
        assert presence.lost_for == timedelta()

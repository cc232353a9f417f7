"""A replica's connection: its lock, its hints, and what happens when PostgreSQL cuts it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sandboxd.persistence.engine import Database, DatabaseSettings
from sandboxd.persistence.presence import ReplicaPresence
from tests.eventually import eventually


@asynccontextmanager
async def living(url: str, replica: str) -> AsyncIterator[ReplicaPresence]:
    presence = ReplicaPresence(DatabaseSettings(url=url), replica=replica)
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

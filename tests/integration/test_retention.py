"""Request ids of stream commands are forgotten after their time, and not before."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text

from sandboxd.model.ids import ClientId, RequestId
from sandboxd.persistence.engine import Database
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.retention import forget_commands

CLIENT = ClientId("acme")


async def test_commands_are_forgotten_after_thirty_days(database: Database) -> None:
    ages = {"fresh": timedelta(0), "kept": timedelta(days=29), "old": timedelta(days=31), "older": timedelta(days=99)}
    async with database.begin() as connection:
        for name, age in ages.items():
            statement = "INSERT INTO commands VALUES (:client, :name, '', 'ses', NULL, now() - CAST(:age AS interval))"
            await connection.execute(text(statement), {"client": CLIENT, "name": name, "age": age})

    first = await forget_commands(database, limit=1)
    rest = await forget_commands(database)

    journal = PostgresJournal(database)
    left = [name for name in ages if await journal.find_command(CLIENT, RequestId(name)) is not None]
    assert (first, rest, left) == (1, 1, ["fresh", "kept"])

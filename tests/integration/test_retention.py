"""Request ids of stream commands are forgotten after their time, and not before."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text

from sandboxd.model.ids import ClientId, RequestId, SandboxId
from sandboxd.model.package_history import HISTORY_KEPT_FOR
from sandboxd.persistence.engine import Database
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.retention import forget_commands, forget_notices, forget_package_changes
from tests.contract.postgres_worlds import insert_sandbox

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


async def test_notices_of_budgets_are_forgotten_after_two_months(database: Database) -> None:
    statement = """
        INSERT INTO budget_notices SELECT :id, 'bdg', 'acme', 'BUDGET_SPENT', '2026-11-01', 0, 1, 1, 0, 'ada', 'sbx',
            NULL, 'gemini', now() - CAST(:age AS interval), 1
    """
    async with database.begin() as connection:
        await connection.execute(
            text(
                """INSERT INTO budgets VALUES ('bdg', 'acme', '', '', 'DAY', 'TOKENS', 1, '{80}', '2026-11-01', now(),
                now())"""
            )
        )
        for days in (0, 61, 63, 99):
            await connection.execute(text(statement), {"id": str(days), "age": timedelta(days=days)})

    answers = [await forget_notices(database, limit=1) for _ in range(3)]

    left = {row["id"] for row in await database.fetch("SELECT id FROM budget_notices")}
    assert answers == [1, 1, 0]
    assert left == {"0", "61"}


async def test_changes_of_packages_are_forgotten_after_their_time_the_oldest_first(database: Database) -> None:
    await insert_sandbox(database, SandboxId("sbx"), client=CLIENT, freelancer="ada")
    statement = """
        INSERT INTO package_changes VALUES ('sbx', :number, 'inc', :number, 'installed', 'dpkg', 'tree', '/db', '2', '',
            'root', true, now(), now() - CAST(:age AS interval), '', 'unknown', NULL, false)
    """
    async with database.begin() as connection:
        for number, days in enumerate((999, 401, 399, 0), start=1):
            await connection.execute(text(statement), {"number": number, "age": timedelta(days=days)})

    first = await forget_package_changes(database, kept_for=HISTORY_KEPT_FOR, limit=1)
    oldest = {row["number"] for row in await database.fetch("SELECT number FROM package_changes")}
    rest = await forget_package_changes(database, kept_for=HISTORY_KEPT_FOR)

    left = {row["number"] for row in await database.fetch("SELECT number FROM package_changes")}
    assert (first, oldest, rest, left) == (1, {2, 3, 4}, 1, {3, 4})

"""While an update rolls, a replica of the version before meets rows with words that it does not know."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from sandboxd.manager.ports import SandboxFilter, SandboxOrder
from sandboxd.model.backup import BackupSet, BackupSetId
from sandboxd.model.errors import NewerVersionError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.sandbox import SandboxState
from sandboxd.persistence.engine import Database
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from tests.contract.postgres_worlds import insert_sandbox

ACME, ADA = ClientId("acme"), FreelancerId("ada")
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
NAMES = [SandboxId(f"sbx-{number}") for number in range(5)]
STRANGE = NAMES[2]


async def meet(database: Database, table: str, column: str, condition: str) -> None:
    """What the newer version has done: its migration, and a row with its new word."""
    async with database.begin() as connection:
        await connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT ck_{table}_{column}"))
        await connection.execute(text(f"UPDATE {table} SET {column} = 'TELEPORTING' WHERE {condition}"))


@pytest.fixture
async def units(database: Database) -> PostgresUnitsOfWork:
    for name in NAMES:
        await insert_sandbox(database, name, client=ACME, freelancer=ADA)
    return PostgresUnitsOfWork(database)


async def test_a_sandbox_in_a_state_of_tomorrow_is_left_to_who_knows_it_and_all_others_go_on(
    database: Database, units: PostgresUnitsOfWork
) -> None:
    await meet(database, "sandboxes", "state", f"id = '{STRANGE}'")
    listed, token, pages = list[SandboxId](), "", 0
    while not pages or token:
        async with units.begin() as work:
            page = await work.sandboxes.list(
                SandboxFilter(client=ACME), order=SandboxOrder.CREATE_TIME, page_size=1, page_token=token
            )
        listed, token, pages = [*listed, *(one.id for one in page.items)], page.next_token, pages + 1

    async with units.begin() as work:
        found = await work.sandboxes.find(NAMES)
        active = await work.sandboxes.in_states(frozenset({SandboxState.ACTIVE}), limit=10)
        due = await work.looks.find(NAMES)
        with pytest.raises(NewerVersionError) as refused:
            await work.sandboxes.get(STRANGE, for_update=True)

    others = [name for name in NAMES if name != STRANGE]
    assert (listed, pages) == (others, len(NAMES))
    assert sorted(found) == [one.id for one in active] == others
    assert STRANGE not in due
    assert (refused.value.reason, STRANGE in refused.value.message) == ("NEWER_VERSION", True)


async def test_a_backup_of_tomorrow_is_neither_adopted_nor_listed_nor_taken_for_another(
    database: Database, units: PostgresUnitsOfWork
) -> None:
    sets = [
        BackupSet(
            id=BackupSetId(f"bak-{number}"),
            sandbox=NAMES[number],
            client=ACME,
            freelancer=ADA,
            take_time=NOON + timedelta(minutes=number),
            create_time=NOON,
            update_time=NOON,
        )
        for number in range(3)
    ]
    async with units.begin() as work:
        for one in sets:
            await work.backup_sets.begin(one)
        await work.commit()
    await meet(database, "backup_sets", "trigger", "id = 'bak-1'")

    async with units.begin() as work:
        adopted = await work.backup_sets.unfinished(limit=10)
        page = await work.backup_sets.list(ACME, deleted=True, page_size=2, page_token="")
        rest = await work.backup_sets.list(ACME, deleted=True, page_size=2, page_token=page.next_token)
        with pytest.raises(NewerVersionError):
            await work.backup_sets.of_sandbox(NAMES[1], limit=10)

    assert [one.id for one in adopted] == ["bak-0", "bak-2"]
    assert [[one.id for one in each.items] for each in (page, rest)] == [["bak-2"], ["bak-0"]]

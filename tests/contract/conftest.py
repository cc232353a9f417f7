"""The PostgreSQL legs of the contract suites."""

from collections.abc import AsyncIterator

import pytest

from sandboxd.persistence.engine import Database
from tests.contract.postgres_worlds import PostgresJournalWorld, PostgresLedgerWorld, PostgresUnitsWorld


@pytest.fixture
async def postgres_journal_world(database: Database, postgres_url: str) -> AsyncIterator[PostgresJournalWorld]:
    world = PostgresJournalWorld(database, postgres_url)
    yield world
    await world.end()


@pytest.fixture
async def postgres_units_world(database: Database, postgres_url: str) -> AsyncIterator[PostgresUnitsWorld]:
    world = PostgresUnitsWorld(database, postgres_url)
    yield world
    await world.end()


@pytest.fixture
def postgres_ledger_world(database: Database) -> PostgresLedgerWorld:
    return PostgresLedgerWorld(database=database)

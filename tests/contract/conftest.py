"""The PostgreSQL legs of the contract suites."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from sandboxd.persistence.engine import Database
from tests.contract.postgres_worlds import PostgresJournalWorld, PostgresLedgerWorld


@pytest.fixture
async def postgres_journal_world(database: Database, postgres_url: str) -> AsyncIterator[PostgresJournalWorld]:
    async with AsyncExitStack() as stack:
        yield PostgresJournalWorld(database=database, url=postgres_url, stack=stack)


@pytest.fixture
def postgres_ledger_world(database: Database) -> PostgresLedgerWorld:
    return PostgresLedgerWorld(database=database)

"""Fixtures for tests against a real PostgreSQL: one server a test session, one database a test, cloned from a template.

`postgres_url` is a fresh migrated database. `SANDBOXD_TEST_DATABASE_URL` may name a server of one's own instead (its
user must be allowed to make databases).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine, plain_url

# Read before any test runs: the tests themselves see no settings of the person who runs them.
_OWN_SERVER: Final = os.environ.get("SANDBOXD_TEST_DATABASE_URL", "")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresServer:
    """A server with a migrated template."""

    admin_url: str
    template: str
    embedded: EmbeddedPostgres | None
    """None where the server is somebody else's."""

    def url(self, database: str) -> str:
        made = make_url(self.admin_url).set(database=database)
        return made.render_as_string(hide_password=False)

    async def clone(self) -> str:
        """A fresh migrated database; answers its name."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        await self._run(f'CREATE DATABASE "{name}" TEMPLATE "{self.template}"')
        return name

    async def create(self) -> str:
        """An empty database; answers its name."""
        name = f"empty_{os.getpid()}_{next(_numbers)}"
        await self._run(f'CREATE DATABASE "{name}"')
        return name

    async def drop(self, name: str) -> None:
        await self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def _run(self, statement: str) -> None:
        connection = await asyncpg.connect(plain_url(self.admin_url))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


async def _start(folder: Path) -> PostgresServer:
    embedded = None if _OWN_SERVER else EmbeddedPostgres(folder, durable=False)
    admin = _OWN_SERVER or await _started(embedded)
    server = PostgresServer(admin_url=admin, template=f"template_{os.getpid()}", embedded=embedded)
    await server.drop(server.template)
    await server._run(f'CREATE DATABASE "{server.template}"')
    await migrations.upgrade(server.url(server.template))
    return server


async def _started(embedded: EmbeddedPostgres | None) -> str:
    assert embedded is not None
    await embedded.start()
    return embedded.url("postgres")


async def _end(server: PostgresServer) -> None:
    if server.embedded is not None:
        await server.embedded.stop()
    else:
        await server.drop(server.template)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests of this run."""
    folder = Path(tempfile.mkdtemp(prefix="sandboxd-pg-"))
    server = asyncio.run(_start(folder))
    yield server
    asyncio.run(_end(server))
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def postgres_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """A fresh migrated database of this test alone."""
    name = await postgres_server.clone()
    yield postgres_server.url(name)
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        await postgres_server.drop(name)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    """A pool on a fresh database, with short deadlines."""
    settings = DatabaseSettings(
        url=postgres_url,
        application_name="tests",
        statement_timeout=timedelta(seconds=5),
        lock_timeout=timedelta(seconds=3),
    )
    made = Database(make_engine(settings))
    yield made
    await made.close()

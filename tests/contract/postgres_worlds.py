"""The worlds of the contract suites on a real PostgreSQL; `conftest.py` makes them fixtures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from sqlalchemy import text
from typing_extensions import override

from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.persistence.engine import Database, DatabaseSettings
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.presence import ReplicaPresence
from sandboxd.persistence.sessions import PostgresSessions
from sandboxd.stream.ports import Journal, Sessions
from tests.contract.journal_world import CLIENT, FREELANCER, NOON


class ForgetfulDatabase(Database):
    """A database whose answers can be lost after the work was done."""

    answers_to_lose = 0

    @override
    @asynccontextmanager
    async def raw(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        async with super().raw() as connection:
            yield connection
        if self.answers_to_lose > 0:
            self.answers_to_lose -= 1
            raise DatabaseUnavailableError("The answer was lost.")


async def insert_sandbox(database: Database, sandbox: SandboxId, *, client: str, freelancer: str) -> None:
    values = {"sandbox": sandbox, "client": client, "freelancer": freelancer, "at": NOON}
    async with database.begin() as connection:
        for statement in (
            "INSERT INTO clients VALUES (:client, :at) ON CONFLICT DO NOTHING",
            "INSERT INTO freelancers VALUES (:client, :freelancer, :at) ON CONFLICT DO NOTHING",
            """INSERT INTO sandboxes VALUES (:sandbox, :client, :freelancer, '', '{}', 'basic', '', 'default', 'ACTIVE',
            '', NULL, 0, :at, :at, :at, NULL, 1)""",
        ):
            await connection.execute(text(statement), values)


@dataclass(kw_only=True)
class PostgresJournalWorld:
    database: Database
    url: str
    stack: AsyncExitStack
    journal: Journal = field(init=False)
    sessions: Sessions = field(init=False)
    replicas: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._forgetful = ForgetfulDatabase(self.database.engine)
        self.journal, self.sessions = PostgresJournal(self._forgetful), PostgresSessions(self._forgetful)

    async def given_sandbox(self, sandbox: SandboxId) -> None:
        await insert_sandbox(self.database, sandbox, client=CLIENT, freelancer=FREELANCER)

    async def given_replica(self, replica: str) -> None:
        if replica in self.replicas:
            return
        presence = ReplicaPresence(DatabaseSettings(url=self.url), replica=replica)
        task = asyncio.create_task(presence.run(), name=replica)
        self.replicas[replica] = task
        self.stack.push_async_callback(self._end, task)
        async with asyncio.timeout(5):
            await presence.wait_held()

    async def kill_replica(self, replica: str) -> None:
        await self._end(self.replicas.pop(replica))
        # The server notices the closed connection in its own time.
        async with asyncio.timeout(5):
            while await self._sessions_of_replicas() > len(self.replicas):
                await asyncio.sleep(0.01)

    async def lose_next_answer(self) -> None:
        self._forgetful.answers_to_lose = 1

    async def _sessions_of_replicas(self) -> int:
        async with self.database.raw() as connection:
            count: int = await connection.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        return count

    async def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

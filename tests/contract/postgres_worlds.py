"""The worlds of the contract suites on a real PostgreSQL; `conftest.py` makes them fixtures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from sqlalchemy import text
from typing_extensions import override

from sandboxd.model.client import ClientPolicy
from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.model.ids import IncarnationId, SandboxId, SessionId, TurnId
from sandboxd.model.session import TurnState
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.monitor.ports import PriceBookStore, UsageLedger
from sandboxd.persistence.account_rows import policy_json
from sandboxd.persistence.engine import Database, DatabaseSettings
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.ledger import PostgresUsageLedger
from sandboxd.persistence.presence import ReplicaPresence
from sandboxd.persistence.prices import PostgresPriceBookStore
from sandboxd.persistence.sessions import PostgresSessions
from sandboxd.persistence.texts import PostgresKeptTexts
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from sandboxd.stream.ports import Journal, KeptTexts, Sessions
from tests.contract.journal_world import CLIENT, FREELANCER, NOON
from tests.eventually import eventually


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


class Replicas:
    """Replicas that live, and die as far as the database can tell."""

    def __init__(self, database: Database, url: str) -> None:
        self._database = database
        self._url = url
        self._living: dict[str, asyncio.Task[None]] = {}

    async def given_replica(self, replica: str) -> None:
        if replica in self._living:
            return
        presence = ReplicaPresence(DatabaseSettings(url=self._url), replica=replica)
        self._living[replica] = asyncio.create_task(presence.run(), name=replica)
        async with asyncio.timeout(5):
            await presence.wait_held()

    async def kill_replica(self, replica: str) -> None:
        await _end(self._living.pop(replica))
        # The server notices the closed connection in its own time.
        await eventually(self._noticed)

    async def end(self) -> None:
        for task in self._living.values():
            await _end(task)

    async def _noticed(self) -> bool:
        async with self._database.raw() as connection:
            held: int = await connection.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        return held == len(self._living)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class PostgresJournalWorld(Replicas):
    def __init__(self, database: Database, url: str) -> None:
        super().__init__(database, url)
        self._sandboxes = database
        self._forgetful = ForgetfulDatabase(database.engine)
        self.journal: Journal = PostgresJournal(self._forgetful)
        self.sessions: Sessions = PostgresSessions(self._forgetful)
        self.texts: KeptTexts = PostgresKeptTexts(database)

    async def given_policy(self, policy: ClientPolicy) -> None:
        async with self._sandboxes.raw() as connection:
            await connection.execute(
                """INSERT INTO clients (id, create_time, policy) VALUES ($1, now(), $2::text::jsonb)
                ON CONFLICT (id) DO UPDATE SET policy = excluded.policy""",
                CLIENT,
                json.dumps(policy_json(policy)),
            )

    async def given_sandbox(self, sandbox: SandboxId) -> None:
        await insert_sandbox(self._sandboxes, sandbox, client=CLIENT, freelancer=FREELANCER)

    async def lose_next_answer(self) -> None:
        self._forgetful.answers_to_lose = 1


class PostgresUnitsWorld(Replicas):
    def __init__(self, database: Database, url: str) -> None:
        super().__init__(database, url)
        self.units = PostgresUnitsOfWork(database)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # the database's clock cannot be moved


@dataclass(kw_only=True)
class PostgresLedgerWorld:
    database: Database
    ledger: UsageLedger = field(init=False)
    prices: PriceBookStore = field(init=False)

    def __post_init__(self) -> None:
        self.ledger, self.prices = PostgresUsageLedger(self.database), PostgresPriceBookStore(self.database)

    async def given_incarnation(self, identity: SandboxIdentity) -> None:
        await insert_sandbox(self.database, identity.sandbox, client=identity.client, freelancer=identity.freelancer)
        await self._execute(
            "INSERT INTO incarnations VALUES (:id, :sandbox, 1, NULL, NULL, NULL, :at, NULL, NULL, '')",
            id=identity.incarnation,
            sandbox=identity.sandbox,
            at=NOON,
        )

    async def end_incarnation(self, incarnation: IncarnationId) -> None:
        await self._execute("UPDATE incarnations SET end_time = :at WHERE id = :id", id=incarnation, at=NOON)

    async def suspend(self, identity: SandboxIdentity, *, freelancer: bool) -> None:
        if freelancer:
            statement = "UPDATE freelancers SET state = 'SUSPENDED' WHERE client = :client AND id = :freelancer"
            await self._execute(statement, client=identity.client, freelancer=identity.freelancer)
        else:
            await self._execute("UPDATE clients SET state = 'SUSPENDED' WHERE id = :client", client=identity.client)

    async def given_session(self, session: SessionId, *, of: SandboxIdentity, deleted: bool = False) -> None:
        await self._execute(
            """INSERT INTO sessions VALUES (:id, :sandbox, :client, :freelancer, '', '', '', '', 1, 0, NULL, :at, :at,
            :deleted)""",
            id=session,
            sandbox=of.sandbox,
            client=of.client,
            freelancer=of.freelancer,
            at=NOON,
            deleted=NOON if deleted else None,
        )

    async def given_turn(self, turn: TurnId, *, session: SessionId, state: TurnState, traceparent: str = "") -> None:
        await self._execute(
            """INSERT INTO turns SELECT :id, id, sandbox, 1, 'r', :state, NULL, '', :at, NULL, :traceparent
            FROM sessions
            WHERE id = :session ON CONFLICT (id) DO UPDATE SET state = excluded.state""",
            id=turn,
            session=session,
            state=state.value,
            at=NOON,
            traceparent=traceparent,
        )

    async def _execute(self, statement: str, **values: Any) -> None:  # Any: parameters of any type
        async with self.database.begin() as connection:
            await connection.execute(text(statement), values)

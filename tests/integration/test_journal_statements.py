"""What an append costs the server, counted and not timed: statements that do not grow, and rows that are left alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from typing_extensions import override

from sandboxd.model.events import SessionOpened, Text
from sandboxd.model.ids import IncarnationId, RequestId
from sandboxd.model.session import Session
from sandboxd.persistence.engine import Database
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.sessions import PostgresSessions
from sandboxd.stream.ports import Appended, Command, Conversation, Entry
from tests.contract.journal_world import CLIENT, FREELANCER, a_sandbox_id, a_session, a_turn, an_event, an_id
from tests.contract.postgres_worlds import insert_sandbox
from tests.contract.test_journal import LEASE


class CountingDatabase(Database):
    """Remembers every statement."""

    statements: list[str]

    @override
    @asynccontextmanager
    async def raw(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        async with super().raw() as connection:
            with connection.query_logger(lambda record: self.statements.append(" ".join(record.query.split())[:40])):
                yield connection


@pytest.fixture
def counting(database: Database) -> CountingDatabase:
    made = CountingDatabase(database.engine)
    made.statements = []
    return made


async def streaming(database: Database, count: int) -> Sequence[tuple[Conversation, Session]]:
    """Conversations with a process and a session, as they are in the middle of a turn."""
    made = []
    journal, sessions = PostgresJournal(database), PostgresSessions(database)
    for _ in range(count):
        sandbox = a_sandbox_id()
        await insert_sandbox(database, sandbox, client=CLIENT, freelancer=FREELANCER)
        mine = await journal.acquire(sandbox, owner="one", lease=LEASE)
        assert mine is not None
        session = a_session(sandbox)
        command = Command(client=CLIENT, request_id=RequestId(an_id("req")), body_hash=b"", session=session.id)
        await sessions.create(session, opened=an_event(session.id, 1, SessionOpened()), command=command)
        mine = replace(mine, incarnation=IncarnationId(an_id("inc")), process="p", dialect="acp")
        await journal.append([Entry(conversation=mine)])
        made.append((mine, session))
    return made


def chunk(mine: Conversation, session: Session, sequence: int) -> Entry:
    """One step of a turn that streams text."""
    return Entry(
        conversation=replace(mine, consumed=sequence),
        events=[an_event(session.id, sequence, Text(text="x"))],
        sessions=[replace(session, head_sequence=sequence)],
    )


async def test_chunks_of_any_number_of_conversations_are_one_statement(counting: CountingDatabase) -> None:
    conversations = await streaming(counting, 20)
    counting.statements.clear()

    outcomes = await PostgresJournal(counting).append([chunk(mine, session, 2) for mine, session in conversations])

    assert set(outcomes) == {Appended.DURABLE}
    assert len(counting.statements) == 1, counting.statements


async def test_a_step_that_does_more_takes_as_many_statements_for_one_as_for_twenty(counting: CountingDatabase) -> None:
    conversations = await streaming(counting, 21)
    entries = []
    for mine, session in conversations:
        turn = a_turn(session.id)
        entries.append(replace(chunk(mine, session, 2), turns=[turn]))
    counting.statements.clear()

    await PostgresJournal(counting).append(entries[:1])
    for_one = len(counting.statements)
    counting.statements.clear()
    await PostgresJournal(counting).append(entries[1:])

    assert len(counting.statements) == for_one <= 8, counting.statements


async def test_a_chunk_touches_no_index_of_the_rows_that_it_moves(database: Database) -> None:
    ((mine, session),) = await streaming(database, 1)
    journal = PostgresJournal(database)

    for sequence in range(2, 22):
        assert await journal.append([chunk(mine, session, sequence)]) == [Appended.DURABLE]

    async with database.raw() as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        rows = await connection.fetch(
            "SELECT relname, n_tup_upd AS all, n_tup_upd - n_tup_hot_upd AS dear FROM pg_stat_user_tables"
            " WHERE relname IN ('sessions', 'conversations')"
        )
    assert all(row["all"] >= 20 for row in rows)
    # One or two find their page full; what counts is that it is not every one.
    assert {row["relname"]: row["dear"] <= 6 for row in rows} == {"sessions": True, "conversations": True}


async def test_a_chunk_for_a_session_that_is_elsewhere_by_now_leaves_no_trace(database: Database) -> None:
    ((mine, session), (_, foreign)) = await streaming(database, 2)
    journal = PostgresJournal(database)
    entry = Entry(
        conversation=replace(mine, consumed=7),
        events=[an_event(session.id, 2, Text(text="x")), an_event(foreign.id, 9, Text(text="y"))],
        sessions=[session, foreign],
    )

    assert await journal.append([entry]) == [Appended.STALE]

    assert await journal.head(session.id) == 1
    again = await journal.acquire(mine.sandbox, owner="one", lease=LEASE)
    assert again is not None
    assert again.consumed == 0

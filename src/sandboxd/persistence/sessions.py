"""The session rows on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg
from typing_extensions import override

from sandboxd.model.errors import RequestIdReusedError, SandboxNotFoundError, SessionNotFoundError
from sandboxd.model.events import SessionEvent
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId, SessionId
from sandboxd.model.paging import Page
from sandboxd.model.session import Attachment, Session, Turn
from sandboxd.persistence.engine import Database
from sandboxd.persistence.escape import escape, unescape
from sandboxd.persistence.paging import make_token, read_token
from sandboxd.persistence.rows import (
    SESSION_COLUMNS,
    TURN_COLUMNS,
    event_values,
    read_session,
    read_turn,
    session_values,
)
from sandboxd.persistence.tables.conversations import OPEN_TURN
from sandboxd.stream.ports import Command, SessionOrder, Sessions

MAX_PAGE_SIZE: Final = 1000
"""Most sessions of one page; a larger wish is answered with this many."""

_CLAIM: Final = """
    INSERT INTO commands (client, request_id, body_hash, session, turn) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT DO NOTHING RETURNING session
"""
_CLAIMED: Final = "SELECT body_hash, session FROM commands WHERE client = $1 AND request_id = $2"
_INSERT: Final = f"""
    INSERT INTO sessions ({SESSION_COLUMNS})
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""  # noqa: S608  constant text
_OPENED: Final = """
    INSERT INTO events (session, sequence, turn, kind, payload, size, event_time)
    VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7)
"""
_LIVING: Final = f"SELECT {SESSION_COLUMNS} FROM sessions WHERE id = $1 AND delete_time IS NULL"  # noqa: S608  constant
_OF_SANDBOX: Final = f"""
    SELECT {SESSION_COLUMNS} FROM sessions WHERE sandbox = $1 AND delete_time IS NULL
    ORDER BY create_time DESC, id DESC LIMIT 1000
"""  # noqa: S608  constant text
_OPEN_TURNS: Final = f"""
    SELECT {TURN_COLUMNS} FROM turns WHERE sandbox = $1 AND {OPEN_TURN} ORDER BY start_time, id
"""  # noqa: S608  constant text
_ATTACHMENTS: Final = """
    SELECT turn, name, mime_type, data FROM turn_attachments WHERE turn = ANY($1::text[]) ORDER BY turn, position
"""
_DELETE: Final = "UPDATE sessions SET delete_time = $2, open_turn = NULL WHERE id = $1 AND delete_time IS NULL"


class PostgresSessions(Sessions):
    """Sessions in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def create(self, session: Session, *, opened: SessionEvent, command: Command) -> tuple[Session, bool]:
        values = list(session_values(session))
        values[8] = opened.sequence
        async with self._database.raw() as connection:
            async with connection.transaction():
                # Whoever comes second with this request id waits here until the first one has committed.
                claimed = await connection.fetchrow(
                    _CLAIM, command.client, command.request_id, command.body_hash, session.id, command.turn
                )
                if claimed is not None:
                    try:
                        await connection.execute(_INSERT, *values)
                    except asyncpg.ForeignKeyViolationError as error:
                        raise SandboxNotFoundError(session.sandbox) from error
                    await connection.execute(_OPENED, *event_values(opened))
            if claimed is None:
                known = await connection.fetchrow(_CLAIMED, command.client, command.request_id)
                if known is None or known["body_hash"] != command.body_hash:
                    raise RequestIdReusedError(command.request_id)
                session_id = known["session"]
            else:
                session_id = session.id
            row = await connection.fetchrow(_LIVING, session_id)
        if row is None:
            raise SessionNotFoundError(session_id)
        return read_session(row), claimed is not None

    @override
    async def get(self, session: SessionId, *, client: ClientId, freelancer: FreelancerId | None) -> Session:
        row = await self._database.fetch_one(_LIVING, session)
        if row is None or row["client"] != client or freelancer not in {None, row["freelancer"]}:
            raise SessionNotFoundError(session)
        return read_session(row)

    @override
    async def of_sandbox(self, sandbox: SandboxId) -> Sequence[Session]:
        return [read_session(row) for row in await self._database.fetch(_OF_SANDBOX, sandbox)]

    @override
    async def open_turns(self, sandbox: SandboxId) -> Sequence[Turn]:
        async with self._database.raw() as connection:
            turns = await connection.fetch(_OPEN_TURNS, sandbox)
            rows = await connection.fetch(_ATTACHMENTS, [turn["id"] for turn in turns]) if turns else []
        attachments: dict[str, list[Attachment]] = {}
        for row in rows:
            attachment = Attachment(
                name=unescape(row["name"]), mime_type=unescape(row["mime_type"]), data=bytes(row["data"])
            )
            attachments.setdefault(row["turn"], []).append(attachment)
        return [read_turn(turn, attachments.get(turn["id"], ())) for turn in turns]

    @override
    async def list(
        self,
        sandbox: SandboxId,
        *,
        client: ClientId,
        freelancer: FreelancerId | None,
        order: SessionOrder,
        title_contains: str,
        page_size: int,
        page_token: str,
    ) -> Page[Session]:
        size = max(1, min(page_size, MAX_PAGE_SIZE))
        column, _, direction = order.value.partition(" ")
        this = f"sessions {sandbox} {client} {freelancer} {order.value} {title_contains}"
        conditions = ["sandbox = $1", "client = $2", "delete_time IS NULL"]
        values: list[Any] = [sandbox, client]  # Any: parameters of a statement
        if freelancer is not None:
            values.append(freelancer)
            conditions.append(f"freelancer = ${len(values)}")
        if title_contains:
            values.append(escape(title_contains))
            conditions.append(f"position(lower(${len(values)}) in lower(title)) > 0")
        if page_token:
            values += read_token(page_token, of=this)
            sign = "<" if direction else ">"
            conditions.append(f"({column}, id) {sign} (${len(values) - 1}::timestamptz, ${len(values)}::text)")
        statement = (
            f"SELECT {SESSION_COLUMNS} FROM sessions WHERE {' AND '.join(conditions)}"  # noqa: S608  constant words
            f" ORDER BY {column} {direction}, id {direction} LIMIT {size + 1}"
        )
        rows = await self._database.fetch(statement, *values)
        items = [read_session(row) for row in rows[:size]]
        token = make_token(rows[size - 1][column], items[-1].id, of=this) if len(rows) > size else ""
        return Page(items=items, next_token=token)

    @override
    async def delete(self, session: SessionId, *, at: datetime) -> None:
        async with self._database.raw() as connection, connection.transaction():
            if await connection.execute(_DELETE, session, at) == "UPDATE 1":
                await connection.execute("DELETE FROM turns WHERE session = $1", session)
                await connection.execute("DELETE FROM events WHERE session = $1", session)

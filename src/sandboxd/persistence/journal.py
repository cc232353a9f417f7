"""The journal on PostgreSQL: who owns a conversation, what was appended to it, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import asyncpg
import structlog
from typing_extensions import override

from sandboxd.model.errors import ConflictError, DatabaseUnavailableError, SandboxNotFoundError, SessionNotFoundError
from sandboxd.model.events import SessionEvent
from sandboxd.model.ids import ClientId, IncarnationId, RequestId, SandboxId, SessionId, TurnId
from sandboxd.persistence.append import EncodedEntry, append, encode
from sandboxd.persistence.engine import Database, repeat_collisions
from sandboxd.persistence.liveness import is_living
from sandboxd.persistence.rows import CONVERSATION_COLUMNS, read_conversation, read_event
from sandboxd.persistence.tables.conversations import OPEN_TURN
from sandboxd.stream.ports import Appended, Command, Conversation, Entry, Journal, StdinRecord

log = structlog.get_logger(__name__)

_UNOWNED: Final = f"(c.owner = '' OR c.lease_until IS NULL OR c.lease_until <= now() OR NOT {is_living('c.owner')})"
_ACQUIRE: Final = f"""
    INSERT INTO conversations AS c
        (sandbox, epoch, owner, lease_until, process, dialect, consumed, written, snapshot)
    VALUES ($1, 1, $2, now() + $3::interval, '', '', 0, 0, '{{}}')
    ON CONFLICT (sandbox) DO UPDATE SET epoch = c.epoch + 1, owner = $2, lease_until = now() + $3::interval
    WHERE $4 OR c.owner = $2 OR {_UNOWNED}
    RETURNING {CONVERSATION_COLUMNS}
"""  # noqa: S608  constant text
# An append locks several of these rows, and so does this: to wait here while other rows are held can close a circle,
# which the server opens after a whole second. So many are taken without waiting, and what is busy is waited for alone.
_RENEW_FREE: Final = """
    WITH free AS (
        SELECT sandbox FROM conversations WHERE sandbox = ANY($1::text[]) AND owner = $2
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE conversations AS c SET lease_until = now() + $3::interval FROM free WHERE c.sandbox = free.sandbox
    RETURNING c.sandbox
"""
_RENEW_ONE: Final = """
    UPDATE conversations SET lease_until = now() + $3::interval WHERE sandbox = $1 AND owner = $2 RETURNING sandbox
"""
RENEW_BATCH: Final = 64
"""Rows that one statement renews: their appends wait for it."""
_RELEASE: Final = """
    UPDATE conversations SET owner = '', lease_until = NULL WHERE sandbox = $1 AND owner = $2 AND epoch = $3
"""
_UNATTENDED: Final = f"""
    SELECT c.sandbox FROM conversations AS c
    WHERE (c.process <> '' OR EXISTS (SELECT 1 FROM turns WHERE turns.sandbox = c.sandbox AND {OPEN_TURN}))
      AND {_UNOWNED}
    ORDER BY c.sandbox LIMIT $1
"""  # noqa: S608  constant text
_PENDING: Final = """
    SELECT start, data FROM stdin_records WHERE sandbox = $1 AND incarnation = $2 AND process = $3 ORDER BY start
"""
_FORGET: Final = "DELETE FROM stdin_records WHERE sandbox = $1 AND start + length(data) <= $2"
_COMMAND: Final = "SELECT body_hash, session, turn FROM commands WHERE client = $1 AND request_id = $2"
_EVENTS: Final = """
    SELECT sequence, turn, payload::text AS payload, event_time FROM (
        SELECT *, sum(size) OVER (ORDER BY sequence) - size AS before FROM (
            SELECT * FROM events WHERE session = $1 AND sequence > $2 ORDER BY sequence LIMIT $3) AS next
    ) AS sized WHERE before < $4 ORDER BY sequence
"""
_EVENTS_OF: Final = """
    SELECT w.session, e.* FROM unnest($1::text[], $2::bigint[]) AS w (session, after)
    CROSS JOIN LATERAL (
        SELECT sequence, turn, payload::text AS payload, event_time FROM (
            SELECT *, sum(size) OVER (ORDER BY sequence) - size AS before FROM (
                SELECT * FROM events WHERE session = w.session AND sequence > w.after ORDER BY sequence LIMIT $3
            ) AS next
        ) AS sized WHERE before < $4
    ) AS e ORDER BY w.session, e.sequence
"""
_HEAD: Final = "SELECT head_sequence FROM sessions WHERE id = $1 AND delete_time IS NULL"


class PostgresJournal(Journal):
    """Durable conversations in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def append(self, entries: Sequence[Entry]) -> Sequence[Appended]:
        try:
            return await self._append([encode(entry) for entry in entries])
        except DatabaseUnavailableError:
            raise
        except Exception as error:
            if len(entries) == 1:
                sandbox = entries[0].conversation.sandbox
                log.exception("journal.entry_refused", sandbox=sandbox, error=type(error).__name__)
                return [Appended.STALE]
        # One entry cannot be stored as it is: that is a bug, and must not hold up the other conversations.
        return [outcome for entry in entries for outcome in await self.append([entry])]

    async def _append(self, entries: Sequence[EncodedEntry]) -> Sequence[Appended]:
        if not entries:
            return []

        async def attempt() -> Sequence[Appended]:
            async with self._database.raw() as connection:
                return await append(connection, entries)

        try:
            return await repeat_collisions(attempt)
        except ConflictError as error:
            raise DatabaseUnavailableError("The journal is too busy. Append the same again.") from error

    @override
    async def acquire(
        self, sandbox: SandboxId, *, owner: str, lease: timedelta, force: bool = False
    ) -> Conversation | None:
        async with self._database.raw() as connection:
            try:
                row = await connection.fetchrow(_ACQUIRE, sandbox, owner, lease, force)
            except asyncpg.ForeignKeyViolationError as error:
                raise SandboxNotFoundError(sandbox) from error
        return read_conversation(row) if row else None

    @override
    async def renew(self, sandboxes: Sequence[SandboxId], *, owner: str, lease: timedelta) -> Sequence[SandboxId]:
        ours: set[str] = set()
        async with self._database.raw() as connection:
            for begin in range(0, len(sandboxes), RENEW_BATCH):
                some = list(sandboxes[begin : begin + RENEW_BATCH])
                ours |= {row["sandbox"] for row in await connection.fetch(_RENEW_FREE, some, owner, lease)}
            for sandbox in [one for one in sandboxes if one not in ours]:  # busy at that moment, or lost
                if await connection.fetchval(_RENEW_ONE, sandbox, owner, lease) is not None:
                    ours.add(sandbox)
        return [sandbox for sandbox in sandboxes if sandbox in ours]

    @override
    async def release(self, sandbox: SandboxId, *, owner: str, epoch: int) -> None:
        async with self._database.raw() as connection:
            await connection.execute(_RELEASE, sandbox, owner, epoch)

    @override
    async def unattended(self, *, limit: int) -> Sequence[SandboxId]:
        return [SandboxId(row["sandbox"]) for row in await self._database.fetch(_UNATTENDED, limit)]

    @override
    async def pending_stdin(
        self, sandbox: SandboxId, *, incarnation: IncarnationId, process: str
    ) -> Sequence[StdinRecord]:
        rows = await self._database.fetch(_PENDING, sandbox, incarnation, process)
        return [StdinRecord(offset=row["start"], data=row["data"]) for row in rows]

    @override
    async def forget_stdin(self, sandbox: SandboxId, *, before: int) -> None:
        async with self._database.raw() as connection:
            await connection.execute(_FORGET, sandbox, before)

    @override
    async def find_command(self, client: ClientId, request_id: RequestId) -> Command | None:
        row = await self._database.fetch_one(_COMMAND, client, request_id)
        if row is None:
            return None
        return Command(
            client=client,
            request_id=request_id,
            body_hash=row["body_hash"],
            session=SessionId(row["session"]),
            turn=TurnId(row["turn"]) if row["turn"] else None,
        )

    @override
    async def events(
        self, session: SessionId, *, after: int, limit: int, max_bytes: int = 2 << 20
    ) -> Sequence[SessionEvent]:
        rows = await self._database.fetch(_EVENTS, session, after, limit, max(max_bytes, 1))
        return [read_event(session, row) for row in rows]

    @override
    async def events_of(
        self, cursors: Mapping[SessionId, int], *, limit: int, max_bytes: int
    ) -> Mapping[SessionId, Sequence[SessionEvent]]:
        async with self._database.raw() as connection:
            rows = await connection.fetch(_EVENTS_OF, list(cursors), list(cursors.values()), limit, max(max_bytes, 1))
        found: dict[SessionId, list[SessionEvent]] = {}
        for row in rows:
            session = SessionId(row["session"])
            found.setdefault(session, []).append(read_event(session, row))
        return found

    @override
    async def head(self, session: SessionId) -> int:
        row = await self._database.fetch_one(_HEAD, session)
        if row is None:
            raise SessionNotFoundError(session)
        return int(row["head_sequence"])

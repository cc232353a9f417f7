"""The journal's hot path: many entries in one transaction, with a number of statements that does not grow with them.

Lock the conversations in order and compare epochs; lock the sessions' heads and compare sequences; write. What is there
already (a repeated append) or cannot follow (a stale or confused owner) is left out, the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import asyncpg
import structlog

from sandboxd.model.session import Turn, TurnState
from sandboxd.persistence.escape import dump_json, escape
from sandboxd.persistence.plain_append import append_plain, is_plain
from sandboxd.persistence.rows import SESSION_COLUMNS, TURN_COLUMNS, event_values, session_values, turn_values
from sandboxd.stream.ports import Appended, Entry

log = structlog.get_logger(__name__)

Connection: TypeAlias = "asyncpg.Connection[Any]"  # Any: rows are records of any shape
_OVER: Final = frozenset({TurnState.COMPLETED, TurnState.FAILED})

_LOCK: Final = """
    SELECT sandbox, epoch, incarnation, process, consumed, written FROM conversations
    WHERE sandbox = ANY($1::text[]) ORDER BY sandbox FOR NO KEY UPDATE
"""
_HEADS: Final = """
    SELECT id, head_sequence FROM sessions WHERE id = ANY($1::text[]) ORDER BY id FOR NO KEY UPDATE
"""
_WRITE: Final = """
    WITH moved AS (
        UPDATE conversations AS c SET
            incarnation = e.incarnation, process = e.process, dialect = e.dialect, consumed = e.consumed,
            written = e.written, snapshot = e.snapshot::jsonb
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[])
            AS e (sandbox, incarnation, process, dialect, consumed, written, snapshot)
        WHERE c.sandbox = e.sandbox
    ), heads AS (
        UPDATE sessions AS s SET head_sequence = h.head
        FROM unnest($8::text[], $9::bigint[]) AS h (id, head)
        WHERE s.id = h.id AND s.head_sequence < h.head
    )
    INSERT INTO events (session, sequence, turn, kind, payload, size, event_time)
    SELECT e.session, e.sequence, e.turn, e.kind, e.payload::jsonb, e.size, e.event_time
    FROM unnest($10::text[], $11::bigint[], $12::text[], $13::text[], $14::text[], $15::int[], $16::timestamptz[])
        AS e (session, sequence, turn, kind, payload, size, event_time)
        JOIN sessions AS s ON s.id = e.session AND s.delete_time IS NULL
"""
_SESSIONS: Final = f"""
    INSERT INTO sessions ({SESSION_COLUMNS})
    SELECT * FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bigint[],
        $10::int[], $11::text[], $12::timestamptz[], $13::timestamptz[], $14::timestamptz[])
    ON CONFLICT (id) DO UPDATE SET
        title = CASE WHEN sessions.text_redacted + sessions.text_erased = 0 THEN excluded.title ELSE sessions.title END,
        mode = excluded.mode, model = excluded.model, cli_session = excluded.cli_session,
        head_sequence = greatest(sessions.head_sequence, excluded.head_sequence), turns = excluded.turns,
        open_turn = excluded.open_turn, update_time = excluded.update_time
    WHERE sessions.delete_time IS NULL
"""  # noqa: S608  constant text
_TURNS: Final = f"""
    INSERT INTO turns ({TURN_COLUMNS}, sandbox)
    SELECT t.*, s.sandbox FROM unnest(
        $1::text[], $2::text[], $3::int[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[],
        $9::timestamptz[], $10::text[]) AS t (id, session)
        JOIN sessions AS s ON s.id = t.session AND s.delete_time IS NULL
    ON CONFLICT (id) DO UPDATE SET
        state = excluded.state, stop_reason = excluded.stop_reason, end_time = excluded.end_time
    RETURNING id, xmax = 0 AS made
"""  # noqa: S608  constant text
_ATTACHMENTS: Final = """
    INSERT INTO turn_attachments (turn, position, name, mime_type, data)
    SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::bytea[])
    ON CONFLICT DO NOTHING
"""
_DROP_ATTACHMENTS: Final = "DELETE FROM turn_attachments WHERE turn = ANY($1::text[])"
_COMMANDS: Final = """
    INSERT INTO commands (client, request_id, body_hash, session, turn)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::text[])
    ON CONFLICT DO NOTHING
"""
_DROP_STDIN: Final = "DELETE FROM stdin_records WHERE sandbox = ANY($1::text[])"
_STDIN: Final = """
    INSERT INTO stdin_records (sandbox, incarnation, process, start, data)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bytea[])
    ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedEntry:
    """An entry whose JSON is made: before the transaction, because it takes time and may fail."""

    entry: Entry
    snapshot: str
    events: Sequence[tuple[Any, ...]] = field(default_factory=tuple)  # Any: one value a column


def encode(entry: Entry) -> EncodedEntry:
    """Make an entry's JSON.

    Raises:
        TypeError, ValueError: The snapshot is not JSON.
    """
    snapshot = dump_json(entry.conversation.snapshot)
    return EncodedEntry(entry=entry, snapshot=snapshot, events=[event_values(event) for event in entry.events])


async def append(connection: Connection, entries: Sequence[EncodedEntry]) -> Sequence[Appended]:
    """Write entries of different conversations: those that only add events in one statement, then the rest.

    Where the second of the two transactions fails, all are appended again, and the first finds its own work.
    """
    plain = [one for one in entries if is_plain(one.entry)]
    taken = await append_plain(connection, plain) if plain else frozenset()
    rest = [one for one in entries if one.entry.conversation.sandbox not in taken]
    outcomes = iter(await _append_any(connection, rest) if rest else ())
    return [Appended.DURABLE if one.entry.conversation.sandbox in taken else next(outcomes) for one in entries]


async def _append_any(connection: Connection, entries: Sequence[EncodedEntry]) -> Sequence[Appended]:
    """Write entries of any kind in one transaction."""
    async with connection.transaction():
        rows = await connection.fetch(_LOCK, [one.entry.conversation.sandbox for one in entries])
        known = {row["sandbox"]: row for row in rows}
        sessions = {event.session for one in entries for event in one.entry.events}
        heads: dict[str, int] = {}
        if sessions:
            heads = {row["id"]: row["head_sequence"] for row in await connection.fetch(_HEADS, list(sessions))}
        outcomes: list[Appended] = []
        fresh: list[EncodedEntry] = []
        for one in entries:
            outcome = _judge(one.entry, known.get(one.entry.conversation.sandbox), heads)
            if outcome is None:
                fresh.append(one)
            outcomes.append(outcome or Appended.DURABLE)
        if fresh:
            await _write(connection, fresh, known)
        return outcomes


def _judge(entry: Entry, row: Any, heads: dict[str, int]) -> Appended | None:  # Any: a record
    """Tell what becomes of an entry; None: it is to be written, and the heads are moved on."""
    after = entry.conversation
    if row is None or row["epoch"] != after.epoch:
        return Appended.STALE
    made = {session.id for session in entry.sessions}
    moved: dict[str, int] = {}
    for event in entry.events:
        head = moved.get(event.session, heads.get(event.session, 0 if event.session in made else -1))
        if event is entry.events[0] and event.sequence <= head:
            if (row["consumed"], row["written"]) == (after.consumed, after.written):
                return Appended.DURABLE  # repeated after a lost answer
            head = -1
        if event.sequence != head + 1:
            # Its owner's view of the log is not the journal's: it has to begin again from what is durable.
            log.error("journal.sequence_refused", session=event.session, sequence=event.sequence, head=head)
            return Appended.STALE
        moved[event.session] = event.sequence
    heads |= moved
    return None


async def _write(connection: Connection, entries: Sequence[EncodedEntry], known: dict[str, Any]) -> None:
    """Write what was found fresh. Any: records."""
    await _write_sessions(connection, entries)
    events = [values for one in entries for values in one.events]
    heads = {event.session: event.sequence for one in entries for event in one.entry.events}
    places = [one.entry.conversation for one in entries]
    await connection.execute(
        _WRITE,
        [place.sandbox for place in places],
        [place.incarnation for place in places],
        [place.process for place in places],
        [place.dialect for place in places],
        [place.consumed for place in places],
        [place.written for place in places],
        [one.snapshot for one in entries],
        list(heads),
        list(heads.values()),
        *_columns(events, 7),
    )
    await _write_turns(connection, [turn for one in entries for turn in one.entry.turns])
    await _write_stdin(connection, entries, known)
    commands = sorted(
        (command.client, command.request_id, command.body_hash, command.session, command.turn)
        for one in entries
        for command in one.entry.commands
    )
    if commands:
        await connection.execute(_COMMANDS, *_columns(commands, 5))


async def _write_sessions(connection: Connection, entries: Sequence[EncodedEntry]) -> None:
    sessions = {session.id: session for one in entries for session in one.entry.sessions}
    if sessions:
        # The head is moved by the events; a head that the owner had from elsewhere must not run ahead of them.
        values = [session_values(session) for _, session in sorted(sessions.items())]
        await connection.execute(_SESSIONS, *_columns([(*row[:8], 0, *row[9:]) for row in values], 14))


async def _write_turns(connection: Connection, turns: Sequence[Turn]) -> None:
    last = {turn.id: turn for turn in turns}
    if not last:
        return
    rows = await connection.fetch(_TURNS, *_columns([turn_values(turn) for turn in last.values()], 10))
    attachments = [
        (row["id"], position, escape(attachment.name), escape(attachment.mime_type), attachment.data)
        for row in rows
        if row["made"] and last[row["id"]].state not in _OVER
        for position, attachment in enumerate(last[row["id"]].prompt.attachments)
    ]
    if attachments:
        await connection.execute(_ATTACHMENTS, *_columns(attachments, 5))
    over = [turn.id for turn in last.values() if turn.state in _OVER]
    if over:
        await connection.execute(_DROP_ATTACHMENTS, over)


async def _write_stdin(connection: Connection, entries: Sequence[EncodedEntry], known: dict[str, Any]) -> None:
    replaced, records = [], []
    for one in entries:
        after, record = one.entry.conversation, one.entry.stdin
        before = known[after.sandbox]
        if (before["incarnation"], before["process"]) != (after.incarnation, after.process):
            replaced.append(after.sandbox)
        if record is not None:
            records.append((after.sandbox, after.incarnation, after.process, record.offset, record.data))
    if replaced:
        await connection.execute(_DROP_STDIN, replaced)
    if records:
        await connection.execute(_STDIN, *_columns(records, 5))


def _columns(rows: Sequence[tuple[Any, ...]], count: int) -> list[list[Any]]:  # Any: one value a column
    """Turn rows into one array a column."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(count)]

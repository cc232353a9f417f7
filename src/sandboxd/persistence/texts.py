"""The kept texts on PostgreSQL: what is due is found by policy and moment, rewritten in parts, and counted as done.

How far a session was treated is a number in its row, moved in the transaction that rewrites: a crash repeats a part,
and nothing is left out. The conversation's owner may append meanwhile; only events of ended turns are touched here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any, Final, TypeAlias

import asyncpg
from typing_extensions import override

from sandboxd.model.client import ClientPolicy, TextPolicy
from sandboxd.model.events import SessionEvent, Text, TextState, TurnStarted
from sandboxd.model.ids import SessionId
from sandboxd.persistence.account_rows import read_policy
from sandboxd.persistence.engine import Database
from sandboxd.persistence.escape import escape, load_json, unescape
from sandboxd.persistence.rows import event_values, read_event
from sandboxd.stream.ports import KeptTexts
from sandboxd.stream.texts import treat, treat_text

Connection: TypeAlias = "asyncpg.Connection[Any]"  # Any: rows are records of any shape

PART_EVENTS: Final = 2000
"""Events of one part; a part ends between two texts where it can, so that no secret is cut in two."""
PART_BYTES: Final = 4 << 20
_LOCK: Final = "SELECT pg_try_advisory_xact_lock(1954047348, hashtext($1))"
"""One at a time treats a session. The first number is `text` in ASCII."""
_RECENT: Final = """
    SELECT DISTINCT s.id FROM turns AS t JOIN sessions AS s ON s.id = t.session JOIN clients AS c ON c.id = s.client
    WHERE t.end_time BETWEEN now() - $1::interval AND now() - $2::interval AND s.delete_time IS NULL
      AND CASE c.policy ->> 'text' WHEN 'NONE' THEN s.text_erased < s.head_sequence
          WHEN 'REDACTED' THEN greatest(s.text_redacted, s.text_erased) < s.head_sequence ELSE false END
    ORDER BY s.id LIMIT $3
"""
_EVERY: Final = """
    SELECT s.id FROM clients AS c JOIN sandboxes AS b ON b.client = c.id JOIN sessions AS s ON s.sandbox = b.id
    WHERE (c.policy ? 'text' OR c.policy ? 'text_lifetime_seconds') AND s.delete_time IS NULL
      AND s.text_erased < s.head_sequence AND s.id > $1
    ORDER BY s.id LIMIT $2
"""
_STATE: Final = """
    SELECT s.title, s.text_redacted, s.text_erased, c.policy::text AS policy, clock_timestamp() AS present
    FROM sessions AS s JOIN clients AS c ON c.id = s.client WHERE s.id = $1 AND s.delete_time IS NULL
"""
_PART: Final = """
    SELECT * FROM (
        SELECT e.sequence, e.turn, e.payload::text AS payload, e.event_time, t.id AS known, t.end_time,
            sum(e.size) OVER (ORDER BY e.sequence) - e.size AS before
        FROM (SELECT * FROM events WHERE session = $1 AND sequence > $2 ORDER BY sequence LIMIT $3) AS e
            LEFT JOIN turns AS t ON t.id = e.turn
    ) AS sized WHERE before < $4 ORDER BY sequence
"""
_REWRITE: Final = """
    UPDATE events AS e SET payload = n.payload::jsonb, size = n.size
    FROM unnest($2::bigint[], $3::text[], $4::int[]) AS n (sequence, payload, size)
    WHERE e.session = $1 AND e.sequence = n.sequence
"""
_PROMPTS: Final = """
    UPDATE turns AS t SET prompt = n.prompt FROM unnest($1::text[], $2::text[]) AS n (id, prompt) WHERE t.id = n.id
"""
_DONE: Final = """
    UPDATE sessions SET title = $2, text_redacted = greatest(text_redacted, $3), text_erased = greatest(text_erased, $4)
    WHERE id = $1
"""


class PostgresKeptTexts(KeptTexts):
    """Texts in the rows of sessions, turns and events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def recent(self, *, ended_within: timedelta, grace: timedelta, limit: int) -> Sequence[SessionId]:
        rows = await self._database.fetch(_RECENT, ended_within, grace, limit)
        return [SessionId(row["id"]) for row in rows]

    @override
    async def every(self, *, after: SessionId | None, limit: int) -> Sequence[SessionId]:
        return [SessionId(row["id"]) for row in await self._database.fetch(_EVERY, after or "", limit)]

    @override
    async def settle(self, session: SessionId, *, grace: timedelta) -> int:
        async with self._database.raw() as connection, connection.transaction():
            if not await connection.fetchval(_LOCK, session):
                return 0
            row = await connection.fetchrow(_STATE, session)
            if row is None:
                return 0
            for state, before in _due(read_policy(load_json(row["policy"])), at=row["present"], grace=grace):
                if treated := await _treat(connection, session, row, state=state, before=before):
                    return treated
        return 0


def _due(policy: ClientPolicy, *, at: datetime, grace: timedelta) -> list[tuple[TextState, datetime]]:
    """Say what is to be done to texts that ended before a moment, the strictest first."""
    due = []
    if policy.text is TextPolicy.NONE:
        due.append((TextState.ERASED, at - grace))
    elif policy.text_lifetime is not None:
        due.append((TextState.ERASED, at - max(policy.text_lifetime, grace)))
    if policy.text is TextPolicy.REDACTED:
        due.append((TextState.REDACTED, at - grace))
    return due


async def _treat(connection: Connection, session: SessionId, row: Any, *, state: TextState, before: datetime) -> int:
    """Treat the next part of a session; answers how many events. Any: the session's record."""
    erased: int = row["text_erased"]
    done = erased if state is TextState.ERASED else max(erased, row["text_redacted"])
    found = await connection.fetch(_PART, session, done, PART_EVENTS, PART_BYTES)
    part = [read_event(session, one) for one in takewhile(lambda one: not _is_live(one, before), found)]
    if len(part) == PART_EVENTS:
        part = _until_a_border(part)
    if not part:
        return 0
    await _write(connection, session, treat(part, state))
    last, title = part[-1].sequence, escape(treat_text(unescape(row["title"]), state))
    redacted = 0 if state is TextState.ERASED else last
    await connection.execute(_DONE, session, title, redacted, last if state is TextState.ERASED else 0)
    return len(part)


def _is_live(row: Any, before: datetime) -> bool:  # Any: a record
    """Tell whether an event's time has not come: its turn is open, or has ended too late."""
    if row["known"] is None:
        return bool(row["event_time"] > before)
    return row["end_time"] is None or bool(row["end_time"] > before)


def _until_a_border(part: list[SessionEvent]) -> list[SessionEvent]:
    """Leave the text at the end for the next part, where it may go on; a part that is all text is taken as it is."""
    end = len(part)
    while end and isinstance(part[end - 1].body, Text):
        end -= 1
    return part[:end] or part


async def _write(connection: Connection, session: SessionId, part: Sequence[SessionEvent]) -> None:
    rows = [event_values(event) for event in part]
    await connection.execute(
        _REWRITE, session, [row[1] for row in rows], [row[4] for row in rows], [row[5] for row in rows]
    )
    prompts = [(event.turn, event.body.text) for event in part if isinstance(event.body, TurnStarted) and event.turn]
    if prompts:
        await connection.execute(_PROMPTS, [turn for turn, _ in prompts], [escape(text) for _, text in prompts])

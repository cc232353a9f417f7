"""The journal's commonest append in one statement: steps that only add events to sessions that are there.

Nine of ten steps of a streaming turn are like that. What else `append.py` does in a transaction of several statements
(epochs compared under the lock, heads compared under theirs, then written) is one statement here, its own transaction:
a round trip instead of six. It judges nothing but "as expected": an entry that finds anything else leaves no trace, and
is given to `append.py`, which knows what to make of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sandboxd.persistence.escape import escape
from sandboxd.stream.ports import Entry

if TYPE_CHECKING:
    from sandboxd.persistence.append import Connection, EncodedEntry

# Rows are locked in the order that `append.py` locks them in: conversations by name, then sessions by id. What a lock
# had to wait for is read again by the server, and is left out where it no longer fits.
_ADVANCE: Final = """
    WITH step AS (
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[])
            AS e (sandbox, epoch, incarnation, process, consumed, written, snapshot)
    ), stride AS (
        SELECT * FROM unnest(
            $8::text[], $9::text[], $10::bigint[], $11::bigint[], $12::text[], $13::text[], $14::text[], $15::text[],
            $16::int[], $17::text[], $18::timestamptz[])
            AS h (sandbox, session, before, head, title, mode, model, cli_session, turns, open_turn, update_time)
    ), mine AS MATERIALIZED (
        SELECT c.sandbox FROM conversations AS c JOIN step AS e ON e.sandbox = c.sandbox
        WHERE c.epoch = e.epoch AND c.process = e.process AND c.incarnation IS NOT DISTINCT FROM e.incarnation
        ORDER BY c.sandbox FOR NO KEY UPDATE OF c
    ), fitting AS MATERIALIZED (
        SELECT s.id FROM sessions AS s JOIN stride AS h ON h.session = s.id JOIN mine ON mine.sandbox = h.sandbox
        WHERE s.head_sequence = h.before AND s.delete_time IS NULL AND s.sandbox = h.sandbox
        ORDER BY s.id FOR NO KEY UPDATE OF s
    ), taken AS MATERIALIZED (
        SELECT sandbox FROM mine WHERE NOT EXISTS (
            SELECT FROM stride AS h WHERE h.sandbox = mine.sandbox AND h.session NOT IN (SELECT id FROM fitting))
    ), moved AS (
        UPDATE conversations AS c
        SET consumed = e.consumed, written = e.written, snapshot = e.snapshot::jsonb
        FROM step AS e JOIN taken ON taken.sandbox = e.sandbox WHERE c.sandbox = e.sandbox
    ), heads AS (
        UPDATE sessions AS s SET head_sequence = h.head, title = h.title, mode = h.mode, model = h.model,
            cli_session = h.cli_session, turns = h.turns, open_turn = h.open_turn, update_time = h.update_time
        FROM stride AS h JOIN taken ON taken.sandbox = h.sandbox WHERE s.id = h.session
    ), added AS (
        INSERT INTO events (session, sequence, turn, kind, payload, size, event_time)
        SELECT e.session, e.sequence, e.turn, e.kind, e.payload::jsonb, e.size, e.event_time
        FROM unnest(
            $19::text[], $20::text[], $21::bigint[], $22::text[], $23::text[], $24::text[], $25::int[],
            $26::timestamptz[]) AS e (sandbox, session, sequence, turn, kind, payload, size, event_time)
            JOIN taken ON taken.sandbox = e.sandbox
    )
    SELECT sandbox FROM taken
"""


def is_plain(entry: Entry) -> bool:
    """Tell whether a step only adds events, and changes no more than the rows of their sessions."""
    if not entry.events or entry.stdin is not None or entry.commands or entry.turns:
        return False
    heads: dict[str, int] = {}
    for event in entry.events:
        if heads.setdefault(event.session, event.sequence) != event.sequence:
            return False  # a gap: `append.py` says what is wrong
        heads[event.session] += 1
    return heads.keys() == {session.id for session in entry.sessions}


async def append_plain(connection: Connection, entries: Sequence[EncodedEntry]) -> frozenset[str]:
    """Append plain entries of different conversations.

    Returns:
        The sandboxes whose entries are durable. The others found something unexpected and wrote nothing.
    """
    places = [one.entry.conversation for one in entries]
    sessions = [(one.entry, session) for one in entries for session in one.entry.sessions]
    counts: dict[str, int] = {}
    last: dict[str, int] = {}
    for one in entries:
        for event in one.entry.events:
            counts[event.session] = counts.get(event.session, 0) + 1
            last[event.session] = event.sequence
    events: list[tuple[Any, ...]] = [  # Any: one value a column
        (one.entry.conversation.sandbox, *values) for one in entries for values in one.events
    ]
    rows = await connection.fetch(
        _ADVANCE,
        [place.sandbox for place in places],
        [place.epoch for place in places],
        [place.incarnation for place in places],
        [place.process for place in places],
        [place.consumed for place in places],
        [place.written for place in places],
        [one.snapshot for one in entries],
        [entry.conversation.sandbox for entry, _ in sessions],
        [session.id for _, session in sessions],
        [last[session.id] - counts[session.id] for _, session in sessions],
        [last[session.id] for _, session in sessions],
        [escape(session.title) for _, session in sessions],
        [escape(session.mode) for _, session in sessions],
        [escape(session.model) for _, session in sessions],
        [escape(session.cli_session) for _, session in sessions],
        [session.turns for _, session in sessions],
        [session.open_turn for _, session in sessions],
        [session.update_time for _, session in sessions],
        *map(list, zip(*events, strict=True)),
    )
    return frozenset(row["sandbox"] for row in rows)

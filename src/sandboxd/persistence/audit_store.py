"""Appends to the audit's chains: lock the chains' rows, give every draft its place and hash, write, all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import asyncpg
from typing_extensions import override

from sandboxd.model.audit import FIRST_HASH, AuditEntry, AuditKind, entry_hash
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.monitor.audit_ports import OUTSIDERS, AuditStore, Draft, OpenIntent, Placed
from sandboxd.persistence.engine import Database
from sandboxd.persistence.escape import dump_json, escape, unescape
from sandboxd.persistence.liveness import is_living

Connection: TypeAlias = "asyncpg.Connection[Any]"  # Any: rows are records of any shape

_KNOW: Final = """
    INSERT INTO audit_chains (chain, head_sequence, head_hash, head_time)
    SELECT chain, 0, $2, now() FROM unnest($1::text[]) AS c (chain) ORDER BY chain ON CONFLICT DO NOTHING
"""
_LOCK: Final = """
    SELECT chain, head_sequence, head_hash FROM audit_chains
    WHERE chain = ANY($1::text[]) ORDER BY chain FOR NO KEY UPDATE
"""
_WRITTEN: Final = "SELECT id, sequence FROM audit_entries WHERE id = ANY($1::text[])"
_OPEN: Final = """
    SELECT o.chain, o.sequence FROM audit_open_intents AS o
    JOIN unnest($1::text[], $2::bigint[]) AS w (chain, sequence) ON (w.chain, w.sequence) = (o.chain, o.sequence)
"""
_WRITE: Final = """
    WITH heads AS (
        UPDATE audit_chains AS c SET head_sequence = h.sequence, head_hash = h.hash, head_time = now()
        FROM unnest($1::text[], $2::bigint[], $3::bytea[]) AS h (chain, sequence, hash) WHERE c.chain = h.chain
    ), texts AS (
        INSERT INTO audit_texts (chain, sequence, name, value, salt, person)
        SELECT * FROM unnest($4::text[], $5::bigint[], $6::text[], $7::text[], $8::bytea[], $9::text[])
    ), opened AS (
        INSERT INTO audit_open_intents (chain, sequence, replica, action, role, target, request_id)
        SELECT * FROM unnest(
            $10::text[], $11::bigint[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[])
    ), closed AS (
        DELETE FROM audit_open_intents AS o USING unnest($17::text[], $18::bigint[]) AS c (chain, sequence)
        WHERE (o.chain, o.sequence) = (c.chain, c.sequence)
    )
    INSERT INTO audit_entries (chain, sequence, id, time, kind, action, role, target, request_id, intent, code, reason,
        count, since, digests, prev_hash, hash)
    SELECT chain, sequence, id, time, kind, action, role, target, request_id, intent, code, reason, count, since,
        digests::jsonb, prev_hash, hash
    FROM unnest($19::text[], $20::bigint[], $21::text[], $22::timestamptz[], $23::text[], $24::text[], $25::text[],
        $26::text[], $27::text[], $28::bigint[], $29::text[], $30::text[], $31::bigint[], $32::timestamptz[],
        $33::text[], $34::bytea[], $35::bytea[])
        AS e (chain, sequence, id, time, kind, action, role, target, request_id, intent, code, reason, count, since,
        digests, prev_hash, hash)
"""
_ABANDONED: Final = f"""
    SELECT chain, sequence, action, role, target, request_id FROM audit_open_intents AS o
    WHERE NOT {is_living("o.replica")} ORDER BY chain, sequence LIMIT $1
"""  # noqa: S608  constant text
_ERASE: Final = """
    DELETE FROM audit_texts AS t WHERE t.chain = $1 AND (t.person = $2 OR (t.person = '' AND EXISTS (
        SELECT 1 FROM audit_entries AS e JOIN sandboxes AS s ON s.id = split_part(e.target, '/', 2)
        WHERE (e.chain, e.sequence) = (t.chain, t.sequence) AND e.target LIKE 'sandboxes/%'
          AND (s.client, s.freelancer) = ($1, $2))))
"""
_ERASE_CLIENT: Final = "DELETE FROM audit_texts WHERE chain = $1 AND NOT person LIKE ANY($2::text[])"


@dataclass(slots=True)
class _Head:
    sequence: int
    hash: bytes
    moved: bool = False


class PostgresAuditStore(AuditStore):
    """Chains in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: set[str] = set()
        """Chains that have a row."""

    @override
    async def append(
        self, drafts: Sequence[Draft], *, repeated: bool = False, patient: bool = False
    ) -> Sequence[int | Placed]:
        chains = sorted({draft.entry.chain for draft in drafts})
        async with self._database.raw() as connection:
            if new := [chain for chain in chains if chain not in self._known]:
                await connection.execute(_KNOW, new, FIRST_HASH)
                self._known.update(new)
            async with connection.transaction():
                rows = await connection.fetch(_LOCK if patient else f"{_LOCK} SKIP LOCKED", chains)
                heads = {row["chain"]: _Head(row["head_sequence"], row["head_hash"]) for row in rows}
                placed = await _append(connection, drafts, heads, repeated=repeated)
                failpoint("audit.before_commit")
        failpoint("audit.after_commit")
        return placed

    @override
    async def abandoned(self, *, limit: int) -> Sequence[OpenIntent]:
        async with self._database.raw() as connection:
            rows = await connection.fetch(_ABANDONED, limit)
        return [
            OpenIntent(
                chain=ClientId(row["chain"]),
                sequence=row["sequence"],
                action=row["action"],
                role=row["role"],
                target=unescape(row["target"]),
                request_id=unescape(row["request_id"]),
            )
            for row in rows
        ]

    @override
    async def erase(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        async with self._database.raw() as connection:
            if freelancer is None:
                done = await connection.execute(_ERASE_CLIENT, client, [f"{role}:%" for role in OUTSIDERS])
            else:
                done = await connection.execute(_ERASE, client, freelancer)
        return int(done.rpartition(" ")[2])


async def _append(
    connection: Connection, drafts: Sequence[Draft], heads: Mapping[str, _Head], *, repeated: bool
) -> Sequence[int | Placed]:
    written: dict[str, int] = {}
    if repeated:
        rows = await connection.fetch(_WRITTEN, [draft.entry.id for draft in drafts])
        written = {row["id"]: row["sequence"] for row in rows}
    asked = [(draft.entry.chain, draft.entry.intent) for draft in drafts if draft.only_if_open]
    is_open: set[tuple[str, int]] = set()
    if asked:
        rows = await connection.fetch(_OPEN, *map(list, zip(*asked, strict=True)))
        is_open = {(row["chain"], row["sequence"]) for row in rows}
    placed: list[int | Placed] = []
    fresh: list[tuple[AuditEntry, Draft]] = []
    for draft in drafts:
        head = heads.get(draft.entry.chain)
        if draft.entry.id in written:
            placed.append(written[draft.entry.id])
        elif head is None:
            placed.append(Placed.BUSY)
        elif draft.only_if_open and (draft.entry.chain, draft.entry.intent) not in is_open:
            placed.append(Placed.NEEDLESS)
        else:
            entry = replace(draft.entry, sequence=head.sequence + 1, prev_hash=head.hash)
            entry = replace(entry, hash=entry_hash(entry))
            head.sequence, head.hash, head.moved = entry.sequence, entry.hash, True
            fresh.append((entry, draft))
            placed.append(entry.sequence)
    if fresh:
        await connection.execute(_WRITE, *_parameters(fresh, heads))
    return placed


def _parameters(fresh: Sequence[tuple[AuditEntry, Draft]], heads: Mapping[str, _Head]) -> list[list[Any]]:
    """One array a column, in the order of the statement. Any: values of any type."""
    moved = [(chain, head.sequence, head.hash) for chain, head in heads.items() if head.moved]
    texts = [
        (entry.chain, entry.sequence, one.text.name, escape(one.text.value), one.text.salt, escape(one.person))
        for entry, draft in fresh
        for one in draft.texts
    ]
    opened = [
        (
            entry.chain,
            entry.sequence,
            draft.replica,
            entry.action,
            entry.role,
            escape(entry.target),
            escape(entry.request_id),
        )
        for entry, draft in fresh
        if entry.kind is AuditKind.INTENT
    ]
    closed = [(entry.chain, entry.intent) for entry, _ in fresh if entry.kind is AuditKind.OUTCOME]
    entries = [_entry_values(entry) for entry, _ in fresh]
    return [
        column
        for rows, width in ((moved, 3), (texts, 6), (opened, 7), (closed, 2), (entries, 17))
        for column in _columns(rows, width)
    ]


def _entry_values(entry: AuditEntry) -> tuple[Any, ...]:  # Any: one value a column
    return (
        entry.chain,
        entry.sequence,
        entry.id,
        entry.time,
        entry.kind.value,
        entry.action,
        entry.role,
        escape(entry.target),
        escape(entry.request_id),
        entry.intent,
        entry.code,
        escape(entry.reason),
        entry.count,
        entry.since,
        dump_json({name: digest.hex() for name, digest in entry.digests.items()}),
        entry.prev_hash,
        entry.hash,
    )


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:  # Any: one value a column
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]

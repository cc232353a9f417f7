"""Reads the audit's chains, and keeps their signed heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from typing_extensions import override

from sandboxd.model.audit import FIRST_HASH, AuditEntry, AuditKind, AuditText, SignedHead
from sandboxd.model.ids import ClientId
from sandboxd.monitor.audit_ports import MAX_AUDIT_PAGE, AuditFilter, AuditReader, AuditRecord, ChainHead
from sandboxd.persistence.engine import Database
from sandboxd.persistence.escape import escape, load_json, unescape

_HEAD: Final = "SELECT head_sequence, head_hash FROM audit_chains WHERE chain = $1"
_ENTRIES: Final = """
    SELECT chain, sequence, id, time, kind, action, role, target, request_id, intent, code, reason, count, since,
        digests::text AS digests, prev_hash, hash
    FROM audit_entries AS e WHERE {where} ORDER BY sequence {direction} LIMIT {limit}
"""
_TEXTS: Final = """
    SELECT sequence, name, value, salt FROM audit_texts
    WHERE chain = $1 AND sequence = ANY($2::bigint[]) ORDER BY sequence, name
"""
_HEADS: Final = """
    SELECT chain, sequence, hash, time, key_id, signature FROM audit_heads
    WHERE chain = $1 AND sequence > $2 AND sequence <= $3 ORDER BY sequence, key_id
"""
_UNSIGNED: Final = """
    SELECT c.chain, c.head_sequence, c.head_hash FROM audit_chains AS c
    WHERE c.head_sequence > 0 AND NOT EXISTS (
        SELECT 1 FROM audit_heads AS h WHERE h.chain = c.chain AND h.sequence = c.head_sequence AND h.key_id = $1)
    LIMIT $2
"""
_ADD_HEADS: Final = """
    INSERT INTO audit_heads (chain, sequence, hash, time, key_id, signature)
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::timestamptz[], $5::text[], $6::bytea[])
    ON CONFLICT DO NOTHING
"""
_ACTOR: Final = """
    EXISTS (SELECT 1 FROM audit_texts AS t WHERE t.chain = e.chain AND t.name = 'actor' AND t.value = {}
        AND t.sequence = CASE e.intent WHEN 0 THEN e.sequence ELSE e.intent END)
"""
"""The actor of an outcome is that of its intent."""


class PostgresAuditReader(AuditReader):
    """Chains in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def head(self, chain: ClientId) -> ChainHead:
        async with self._database.raw() as connection:
            row = await connection.fetchrow(_HEAD, chain)
        if row is None:
            return ChainHead(chain=chain, sequence=0, hash=FIRST_HASH)
        return ChainHead(chain=chain, sequence=row["head_sequence"], hash=row["head_hash"])

    @override
    async def records(
        self, chain: ClientId, where: AuditFilter, *, after: int, limit: int, newest_first: bool = False
    ) -> Sequence[AuditRecord]:
        values: list[Any] = [chain]  # Any: parameters of any type
        condition = _condition(where, values, after=after, newest_first=newest_first)
        values.append(max(0, min(limit, MAX_AUDIT_PAGE)))
        direction = "DESC" if newest_first else "ASC"
        statement = _ENTRIES.format(where=condition, direction=direction, limit=f"${len(values)}")
        async with self._database.raw() as connection:
            entries = [read_entry(row) for row in await connection.fetch(statement, *values)]
            sequences = [entry.sequence for entry in entries if entry.digests]
            rows = await connection.fetch(_TEXTS, chain, sequences) if sequences else []
        texts: dict[int, list[AuditText]] = {}
        for row in rows:
            text = AuditText(name=row["name"], value=unescape(row["value"]), salt=row["salt"])
            texts.setdefault(row["sequence"], []).append(text)
        return [AuditRecord(entry=entry, texts=tuple(texts.get(entry.sequence, ()))) for entry in entries]

    @override
    async def heads(self, chain: ClientId, *, after: int, until: int) -> Sequence[SignedHead]:
        async with self._database.raw() as connection:
            rows = await connection.fetch(_HEADS, chain, after, until)
        return [
            SignedHead(
                chain=ClientId(row["chain"]),
                sequence=row["sequence"],
                hash=row["hash"],
                time=row["time"],
                key_id=row["key_id"],
                signature=row["signature"],
            )
            for row in rows
        ]

    @override
    async def unsigned(self, key_id: str, *, limit: int) -> Sequence[ChainHead]:
        async with self._database.raw() as connection:
            rows = await connection.fetch(_UNSIGNED, key_id, limit)
        return [
            ChainHead(chain=ClientId(row["chain"]), sequence=row["head_sequence"], hash=row["head_hash"])
            for row in rows
        ]

    @override
    async def add_heads(self, heads: Sequence[SignedHead]) -> None:
        if not heads:
            return
        rows = [(one.chain, one.sequence, one.hash, one.time, one.key_id, one.signature) for one in heads]
        async with self._database.raw() as connection:
            await connection.execute(_ADD_HEADS, *map(list, zip(*rows, strict=True)))


def read_entry(row: Mapping[str, Any]) -> AuditEntry:
    """Read a row. Any: its columns have any type."""
    return AuditEntry(
        chain=ClientId(row["chain"]),
        sequence=row["sequence"],
        id=row["id"],
        time=row["time"],
        kind=AuditKind(row["kind"]),
        action=row["action"],
        role=row["role"],
        target=unescape(row["target"]),
        request_id=unescape(row["request_id"]),
        intent=row["intent"],
        code=row["code"],
        reason=unescape(row["reason"]),
        count=row["count"],
        since=row["since"],
        digests={name: bytes.fromhex(digest) for name, digest in load_json(row["digests"]).items()},
        prev_hash=row["prev_hash"],
        hash=row["hash"],
    )


def _condition(where: AuditFilter, values: list[Any], *, after: int, newest_first: bool) -> str:
    """Write a filter as an SQL condition, and add its values to the parameters. Any: any type."""
    found = ["chain = $1"]

    def add(condition: str, value: Any) -> None:  # Any: a parameter of any type
        values.append(value)
        found.append(condition.replace("{}", f"${len(values)}"))

    if not newest_first:
        add("sequence > {}", after)
    elif after:
        add("sequence < {}", after)
    if where.start_time is not None:
        add("time >= {}", where.start_time)
    if where.end_time is not None:
        add("time < {}", where.end_time)
    if where.actor:
        add(_ACTOR, escape(where.actor))
    if where.action:
        add("(action = {} OR starts_with(action, {} || '/') OR starts_with(action, {} || '.'))", where.action)
    if where.target:
        add("(target = {} OR starts_with(target, {} || '/'))", escape(where.target))
    if where.request_id:
        add("request_id = {}", escape(where.request_id))
    if where.kinds:
        add("kind = ANY({}::text[])", sorted(kind.value for kind in where.kinds))
    if where.codes:
        add("code = ANY({}::text[])", sorted(where.codes))
    return " AND ".join(found)

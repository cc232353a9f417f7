"""Records and histories of packages. Used within one transaction.

A record is held with its sandbox's row, which is locked first: whoever works on the sandbox itself waits, and is waited
for, in one order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import TextClause, case, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.package_ports import ChangeSelection, PackageRepository, Watched
from sandboxd.model.errors import SandboxNotFoundError
from sandboxd.model.ids import IncarnationId, SandboxId, SessionId
from sandboxd.model.package_history import MAX_CHANGES, KeptChange, PackageRecord
from sandboxd.model.packages import PackagePlace
from sandboxd.model.processes import ProcessId
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.persistence.errors import translated
from sandboxd.persistence.liveness import is_living
from sandboxd.persistence.package_rows import (
    change_values,
    pack,
    read_change,
    read_record,
    record_values,
    unpack,
)
from sandboxd.persistence.sandbox_rows import Row
from sandboxd.persistence.tables import PackageChangeRow, SandboxPackagesRow, SandboxRow
from sandboxd.persistence.tables.base import table

_SANDBOXES: Final = table(SandboxRow)
_RECORDS: Final = table(SandboxPackagesRow)
_CHANGES: Final = table(PackageChangeRow)
_BLANK: Final = "'', 0, 0, false, false, NULL, NULL, NULL, NULL, NULL, 0, NULL, 0, ''::bytea"
_NAMES: Final = """sandbox, incarnation, owner, sequence, number, looked, complete, root_change_time, look_time,
    dirty_since, other_unsaved_time, saved_time, saved_sequence, saved_root_time, missed, packages"""
_RUNNING: Final = """
    incarnations AS i JOIN sandboxes AS s ON s.id = i.sandbox LEFT JOIN sandbox_packages AS p ON p.sandbox = i.sandbox
    WHERE i.end_time IS NULL AND i.host IS NOT NULL AND s.state = 'ACTIVE'
"""
_AMONG: Final = "AND i.sandbox = ANY(CAST(:among AS text[]))"
_WATCHED: Final = """i.sandbox, i.id AS incarnation, i.host, i.port, i.server_name,
    CASE WHEN p.incarnation = i.id THEN p.sequence ELSE 0 END AS after"""
_FREE: Final = f"(p.sandbox IS NULL OR p.owner = '' OR p.owner <> :replica AND NOT {is_living('p.owner')})"


def _claim(among: str) -> str:
    return f"""
        WITH free AS (SELECT {_WATCHED} FROM {_RUNNING} {among} AND {_FREE} ORDER BY i.sandbox LIMIT :limit),
        taken AS (
            INSERT INTO sandbox_packages AS t ({_NAMES})
            SELECT sandbox, incarnation, :replica, {_BLANK.removeprefix("'', ")} FROM free ORDER BY sandbox
            ON CONFLICT (sandbox) DO UPDATE SET owner = excluded.owner
            WHERE t.owner = '' OR t.owner <> excluded.owner AND NOT {is_living("t.owner")}
            RETURNING sandbox
        )
        SELECT free.* FROM free JOIN taken USING (sandbox) ORDER BY sandbox
    """  # noqa: S608  constant text


def _owned(among: str) -> str:
    return f"SELECT {_WATCHED} FROM {_RUNNING} {among} AND p.owner = :replica ORDER BY i.sandbox"  # noqa: S608


# Two of each: one plan for both would read all that run to find the one that has changed.
_CLAIM: Final = text(_claim(""))
_CLAIM_AMONG: Final = text(_claim(_AMONG))
_OWNED: Final = text(_owned(""))
_OWNED_AMONG: Final = text(_owned(_AMONG))
_MAKE: Final = text(f"""
    INSERT INTO sandbox_packages ({_NAMES}) VALUES (:sandbox, :incarnation, {_BLANK}) ON CONFLICT DO NOTHING
""")  # noqa: S608  constant text
_SESSIONS: Final = text("""
    SELECT (SELECT true FROM conversations WHERE sandbox = :sandbox AND incarnation = :incarnation
            AND process = :process) AS cli,
        ARRAY(SELECT DISTINCT session FROM turns WHERE sandbox = :sandbox AND start_time <= :until
            AND (end_time IS NULL OR end_time >= :since) LIMIT 2) AS sessions
""")


LARGE_SET: Final = 2000
LARGE_BYTES: Final = 32_768
"""Larger sets are packed and unpacked in a thread: 20,000 packages take up to half a second of the event loop."""


class PostgresPackageRepository(PackageRepository):
    """Records of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def hold(self, sandbox: SandboxId, incarnation: IncarnationId) -> PackageRecord:
        lock = select(_SANDBOXES.c.id).where(_SANDBOXES.c.id == sandbox).with_for_update(key_share=True)
        with translated():
            if (await self._connection.execute(lock)).one_or_none() is None:
                raise SandboxNotFoundError(sandbox)
            await self._connection.execute(_MAKE, {"sandbox": sandbox, "incarnation": incarnation})
            statement = select(_RECORDS).where(_RECORDS.c.sandbox == sandbox).with_for_update()
            row = (await self._connection.execute(statement)).mappings().one()
        return await _read(row)

    @override
    async def get(self, sandbox: SandboxId) -> PackageRecord | None:
        statement = select(_RECORDS).where(_RECORDS.c.sandbox == sandbox)
        with translated():
            row = (await self._connection.execute(statement)).mappings().one_or_none()
        return await _read(row) if row else None

    @override
    async def save(self, record: PackageRecord, changes: Sequence[KeptChange]) -> None:
        c = _SANDBOXES.c
        shown: dict[str, Any] = {  # Any: values and expressions
            "dirty_since": record.dirty_since,
            "unsaved_packages": record.unsaved_packages,
        }
        other_time = c.dirty_since.is_distinct_from(record.dirty_since)
        if record.dirty_since is not None:  # the sweep looks at once, and plans the commit
            shown["look_time"] = case((other_time, func.least(c.look_time, record.dirty_since)), else_=c.look_time)
        differs = or_(other_time, c.unsaved_packages != record.unsaved_packages)
        packed = await _pack(record)
        with translated():
            await self._connection.execute(
                update(_RECORDS).values(record_values(record, packed)).where(_RECORDS.c.sandbox == record.sandbox)
            )
            # The row is wide, and most news change nothing of it.
            await self._connection.execute(update(_SANDBOXES).values(shown).where(c.id == record.sandbox, differs))
            if changes:
                await self._connection.execute(
                    insert(_CHANGES), [change_values(record.sandbox, one) for one in changes]
                )
                old = delete(_CHANGES).where(
                    _CHANGES.c.sandbox == record.sandbox, _CHANGES.c.number <= record.number - MAX_CHANGES
                )
                await self._connection.execute(old)

    @override
    async def mark_saved(
        self, sandbox: SandboxId, incarnation: IncarnationId, *, up_to: int, kept_by: datetime
    ) -> None:
        c = _CHANGES.c
        statement = (
            update(_CHANGES)
            .values(saved=True)
            .where(c.sandbox == sandbox, c.incarnation == incarnation, c.saved.is_(False))
            .where(or_(c.sequence <= up_to, c.kept_time <= kept_by))
        )
        with translated():
            await self._connection.execute(statement)

    @override
    async def changes(
        self, sandbox: SandboxId, where: ChangeSelection, *, limit: int, falling: bool = False, from_number: int = 0
    ) -> Sequence[KeptChange]:
        c = _CHANGES.c
        statement = select(_CHANGES).where(c.sandbox == sandbox)
        if where.manager is not None:
            statement = statement.where(c.manager == where.manager.value)
        if where.kind is not None:
            statement = statement.where(c.kind == where.kind.value)
        if where.place is not None:
            statement = statement.where(c.place == where.place.value)
        if where.requester is not None:
            statement = statement.where(c.requester == where.requester.value)
        if where.unsaved:
            statement = statement.where(c.saved.is_(False), c.place == PackagePlace.ROOT.value)
        if where.after_number:
            statement = statement.where(c.number > where.after_number)
        if where.since is not None:
            statement = statement.where(c.kept_time >= where.since)
        if from_number:
            statement = statement.where(c.number < from_number if falling else c.number > from_number)
        statement = statement.order_by(c.number.desc() if falling else c.number).limit(limit)
        with translated():
            rows = (await self._connection.execute(statement)).mappings().all()
        return [read_change(row) for row in rows]

    @override
    async def numbers(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, int]:
        c = _RECORDS.c
        statement = select(c.sandbox, c.number).where(c.sandbox == func.any(sorted(sandboxes)), c.number > 0)
        with translated():
            return {SandboxId(row.sandbox): row.number for row in await self._connection.execute(statement)}

    @override
    async def claim(self, *, replica: str, limit: int, among: Collection[SandboxId] | None = None) -> Sequence[Watched]:
        statement = _CLAIM if among is None else _CLAIM_AMONG
        return await self._watched(statement, replica=replica, limit=limit, among=among)

    @override
    async def owned(self, *, replica: str, among: Collection[SandboxId] | None = None) -> Sequence[Watched]:
        return await self._watched(_OWNED if among is None else _OWNED_AMONG, replica=replica, among=among)

    @override
    async def release(self, sandboxes: Collection[SandboxId], *, replica: str) -> None:
        c = _RECORDS.c
        # In one order: two that release together must not wait for each other.
        held = select(c.sandbox).where(c.sandbox == func.any(sorted(sandboxes)), c.owner == replica)
        locked = held.order_by(c.sandbox).with_for_update().cte("held")
        statement = update(_RECORDS).values(owner="").where(c.sandbox.in_(select(locked.c.sandbox)))
        with translated():
            await self._connection.execute(statement)

    @override
    async def session_of(
        self, sandbox: SandboxId, incarnation: IncarnationId, process: ProcessId, *, since: datetime, until: datetime
    ) -> tuple[bool, SessionId | None]:
        values = {
            "sandbox": sandbox,
            "incarnation": incarnation,
            "process": process,
            "since": since,
            "until": until,
        }
        with translated():
            row = (await self._connection.execute(_SESSIONS, values)).one()
        return bool(row.cli), SessionId(row.sessions[0]) if row.cli and len(row.sessions) == 1 else None

    async def _watched(
        self,
        statement: TextClause,
        *,
        among: Collection[SandboxId] | None,
        **values: Any,  # Any: parameters of any type
    ) -> Sequence[Watched]:
        if among is not None:
            values["among"] = sorted(among)
        with translated():
            rows = (await self._connection.execute(statement, values)).mappings().all()
        return [
            Watched(
                sandbox=SandboxId(row["sandbox"]),
                incarnation=IncarnationId(row["incarnation"]),
                endpoint=AgentEndpoint(host=row["host"], port=row["port"], server_name=row["server_name"]),
                after=row["after"],
            )
            for row in rows
        ]


async def _read(row: Row) -> PackageRecord:
    packed = bytes(row["packages"])
    known = unpack(packed) if len(packed) < LARGE_BYTES else await asyncio.to_thread(unpack, packed)
    return read_record(row, known)


async def _pack(record: PackageRecord) -> bytes:
    known = record.known.values()
    return pack(known) if len(known) < LARGE_SET else await asyncio.to_thread(pack, known)

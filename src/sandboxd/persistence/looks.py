"""The sweep's looks at sandboxes. Used within one transaction; candidates are found by an index over their times."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Select, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.lifecycle_ports import Announced, Candidate, Look, LookRepository, Noted
from sandboxd.model.idleness import Reading
from sandboxd.model.ids import ClientId, IncarnationId, SandboxId
from sandboxd.model.lifecycle import LifecycleStep
from sandboxd.persistence.errors import translated
from sandboxd.persistence.lifecycle_rows import read_overrides
from sandboxd.persistence.newer import read_many
from sandboxd.persistence.sandbox_rows import Row, read_sandbox
from sandboxd.persistence.tables import ClientRow, SandboxLookRow, SandboxRow
from sandboxd.persistence.tables.base import table

_SANDBOXES: Final = table(SandboxRow)
_CLIENTS: Final = table(ClientRow)
_LOOKS: Final = table(SandboxLookRow)
_RESTING: Final = text("sandboxes.state IN ('ACTIVE', 'HIBERNATED', 'STOPPED', 'PAUSED')")
"""Written out as in the index, so that PostgreSQL sees that the index is the right one."""
_LOOK: Final = ("step", "step_time", "idle_time", "incarnation", "reading_time", "cpu_seconds", "failures", "hindrance")


class PostgresLookRepository(LookRepository):
    """Looks of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def due(self, *, at: datetime, limit: int) -> Sequence[Candidate]:
        c = _SANDBOXES.c
        return await self._read(_candidates().where(c.look_time <= at).order_by(c.look_time, c.id).limit(limit))

    @override
    async def every(self, *, limit: int, after: SandboxId | None = None) -> Sequence[Candidate]:
        statement = _candidates()
        if after is not None:
            statement = statement.where(_SANDBOXES.c.id > after)
        return await self._read(statement.order_by(_SANDBOXES.c.id).limit(limit))

    @override
    async def note(self, noted: Sequence[Noted]) -> None:
        if not noted:
            return
        c = _SANDBOXES.c
        # Free ones only, in one order: two sweeps at once must not wait for each other, nor for whoever works there.
        free = (
            select(c.id)
            .where(c.id == func.any([one.sandbox for one in noted]))
            .order_by(c.id)
            .with_for_update(key_share=True, skip_locked=True)
        )
        with translated():
            held = set((await self._connection.execute(free)).scalars())
            written = [one for one in noted if one.sandbox in held]
            if not written:
                return
            await self._connection.execute(_LATER, _later(written))
            changed_looks = [_values(one) for one in written if one.changed]
            if not changed_looks:
                return
            statement = insert(_LOOKS)
            changed = {name: statement.excluded[name] for name in _LOOK}
            statement = statement.on_conflict_do_update(index_elements=["sandbox"], set_=changed)
            await self._connection.execute(statement, changed_looks)

    @override
    async def find(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, Candidate]:
        found = await self._read(_candidates().where(_SANDBOXES.c.id == func.any(sorted(sandboxes))))
        return {one.sandbox.id: one for one in found}

    @override
    async def hasten(self, client: ClientId, *, at: datetime) -> None:
        c = _SANDBOXES.c
        statement = update(_SANDBOXES).values(look_time=at).where(c.client == client, c.look_time > at, _RESTING)
        with translated():
            await self._connection.execute(statement)

    async def _read(self, statement: Select[Any]) -> Sequence[Candidate]:  # Any: rows of many columns
        with translated():
            rows = (await self._connection.execute(statement)).mappings().all()
        return read_many(rows, _read_candidate)


def _read_candidate(row: Row) -> Candidate:
    return Candidate(
        sandbox=read_sandbox(row),
        wishes=read_overrides((row["client_policy"] or {}).get("lifecycle")),
        look=_read_look(row),
    )


_LATER: Final = text("""
    UPDATE sandboxes AS s SET look_time = n.look_time
    FROM unnest(CAST(:ids AS text[]), CAST(:versions AS bigint[]), CAST(:dirty AS timestamptz[]),
                CAST(:times AS timestamptz[]))
        AS n (id, version, dirty_since, look_time)
    WHERE s.id = n.id AND s.version = n.version AND s.dirty_since IS NOT DISTINCT FROM n.dirty_since
""")


def _later(noted: Sequence[Noted]) -> dict[str, Any]:  # Any: parameters of any type
    return {
        "ids": [one.sandbox for one in noted],
        "versions": [one.version for one in noted],
        "dirty": [one.dirty_since for one in noted],
        "times": [one.look_time for one in noted],
    }


def _candidates() -> Select[Any]:  # Any: rows of many columns
    looks = [_LOOKS.c[name].label(f"look_{name}") for name in _LOOK]
    joined = _SANDBOXES.join(_CLIENTS, _CLIENTS.c.id == _SANDBOXES.c.client).outerjoin(
        _LOOKS, _LOOKS.c.sandbox == _SANDBOXES.c.id
    )
    return select(_SANDBOXES, _CLIENTS.c.policy.label("client_policy"), *looks).select_from(joined).where(_RESTING)


def _values(noted: Noted) -> dict[str, Any]:  # Any: columns of any type
    announced, reading = noted.look.announced, noted.look.reading
    return {
        "sandbox": noted.sandbox,
        "step": announced.step.value if announced else None,
        "step_time": announced.time if announced else None,
        "idle_time": announced.since if announced else None,
        "incarnation": reading.incarnation if reading else None,
        "reading_time": reading.time if reading else None,
        "cpu_seconds": reading.cpu_time.total_seconds() if reading else None,
        "failures": noted.look.failures,
        "hindrance": noted.look.hindrance,
    }


def _read_look(row: Row) -> Look:
    if row["look_failures"] is None:
        return Look()
    announced = reading = None
    if row["look_step"] is not None:
        announced = Announced(
            step=LifecycleStep(row["look_step"]), time=row["look_step_time"], since=row["look_idle_time"]
        )
    if row["look_incarnation"] is not None:
        reading = Reading(
            incarnation=IncarnationId(row["look_incarnation"]),
            time=row["look_reading_time"],
            cpu_time=timedelta(seconds=row["look_cpu_seconds"]),
        )
    return Look(announced=announced, reading=reading, failures=row["look_failures"], hindrance=row["look_hindrance"])

"""The rows of restore drills. Used within one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, delete, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.drill_ports import DrillRepository
from sandboxd.manager.ports import MAX_PAGE_SIZE
from sandboxd.model.backup import BackupSetId, Volume
from sandboxd.model.drill import (
    Drill,
    DrilledVolume,
    DrillId,
    DrillInProgressError,
    DrillNotFoundError,
    DrillStatus,
    DrillTrigger,
)
from sandboxd.model.errors import ConflictError
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.persistence.errors import translated
from sandboxd.persistence.paging import make_token, read_token
from sandboxd.persistence.sandbox_rows import Row, Values
from sandboxd.persistence.tables import RestoreDrillRow
from sandboxd.persistence.tables.base import table

_DRILLS: Final = table(RestoreDrillRow)
_RUNNING: Final = DrillStatus.RUNNING.value


class PostgresDrillRepository(DrillRepository):
    """Drills of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def begin(self, drill: Drill) -> None:
        statement = insert(_DRILLS).values(_values(drill)).on_conflict_do_nothing()
        with translated():
            made = (await self._connection.execute(statement)).rowcount
        if not made:
            raise DrillInProgressError("A drill runs already: one at a time. Try again when it has ended.")

    @override
    async def get(self, drill: DrillId, *, for_update: bool = False) -> Drill:
        statement = select(_DRILLS).where(_DRILLS.c.id == drill)
        found = await self._many(statement.with_for_update() if for_update else statement)
        if not found:
            raise DrillNotFoundError(drill)
        return found[0]

    @override
    async def asked_for(self, request_id: RequestId) -> Drill | None:
        found = await self._many(select(_DRILLS).where(_DRILLS.c.request_id == request_id))
        return found[0] if found else None

    @override
    async def save(self, drill: Drill) -> None:
        c = _DRILLS.c
        values = _values(drill)
        del values["cancelled"]
        statement = update(_DRILLS).values(values).where(c.id == drill.id, c.version == drill.version - 1)
        with translated():
            changed = (await self._connection.execute(statement)).rowcount
        if not changed:
            raise ConflictError(f"Drill {drill.id} was changed by somebody else. Try again.", drill=drill.id)

    @override
    async def cancel(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        c = _DRILLS.c
        statement = update(_DRILLS).values(cancelled=True).where(c.client == client, c.status == _RUNNING)
        if freelancer is not None:
            statement = statement.where(c.freelancer == freelancer)
        with translated():
            return (await self._connection.execute(statement)).rowcount

    @override
    async def unfinished(self) -> Sequence[Drill]:
        return await self._many(select(_DRILLS).where(_DRILLS.c.status == _RUNNING))

    @override
    async def newest(self) -> Drill | None:
        c = _DRILLS.c
        found = await self._many(select(_DRILLS).order_by(c.create_time.desc(), c.id.desc()).limit(1))
        return found[0] if found else None

    @override
    async def proven_since(self) -> datetime | None:
        c = _DRILLS.c
        passed = func.max(c.create_time).filter(c.status == DrillStatus.PASSED.value)
        with translated():
            found: datetime | None = (
                await self._connection.execute(select(func.coalesce(passed, func.min(c.create_time))))
            ).scalar_one()
        return found

    @override
    async def list(self, client: ClientId | None, *, page_size: int, page_token: str) -> Page[Drill]:
        c = _DRILLS.c
        size, this = max(1, min(page_size, MAX_PAGE_SIZE)), f"drills of {client or 'all'}"
        statement = select(_DRILLS)
        if client is not None:
            statement = statement.where(c.client == client)
        if page_token:
            statement = statement.where(tuple_(c.create_time, c.id) < tuple_(*read_token(page_token, of=this)))
        items = await self._many(statement.order_by(c.create_time.desc(), c.id.desc()).limit(size + 1))
        more, items = len(items) > size, items[:size]
        return Page(items=items, next_token=make_token(items[-1].create_time, items[-1].id, of=this) if more else "")

    @override
    async def pick(self, *, most_bytes: int) -> BackupSetId | None:
        statement = """
            WITH newest AS (
                SELECT DISTINCT ON (sandbox) id, sandbox, client, take_time,
                    (SELECT sum((one->>'bytes')::numeric) FROM jsonb_array_elements(volumes) one) AS bytes
                FROM backup_sets WHERE status = 'complete' AND method = 'files'
                ORDER BY sandbox, take_time DESC, id DESC
            ), clients_turns AS (
                SELECT client, max(create_time) AS last FROM restore_drills GROUP BY client
            ), sandboxes_turns AS (
                SELECT sandbox, max(create_time) AS last FROM restore_drills GROUP BY sandbox
            )
            SELECT n.id FROM newest n JOIN clients c ON c.id = n.client
            LEFT JOIN clients_turns ct ON ct.client = n.client
            LEFT JOIN sandboxes_turns st ON st.sandbox = n.sandbox
            WHERE c.state NOT IN ('DELETING', 'DELETED') AND n.bytes <= :most
            ORDER BY ct.last NULLS FIRST, st.last NULLS FIRST, n.take_time DESC, n.id LIMIT 1
        """
        with translated():
            found = (await self._connection.execute(text(statement), {"most": most_bytes})).scalar_one_or_none()
        return None if found is None else BackupSetId(found)

    @override
    async def forget(self, *, before: datetime, limit: int) -> int:
        c = _DRILLS.c
        old = select(c.id).where(c.end_time < before).limit(limit).with_for_update(skip_locked=True)
        with translated():
            return (await self._connection.execute(delete(_DRILLS).where(c.id.in_(old)))).rowcount

    async def _many(self, statement: Select[Any]) -> Sequence[Drill]:  # Any: rows of any shape
        with translated():
            return [_read(row) for row in (await self._connection.execute(statement)).mappings()]


def _values(drill: Drill) -> Values:
    return {
        "id": drill.id,
        "backup": drill.backup,
        "sandbox": drill.sandbox,
        "client": drill.client,
        "freelancer": drill.freelancer,
        "trigger": drill.trigger.value,
        "request_id": drill.request_id,
        "status": drill.status.value,
        "cancelled": drill.cancelled,
        "attempts": drill.attempts,
        "image": drill.image,
        "volumes": [
            {
                "volume": one.volume.value,
                "entries": one.entries,
                "bytes": one.bytes,
                "expected": one.expected,
                "found": one.found,
                "differences": list(one.differences),
                "difference_count": one.difference_count,
            }
            for one in drill.volumes
        ],
        "seconds": dict(drill.seconds),
        "failure": drill.failure,
        "failure_message": drill.failure_message,
        "create_time": drill.create_time,
        "update_time": drill.update_time,
        "end_time": drill.end_time,
        "version": drill.version,
    }


def _read(row: Row) -> Drill:
    return Drill(
        id=DrillId(row["id"]),
        backup=BackupSetId(row["backup"]),
        sandbox=SandboxId(row["sandbox"]),
        client=ClientId(row["client"]),
        freelancer=FreelancerId(row["freelancer"]),
        trigger=DrillTrigger(row["trigger"]),
        request_id=None if row["request_id"] is None else RequestId(row["request_id"]),
        status=DrillStatus(row["status"]),
        cancelled=row["cancelled"],
        attempts=row["attempts"],
        image=row["image"],
        volumes=tuple(
            DrilledVolume(
                volume=Volume(one["volume"]),
                entries=one["entries"],
                bytes=one["bytes"],
                expected=one["expected"],
                found=one["found"],
                differences=tuple(one["differences"]),
                difference_count=one["difference_count"],
            )
            for one in row["volumes"]
        ),
        seconds=row["seconds"],
        failure=row["failure"],
        failure_message=row["failure_message"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        end_time=row["end_time"],
        version=row["version"],
    )

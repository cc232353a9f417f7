"""The rows of backup sets. Used within one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Select, delete, func, literal, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.backup_ports import BackupInProgressError, BackupSetNotFoundError, BackupSetRepository
from sandboxd.manager.ports import MAX_PAGE_SIZE
from sandboxd.model.backup import (
    BackupSet,
    BackupSetId,
    BackupSetProgress,
    BackupSetStatus,
    RestoreId,
)
from sandboxd.model.backup_spec import ENDED_INCARNATION
from sandboxd.model.erasure import ERASED_MARK
from sandboxd.model.errors import ConflictError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import SandboxState
from sandboxd.persistence.backup_rows import backup_values, read_backup
from sandboxd.persistence.errors import translated
from sandboxd.persistence.newer import read_many, read_one
from sandboxd.persistence.paging import make_token, read_token
from sandboxd.persistence.progress_rows import progress_json
from sandboxd.persistence.sandbox_rows import Row, Values
from sandboxd.persistence.tables import BackupSetRow, SandboxRow
from sandboxd.persistence.tables.base import table
from sandboxd.volumes.volume_errors import VolumesNotFoundError

_BACKUPS: Final = table(BackupSetRow)
_SANDBOXES: Final = table(SandboxRow)
_DELETED: Final = BackupSetStatus.DELETED.value
_UNFINISHED: Final = (BackupSetStatus.CREATING.value, BackupSetStatus.DELETING.value)
_RETAINED: Final = (BackupSetStatus.COMPLETE.value, BackupSetStatus.FAILED.value)
_PINNING: Final = (BackupSetStatus.CREATING.value, BackupSetStatus.COMPLETE.value)


class PostgresBackupSetRepository(BackupSetRepository):
    """Backup sets of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def begin(self, backup: BackupSet) -> None:
        # The one index that may be in the way; another conflict is an error. As a text: a parameter matches no index.
        one_at_a_time = text(f"status = '{BackupSetStatus.CREATING.value}'")
        statement = insert(_BACKUPS).values(backup_values(backup))
        statement = statement.on_conflict_do_nothing(index_elements=["sandbox"], index_where=one_at_a_time)
        with translated():
            made = (await self._connection.execute(statement)).rowcount
        if not made:
            raise BackupInProgressError(backup.sandbox)

    @override
    async def get(self, backup: BackupSetId, *, for_update: bool = False) -> BackupSet:
        statement = select(_BACKUPS).where(_BACKUPS.c.id == backup)
        found = await self._many(statement.with_for_update() if for_update else statement)
        if not found:
            raise BackupSetNotFoundError(backup)
        return found[0]

    @override
    async def save(self, backup: BackupSet) -> None:
        c = _BACKUPS.c
        values = backup_values(backup)
        del values["cancelled"]
        statement = update(_BACKUPS).values(values)
        statement = statement.where(c.id == backup.id, c.version == backup.version - 1)
        with translated():
            changed = (await self._connection.execute(statement)).rowcount
        if not changed:
            raise ConflictError(f"Backup {backup.id} was changed by somebody else. Try again.", backup=backup.id)

    @override
    async def note_progress(self, backup: BackupSetId, progress: BackupSetProgress, *, at: datetime) -> None:
        await self._change_in_flight(backup, {"progress": progress_json(progress), "update_time": at})

    @override
    async def cancel(self, backup: BackupSetId) -> None:
        await self._change_in_flight(backup, {"cancelled": True})

    async def _change_in_flight(self, backup: BackupSetId, values: Values) -> None:
        c = _BACKUPS.c
        statement = update(_BACKUPS).values(values)
        with translated():
            await self._connection.execute(statement.where(c.id == backup, c.status == BackupSetStatus.CREATING.value))

    @override
    async def list(
        self, client: ClientId, *, sandbox: SandboxId | None = None, deleted: bool, page_size: int, page_token: str
    ) -> Page[BackupSet]:
        c = _BACKUPS.c
        size = max(1, min(page_size, MAX_PAGE_SIZE))
        this = f"backups of {client} {sandbox or ''} {deleted}"
        statement = select(_BACKUPS).where(c.client == client)
        if sandbox is not None:
            statement = statement.where(c.sandbox == sandbox)
        if not deleted:
            statement = statement.where(c.status != _DELETED)
        if page_token:
            statement = statement.where(tuple_(c.take_time, c.id) < tuple_(*read_token(page_token, of=this)))
        rows = await self._rows(statement.order_by(c.take_time.desc(), c.id.desc()).limit(size + 1))
        token = make_token(rows[size - 1]["take_time"], rows[size - 1]["id"], of=this) if len(rows) > size else ""
        return Page(items=read_many(rows[:size], read_backup), next_token=token)

    @override
    async def of_sandbox(self, sandbox: SandboxId, *, limit: int) -> Sequence[BackupSet]:
        c = _BACKUPS.c
        statement = select(_BACKUPS).where(c.sandbox == sandbox, c.status != _DELETED)
        return await self._many(statement.order_by(c.take_time.desc(), c.id.desc()).limit(limit))

    @override
    async def newest(self, sandbox: SandboxId) -> BackupSet | None:
        c = _BACKUPS.c
        statement = select(_BACKUPS).where(c.sandbox == sandbox, c.status == BackupSetStatus.COMPLETE.value)
        found = await self._many(statement.order_by(c.take_time.desc(), c.id.desc()).limit(1))
        return found[0] if found else None

    @override
    async def restoring(self, backup: BackupSetId) -> SandboxId | None:
        c = _SANDBOXES.c
        statement = select(c.id).where(
            c.state == SandboxState.RESTORING.value,
            c.restoring["backup"].astext == backup,
            c.restoring["restored"].astext == "false",
        )
        with translated():
            found = (await self._connection.execute(statement.limit(1))).scalar()
        return None if found is None else SandboxId(found)

    @override
    async def note_restore(self, sandbox: SandboxId, restore: RestoreId, progress: BackupSetProgress) -> None:
        c = _SANDBOXES.c
        added = literal({"progress": progress_json(progress)}, type_=c.restoring.type)
        statement = update(_SANDBOXES).values(restoring=c.restoring.op("||")(added))
        with translated():
            await self._connection.execute(
                statement.where(c.id == sandbox, c.state == SandboxState.RESTORING.value).where(
                    c.restoring["id"].astext == restore
                )
            )

    @override
    async def unfinished(self, *, limit: int, after: BackupSetId | None = None) -> Sequence[BackupSet]:
        c = _BACKUPS.c
        statement = select(_BACKUPS).where(c.status.in_(_UNFINISHED), c.id > (after or ""))
        return read_many(await self._rows(statement.order_by(c.id).limit(limit)), read_backup)

    @override
    async def deleting(self, client: ClientId, *, limit: int) -> Sequence[BackupSet]:
        c = _BACKUPS.c
        statement = select(_BACKUPS).where(c.client == client, c.status == BackupSetStatus.DELETING.value)
        return await self._many(statement.order_by(c.id).limit(limit))

    @override
    async def pinned(self, *, limit: int, after: str = "") -> Sequence[tuple[str, BackupSetId]]:
        c = _BACKUPS.c
        # In the order of bytes, as the place after which a page begins is compared by bytes too.
        image = c.image.collate("C")
        statement = select(c.image, func.min(c.id)).where(c.image != "", image > after, c.status.in_(_PINNING))
        with translated():
            rows = (await self._connection.execute(statement.group_by(c.image).order_by(image).limit(limit))).all()
        return [(row[0], BackupSetId(row[1])) for row in rows]

    @override
    async def due(
        self, *, at: datetime, every: timedelta, retry_before: datetime, limit: int, after: SandboxId | None = None
    ) -> Sequence[SandboxId]:
        seconds = "COALESCE((c.policy->>'backup_every_seconds')::float8, :seconds)"
        before = f"(CAST(:at AS timestamptz) - {seconds} * interval '1 second')"
        return await self._sandboxes(
            f"""
            s.state IN ('ACTIVE', 'HIBERNATED', 'STOPPED', 'PAUSED') AND {seconds} > 0 AND s.create_time < {before}
            AND NOT EXISTS (
                SELECT FROM backup_sets b WHERE b.sandbox = s.id
                AND (b.status = 'creating' OR (b.failure <> '' AND b.create_time >= :retry_before)
                    OR (b.status = 'complete' AND (b.take_time >= {before} OR b.take_time >= s.last_use_time))))
            """,
            limit=limit,
            after=after,
            at=at,
            seconds=every.total_seconds(),
            retry_before=retry_before,
        )

    @override
    async def ended(
        self, *, retry_before: datetime, of_end: bool = False, limit: int, after: SandboxId | None = None
    ) -> Sequence[SandboxId]:
        return await self._sandboxes(
            f"""
            s.state = 'TERMINATED' AND s.state_reason <> :erased AND s.terminate_time IS NOT NULL
            AND NOT COALESCE(s.released->>'incarnation' = s.incarnation, false)
            AND NOT EXISTS (
                SELECT FROM backup_sets b WHERE b.sandbox = s.id AND b.create_time >= s.terminate_time
                AND (b.failure = :nothing OR b.create_time >= :retry_before OR (b.failure = '' AND (
                    NOT :of_end OR b.status <> 'complete' OR s.incarnation IS NULL
                    OR b.spec->>'{ENDED_INCARNATION}' IS NOT NULL))))
            """,
            limit=limit,
            after=after,
            erased=ERASED_MARK,
            nothing=VolumesNotFoundError.reason,
            retry_before=retry_before,
            of_end=of_end,
        )

    @override
    async def to_release(
        self, *, ended_before: datetime | None, limit: int, after: SandboxId | None = None
    ) -> Sequence[SandboxId]:
        return await self._sandboxes(
            f"""
            s.state = 'TERMINATED' AND s.state_reason <> :erased AND s.incarnation IS NOT NULL AND (
                (s.released->>'incarnation' = s.incarnation AND s.released->>'end_time' IS NULL)
                OR (s.released->>'incarnation' IS DISTINCT FROM s.incarnation
                    AND s.terminate_time < CAST(:ended_before AS timestamptz)
                    AND EXISTS (
                        SELECT FROM backup_sets b WHERE b.sandbox = s.id AND b.status = 'complete'
                        AND b.consistency = 'quiesced' AND b.spec->>'{ENDED_INCARNATION}' = s.incarnation)))
            """,
            limit=limit,
            after=after,
            erased=ERASED_MARK,
            ended_before=ended_before,
        )

    async def _sandboxes(
        self, condition: str, *, limit: int, after: SandboxId | None, **values: str | float | datetime | None
    ) -> Sequence[SandboxId]:
        statement = f"""
            SELECT s.id FROM sandboxes s JOIN clients c ON c.id = s.client
            WHERE s.id > :after AND c.state NOT IN ('DELETING', 'DELETED') AND {condition}
            ORDER BY s.id LIMIT :limit
        """  # noqa: S608  constant text
        with translated():
            found = await self._connection.execute(text(statement), {"limit": limit, "after": after or "", **values})
        return [SandboxId(one) for one in found.scalars()]

    @override
    async def sandboxes(self, *, limit: int, after: SandboxId | None = None) -> Sequence[SandboxId]:
        c = _BACKUPS.c
        statement = select(c.sandbox).where(c.sandbox > (after or ""), c.status.in_(_RETAINED))
        with translated():
            found = await self._connection.execute(statement.distinct().order_by(c.sandbox).limit(limit))
        return [SandboxId(one) for one in found.scalars()]

    @override
    async def of_owner(
        self, client: ClientId, freelancer: FreelancerId | None, *, limit: int, after: BackupSetId | None = None
    ) -> Sequence[BackupSet]:
        c = _BACKUPS.c
        statement = select(_BACKUPS).where(c.client == client, c.status != _DELETED, c.id > (after or ""))
        if freelancer is not None:
            statement = statement.where(c.freelancer == freelancer)
        return await self._many(statement.order_by(c.id).limit(limit))

    @override
    async def forget(self, *, before: datetime, limit: int) -> int:
        c = _BACKUPS.c
        old = select(c.id).where(c.status == _DELETED, c.update_time < before)
        old = old.limit(limit).with_for_update(skip_locked=True)
        with translated():
            return (await self._connection.execute(delete(_BACKUPS).where(c.id.in_(old)))).rowcount

    async def _many(self, statement: Select[Any]) -> Sequence[BackupSet]:  # Any: rows of any shape
        return [read_one(row, read_backup) for row in await self._rows(statement)]

    async def _rows(self, statement: Select[Any]) -> Sequence[Row]:  # Any: rows of any shape
        with translated():
            rows: Sequence[Row] = (await self._connection.execute(statement)).mappings().all()
        return rows

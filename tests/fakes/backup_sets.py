"""Backup sets in memory, as part of a `FakeUnits`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from typing_extensions import override

from sandboxd.manager.backup_ports import BackupInProgressError, BackupSetNotFoundError, BackupSetRepository
from sandboxd.model.backup import BackupSet, BackupSetId, BackupSetProgress, BackupSetStatus, RestoreId
from sandboxd.model.backup_spec import ENDED_INCARNATION
from sandboxd.model.client import AccountState, Client
from sandboxd.model.erasure import ERASED_MARK
from sandboxd.model.errors import ConflictError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.volume_release import has_end_of
from sandboxd.persistence.paging import make_token, read_token

_S = BackupSetStatus
_LEAVING = {AccountState.DELETING, AccountState.DELETED}
_RESTING = {SandboxState.ACTIVE, SandboxState.HIBERNATED, SandboxState.STOPPED, SandboxState.PAUSED}


class _Rows(Protocol):
    backup_sets: dict[BackupSetId, BackupSet]
    sandboxes: dict[SandboxId, Sandbox]
    clients: dict[ClientId, Client]


class _Work(Protocol):
    async def read(self) -> _Rows: ...
    async def write(self) -> _Rows: ...


class FakeBackupSetRepository(BackupSetRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def begin(self, backup: BackupSet) -> None:
        rows = await self.work.write()
        if any(one.sandbox == backup.sandbox and one.status is _S.CREATING for one in rows.backup_sets.values()):
            raise BackupInProgressError(backup.sandbox)
        rows.backup_sets[backup.id] = backup

    @override
    async def get(self, backup: BackupSetId, *, for_update: bool = False) -> BackupSet:
        rows = await (self.work.write() if for_update else self.work.read())
        if backup not in rows.backup_sets:
            raise BackupSetNotFoundError(backup)
        return rows.backup_sets[backup]

    @override
    async def save(self, backup: BackupSet) -> None:
        rows = await self.work.write()
        before = rows.backup_sets.get(backup.id)
        if before is None or before.version != backup.version - 1:
            raise ConflictError(f"Backup {backup.id} was changed by somebody else.")
        rows.backup_sets[backup.id] = replace(backup, cancelled=before.cancelled)

    @override
    async def note_progress(self, backup: BackupSetId, progress: BackupSetProgress, *, at: datetime) -> None:
        rows = await self.work.write()
        found = rows.backup_sets[backup]
        if found.status is _S.CREATING:
            rows.backup_sets[backup] = replace(found, progress=progress, update_time=at)

    @override
    async def cancel(self, backup: BackupSetId) -> None:
        rows = await self.work.write()
        found = rows.backup_sets[backup]
        if found.status is _S.CREATING:
            rows.backup_sets[backup] = replace(found, cancelled=True)

    @override
    async def list(
        self, client: ClientId, *, sandbox: SandboxId | None = None, deleted: bool, page_size: int, page_token: str
    ) -> Page[BackupSet]:
        def wanted(one: BackupSet) -> bool:
            ours = one.client == client and sandbox in {None, one.sandbox}
            return ours and (deleted or one.status is not _S.DELETED)

        this = f"backups of {client} {sandbox or ''} {deleted}"
        found = await self._where(wanted)
        if page_token:
            place = read_token(page_token, of=this)
            found = [one for one in found if (one.take_time, one.id) < place]
        page = found[:page_size]
        more = len(found) > page_size
        return Page(items=page, next_token=make_token(page[-1].take_time, page[-1].id, of=this) if more else "")

    @override
    async def of_sandbox(self, sandbox: SandboxId, *, limit: int) -> Sequence[BackupSet]:
        found = await self._where(lambda one: one.sandbox == sandbox and one.status is not _S.DELETED)
        return found[:limit]

    @override
    async def newest(self, sandbox: SandboxId) -> BackupSet | None:
        found = await self._where(lambda one: one.sandbox == sandbox and one.status is _S.COMPLETE)
        return found[0] if found else None

    @override
    async def restoring(self, backup: BackupSetId) -> SandboxId | None:
        for one in (await self.work.read()).sandboxes.values():
            asked = one.restoring if one.state is SandboxState.RESTORING else None
            if asked is not None and asked.backup == backup and not asked.restored:
                return one.id
        return None

    @override
    async def note_restore(self, sandbox: SandboxId, restore: RestoreId, progress: BackupSetProgress) -> None:
        rows = await self.work.write()
        found = rows.sandboxes[sandbox]
        if found.state is SandboxState.RESTORING and found.restoring is not None and found.restoring.id == restore:
            rows.sandboxes[sandbox] = replace(found, restoring=replace(found.restoring, progress=progress))

    @override
    async def unfinished(self, *, limit: int, after: BackupSetId | None = None) -> Sequence[BackupSet]:
        found = await self._where(lambda one: one.status in {_S.CREATING, _S.DELETING} and one.id > (after or ""))
        return sorted(found, key=lambda one: one.id)[:limit]

    @override
    async def deleting(self, client: ClientId, *, limit: int) -> Sequence[BackupSet]:
        found = await self._where(lambda one: one.client == client and one.status is _S.DELETING)
        return sorted(found, key=lambda one: one.id)[:limit]

    @override
    async def pinned(self, *, limit: int, after: str = "") -> Sequence[tuple[str, BackupSetId]]:
        found = await self._where(lambda one: one.image > after and one.status in {_S.CREATING, _S.COMPLETE})
        first: dict[str, BackupSetId] = {}
        for one in found:
            first[one.image] = min(one.id, first.get(one.image, one.id))
        return sorted(first.items())[:limit]

    @override
    async def due(
        self, *, at: datetime, every: timedelta, retry_before: datetime, limit: int, after: SandboxId | None = None
    ) -> Sequence[SandboxId]:
        rows = await self.work.read()

        def wanted(sandbox: Sandbox) -> bool:
            client = rows.clients.get(sandbox.client)
            own_every = None if client is None else client.policy.backup_every
            span = every if own_every is None else own_every
            before = at - span
            own = [one for one in rows.backup_sets.values() if one.sandbox == sandbox.id]
            return (
                sandbox.state in _RESTING
                and bool(span)
                and sandbox.create_time < before
                and not any(
                    one.status is _S.CREATING or (one.failure and one.create_time >= retry_before) for one in own
                )
                and not any(
                    one.status is _S.COMPLETE and one.take_time >= min(before, sandbox.last_use_time) for one in own
                )
            )

        return self._ids(rows, wanted, after)[:limit]

    @override
    async def ended(
        self, *, retry_before: datetime, of_end: bool = False, limit: int, after: SandboxId | None = None
    ) -> Sequence[SandboxId]:
        rows = await self.work.read()

        def wanted(sandbox: Sandbox) -> bool:
            ended = sandbox.terminate_time
            own = [one for one in rows.backup_sets.values() if one.sandbox == sandbox.id]
            return (
                sandbox.state is SandboxState.TERMINATED
                and ended is not None
                and sandbox.state_reason != ERASED_MARK
                and sandbox.volumes_released is None
                and not any(
                    one.create_time >= ended
                    and (
                        one.failure == "VOLUMES_NOT_FOUND"
                        or one.create_time >= retry_before
                        or (not one.failure and (not of_end or one.status is not _S.COMPLETE or says_end(one, sandbox)))
                    )
                    for one in own
                )
            )

        def says_end(one: BackupSet, sandbox: Sandbox) -> bool:
            return sandbox.incarnation is None or ENDED_INCARNATION in one.spec

        return self._ids(rows, wanted, after)[:limit]

    @override
    async def to_release(
        self, *, ended_before: datetime | None, limit: int, after: SandboxId | None = None
    ) -> Sequence[SandboxId]:
        rows = await self.work.read()

        def wanted(sandbox: Sandbox) -> bool:
            if sandbox.state is not SandboxState.TERMINATED or sandbox.state_reason == ERASED_MARK:
                return False
            if sandbox.volumes_released is not None:
                return sandbox.volumes_released.end_time is None
            own = [one for one in rows.backup_sets.values() if one.sandbox == sandbox.id]
            ended = sandbox.terminate_time
            over = ended is not None and ended_before is not None and ended < ended_before
            return over and any(has_end_of(one, sandbox) for one in own)

        return self._ids(rows, wanted, after)[:limit]

    @staticmethod
    def _ids(rows: _Rows, wanted: Callable[[Sandbox], bool], after: SandboxId | None) -> Sequence[SandboxId]:
        leaving = {name for name, one in rows.clients.items() if one.state in _LEAVING}
        return sorted(
            one.id
            for one in rows.sandboxes.values()
            if one.id > (after or "") and one.client not in leaving and wanted(one)
        )

    @override
    async def sandboxes(self, *, limit: int, after: SandboxId | None = None) -> Sequence[SandboxId]:
        found = await self._where(lambda one: one.status in {_S.COMPLETE, _S.FAILED} and one.sandbox > (after or ""))
        return sorted({one.sandbox for one in found})[:limit]

    @override
    async def of_owner(
        self, client: ClientId, freelancer: FreelancerId | None, *, limit: int, after: BackupSetId | None = None
    ) -> Sequence[BackupSet]:
        def wanted(one: BackupSet) -> bool:
            ours = one.client == client and freelancer in {None, one.freelancer}
            return ours and one.status is not _S.DELETED and one.id > (after or "")

        return sorted(await self._where(wanted), key=lambda one: one.id)[:limit]

    @override
    async def forget(self, *, before: datetime, limit: int) -> int:
        rows = await self.work.write()
        old = [one for one in rows.backup_sets.values() if one.status is _S.DELETED and one.update_time < before]
        for one in old[:limit]:
            del rows.backup_sets[one.id]
        return len(old[:limit])

    async def _where(self, wanted: Callable[[BackupSet], bool]) -> Sequence[BackupSet]:
        found = [one for one in (await self.work.read()).backup_sets.values() if wanted(one)]
        return sorted(found, key=lambda one: (one.take_time, one.id), reverse=True)

"""Restore drills in memory, as part of a `FakeUnits`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from typing_extensions import override

from sandboxd.manager.drill_ports import DrillRepository
from sandboxd.model.backup import BackupMethod, BackupSet, BackupSetId, BackupSetStatus
from sandboxd.model.client import AccountState, Client
from sandboxd.model.drill import Drill, DrillId, DrillInProgressError, DrillNotFoundError, DrillStatus
from sandboxd.model.errors import ConflictError
from sandboxd.model.ids import ClientId, FreelancerId, RequestId
from sandboxd.model.paging import Page
from sandboxd.persistence.paging import make_token, read_token

_S = DrillStatus
_NEVER = datetime.min.replace(tzinfo=UTC)


class _Rows(Protocol):
    drills: dict[DrillId, Drill]
    backup_sets: dict[BackupSetId, BackupSet]
    clients: dict[ClientId, Client]


class _Work(Protocol):
    async def read(self) -> _Rows: ...
    async def write(self) -> _Rows: ...


class FakeDrillRepository(DrillRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def begin(self, drill: Drill) -> None:
        rows = await self.work.write()
        asked = drill.request_id is not None and any(one.request_id == drill.request_id for one in rows.drills.values())
        if asked or any(one.status is _S.RUNNING for one in rows.drills.values()):
            raise DrillInProgressError("A drill runs already.")
        rows.drills[drill.id] = drill

    @override
    async def get(self, drill: DrillId, *, for_update: bool = False) -> Drill:
        rows = await (self.work.write() if for_update else self.work.read())
        if drill not in rows.drills:
            raise DrillNotFoundError(drill)
        return rows.drills[drill]

    @override
    async def asked_for(self, request_id: RequestId) -> Drill | None:
        return next((one for one in (await self._all()) if one.request_id == request_id), None)

    @override
    async def save(self, drill: Drill) -> None:
        rows = await self.work.write()
        before = rows.drills.get(drill.id)
        if before is None or before.version != drill.version - 1:
            raise ConflictError(f"Drill {drill.id} was changed by somebody else.")
        rows.drills[drill.id] = replace(drill, cancelled=before.cancelled)

    @override
    async def cancel(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        rows = await self.work.write()
        found = [
            one
            for one in rows.drills.values()
            if one.client == client and one.status is _S.RUNNING and freelancer in (None, one.freelancer)
        ]
        for one in found:
            rows.drills[one.id] = replace(one, cancelled=True)
        return len(found)

    @override
    async def unfinished(self) -> Sequence[Drill]:
        return [one for one in await self._all() if one.status is _S.RUNNING]

    @override
    async def newest(self) -> Drill | None:
        return next(iter(await self._all()), None)

    @override
    async def proven_since(self) -> datetime | None:
        found = await self._all()
        passed = [one.create_time for one in found if one.status is _S.PASSED]
        return passed[0] if passed else (found[-1].create_time if found else None)

    @override
    async def list(self, client: ClientId | None, *, page_size: int, page_token: str) -> Page[Drill]:
        this = f"drills of {client or 'all'}"
        found = [one for one in await self._all() if client in (None, one.client)]
        if page_token:
            place = read_token(page_token, of=this)
            found = [one for one in found if (one.create_time, one.id) < place]
        page = found[:page_size]
        more = len(found) > page_size
        return Page(items=page, next_token=make_token(page[-1].create_time, page[-1].id, of=this) if more else "")

    @override
    async def pick(self, *, most_bytes: int) -> BackupSetId | None:
        rows = await self.work.read()
        newest: dict[str, BackupSet] = {}
        for one in sorted(rows.backup_sets.values(), key=lambda one: (one.take_time, one.id)):
            if one.status is BackupSetStatus.COMPLETE and one.method is BackupMethod.FILES:
                newest[one.sandbox] = one
        leaving = (AccountState.DELETING, AccountState.DELETED)
        found = [
            one for one in newest.values() if one.bytes <= most_bytes and rows.clients[one.client].state not in leaving
        ]

        def turn(one: BackupSet) -> tuple[datetime, datetime, float, str]:
            drills = rows.drills.values()
            of_client = max((each.create_time for each in drills if each.client == one.client), default=_NEVER)
            of_sandbox = max((each.create_time for each in drills if each.sandbox == one.sandbox), default=_NEVER)
            return of_client, of_sandbox, -one.take_time.timestamp(), one.id

        return min(found, key=turn).id if found else None

    @override
    async def forget(self, *, before: datetime, limit: int) -> int:
        rows = await self.work.write()
        old = [one for one in rows.drills.values() if one.end_time is not None and one.end_time < before][:limit]
        for one in old:
            del rows.drills[one.id]
        return len(old)

    async def _all(self) -> Sequence[Drill]:
        rows = await self.work.read()
        return sorted(rows.drills.values(), key=lambda one: (one.create_time, one.id), reverse=True)

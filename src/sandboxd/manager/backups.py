"""What callers can do with backups: make one, follow and cancel that, list what there is, delete with proof."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.access import require_visible
from sandboxd.manager.backing_up import BackingUp
from sandboxd.manager.backup_deletions import BackupDeletions
from sandboxd.manager.backup_keeping import BackupKeeping
from sandboxd.manager.backup_ports import MOST_SETS, BackupSetNotFoundError
from sandboxd.manager.changes import Changes
from sandboxd.manager.drill_keeping import DrillKeeping
from sandboxd.manager.drilling import Drilling
from sandboxd.manager.drills import Drills
from sandboxd.manager.outcome import restore_error
from sandboxd.manager.ports import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    ErrorRecord,
    RequestOutcome,
    RequestRecord,
    UnitOfWork,
    UnitsOfWork,
)
from sandboxd.manager.requests import Requests
from sandboxd.manager.restore_following import RestoreFollowing
from sandboxd.manager.volume_release import VolumeReleases
from sandboxd.model.backup import BackupFreeze, BackupSet, BackupSetId, BackupSetStatus, BackupTrigger
from sandboxd.model.backup_errors import BackupEndedError, BackupsOffError
from sandboxd.model.backup_retention import Keeping, holds
from sandboxd.model.caller import Caller, Request
from sandboxd.model.drill import DrillInProgressError
from sandboxd.model.errors import ErrorKind, InternalError, RequestIdReusedError, SandboxdError
from sandboxd.model.final_backup import FinalBackup, final_backup
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock, IdSource

WATCH_SECONDS: Final = 1.0
"""How often a backup that is followed is looked at."""
RECOVER_EVERY: Final = timedelta(seconds=5)
FORGET_EVERY: Final = timedelta(minutes=10)
DELETED_KEPT_FOR: Final = timedelta(days=365)
"""How long the proof of a deletion is kept."""
PAGE: Final = 100
_S = BackupSetStatus

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class BackupRoom:
    """What works on backups in this process: those in the making, and deletions."""

    units: UnitsOfWork
    making: BackingUp
    deletions: BackupDeletions
    keeping: BackupKeeping
    releases: VolumeReleases
    drilling: Drilling
    drill_keeping: DrillKeeping

    async def run(self) -> None:
        """Keep leases, and repair what crashes left, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.making.tasks.run(), name="backup-leases")
            group.create_task(self._recover(), name="backup-recovery")
            group.create_task(self.keeping.run(), name="backup-keeping")
            group.create_task(self.releases.run(), name="volume-releases")
            group.create_task(self.drilling.tasks.run(), name="drill-leases")
            group.create_task(self.drill_keeping.run(), name="drill-keeping")

    async def drain(self, *, grace: timedelta) -> None:
        """Let work end within the grace; the rest is for the recovery of whoever comes next."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.making.tasks.drain(grace=grace), name="drain-backing-up")
            group.create_task(self.releases.drain(grace=grace), name="drain-volume-releases")
            group.create_task(self.drilling.tasks.drain(grace=grace), name="drain-drills")

    async def finish_left_over(self) -> None:
        """Go on with every backup, every deletion and every drill that nobody works on."""
        after: BackupSetId | None = None
        clients = set[ClientId]()
        while True:
            async with self.units.begin() as work:
                page = await work.backup_sets.unfinished(limit=PAGE, after=after)
            if not page:
                break
            for one in page:
                if one.status is _S.CREATING:
                    await self.making.adopt(one.id)
                else:
                    clients.add(one.client)
            after = page[-1].id
        for client in sorted(clients):
            await self.deletions.begin(client, patient=True)
        async with self.units.begin() as work:
            drills = await work.drills.unfinished()
        for drill in drills:
            await self.drilling.adopt(drill.id)

    async def erase(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        """Destroy all backups of a freelancer, or of a client, once no drill works with any; see `BackupKeeping.erase`.

        Raises:
            BackupInProgressError, DrillInProgressError: One is being made, or tried; its end was asked for.
            UnavailableError, DeadlineError: The repository does not answer, or is busy.
        """
        async with self.units.begin() as work:
            running = await work.drills.cancel(client, freelancer)
            await work.commit()
        if running:
            raise DrillInProgressError("A backup of it is being tried. That ends soon, and the erasure goes on then.")
        return await self.keeping.erase(client, freelancer)

    async def _recover(self) -> None:
        clock = self.making.clock
        forget_at = clock.monotonic()
        while True:
            try:
                await self.finish_left_over()
                if clock.monotonic() >= forget_at:
                    async with self.units.begin() as work:
                        await work.backup_sets.forget(before=clock.now() - DELETED_KEPT_FOR, limit=10_000)
                        await work.commit()
                    forget_at = clock.monotonic() + FORGET_EVERY.total_seconds()
            except SandboxdError as error:
                log.warning("backup.recovery_failed", error=error.message)
            except Exception:  # a loop: one bad pass must not end all that follow
                log.exception("backup.recovery_broken")
            await asyncio.sleep(RECOVER_EVERY.total_seconds())


class Backups:
    """The use cases of backups. Without a room they answer that there are none, and why."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        room: BackupRoom | None,
        requests: Requests,
        changes: Changes,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._units = units
        self._room = room
        self._requests = requests
        self._changes = changes
        self._ids = ids
        self.restores = RestoreFollowing(units=units, changes=changes, requests=requests, clock=clock)
        self.drills = Drills(units=units, drilling=None if room is None else room.drilling)

    async def create(
        self,
        request: Request,
        sandbox: SandboxId,
        *,
        freeze: BackupFreeze | None = None,
        wait: bool = True,
        timeout: timedelta,
    ) -> BackupSet:
        """Back up a sandbox's image and volumes, and answer when the set is complete.

        Args:
            request: Who asks; the same id is answered with the same set, whatever it came to.
            sandbox: Which.
            freeze: It is to stand still while it is read, if it runs.
            wait: Else the answer comes when it has begun.
            timeout: How long the caller waits.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            NothingToBackUpError: It is only being made.
            BackupInProgressError: Another backup of it is in flight.
            BackupsOffError: Nothing is backed up in this installation.
            RequestIdReusedError: The request id was used with another body.
            DeadlineError: It has not ended in time; it goes on.
            SandboxdError: What it failed with.
        """
        async with self._units.begin() as work:
            require_visible(await work.sandboxes.get(sandbox), request.caller)
        room = self._required()
        begun = await self._begin(room, request, sandbox, freeze)
        return raise_failure(await room.making.wait(begun.id, timeout=timeout)) if wait else begun

    async def _begin(
        self, room: BackupRoom, request: Request, sandbox: SandboxId, freeze: BackupFreeze | None
    ) -> BackupSet:
        name = BackupSetId(self._ids.new("bak"))
        claim = self._claim(request, "CreateBackup", sandbox, about=name)
        async with self._units.begin() as work:
            earlier = await work.requests.claim(claim)
            if earlier is not None:
                return await self._earlier(work, earlier, claim)
            held = await room.making.insert(work, sandbox, name=name, trigger=BackupTrigger.REQUEST, freeze=freeze)
            await work.commit()
        await self._changes.announce(sandbox)
        room.making.start(held)
        return held.backup

    async def get(self, caller: Caller, sandbox: SandboxId, backup: BackupSetId) -> BackupSet:
        """One set, in whatever status.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            BackupSetNotFoundError: It has no such backup.
        """
        async with self._units.begin() as work:
            require_visible(await work.sandboxes.get(sandbox), caller)
            return await _of(work, sandbox, backup)

    async def list(
        self, caller: Caller, sandbox: SandboxId, *, deleted: bool, page_size: int, page_token: str
    ) -> Page[BackupSet]:
        """One page of a sandbox's sets, the newest first; those that are gone only if `deleted`.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            InvalidRequestError: The page token is none.
        """
        async with self._units.begin() as work:
            found: Sandbox = require_visible(await work.sandboxes.get(sandbox), caller)
            return await work.backup_sets.list(
                found.client,
                sandbox=sandbox,
                deleted=deleted,
                page_size=min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE),
                page_token=page_token,
            )

    async def keeping(self, caller: Caller, sandbox: SandboxId) -> Keeping | None:
        """Say by what policy a sandbox's sets are made and kept, and why each is; None where none are made any more.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
        """
        async with self._units.begin() as work:
            found: Sandbox = require_visible(await work.sandboxes.get(sandbox), caller)
            if self._room is None:
                return None
            making = self._room.making
            policy = await making.tools.policy_of(work, found.client)
            sets = await work.backup_sets.of_sandbox(sandbox, limit=MOST_SETS)
        return Keeping(policy=policy, holds=holds(sets, policy.retention, at=making.clock.now()))

    async def final(self, sandbox: Sandbox) -> FinalBackup | None:
        """Say what a terminated sandbox is backed up as; None of one that is not. The caller may know of it."""
        if sandbox.state is not SandboxState.TERMINATED:
            return None
        async with self._units.begin() as work:
            page = await work.backup_sets.list(
                sandbox.client, sandbox=sandbox.id, deleted=True, page_size=PAGE, page_token=""
            )
        wanted = self._room is not None and self._room.making.tools.after_terminate
        return final_backup(sandbox, page.items, wanted=wanted)

    async def watch(self, caller: Caller, sandbox: SandboxId, backup: BackupSetId) -> AsyncIterator[BackupSet]:
        """Follow a backup: as it is now, then each change and its progress, until it has ended. Raises as `get`."""
        seen = await self.get(caller, sandbox, backup)
        yield seen
        while seen.status in (_S.CREATING, _S.DELETING):
            await self._changes.wait(sandbox, timeout=WATCH_SECONDS)
            found = await self.get(caller, sandbox, backup)
            if found != seen:
                seen = found
                yield seen

    async def cancel(
        self, request: Request, sandbox: SandboxId, backup: BackupSetId, *, timeout: timedelta
    ) -> BackupSet:
        """End a backup; answers it FAILED, or as it is where its end was faster.

        Raises:
            SandboxNotFoundError, BackupSetNotFoundError: The caller has no such sandbox, or that no such backup.
            BackupEndedError: It had ended before.
            RequestIdReusedError: The request id was used with another body.
            DeadlineError: It has not ended in time; the wish stands.
        """
        claim = self._claim(request, "CancelBackup", sandbox, about=backup)
        async with self._units.begin() as work:
            require_visible(await work.sandboxes.get(sandbox), request.caller)
            found = await _of(work, sandbox, backup)
            earlier = await work.requests.claim(claim)
            if earlier is not None:
                found = await self._earlier(work, earlier, claim)
            elif found.status is not _S.CREATING:
                raise BackupEndedError(
                    f"The backup {backup} of sandbox {sandbox} has ended: it is {found.status.value}.",
                    sandbox=sandbox,
                    backup=backup,
                    status=found.status.value,
                )
            else:
                await work.backup_sets.cancel(backup)
            await work.commit()
        # Whoever works on it, here or elsewhere, sees the wish with its next report.
        return found if self._room is None else await self._room.making.wait(found.id, timeout=timeout)

    async def delete(
        self, request: Request, sandbox: SandboxId, backup: BackupSetId, *, give_up: bool = False, timeout: timedelta
    ) -> BackupSet:
        """Delete a set with all content that no other needs; answers it DELETED, with how that is known.

        Also the newest one, and the only one, goes when somebody says so: policy alone keeps it. One that is all that
        is left of its sandbox needs `give_up`.

        Raises:
            SandboxNotFoundError, BackupSetNotFoundError: The caller has no such sandbox, or that no such backup.
            BackupOnlyCopyError: The sandbox's volumes were released, and this is what it could be restored from.
            BackupSetLockedError: Its window of immutability has not ended.
            BackupSetStatusError: It is being made.
            BackupSetInUseError: A sandbox is being restored from it.
            BackupsOffError: Nothing is backed up in this installation any more.
            RequestIdReusedError: The request id was used with another body.
            DeadlineError: It is not gone yet; the work goes on.
        """
        claim = self._claim(request, "DeleteBackup", sandbox, about=backup)
        async with self._units.begin() as work:
            require_visible(await work.sandboxes.get(sandbox), request.caller)
            found = await _of(work, sandbox, backup)
            room = self._required()
            earlier = await work.requests.claim(claim)
            if earlier is not None:
                found = await self._earlier(work, earlier, claim)
            else:
                found = await room.deletions.mark(work, backup, give_up=give_up)
            await work.commit()
        await self._changes.announce(sandbox)
        await room.deletions.begin(found.client)
        return await room.deletions.wait(found.id, timeout=timeout)

    async def _earlier(self, work: UnitOfWork, earlier: RequestRecord, mine: RequestRecord) -> BackupSet:
        if (earlier.method, earlier.subject, earlier.body_hash) != (mine.method, mine.subject, mine.body_hash):
            raise RequestIdReusedError(mine.request_id)
        if earlier.outcome is None or earlier.outcome.response is None:
            raise InternalError(f"The request {mine.request_id} has no backup.")
        return await work.backup_sets.get(BackupSetId(earlier.outcome.response.decode()))

    def _claim(self, request: Request, method: str, sandbox: SandboxId, *, about: BackupSetId) -> RequestRecord:
        """Build the row of a request whose outcome is a set: it has one from the beginning."""
        return self._requests.record(request, method, sandbox, outcome=RequestOutcome(response=about.encode()))

    def _required(self) -> BackupRoom:
        if self._room is not None:
            return self._room
        raise BackupsOffError(
            "This installation keeps no backups: SANDBOXD_BACKUPS_LOCATION says where they would lie, or "
            "SANDBOXD_BACKUPS_METHOD=snapshots that volumes of a cluster are snapshotted.",
            setting="SANDBOXD_BACKUPS_LOCATION",
        )


def raise_failure(backup: BackupSet) -> BackupSet:
    """Answer a set that came to its end.

    Raises:
        SandboxdError: What it failed with.
    """
    if backup.status is not _S.FAILED:
        return backup
    raise restore_error(
        ErrorRecord(
            kind=backup.failure_kind or ErrorKind.UNAVAILABLE,
            reason=backup.failure,
            message=backup.failure_message,
            metadata={"sandbox": backup.sandbox, "backup": backup.id},
        )
    )


async def _of(work: UnitOfWork, sandbox: SandboxId, backup: BackupSetId) -> BackupSet:
    found = await work.backup_sets.get(backup)
    if found.sandbox != sandbox:
        raise BackupSetNotFoundError(backup)
    return found

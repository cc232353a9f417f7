"""The backups of this process: each is owned here, outlives its caller and writes down how far it is.

And those that a crash left: whoever can take the lease asks the volumes' port for the same set again, which follows
work that runs, answers what has ended, and begins anew what broke off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import structlog

from sandboxd.manager.backup_metrics import BackupMetrics, BackupOutcome
from sandboxd.manager.backup_tools import BackupTools, volumes_of
from sandboxd.manager.changes import Changes
from sandboxd.manager.cut_short import unless_cut_short
from sandboxd.manager.cutting import Cutting
from sandboxd.manager.frozen_backups import FrozenBackups, Reading
from sandboxd.manager.leased_tasks import Lease, LeasedTasks
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.manager.volume_notes import VolumeNote
from sandboxd.model.backup import (
    BackupFreeze,
    BackupSet,
    BackupSetId,
    BackupSetProgress,
    BackupSetStatus,
    BackupTrigger,
    Consistency,
)
from sandboxd.model.backup_errors import (
    BackupAbandonedError,
    BackupCancelledError,
    BackupNotQuiescedError,
    NothingToBackUpError,
)
from sandboxd.model.backup_spec import spec_of
from sandboxd.model.errors import (
    ConflictError,
    DatabaseUnavailableError,
    DeadlineError,
    SandboxdError,
    StaleOwnerError,
)
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock, IdSource
from sandboxd.volumes.ports import TakenVolumes, VolumesProgress

REPORT_EVERY: Final = timedelta(seconds=1)
"""How often progress is written, and the wish for an end looked for."""
END_TIMEOUT: Final = timedelta(seconds=60)
MAX_ATTEMPTS: Final = 3
"""How often a backup that broke off is begun."""
STILL: Final = frozenset({SandboxState.HIBERNATED, SandboxState.STOPPED, SandboxState.PAUSED, SandboxState.TERMINATED})
"""States in which no process of a sandbox runs."""
_WITHOUT: Final = frozenset({SandboxState.CREATING})
_S = BackupSetStatus

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBackup:
    """A set in the making, and the lease under which this process works on it."""

    backup: BackupSet
    lease: Lease


@dataclass(slots=True, kw_only=True)
class BackingUp:
    """Takes backup sets. A caller that goes away does not end one; a wish in its row does."""

    units: UnitsOfWork
    tools: BackupTools
    tasks: LeasedTasks
    changes: Changes
    clock: Clock
    ids: IdSource
    metrics: BackupMetrics
    deeds: OwnDeeds = UNRECORDED
    report_every: timedelta = REPORT_EVERY
    frozen: FrozenBackups | None = None
    """What lets sandboxes stand still, where somebody wishes that; None where there are no conversations."""
    on_ended: Callable[[BackupSet], None] = lambda _: None

    @property
    def has_room(self) -> bool:
        """Whether policy may begin one more here."""
        return self.tasks.count < self.tools.at_once

    async def insert(
        self,
        work: UnitOfWork,
        sandbox: SandboxId,
        *,
        name: BackupSetId,
        trigger: BackupTrigger,
        freeze: BackupFreeze | None = None,
    ) -> HeldBackup:
        """Insert a set in a transaction with the lease on it; `start` it after the commit.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
            NothingToBackUpError: It is only being made.
            BackupInProgressError: Another backup of it is in flight.
        """
        found = await work.sandboxes.get(sandbox, for_update=True)
        made_new = found.state is SandboxState.RESTORING and found.incarnation is None
        if found.state in _WITHOUT or made_new:
            raise NothingToBackUpError(
                f"Sandbox {sandbox} is {found.state.value}: there is nothing to back up yet.",
                sandbox=sandbox,
                state=found.state.value,
            )
        now = self.clock.now()
        backup = BackupSet(
            id=name,
            sandbox=sandbox,
            client=found.client,
            freelancer=found.freelancer,
            method=self.tools.method,
            trigger=trigger,
            freeze=freeze,
            take_time=now,
            image=found.image.reference if found.image else "",
            spec=spec_of(found),
            create_time=now,
            update_time=now,
        )
        await work.backup_sets.begin(backup)
        lease = await self.tasks.take(work, SandboxId(name))
        if lease is None:
            raise ConflictError(f"Backup {name} is worked on by another replica.", backup=name)
        return HeldBackup(backup=backup, lease=lease)

    async def begin(self, sandbox: SandboxId, *, trigger: BackupTrigger) -> BackupSet:
        """Insert one and start it. Raises as `insert`."""
        async with self.units.begin() as work:
            held = await self.insert(work, sandbox, name=BackupSetId(self.ids.new("bak")), trigger=trigger)
            await work.commit()
        self.start(held)
        return held.backup

    def start(self, held: HeldBackup) -> None:
        """Begin the work on a set whose row and lease are durable."""
        self.tasks.start(held.lease, lambda: self._guard(held), name=f"backup-{held.backup.id}")

    async def wait(self, backup: BackupSetId, *, timeout: timedelta) -> BackupSet:
        """Wait for the end of a backup, wherever it is worked on, and answer what it came to.

        Raises:
            DeadlineError: It has not ended within `timeout`; it goes on.
        """
        return await self.tasks.ended(backup, lambda work: work.backup_sets, timeout=timeout, late=_late)

    async def adopt(self, backup: BackupSetId) -> bool:
        """Go on with one that nobody works on; False where somebody does, or it has ended."""
        taken = await self.tasks.adopt(backup, lambda work: work.backup_sets)
        if taken is None:
            return False
        again, lease = taken
        log.info("backup.recovering", sandbox=again.sandbox, backup=backup, attempt=again.attempts)
        self.metrics.recovered()
        self.start(HeldBackup(backup=again, lease=lease))
        return True

    async def _guard(self, held: HeldBackup) -> None:
        backup = held.backup
        said: Mapping[str, str] = {"sandbox": backup.sandbox, "backup": backup.id}
        log.info("backup.begun", trigger=backup.trigger.value, attempt=backup.attempts, **said)
        try:
            async with self.deeds.recorded("Backup/Take", client=backup.client, sandbox=backup.sandbox):
                ended = await self._work(held)
        except (DatabaseUnavailableError, StaleOwnerError, ConflictError) as error:
            log.warning("backup.left", error=error.message, **said)  # recovery sees to it
        except SandboxdError as error:
            await self._fail(held, error)
        else:
            self._note_end(ended, "complete")

    async def _work(self, held: HeldBackup) -> BackupSet:
        backup = held.backup
        if backup.freeze is not None and backup.attempts > 1 and self.frozen is not None:
            await self.frozen.let_go(backup)  # what whoever died had frozen
        if backup.cancelled:
            raise _cancelled(backup)
        if backup.attempts > MAX_ATTEMPTS:
            raise BackupAbandonedError(
                f"The backup {backup.id} of sandbox {backup.sandbox} broke off {MAX_ATTEMPTS} times. Try again.",
                sandbox=backup.sandbox,
                backup=backup.id,
            )
        note = VolumeNote(progress=backup.progress)
        return await unless_cut_short(
            self._carry_out(held, note), self._report(backup, note), name=f"backup-{backup.id}"
        )

    async def _carry_out(self, held: HeldBackup, note: VolumeNote) -> BackupSet:
        backup = held.backup
        failpoint("backup.after_commit")
        reading = await self._read(backup, note)
        taken, before = reading.taken, reading.sandbox
        failpoint("backup.after_take")
        async with self.units.begin() as work:
            found = await self._still(work, held)
            now = self.clock.now()
            consistency = Consistency.QUIESCED if reading.still else Consistency.CRASH_CONSISTENT
            described = replace(
                found,
                take_time=taken.take_time,
                image=before.image.reference if before.image else "",
                spec=spec_of(before),
                consistency=consistency,
                progress=None,
            )
            policy = await self.tools.policy_of(work, backup.client)
            complete = described.complete(taken.volumes, at=now, locked_until=policy.retention.locked_until(now))
            await work.backup_sets.save(complete)
            await work.commit()
        failpoint("backup.after_complete")
        await self._end(backup.id)
        await self.changes.announce(backup.sandbox)
        return complete

    async def _read(self, backup: BackupSet, note: VolumeNote) -> Reading:
        before = await self._look(backup.sandbox)
        wish = backup.freeze
        if wish is not None and self.frozen is not None and before.state is SandboxState.ACTIVE:
            return await self.frozen.take(backup, before, wish, progress=note.take)
        volumes = self.tools.of(backup.method)

        def begin(told: Callable[[VolumesProgress], None]) -> Coroutine[Any, Any, TakenVolumes]:  # Any: asyncio's
            return volumes.take(backup.id, volumes_of(before), timeout=self.tools.take_timeout, progress=told)

        async with Cutting(begin, progress=note.take, name=f"backup-{backup.id}-taking") as taking:
            await taking.cut()
            after = await self._look(backup.sandbox)
            taken = await taking.taken()
        still = _stood_still(before, after, taken, backup)
        if wish is not None and wish.required and not still:
            raise BackupNotQuiescedError(
                f"Sandbox {before.id} was {before.state.value} and is {after.state.value}: it did not stand still "
                f"for backup {backup.id}. Try again.",
                sandbox=before.id,
                backup=backup.id,
            )
        return Reading(sandbox=before, taken=taken, still=still)

    async def _look(self, sandbox: SandboxId) -> Sandbox:
        async with self.units.begin() as work:
            return await work.sandboxes.get(sandbox)

    async def _report(self, backup: BackupSet, note: VolumeNote) -> BackupCancelledError:
        """Write progress until somebody wishes that it ends."""
        written: BackupSetProgress | None = None
        while True:
            await asyncio.sleep(self.report_every.total_seconds())
            try:
                async with self.units.begin() as work:
                    if note.progress is not None and note.progress != written:
                        written = note.progress
                        await work.backup_sets.note_progress(backup.id, written, at=self.clock.now())
                        await work.commit()
                async with self.units.begin() as work:
                    found = await work.backup_sets.get(backup.id)
            except SandboxdError as error:
                log.info("backup.progress_not_written", backup=backup.id, error=error.message)
                continue
            if found.cancelled and found.status is _S.CREATING:
                return _cancelled(backup)

    async def _fail(self, held: HeldBackup, error: SandboxdError) -> None:
        backup = held.backup
        if not await self._end(backup.id):
            log.warning("backup.not_ended", backup=backup.id)  # its row stays CREATING: nothing else begins beside it
            return
        try:
            async with self.units.begin() as work:
                found = await self._still(work, held)
                failed = replace(found, progress=None).fail(error, at=self.clock.now())
                await work.backup_sets.save(failed)
                await work.commit()
        except SandboxdError as unwritten:
            log.warning("backup.failure_not_written", backup=backup.id, error=unwritten.message)
            return
        self._note_end(failed, "cancelled" if error.reason == BackupCancelledError.reason else "failed")
        await self.changes.announce(backup.sandbox)

    async def _end(self, backup: BackupSetId) -> bool:
        """See that nothing works on it any more; False where that is not known."""
        try:
            await self.tools.end(backup, timeout=END_TIMEOUT)
        except SandboxdError as error:
            log.warning("backup.work_not_ended", backup=backup, error=error.message)
            return False
        return True

    async def _still(self, work: UnitOfWork, held: HeldBackup) -> BackupSet:
        """The row, locked, and still ours to work on."""
        found = await work.backup_sets.get(held.backup.id, for_update=True)
        holds = await work.operations.holds(held.lease.key, held.lease.operation)
        if not holds or found.status is not _S.CREATING:
            raise StaleOwnerError(f"Another replica has taken over the backup {found.id}.", backup=found.id)
        return found

    def _note_end(self, backup: BackupSet, outcome: BackupOutcome) -> None:
        self.metrics.ended(backup, outcome)
        log.info(
            "backup.ended",
            sandbox=backup.sandbox,
            backup=backup.id,
            trigger=backup.trigger.value,
            outcome=outcome,
            reason=backup.failure,
            error=backup.failure_message,
            consistency=backup.consistency.value,
            bytes=backup.bytes,
            stored_bytes=sum(one.added_bytes for one in backup.volumes),
            seconds=round((backup.update_time - backup.create_time).total_seconds(), 3),
        )
        self.on_ended(backup)


def _stood_still(before: Sandbox, after: Sandbox, taken: TakenVolumes, backup: BackupSet) -> bool:
    """Tell whether no process of it can have run from before the first file was read until the look afterwards."""
    same = (before.state, before.state_time, before.incarnation) == (after.state, after.state_time, after.incarnation)
    # What an earlier attempt had taken is of its own time, about which these two looks say nothing.
    ours = backup.attempts == 1 or (before.state_time is not None and before.state_time <= taken.take_time)
    still = before.state in STILL or before.state is SandboxState.RESTORING  # whose life has not begun
    return still and same and ours


def _late(backup: BackupSet) -> DeadlineError:
    return DeadlineError(
        f"Sandbox {backup.sandbox} is still being backed up as {backup.id}. The work goes on: repeat the "
        "call with the same request id for its result, or follow it with WatchBackup.",
        sandbox=backup.sandbox,
        backup=backup.id,
    )


def _cancelled(backup: BackupSet) -> BackupCancelledError:
    return BackupCancelledError(
        f"The backup {backup.id} of sandbox {backup.sandbox} was cancelled.",
        sandbox=backup.sandbox,
        backup=backup.id,
    )

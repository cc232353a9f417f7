"""Deletes backup sets for good: their snapshots forgotten, their content pruned, and how that is known in their rows.

All of a client's together, as its repository wants to be alone for it. A set that says DELETING is deleted by whoever
comes first, and again until it is; nothing is said to be gone before a fresh listing of the repository says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.backup_metrics import BackupMetrics
from sandboxd.manager.backup_tools import BackupTools
from sandboxd.manager.changes import Changes
from sandboxd.manager.intents import POLL_SECONDS
from sandboxd.manager.leased_tasks import Lease, LeasedTasks
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.patience import Patience
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.backup import (
    BackupOnlyCopyError,
    BackupSet,
    BackupSetId,
    BackupSetInUseError,
    BackupSetStatus,
    DeletionProof,
)
from sandboxd.model.errors import DeadlineError, NotFoundError, SandboxdError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.sources import Clock

BATCH: Final = 200
"""Sets of one client that are deleted together."""
FIRST_DELAY: Final = 10.0
LONGEST_DELAY: Final = 600.0
"""Seconds between attempts at a client's deletions while they fail: its repository may be busy for hours."""
_S = BackupSetStatus

log = structlog.get_logger(__name__)


async def forget_all(tools: BackupTools, client: ClientId, sets: Sequence[BackupSet], *, prune: bool) -> None:
    """Forget sets of a client, each where its method has it. Raises as `VolumeBackups.forget` and `BackupTools.of`."""
    for method in sorted({one.method for one in sets}, key=lambda one: one.value):
        names = [one.id for one in sets if one.method is method]
        await tools.of(method).forget(client, names, prune=prune, timeout=tools.delete_timeout)


@dataclass(slots=True, kw_only=True)
class BackupDeletions:
    """Deletes what says DELETING."""

    units: UnitsOfWork
    tools: BackupTools
    tasks: LeasedTasks
    changes: Changes
    clock: Clock
    metrics: BackupMetrics
    deeds: OwnDeeds = UNRECORDED
    _patience: Patience[ClientId] = field(init=False)

    def __post_init__(self) -> None:
        """Begin without a failure."""
        self._patience = Patience(self.clock, first=FIRST_DELAY, longest=LONGEST_DELAY)

    async def mark(self, work: UnitOfWork, backup: BackupSetId, *, give_up: bool = False) -> BackupSet:
        """Write down that a set goes, for good; whoever comes next deletes it.

        Args:
            work: A unit of work.
            backup: Which.
            give_up: Also where it is all that is left of its sandbox.

        Raises:
            BackupSetNotFoundError: There is none.
            BackupOnlyCopyError: It is all that is left of its sandbox, and nobody gives that up.
            BackupSetLockedError: Its window of immutability has not ended.
            BackupSetStatusError: It is being made.
            BackupSetInUseError: A sandbox is being restored from it.
        """
        found = await work.backup_sets.get(backup, for_update=True)
        if found.status in (_S.DELETING, _S.DELETED):
            return found
        if found.pinned_time is not None and not give_up:
            raise BackupOnlyCopyError(found)
        by = await work.backup_sets.restoring(backup)
        if by is not None:
            raise BackupSetInUseError(found, by=by)
        marked = found.enter(_S.DELETING, at=self.clock.now())
        await work.backup_sets.save(marked)
        return marked

    async def begin(self, client: ClientId, *, patient: bool = False) -> bool:
        """Begin to delete what a client has that says DELETING; False where somebody is at it.

        Args:
            client: Whose.
            patient: Not yet where it failed a moment ago.
        """
        key = SandboxId(f"backups/{client}")
        if self.tasks.busy(key) or (patient and self._patience.waits(client)):
            return False
        async with self.units.begin() as work:
            lease = await self.tasks.take(work, key)
            if lease is None:
                return False
            await work.commit()
        self.tasks.start(lease, lambda: self._delete(client, lease), name=f"backup-deletion-{client}")
        return True

    async def wait(self, backup: BackupSetId, *, timeout: timedelta) -> BackupSet:
        """Wait until a set is DELETED, wherever it is worked on.

        Raises:
            DeadlineError: It is not yet; it will be.
        """
        deadline = self.clock.monotonic() + timeout.total_seconds()
        while True:
            async with self.units.begin() as work:
                found = await work.backup_sets.get(backup)
            left = deadline - self.clock.monotonic()
            if found.status is _S.DELETED:
                return found
            if left <= 0:
                raise DeadlineError(
                    f"Backup {backup} of sandbox {found.sandbox} is still being deleted. The work goes on: repeat the "
                    "call with the same request id for the proof.",
                    sandbox=found.sandbox,
                    backup=backup,
                )
            if not self.tasks.busy(SandboxId(f"backups/{found.client}")):
                await self.begin(found.client, patient=True)
            await self.changes.wait(found.sandbox, timeout=min(left, POLL_SECONDS))

    async def _delete(self, client: ClientId, lease: Lease) -> None:
        while True:
            async with self.units.begin() as work:
                batch = await work.backup_sets.deleting(client, limit=BATCH)
            if not batch:
                return
            try:
                async with self.deeds.recorded("Backup/Delete", client=client, sandbox=batch[0].sandbox):
                    await self._delete_batch(client, batch, lease)
            except SandboxdError as error:
                self._patience.failed(client)
                self.metrics.deleted("failed", sets=len(batch))
                log.warning("backup.not_deleted", client=client, sets=len(batch), error=error.message)
                return
            self._patience.forget(client)
            self.metrics.deleted("done", sets=len(batch))
            log.info("backup.deleted", client=client, sets=len(batch))

    async def _delete_batch(self, client: ClientId, batch: Sequence[BackupSet], lease: Lease) -> None:
        failpoint("backup.before_forget")
        for one in batch:  # of a set that failed something may still run
            if not one.volumes:
                await self.tools.end(one.id, timeout=timedelta(seconds=60))
        await forget_all(self.tools, client, batch, prune=True)
        failpoint("backup.after_forget")
        now = self.clock.now()
        async with self.units.begin() as work:
            if not await work.operations.holds(lease.key, lease.operation):
                return  # whoever has it now forgets what is gone already, and says so
            for one in batch:
                try:
                    found = await work.backup_sets.get(one.id, for_update=True)
                except NotFoundError:
                    continue  # erased with its client
                if found.status is _S.DELETING:
                    proof = DeletionProof(
                        forgotten_time=now, pruned_time=now, snapshots=tuple(each.snapshot for each in found.volumes)
                    )
                    await work.backup_sets.save(found.delete(proof, at=now))
            await work.commit()
        for sandbox in {one.sandbox for one in batch}:
            await self.changes.announce(sandbox)

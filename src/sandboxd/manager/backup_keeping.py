"""What policy wants of backups: sandboxes that are used backed up from time to time, what ended once, old sets let go.

By the replica that has the duty. Each step is safe to repeat, and two at once do no harm: a sandbox has one set in the
making, and the rows decide what is deleted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.backing_up import BackingUp
from sandboxd.manager.backup_deletions import BackupDeletions, forget_all
from sandboxd.manager.backup_ports import MOST_SETS, BackupInProgressError
from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.manager.on_duty import pass_on_duty
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.backup import BackupSetInUseError, BackupSetLockedError, BackupSetStatus, BackupTrigger
from sandboxd.model.backup_errors import NothingToBackUpError
from sandboxd.model.backup_retention import let_go
from sandboxd.model.errors import NewerVersionError, NotFoundError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId

DUTY: Final = "backups"
RETRY: Final = timedelta(hours=1)
"""How long after a set that failed policy begins another one."""
PAGE: Final = 200

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepingReport:
    """What a pass did."""

    begun: int = 0
    let_go: int = 0


@dataclass(slots=True, kw_only=True)
class BackupKeeping:
    """One pass after the other."""

    units: UnitsOfWork
    making: BackingUp
    deletions: BackupDeletions
    duties: Duties

    async def run(self) -> None:
        """Pass again and again where this replica has the duty, until cancelled."""
        await pass_on_duty(self.duties, DUTY, self.keep, pause=self.making.tools.pause, name="backup.keeping")

    async def keep(self) -> KeepingReport:
        """Pass once."""
        gone = await self._let_go()
        begun = await self._begin_ended() + await self._begin_due()
        if begun or gone:
            log.info("backup.kept", begun=begun, let_go=gone)
        return KeepingReport(begun=begun, let_go=gone)

    async def _begin_ended(self) -> int:
        """Back up what terminated sandboxes leave: first, as nothing else has it."""
        if not self.making.tools.after_terminate:
            return 0
        retry_before = self.making.clock.now() - RETRY
        of_end = bool(self.making.tools.release_after)

        async def page(after: SandboxId | None) -> Sequence[SandboxId]:
            async with self.units.begin() as work:
                return await work.backup_sets.ended(retry_before=retry_before, of_end=of_end, limit=PAGE, after=after)

        return await self._begin(page, BackupTrigger.TERMINATE)

    async def _begin_due(self) -> int:
        every, now = self.making.tools.every, self.making.clock.now()

        async def page(after: SandboxId | None) -> Sequence[SandboxId]:
            async with self.units.begin() as work:
                return await work.backup_sets.due(
                    at=now, every=every, retry_before=now - RETRY, limit=PAGE, after=after
                )

        return await self._begin(page, BackupTrigger.SCHEDULE)

    async def _begin(
        self, page: Callable[[SandboxId | None], Awaitable[Sequence[SandboxId]]], trigger: BackupTrigger
    ) -> int:
        """Begin as many as this replica makes at once; the rest waits for the next pass."""
        begun, after = 0, None
        while self.making.has_room and (found := await page(after)):
            for sandbox in found:
                if not self.making.has_room:
                    break
                try:
                    await self.making.begin(sandbox, trigger=trigger)
                    begun += 1
                except (BackupInProgressError, NothingToBackUpError, NotFoundError):
                    continue  # somebody was faster, or it is another thing by now
            after = found[-1]
        return begun

    async def _let_go(self) -> int:
        """Mark what the retention keeps no more; who deletes takes it from there."""
        gone, after = 0, None
        while True:
            async with self.units.begin() as work:
                found = await work.backup_sets.sandboxes(limit=PAGE, after=after)
            if not found:
                return gone
            for sandbox in found:
                try:
                    gone += await self._let_go_of(sandbox)
                except NewerVersionError:
                    continue  # whoever knows all its sets decides which of them go
            after = found[-1]

    async def _let_go_of(self, sandbox: SandboxId) -> int:
        now, clients, gone = self.making.clock.now(), set[ClientId](), 0
        async with self.units.begin() as work:
            sets = await work.backup_sets.of_sandbox(sandbox, limit=MOST_SETS)
            if not sets:
                return 0
            policy = await self.making.tools.policy_of(work, sets[0].client)
            old = let_go(sets, policy.retention, at=now)
            for one in old:
                try:
                    clients.add((await self.deletions.mark(work, one.id, give_up=one.pinned_time is not None)).client)
                except (NotFoundError, BackupSetLockedError, BackupSetInUseError):
                    continue
                gone += 1
            if clients:
                await work.commit()
        for client in clients:
            await self.deletions.begin(client, patient=True)
        return gone

    async def erase(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        """Destroy all backups of a freelancer, or of a client with its repository; answers how many sets there were.

        Windows of immutability do not hold it up. Safe to repeat.

        Raises:
            BackupInProgressError: One of them is being made; its end was asked for.
            UnavailableError, DeadlineError: The repository does not answer, or is busy.
        """
        tools, count, after = self.making.tools, 0, None
        methods = {self.making.tools.method, *self.making.tools.others}
        while True:
            async with self.units.begin() as work:
                page = await work.backup_sets.of_owner(client, freelancer, limit=PAGE, after=after)
                making = [one for one in page if one.status is BackupSetStatus.CREATING]
                for one in making:
                    await work.backup_sets.cancel(one.id)
                await work.commit()
            if making:
                raise BackupInProgressError(making[0].sandbox)
            if not page:
                break
            if freelancer is not None:
                await forget_all(tools, client, page, prune=len(page) < PAGE)
            else:
                methods |= {one.method for one in page}
            count, after = count + len(page), page[-1].id
        if freelancer is None:
            for method in sorted(methods, key=lambda one: one.value):
                await tools.of(method).destroy(client, timeout=tools.delete_timeout)
        if count:
            log.info("backup.erased", client=client, sets=count)
        return count

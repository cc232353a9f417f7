"""Gives back the volumes of sandboxes that were terminated a while ago and whose last state a backup set has.

Nothing goes before its safety exists: the set is complete, quiesced, of that very end, its image can be started from,
and every byte of it was read from the repository right before. Then the row says so, which pins the set; then the
volumes go; then the row says that they are gone. Whoever finds a release that broke off goes on with it, and a Restore
that was faster wins. Each step is safe to repeat, by any replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.backup_metrics import BackupMetrics
from sandboxd.manager.backup_ports import MOST_SETS
from sandboxd.manager.backup_tools import BackupTools
from sandboxd.manager.changes import Changes
from sandboxd.manager.leased_tasks import Lease, LeasedTasks
from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.manager.on_duty import pass_on_duty
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.patience import Patience
from sandboxd.manager.ports import MAX_PAGE_SIZE, UnitOfWork, UnitsOfWork
from sandboxd.manager.release_ports import KeptVolume, KeptVolumes
from sandboxd.model.backup import BackupSet, ReleasedVolumes
from sandboxd.model.errors import NotFoundError, SandboxdError, StaleOwnerError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.sources import Clock
from sandboxd.model.volume_release import VolumesStayError, end_among, has_end_of

DUTY: Final = "volumes"
FIND_TIMEOUT: Final = timedelta(seconds=30)
RELEASE_TIMEOUT: Final = timedelta(minutes=5)
FIRST_DELAY: Final = 60.0
LONGEST_DELAY: Final = 3600.0 * 6
"""Seconds between attempts at a sandbox whose volumes could not be released: doubled each time."""
PAGE: Final = 200

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class VolumeReleases:
    """One look after the other, and the releases that they begin."""

    units: UnitsOfWork
    tools: BackupTools
    tasks: LeasedTasks
    changes: Changes
    duties: Duties
    clock: Clock
    metrics: BackupMetrics
    deeds: OwnDeeds = UNRECORDED
    _patience: Patience[SandboxId] = field(init=False)

    def __post_init__(self) -> None:
        """Begin without a failure."""
        self._patience = Patience(self.clock, first=FIRST_DELAY, longest=LONGEST_DELAY)

    async def run(self) -> None:
        """Look again and again where this replica has the duty, until cancelled."""
        pause = self.tools.pause
        if not pause or self.tools.kept is None:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self.tasks.run(), name="volume-release-leases")
            looks = pass_on_duty(self.duties, DUTY, self.look, pause=pause, name="volumes.look")
            group.create_task(looks, name="volume-release-looks")

    async def look(self) -> int:
        """Begin as many releases as this replica makes at once; the rest waits for the next look."""
        kept, begun, after, seen = self.tools.kept, 0, None, set[SandboxId]()
        if kept is None:
            return 0
        before = self.clock.now() - self.tools.release_after if self.tools.release_after else None
        while self.tasks.count < self.tools.at_once:
            async with self.units.begin() as work:
                page = await work.backup_sets.to_release(ended_before=before, limit=PAGE, after=after)
            if not page:
                self._patience.keep(seen)
                break
            seen.update(page)
            for sandbox in page:
                if self.tasks.count >= self.tools.at_once:
                    return begun
                if not self._patience.waits(sandbox):
                    begun += await self._begin(sandbox, kept)
            after = page[-1]
        return begun

    async def drain(self, *, grace: timedelta) -> None:
        """Let releases end within the grace; whoever comes next goes on with the rest."""
        await self.tasks.drain(grace=grace)

    async def _begin(self, sandbox: SandboxId, kept: KeptVolumes) -> bool:
        key = SandboxId(f"volumes/{sandbox}")
        if self.tasks.busy(key) or self.tasks.busy(sandbox):
            return False
        async with self.units.begin() as work:
            lease = await self.tasks.take(work, key)
            if lease is None:
                return False
            await work.commit()
        self.tasks.start(lease, lambda: self._guard(sandbox, kept), name=f"release-{sandbox}")
        return True

    async def _guard(self, sandbox: SandboxId, kept: KeptVolumes) -> None:
        try:
            await self._release(sandbox, kept)
        except SandboxdError as error:
            self._patience.failed(sandbox)
            self.metrics.released("failed")
            log.warning("volumes.not_released", sandbox=sandbox, reason=error.reason, error=error.message)
        else:
            self._patience.forget(sandbox)

    async def _release(self, sandbox: SandboxId, kept: KeptVolumes) -> None:
        async with self.units.begin() as work:
            found = await work.sandboxes.get(sandbox)
            sets = await work.backup_sets.of_sandbox(sandbox, limit=MOST_SETS)
            chosen = end_among(sets, found)
            if chosen is not None:
                await self._require_image(work, found, chosen)
        volumes = await kept.find(sandbox, timeout=FIND_TIMEOUT)
        if stays := next((one.hindrance for one in volumes if one.hindrance), ""):
            raise VolumesStayError(stays, sandbox=sandbox)
        if found.volumes_released is None:
            if chosen is None or not volumes:
                return
            keeper = self.tools.of(chosen.method)
            await keeper.prove(found.client, chosen.volumes, timeout=self.tools.restore_timeout)
        failpoint("release.before_commit")
        if (opened := await self._open(found, chosen)) is None:
            return
        released, lease = opened

        async def destroy() -> None:
            async with self.deeds.recorded("Volumes/Release", client=found.client, sandbox=sandbox):
                await self._destroy(released, lease, kept, volumes)

        await self.tasks.finish(lease, destroy, name=f"release-volumes-{sandbox}")

    async def _require_image(self, work: UnitOfWork, sandbox: Sandbox, chosen: BackupSet) -> None:
        """Raise VolumesStayError where the set names an image that nothing can be started from any more."""
        if not chosen.image:
            return
        page = await work.generations.list(sandbox.id, everything=True, page_size=MAX_PAGE_SIZE, page_token="")
        if not any(one.reference == chosen.image and one.bootable for one in page.items):
            raise VolumesStayError(
                f"The image of backup {chosen.id} is kept no more: sandbox {sandbox.id} keeps its volumes.",
                sandbox=sandbox.id,
                backup=chosen.id,
            )

    async def _open(self, seen: Sandbox, chosen: BackupSet | None) -> tuple[Sandbox, Lease] | None:
        """Write down that the set is what counts from now on; None where somebody was faster."""
        now = self.clock.now()
        async with self.units.begin() as work:
            found = await work.sandboxes.get(seen.id, for_update=True)
            if (found.state, found.incarnation, found.state_time) != (seen.state, seen.incarnation, seen.state_time):
                return None  # restored meanwhile, or on its way there
            lease = await self.tasks.take(work, found.id)
            if lease is None:
                return None
            if found.volumes_released is None:
                if chosen is None or found.incarnation is None:
                    return None
                try:
                    backup = await work.backup_sets.get(chosen.id, for_update=True)
                except NotFoundError:
                    return None
                if not has_end_of(backup, found):
                    return None
                said = ReleasedVolumes(backup=backup.id, incarnation=found.incarnation, begin_time=now)
                await work.backup_sets.save(backup.pin(at=now))
                found = replace(found, released=said, update_time=now, version=found.version + 1)
                await work.sandboxes.save(found)
            await work.commit()
        failpoint("release.after_commit")
        return found, lease

    async def _destroy(self, sandbox: Sandbox, lease: Lease, kept: KeptVolumes, volumes: Sequence[KeptVolume]) -> None:
        await kept.release(sandbox.id, volumes, timeout=RELEASE_TIMEOUT)
        failpoint("release.after_volumes")
        now = self.clock.now()
        async with self.units.begin() as work:
            found = await work.sandboxes.get(sandbox.id, for_update=True)
            if not await work.operations.holds(lease.key, lease.operation):
                raise StaleOwnerError(f"Another replica has taken over sandbox {sandbox.id}.", sandbox=sandbox.id)
            said = found.volumes_released
            if said is None:
                return
            over = replace(said, end_time=now)
            await work.sandboxes.save(replace(found, released=over, update_time=now, version=found.version + 1))
            await work.commit()
        size = sum(one.size_bytes or 0 for one in volumes)
        self.metrics.released("done", size_bytes=size)
        log.info(
            "volumes.released",
            sandbox=sandbox.id,
            backup=said.backup,
            volumes=[one.name for one in volumes],
            bytes=size,
        )
        await self.changes.announce(sandbox.id)

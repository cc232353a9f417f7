"""The restore drills of this process: each brings a set back into a sandbox that is nobody's, boots it, and compares.

It happens in a *drill sandbox*: one of the backend without a row, so nobody can enter it, bill it or count it, without
a token, and with volumes of its own. It is destroyed at the end, whatever that was; what a crash leaves is destroyed by
whoever takes the drill up. Its id is that of the drill in other letters, so it is known wherever it is found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.agents import visit
from sandboxd.manager.backend_port import Backend, SandboxSpec
from sandboxd.manager.backup_tools import BackupTools
from sandboxd.manager.cut_short import unless_cut_short
from sandboxd.manager.drill_metrics import DrillMetrics
from sandboxd.manager.leased_tasks import Lease, LeasedTasks
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.backup import BackupMethod, BackupSet, BackupSetStatus, BackupSetStatusError
from sandboxd.model.backup_errors import (
    BackupCancelledError,
    BackupDamagedError,
    BackupPasswordWrongError,
    BackupSnapshotNotFoundError,
    BackupUnreadError,
)
from sandboxd.model.drill import (
    CANNOT,
    Drill,
    DrillDiffersError,
    DrilledVolume,
    DrillId,
    DrillStatus,
    DrillStep,
    DrillTrigger,
    drill_comparison,
    drill_restore,
    drill_sandbox,
)
from sandboxd.model.errors import DatabaseUnavailableError, DeadlineError, NotFoundError, SandboxdError, StaleOwnerError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import IncarnationId, RequestId, SandboxId
from sandboxd.model.sandbox import TIER_RESOURCES, Tier
from sandboxd.model.sources import Clock, IdSource
from sandboxd.stream.agent_port import AgentConnector
from sandboxd.volumes.ports import RestoreOrder, VolumeBackups, VolumesOf

START_TIMEOUT: Final = timedelta(minutes=5)
"""Until the agent answers; an image that no node has is pulled in it."""
CLEAR_TIMEOUT: Final = timedelta(minutes=2)
WATCH_SECONDS: Final = 2.0
"""How often is looked whether somebody wishes that it ends."""
MAX_ATTEMPTS: Final = 2
"""How often a drill that broke off is begun."""
_VERDICTS: Final = (BackupDamagedError, BackupPasswordWrongError, BackupSnapshotNotFoundError)
"""Of errors that else say nothing of a set, those that do."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDrill:
    """A drill that runs, and the lease under which this process works on it."""

    drill: Drill
    lease: Lease


@dataclass(slots=True, kw_only=True)
class _Found:
    """What a drill has come to so far."""

    image: str = ""
    volumes: list[DrilledVolume] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Drilling:
    """Carries drills out. A caller that goes away does not end one."""

    units: UnitsOfWork
    tools: BackupTools
    tasks: LeasedTasks
    backend: Backend
    connector: AgentConnector
    clock: Clock
    ids: IdSource
    metrics: DrillMetrics
    deeds: OwnDeeds = UNRECORDED
    watch_seconds: float = WATCH_SECONDS

    async def begin(self, chosen: BackupSet, *, trigger: DrillTrigger, request_id: RequestId | None = None) -> Drill:
        """Insert a drill of a set, and start it.

        Raises:
            BackupSetStatusError: The set is not complete.
            BackupUnreadError: It is of snapshots by the volumes' own storage, with which nothing can be compared.
            BackupMethodOffError: The installation has nothing for it any more.
            DrillInProgressError: Another one runs.
        """
        if chosen.method is not BackupMethod.FILES:
            raise BackupUnreadError
        self.tools.of(chosen.method)
        if chosen.status is not BackupSetStatus.COMPLETE:
            raise BackupSetStatusError(chosen, wanted=BackupSetStatus.COMPLETE)
        now = self.clock.now()
        drill = Drill(
            id=DrillId(self.ids.new("drl")),
            backup=chosen.id,
            sandbox=chosen.sandbox,
            client=chosen.client,
            freelancer=chosen.freelancer,
            trigger=trigger,
            request_id=request_id,
            create_time=now,
            update_time=now,
        )
        async with self.units.begin() as work:
            await work.drills.begin(drill)
            lease = await self.tasks.take(work, SandboxId(drill.id))
            if lease is None:
                raise StaleOwnerError(f"The drill {drill.id} is worked on by another replica.", drill=drill.id)
            await work.commit()
        self._start(HeldDrill(drill=drill, lease=lease))
        return drill

    async def wait(self, drill: DrillId, *, timeout: timedelta) -> Drill:
        """Wait for the end of a drill, wherever it is worked on, and answer what it came to.

        Raises:
            DeadlineError: It has not ended within `timeout`; it goes on.
        """
        return await self.tasks.ended(drill, lambda work: work.drills, timeout=timeout, late=_late)

    async def adopt(self, drill: DrillId) -> bool:
        """Go on with one that nobody works on; False where somebody does, or it has ended."""
        taken = await self.tasks.adopt(drill, lambda work: work.drills)
        if taken is None:
            return False
        again, lease = taken
        log.info("drill.recovering", drill=drill, attempt=again.attempts)
        self._start(HeldDrill(drill=again, lease=lease))
        return True

    @property
    def _volumes(self) -> VolumeBackups:
        return self.tools.of(BackupMethod.FILES)

    def _start(self, held: HeldDrill) -> None:
        self.tasks.start(held.lease, lambda: self._guard(held), name=f"drill-{held.drill.id}")

    async def _guard(self, held: HeldDrill) -> None:
        drill, found = held.drill, _Found()
        log.info("drill.begun", drill=drill.id, backup=drill.backup, sandbox=drill.sandbox, attempt=drill.attempts)
        status, error = DrillStatus.PASSED, None
        try:
            async with self.deeds.recorded("Backup/Drill", client=drill.client, sandbox=drill.sandbox):
                try:
                    await unless_cut_short(self._work(drill, found), self._watch(drill), name=f"drill-{drill.id}")
                finally:
                    with self._timed(DrillStep.CLEAR, found):
                        await asyncio.shield(self.clear(drill.id))
        except (DatabaseUnavailableError, StaleOwnerError) as left:
            log.warning("drill.left", drill=drill.id, error=left.message)  # recovery sees to it
            return
        except SandboxdError as failed:
            status, error = await self._verdict(drill, failed), failed
        await self._end(held, status, error, found)

    async def _work(self, drill: Drill, found: _Found) -> None:
        """Restore, boot, compare.

        Raises:
            SandboxdError: What it found, or what kept it from finding anything.
        """
        if drill.attempts > MAX_ATTEMPTS:
            raise BackupCancelledError(f"The drill {drill.id} broke off {MAX_ATTEMPTS} times.", drill=drill.id)
        await self.clear(drill.id)  # of an attempt that broke off
        failpoint("drill.after_commit")
        async with self.units.begin() as work:
            chosen = await work.backup_sets.get(drill.backup)
        if chosen.status is not BackupSetStatus.COMPLETE:
            raise BackupCancelledError(f"The backup {chosen.id} is {chosen.status.value} by now.", backup=chosen.id)
        if chosen.checksum and chosen.checksum != chosen.sum():
            raise BackupDamagedError(f"The row of backup {chosen.id} is not what it was.", backup=chosen.id)
        found.image = chosen.image
        place, snapshots = _place_of(drill, chosen), {one.volume: one.snapshot for one in chosen.volumes}
        with self._timed(DrillStep.RESTORE, found):
            order = RestoreOrder(id=drill_restore(drill.id), into=place, snapshots=snapshots)
            await self._volumes.restore(order, timeout=self.tools.restore_timeout, progress=lambda _: None)
        failpoint("drill.after_restore")
        with self._timed(DrillStep.BOOT, found):
            await self._boot(place, chosen.image)
        failpoint("drill.after_boot")
        with self._timed(DrillStep.COMPARE, found):
            name, within = drill_comparison(drill.id), self.tools.restore_timeout
            compared = await self._volumes.compare(name, place, snapshots, timeout=within, progress=lambda _: None)
        found.volumes = [
            DrilledVolume(
                volume=volume,
                entries=one.entries,
                bytes=one.bytes,
                expected=one.expected,
                found=one.found,
                differences=one.differences,
                difference_count=one.difference_count,
            )
            for volume, one in sorted(compared.items(), key=lambda pair: pair[0].value)
        ]
        failpoint("drill.after_compare")
        _require_same(drill, found.volumes)

    async def _boot(self, place: VolumesOf, image: str) -> None:
        """Start a life of it until its agent says who it is, and end that."""
        life = IncarnationId(self.ids.new("inc"))
        spec = SandboxSpec(
            sandbox=place.sandbox,
            client=place.client,
            freelancer=place.freelancer,
            resources=place.resources,
            tier=place.tier,
            image=image,
        )
        try:
            endpoint = await self.backend.start(spec, life, timeout=START_TIMEOUT)
            async with visit(self.connector, endpoint) as agent:
                await agent.describe()
        finally:
            await asyncio.shield(self.backend.stop(place.sandbox, life, grace=timedelta(0), timeout=CLEAR_TIMEOUT))

    async def clear(self, drill: DrillId) -> None:
        """Destroy what a drill has made, whatever is left of it; what fails is tried again by `sweep`."""
        for name in (drill_restore(drill), drill_comparison(drill)):
            try:
                await self._volumes.end(name, timeout=CLEAR_TIMEOUT)
            except SandboxdError as error:
                log.warning("drill.work_not_ended", work=name, error=error.message)
        try:
            await self.backend.erase(drill_sandbox(drill), timeout=CLEAR_TIMEOUT)
        except SandboxdError as error:
            log.warning("drill.sandbox_left", drill=drill, error=error.message)

    async def sweep(self) -> int:
        """Destroy drill sandboxes that no drill works in any more; answers how many were found."""
        seen = [one.sandbox for one in await self.backend.list() if one.present or one.running]
        async with self.units.begin() as work:
            unknown = sorted({*seen} - {*(await work.sandboxes.find(seen))})
            left = list[DrillId]()
            for sandbox in unknown:
                try:
                    drill = await work.drills.get(DrillId(f"drl{sandbox.removeprefix('sbx')}"))
                except NotFoundError:
                    continue
                if not drill.in_flight:
                    left.append(drill.id)
        for one in left:
            log.info("drill.sandbox_found", drill=one)
            await self.clear(one)
        return len(left)

    async def _watch(self, drill: Drill) -> SandboxdError:
        while True:
            await asyncio.sleep(self.watch_seconds)
            try:
                async with self.units.begin() as work:
                    cancelled = (await work.drills.get(drill.id)).cancelled
            except NotFoundError:
                cancelled = True
            except SandboxdError as error:
                log.info("drill.not_looked", drill=drill.id, error=error.message)
                continue
            if cancelled:
                return BackupCancelledError(f"The drill {drill.id} was ended: its client goes.", drill=drill.id)

    async def _end(self, held: HeldDrill, status: DrillStatus, error: SandboxdError | None, found: _Found) -> None:
        try:
            async with self.units.begin() as work:
                row = await self._still(work, held)
                ended = row.end(
                    status,
                    at=self.clock.now(),
                    error=error,
                    volumes=found.volumes,
                    seconds=found.seconds,
                    image=found.image,
                )
                await work.drills.save(ended)
                await work.commit()
        except SandboxdError as unwritten:
            log.warning("drill.end_not_written", drill=held.drill.id, error=unwritten.message)
            return
        self.metrics.ended(ended)
        (log.error if status is DrillStatus.FAILED else log.info)(
            "drill.ended",
            drill=ended.id,
            backup=ended.backup,
            sandbox=ended.sandbox,
            status=status.value,
            reason=ended.failure,
            error=ended.failure_message,
            entries=sum(one.entries for one in ended.volumes),
            bytes=sum(one.bytes for one in ended.volumes),
            seconds=dict(ended.seconds),
        )

    async def _still(self, work: UnitOfWork, held: HeldDrill) -> Drill:
        """The row, locked, and still ours to work on."""
        found = await work.drills.get(held.drill.id, for_update=True)
        holds = await work.operations.holds(held.lease.key, held.lease.operation)
        if not holds or not found.in_flight:
            raise StaleOwnerError(f"Another replica has taken over the drill {found.id}.", drill=found.id)
        return found

    async def _verdict(self, drill: Drill, error: SandboxdError) -> DrillStatus:
        """Say whether an error is the set's, or only kept the drill from finding out; one that goes has none."""
        if not isinstance(error, _VERDICTS) and error.kind in CANNOT:
            return DrillStatus.ABANDONED
        try:
            async with self.units.begin() as work:
                there = (await work.backup_sets.get(drill.backup)).status is BackupSetStatus.COMPLETE
        except SandboxdError:
            there = False
        return DrillStatus.FAILED if there else DrillStatus.ABANDONED

    @contextmanager
    def _timed(self, step: DrillStep, found: _Found) -> Iterator[None]:
        began = self.clock.monotonic()
        try:
            yield
        finally:
            found.seconds[step.value] = round(self.clock.monotonic() - began, 3)


def _late(drill: Drill) -> DeadlineError:
    return DeadlineError(
        f"The drill {drill.id} is not done yet. It goes on: repeat the call with the same request id for its result, "
        "or look with ListDrills.",
        drill=drill.id,
    )


def _require_same(drill: Drill, volumes: list[DrilledVolume]) -> None:
    odd = [one for one in volumes if one.difference_count or one.expected != one.found]
    if odd:
        told = "; ".join(f"{one.volume.value}: {', '.join(one.differences[:3])}" for one in odd)
        number = sum(one.difference_count for one in odd)
        raise DrillDiffersError(
            f"Backup {drill.backup} of sandbox {drill.sandbox} came back with {number} differences. {told}",
            backup=drill.backup,
        )


def _place_of(drill: Drill, chosen: BackupSet) -> VolumesOf:
    tiers = {one.value: one for one in Tier}
    tier = tiers.get(chosen.spec.get("tier", ""), Tier.BASIC)
    return VolumesOf(
        sandbox=drill_sandbox(drill.id),
        client=drill.client,
        freelancer=drill.freelancer,
        tier=tier,
        resources=TIER_RESOURCES[tier],
    )

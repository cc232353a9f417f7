"""The commits of this process: each is owned here, outlives its caller, keeps its lease and writes down how far it is.

And the recovery of those that a crash left: whoever can take the lease goes on from the row's status. What a build had
done is lost with its process, so it is begun again, a few times; from PUSHED on nothing is done twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.base_building import BaseBuilding
from sandboxd.manager.changes import Changes
from sandboxd.manager.commit_metrics import CommitMetrics, outcome_of
from sandboxd.manager.commit_steps import CommitSteps, Held, ImageTools, ProgressNote, lease_key
from sandboxd.manager.draining import drain
from sandboxd.manager.image_ports import ATTEMPTS_KEPT_FOR
from sandboxd.manager.image_telling import ImageTelling
from sandboxd.manager.intents import LEASE, POLL_SECONDS
from sandboxd.manager.losses import Losses
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.package_keeping import PackageKeeping
from sandboxd.manager.packages import SandboxNotRunningError
from sandboxd.manager.ports import Operation, OperationId, UnitOfWork, UnitsOfWork
from sandboxd.manager.sbom_attaching import SbomAttaching
from sandboxd.model.commit_errors import CommitAbandonedError, CommitCancelledError
from sandboxd.model.errors import (
    ConflictError,
    DatabaseUnavailableError,
    DeadlineError,
    SandboxdError,
    StaleOwnerError,
)
from sandboxd.model.ids import RequestId, SandboxId
from sandboxd.model.image import CommitTrigger, Failure, Generation, GenerationId, GenerationStatus
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.sources import Clock, IdSource
from sandboxd.model.trace import NO_TRACES, Tracer

REPORT_EVERY: Final = timedelta(seconds=1)
"""How often progress is written, and the wish for an end looked for."""
RECOVER_EVERY: Final = timedelta(seconds=5)
FORGET_EVERY: Final = timedelta(minutes=10)
MAX_ATTEMPTS: Final = 3
"""How often a build that broke off is begun."""
PAGE: Final = 100
WITH_ROOT: Final = frozenset({SandboxState.ACTIVE, SandboxState.HIBERNATED})
"""States in which a root file system is there and nobody is about to take it away."""
_G = GenerationStatus

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    held: Held
    task: asyncio.Task[None]


@dataclass(slots=True, kw_only=True)
class Commits:
    """Runs commits. A caller that goes away does not end one; a wish in its row does."""

    units: UnitsOfWork
    images: ImageTools
    changes: Changes
    losses: Losses
    clock: Clock
    ids: IdSource
    replica: str
    metrics: CommitMetrics
    deeds: OwnDeeds = UNRECORDED
    packages: PackageKeeping | None = None
    bases: BaseBuilding | None = None
    tracer: Tracer = NO_TRACES
    lease: timedelta = LEASE
    report_every: timedelta = REPORT_EVERY
    telling: ImageTelling = field(init=False)
    sboms: SbomAttaching = field(init=False)
    _steps: CommitSteps = field(init=False)
    _running: dict[GenerationId, _Running] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Join the parts to the same things."""
        self.telling = ImageTelling(
            units=self.units, images=self.images, changes=self.changes, metrics=self.metrics, clock=self.clock
        )
        units, clock = self.units, self.clock
        self.sboms = SbomAttaching(units=units, registry=self.images.registry, metrics=self.metrics, clock=clock)
        self._steps = CommitSteps(
            units=self.units,
            images=self.images,
            changes=self.changes,
            losses=self.losses,
            metrics=self.metrics,
            packages=self.packages,
            bases=self.bases,
            clock=self.clock,
            tracer=self.tracer,
        )

    async def insert(
        self,
        work: UnitOfWork,
        sandbox: SandboxId,
        *,
        name: GenerationId,
        trigger: CommitTrigger,
        dry_run: bool = False,
        request_id: RequestId | None = None,
    ) -> Held:
        """Insert a generation in a transaction with the lease on it; `start` it after the commit.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
            SandboxNotRunningError: It has no root file system now, or is about to lose it.
            CommitInProgressError: Another commit of it is in flight.
        """
        found = await work.sandboxes.get(sandbox, for_update=True)
        life = await work.incarnations.current(sandbox)
        if found.state not in WITH_ROOT or life is None or life.ready_time is None:
            raise SandboxNotRunningError(sandbox, state=found.state)
        now = self.clock.now()
        wanted = Generation(
            id=name,
            sandbox=sandbox,
            client=found.client,
            freelancer=found.freelancer,
            number=1,
            incarnation=life.id,
            trigger=trigger,
            dry_run=dry_run,
            request_id=request_id,
            repository=self.images.repository_of(found.client, found.freelancer),
            parent=None if found.image is None else found.image.generation,
            create_time=now,
            update_time=now,
        )
        return await self.hold(work, wanted)

    async def hold(self, work: UnitOfWork, wanted: Generation) -> Held:
        """Insert a generation that is BUILDING, with its number and the lease on it. Raises CommitInProgressError."""
        begun = await work.generations.begin(wanted)
        operation = self._operation()
        await work.operations.take(lease_key(begun), operation, lease=self.lease)
        return Held(generation=begun, operation=operation.id)

    def start(self, held: Held) -> None:
        """Begin the work on a generation whose row and lease are durable."""
        name = f"commit-{held.generation.id}"
        task = asyncio.create_task(self._guard(held), name=name)
        self._running[held.generation.id] = _Running(held=held, task=task)
        self.metrics.running(len(self._running))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its guard has logged it

    async def wait(self, generation: GenerationId, *, timeout: timedelta) -> Generation:
        """Wait for the end of a commit, wherever it is worked on, and answer what it came to.

        Raises:
            DeadlineError: It has not ended within `timeout`; it goes on.
        """
        deadline = self.clock.monotonic() + timeout.total_seconds()
        while True:
            async with self.units.begin() as work:
                found = await work.generations.get(generation)
            telling = found.status is _G.ACTIVE and found.told_time is None and generation in self._running
            left = deadline - self.clock.monotonic()
            if not found.status.in_flight and (not telling or left <= 0):
                return found
            if left <= 0:
                raise DeadlineError(
                    f"Sandbox {found.sandbox} is still being committed as {found.tag}. The work goes on: repeat the "
                    "call with the same request id for its result, or follow it with WatchCommit.",
                    sandbox=found.sandbox,
                    image=found.tag,
                )
            await self.changes.wait(found.sandbox, timeout=min(left, POLL_SECONDS))

    @property
    def busy(self) -> bool:
        """True while this process works on any."""
        return bool(self._running)

    async def run(self) -> None:
        """Keep leases, and repair what crashes left, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.keep_leases(), name="commit-leases")
            group.create_task(self._recover(), name="commit-recovery")
            group.create_task(self.sboms.run(), name="image-sboms")

    async def drain(self, *, grace: timedelta) -> None:
        """Let commits end within the grace, then leave the rest to the recovery of whoever comes next."""
        await drain({entry.task for entry in self._running.values()}, grace=grace, undone_within=2.0)

    async def renew(self) -> None:
        """Prolong the lease of every commit of this process, and end what is no longer ours."""
        mine = {entry.held.operation: entry for entry in self._running.values()}
        if not mine:
            return
        try:
            async with self.units.begin() as work:
                kept = frozenset(await work.operations.renew([*mine], lease=self.lease))
                await work.commit()
        except SandboxdError as error:
            log.warning("commit.lease_not_renewed", commits=len(mine), error=error.message)
            return
        for lost in mine.keys() - kept:
            if not mine[lost].task.done():
                log.warning("commit.lost", generation=mine[lost].held.generation.id)
                mine[lost].task.cancel()

    async def finish_left_over(self) -> int:
        """Go on with every commit that nobody works on, and tell what is untold; answers how many were taken over."""
        taken, after = 0, None
        while True:
            async with self.units.begin() as work:
                page = await work.generations.unfinished(limit=PAGE, after=after)
            if not page:
                break
            for generation in page:
                if generation.id not in self._running and (held := await self._adopt(generation.id)) is not None:
                    log.info("commit.recovering", sandbox=generation.sandbox, generation=generation.id)
                    self.metrics.recovered()
                    self.start(held)
                    taken += 1
            after = page[-1].id
        await self.telling.tell_untold()
        return taken

    async def _adopt(self, generation: GenerationId) -> Held | None:
        """Take over one that nobody works on; None where somebody does, or it has ended."""
        operation = self._operation()
        async with self.units.begin() as work:
            found = await work.generations.get(generation, for_update=True)
            if not found.status.in_flight:
                return None
            if not await work.operations.take(lease_key(found), operation, lease=self.lease):
                return None
            if found.status is _G.BUILDING:
                found = replace(found, attempts=found.attempts + 1, version=found.version + 1)
                await work.generations.save(found)
            await work.commit()
        return Held(generation=found, operation=operation.id)

    async def _guard(self, held: Held) -> None:
        generation = held.generation
        said: Mapping[str, str] = {"sandbox": generation.sandbox, "image": generation.tag}
        log.info("commit.begun", trigger=generation.trigger.value, attempt=generation.attempts, **said)
        deed = "Image/Upgrade" if generation.trigger is CommitTrigger.UPGRADE else "Image/Commit"
        try:
            async with self.deeds.recorded(deed, client=generation.client, sandbox=generation.sandbox):
                ended = await self._work(held)
        except asyncio.CancelledError:
            await asyncio.shield(self._release(held))
            raise
        except (DatabaseUnavailableError, StaleOwnerError, ConflictError) as error:
            log.warning("commit.left", error=error.message, **said)  # recovery sees to it
            await self._release(held)
        except SandboxdError as error:
            await self._fail(held, error)
        except Exception:  # a task guard: the row stays, and recovery begins again, a few times
            log.exception("commit.broken", **said)
            await self._release(held)
        else:
            self._note_end(ended)
            await self._release(held)
            if ended.status is _G.ACTIVE:
                await self.telling.tell(ended)
        finally:
            self._running.pop(generation.id, None)
            self.metrics.running(len(self._running))

    async def _work(self, held: Held) -> Generation:
        if held.generation.cancelled:
            raise _cancelled(held.generation)
        if held.generation.attempts > MAX_ATTEMPTS:
            raise CommitAbandonedError(
                f"The commit {held.generation.tag} of sandbox {held.generation.sandbox} broke off "
                f"{MAX_ATTEMPTS} times. Commit again.",
                sandbox=held.generation.sandbox,
                image=held.generation.tag,
            )
        note = ProgressNote()
        work = asyncio.create_task(self._steps.carry_out(held, note), name=f"commit-work-{held.generation.id}")
        report = asyncio.create_task(self._report(held, note), name=f"commit-report-{held.generation.id}")
        try:
            await asyncio.wait({work, report}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            work.cancel()
            await asyncio.wait({work})
            if not work.cancelled() and work.exception() is None:
                return work.result()  # it had just come to its end
            report.result()
            raise _cancelled(held.generation)
        finally:
            for task in (work, report):
                task.cancel()
            await asyncio.gather(work, report, return_exceptions=True)

    async def _report(self, held: Held, note: ProgressNote) -> None:
        """Write progress; returns when somebody wishes that it ends."""
        while True:
            await asyncio.sleep(self.report_every.total_seconds())
            try:
                if note.fresh:
                    note.fresh = False
                    async with self.units.begin() as work:
                        await work.generations.note_progress(held.generation.id, note.progress, at=self.clock.now())
                        await work.commit()
                async with self.units.begin() as work:
                    found = await work.generations.get(held.generation.id)
            except SandboxdError as error:
                log.info("commit.progress_not_written", generation=held.generation.id, error=error.message)
                continue
            if found.cancelled and found.status.in_flight:
                return

    async def _fail(self, held: Held, error: SandboxdError) -> None:
        failure = Failure(kind=error.kind, reason=error.reason, message=error.message, metadata=dict(error.metadata))
        try:
            async with self.units.begin() as work:
                found = await work.generations.get(held.generation.id, for_update=True)
                if not found.status.in_flight or not await work.operations.holds(lease_key(found), held.operation):
                    return
                failed = found.fail(failure, at=self.clock.now())
                await work.generations.save(failed)
                await work.operations.release(lease_key(found), held.operation)
                await work.commit()
        except SandboxdError as unwritten:
            log.warning("commit.failure_not_written", generation=held.generation.id, error=unwritten.message)
            return
        self._note_end(failed)
        await self.changes.announce(failed.sandbox)

    def _note_end(self, generation: Generation) -> None:
        outcome = outcome_of(generation)
        self.metrics.ended(generation, outcome)
        failure = generation.failure
        log.info(
            "commit.ended",
            sandbox=generation.sandbox,
            image=generation.tag,
            trigger=generation.trigger.value,
            outcome=outcome,
            reason="" if failure is None else failure.reason,
            error="" if failure is None else failure.message,
            seconds={phase: round(seconds, 3) for phase, seconds in generation.seconds.items()},
            raw_bytes=0 if generation.content is None else generation.content.raw_bytes,
            compressed_bytes=0 if generation.content is None else generation.content.compressed_bytes,
        )
        self.sboms.wake()

    async def _release(self, held: Held) -> None:
        try:
            async with self.units.begin() as work:
                await work.operations.release(lease_key(held.generation), held.operation)
                await work.commit()
        except SandboxdError as error:
            log.warning("commit.lease_not_released", generation=held.generation.id, error=error.message)

    async def keep_leases(self) -> None:
        """Prolong leases until cancelled."""
        while True:
            await asyncio.sleep(self.lease.total_seconds() / 3)
            await self.renew()

    async def _recover(self) -> None:
        forget_at = self.clock.monotonic()
        while True:
            try:
                await self.finish_left_over()
                if self.clock.monotonic() >= forget_at:
                    async with self.units.begin() as work:
                        await work.generations.forget(before=self.clock.now() - ATTEMPTS_KEPT_FOR, limit=10_000)
                        await work.commit()
                    if self.bases is not None:
                        await self.bases.sweep()
                    forget_at = self.clock.monotonic() + FORGET_EVERY.total_seconds()
            except SandboxdError as error:
                log.warning("commit.recovery_failed", error=error.message)
            except Exception:  # a loop: one bad pass must not end all that follow
                log.exception("commit.recovery_broken")
            await asyncio.sleep(RECOVER_EVERY.total_seconds())

    def _operation(self) -> Operation:
        return Operation(id=OperationId(self.ids.new("opr")), replica=self.replica)


def _cancelled(generation: Generation) -> CommitCancelledError:
    return CommitCancelledError(
        f"The commit {generation.tag} of sandbox {generation.sandbox} was cancelled. Nothing was changed.",
        sandbox=generation.sandbox,
        image=generation.tag,
    )

"""The commits of this process: each is owned here, outlives its caller and writes down how far it is.

And the recovery of those that a crash left: whoever can take the lease goes on from the row's status. What a build had
done is lost with its process, so it is begun again, a few times; from PUSHED on nothing is done twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.base_building import BaseBuilding
from sandboxd.manager.changes import Changes
from sandboxd.manager.commit_metrics import CommitMetrics, outcome_of
from sandboxd.manager.commit_steps import CommitSteps, Held, ImageTools, ProgressNote, lease_key
from sandboxd.manager.cut_short import unless_cut_short
from sandboxd.manager.image_ports import ATTEMPTS_KEPT_FOR
from sandboxd.manager.image_telling import ImageTelling
from sandboxd.manager.leased_tasks import LeasedTasks
from sandboxd.manager.losses import Losses
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.package_keeping import PackageKeeping
from sandboxd.manager.packages import SandboxNotRunningError
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
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
from sandboxd.model.image import (
    CommitPhase,
    CommitProgress,
    CommitTrigger,
    Failure,
    Generation,
    GenerationId,
    GenerationStatus,
)
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.sources import Clock
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
IMPATIENT: Final = frozenset({CommitTrigger.STOP, CommitTrigger.PAUSE, CommitTrigger.TERMINATE})
"""Something waits for the end of such a commit. Where pushes are held it fails, as where the registry is away."""
_G = GenerationStatus

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Commits:
    """Runs commits. A caller that goes away does not end one; a wish in its row does."""

    units: UnitsOfWork
    images: ImageTools
    changes: Changes
    losses: Losses
    clock: Clock
    tasks: LeasedTasks
    metrics: CommitMetrics
    deeds: OwnDeeds = UNRECORDED
    packages: PackageKeeping | None = None
    bases: BaseBuilding | None = None
    tracer: Tracer = NO_TRACES
    report_every: timedelta = REPORT_EVERY
    telling: ImageTelling = field(init=False)
    sboms: SbomAttaching = field(init=False)
    _steps: CommitSteps = field(init=False)

    def __post_init__(self) -> None:
        """Join the parts to the same things."""
        self.telling = ImageTelling(
            units=self.units, images=self.images, changes=self.changes, metrics=self.metrics, clock=self.clock
        )
        units, clock = self.units, self.clock
        self.sboms = SbomAttaching(
            units=units,
            registry=self.images.registry,
            pushes=self.images.pushes,
            metrics=self.metrics,
            clock=clock,
        )
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
        lease = await self.tasks.take(work, lease_key(begun))
        if lease is None:  # which is new: nobody else knows of it
            raise ConflictError(f"Commit {begun.id} is worked on by another replica.", image=begun.tag)
        return Held(generation=begun, lease=lease)

    def start(self, held: Held) -> None:
        """Begin the work on a generation whose row and lease are durable."""
        self.tasks.start(held.lease, lambda: self._see_through(held), name=f"commit-{held.generation.id}")

    async def wait(self, generation: GenerationId, *, timeout: timedelta) -> Generation:
        """Wait for the end of a commit, wherever it is worked on, and answer what it came to.

        Raises:
            DeadlineError: It has not ended within `timeout`; it goes on.
        """
        return await self.tasks.ended(generation, lambda work: work.generations, timeout=timeout, late=_late)

    @property
    def busy(self) -> bool:
        """True while this process works on any."""
        return self.tasks.count > 0

    async def run(self) -> None:
        """Keep leases, and repair what crashes left, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.tasks.run(), name="commit-leases")
            group.create_task(self._recover(), name="commit-recovery")
            group.create_task(self.sboms.run(), name="image-sboms")

    async def drain(self, *, grace: timedelta) -> None:
        """Let commits end within the grace, then leave the rest to the recovery of whoever comes next."""
        await self.tasks.drain(grace=grace)

    async def finish_left_over(self) -> int:
        """Go on with every commit that nobody works on, and tell what is untold; answers how many were taken over."""
        taken, after = 0, None
        while True:
            async with self.units.begin() as work:
                page = await work.generations.unfinished(limit=PAGE, after=after)
            if not page:
                break
            for generation in page:
                if adopted := await self.tasks.adopt(generation.id, lambda work: work.generations):
                    log.info("commit.recovering", sandbox=generation.sandbox, generation=generation.id)
                    self.metrics.recovered()
                    self.start(Held(generation=adopted[0], lease=adopted[1]))
                    taken += 1
            after = page[-1].id
        await self.telling.tell_untold()
        return taken

    async def _see_through(self, held: Held) -> None:
        generation = held.generation
        said: Mapping[str, str] = {"sandbox": generation.sandbox, "image": generation.tag}
        log.info("commit.begun", trigger=generation.trigger.value, attempt=generation.attempts, **said)
        deed = "Image/Upgrade" if generation.trigger is CommitTrigger.UPGRADE else "Image/Commit"
        try:
            async with self.deeds.recorded(deed, client=generation.client, sandbox=generation.sandbox):
                ended = await self._work(held)
        except (DatabaseUnavailableError, StaleOwnerError, ConflictError) as error:
            log.warning("commit.left", error=error.message, **said)  # recovery sees to it
        except SandboxdError as error:
            await self._fail(held, error)
        else:
            self._note_end(ended)
            if ended.status is _G.ACTIVE:
                await self.telling.tell(ended)

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
        return await unless_cut_short(
            self._pushed(held, note),
            self._report(held, note),
            name=f"commit-{held.generation.id}",
        )

    async def _pushed(self, held: Held, note: ProgressNote) -> Generation:
        """Carry a commit out as one push to the registry."""
        generation = held.generation
        if generation.dry_run:
            return await self._steps.carry_out(held, note)
        return await self.images.pushes.carried(
            lambda: self._steps.carry_out(held, note),
            patient=generation.trigger not in IMPATIENT,
            waits=lambda: note.take(CommitProgress(phase=CommitPhase.HELD)),
            name=f"commit-{generation.id}",
        )

    async def _report(self, held: Held, note: ProgressNote) -> CommitCancelledError:
        """Write progress until somebody wishes that it ends."""
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
                return _cancelled(held.generation)

    async def _fail(self, held: Held, error: SandboxdError) -> None:
        failure = Failure(kind=error.kind, reason=error.reason, message=error.message, metadata=dict(error.metadata))
        try:
            async with self.units.begin() as work:
                found = await work.generations.get(held.generation.id, for_update=True)
                holds = await work.operations.holds(held.lease.key, held.lease.operation)
                if not found.status.in_flight or not holds:
                    return
                failed = found.fail(failure, at=self.clock.now())
                await work.generations.save(failed)
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


def _late(generation: Generation) -> DeadlineError:
    return DeadlineError(
        f"Sandbox {generation.sandbox} is still being committed as {generation.tag}. The work goes on: repeat the "
        "call with the same request id for its result, or follow it with WatchCommit.",
        sandbox=generation.sandbox,
        image=generation.tag,
    )


def _cancelled(generation: Generation) -> CommitCancelledError:
    return CommitCancelledError(
        f"The commit {generation.tag} of sandbox {generation.sandbox} was cancelled. Nothing was changed.",
        sandbox=generation.sandbox,
        image=generation.tag,
    )

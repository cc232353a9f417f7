"""Finishes what a crash left, at start and every few seconds: sandboxes on their way, and incarnations that are gone.

It never fights live work, here or in another replica: it touches only a sandbox whose operation lease it could take.
Things without their counterpart are reported, and never deleted: the row or the file may be what is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.backend_port import Backend, Observation
from sandboxd.manager.freezing import Freezing
from sandboxd.manager.intents import Intent, Intents
from sandboxd.manager.losses import Losses
from sandboxd.manager.metrics import ManagerMetrics, Orphan
from sandboxd.manager.operations import Operations, Settled, Work
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.patience import Patience
from sandboxd.manager.ports import Life, UnitsOfWork
from sandboxd.manager.quieting import Quieting
from sandboxd.manager.release import Release
from sandboxd.manager.restoring import Restores
from sandboxd.manager.rowless import rowless
from sandboxd.manager.startup import Startup, spec_of
from sandboxd.model.errors import SandboxdError, SandboxNotFoundError
from sandboxd.model.ids import SandboxId
from sandboxd.model.metering import SEEN_EVERY
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock

EVERY: Final = timedelta(seconds=3)
INSPECT_EVERY: Final = timedelta(seconds=15)
"""How often the backend is asked for everything."""
FORGET_EVERY: Final = timedelta(minutes=10)
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 60.0
"""Seconds between attempts at a sandbox whose work keeps failing; doubled each time."""
RESIZE_TIMEOUT: Final = timedelta(seconds=10)
END_TIMEOUT: Final = timedelta(seconds=10)
PAGE: Final = 500
CONCURRENCY: Final = 8
TRANSIENT: Final = frozenset(state for state in SandboxState if state.transient)
GONE: Final = frozenset({SandboxState.TERMINATED})
PRESENT: Final = frozenset(SandboxState) - GONE
RUNNING: Final = frozenset({SandboxState.ACTIVE, SandboxState.HIBERNATED})
"""Resting states that have compute."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphans:
    """What was found without its counterpart."""

    sandboxes: frozenset[str] = frozenset()
    """Known to the backend, without a row or terminated."""
    incarnations: frozenset[str] = frozenset()
    """Running, and no row calls them living."""
    missing: frozenset[str] = frozenset()
    """Rows that should have files and have none."""


@dataclass(slots=True, kw_only=True)
class Recovery:
    """The loop that repairs. Several replicas may run it: leases keep them apart."""

    units: UnitsOfWork
    intents: Intents
    operations: Operations
    startup: Startup
    freezing: Freezing
    release: Release
    quieting: Quieting
    restoring: Restores
    losses: Losses
    backend: Backend
    metrics: ManagerMetrics
    clock: Clock
    deeds: OwnDeeds = UNRECORDED
    _patience: Patience[SandboxId] = field(init=False)
    _reported: Orphans = field(default_factory=Orphans, init=False)
    _note_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Begin without a failure."""
        self._patience = Patience(self.clock, first=FIRST_DELAY, longest=LONGEST_DELAY)

    async def run(self) -> None:
        """Repair until cancelled."""
        inspect_at = forget_at = self.clock.monotonic()
        while True:
            try:
                await self.finish_left_over()
                if self.clock.monotonic() >= inspect_at:
                    await self.inspect()
                    inspect_at = self.clock.monotonic() + INSPECT_EVERY.total_seconds()
                if self.clock.monotonic() >= forget_at:
                    await self._forget_requests()
                    forget_at = self.clock.monotonic() + FORGET_EVERY.total_seconds()
            except SandboxdError as error:
                log.warning("recovery.pass_failed", error=error.message)
            except Exception:  # a loop: one bad pass must not end all that follow
                log.exception("recovery.pass_broken")
            await asyncio.sleep(EVERY.total_seconds())

    async def finish_left_over(self) -> int:
        """Take over every sandbox that was left on its way; answers how many were brought to rest."""
        gate = asyncio.Semaphore(CONCURRENCY)
        finished, after, seen = 0, None, set[SandboxId]()
        while True:
            async with self.units.begin() as work:
                page = await work.sandboxes.in_states(TRANSIENT, limit=PAGE, after=after)
            if not page:
                break
            seen.update(sandbox.id for sandbox in page)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._finish(sandbox, gate), name=f"recover-{sandbox.id}") for sandbox in page
                ]
            finished += sum(task.result() for task in tasks)
            after = page[-1].id
        self._patience.keep(seen)
        return finished

    async def _finish(self, sandbox: Sandbox, gate: asyncio.Semaphore) -> bool:
        if self.operations.busy(sandbox.id) or self._patience.waits(sandbox.id):
            return False
        async with gate:
            try:
                intent = await self.intents.adopt(sandbox.id)
            except SandboxNotFoundError:
                return False
            if intent is None:
                return False
            log.info("sandbox.recovering", sandbox=sandbox.id, state=intent.sandbox.state.value)
            self.metrics.recovered()
            task = self.operations.start(intent, self._recorded(self._work(intent.sandbox.state)))
            if intent.sandbox.state is SandboxState.RESTORING:
                return True  # it may take hours, and nobody else's recovery waits for it
            await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            return True
        self._patience.failed(sandbox.id)
        return False

    def _recorded(self, work: Work) -> Work:
        async def recorded(intent: Intent) -> Settled:
            sandbox = intent.sandbox
            async with self.deeds.recorded("Recovery/Finish", client=sandbox.client, sandbox=sandbox.id):
                return await work(intent)

        return recorded

    def _work(self, state: SandboxState) -> Work:
        ways: Mapping[SandboxState, Work] = {
            SandboxState.CREATING: self.startup.bring_up,
            SandboxState.RESUMING: self.startup.bring_up,
            SandboxState.STARTING: self.startup.bring_up,
            SandboxState.RESTORING: self.restoring.finish,
            SandboxState.WAKING: self.freezing.wake,
            SandboxState.HIBERNATING: self.quieting.hibernate,
            SandboxState.PAUSING: self.release.finish,
            SandboxState.STOPPING: self.quieting.stop,
            SandboxState.TERMINATING: self.release.finish,
        }
        return ways[state]

    async def inspect(self) -> Orphans:
        """Compare the rows with what the backend finds: end what is gone, report what has no counterpart."""
        lives, rows = await self._lives(), await self._rows()
        seen = {observation.sandbox: observation for observation in await self.backend.list()}
        await self._note_living(lives, seen)
        for life in lives:
            observation = seen.get(life.sandbox.id)
            found = None if observation is None else observation.find(life.incarnation.id)
            if found is None and life.incarnation.ready_time is not None:
                await self.losses.check(life.sandbox.id, life.incarnation.id)  # which asks again
        await self._resize(rows, seen)
        await self._end_failed(rows, seen)
        orphans = await self._orphans(rows, seen)
        self._report(orphans)
        return orphans

    async def _resize(self, rows: Mapping[SandboxId, Sandbox], seen: Mapping[SandboxId, Observation]) -> None:
        """Give what runs the size that is wanted, where a crash or the world's absence came between the two."""
        for sandbox, found in seen.items():
            row = rows.get(sandbox)
            if row is None or row.incarnation is None or row.state not in RUNNING:
                continue
            frozen = row.state is SandboxState.HIBERNATED
            try:
                if found.tier not in (None, row.tier):
                    await self.backend.resize(spec_of(row), row.incarnation, timeout=RESIZE_TIMEOUT)
                if found.running and found.shrunk not in (None, frozen):
                    change = self.backend.shrink if frozen else self.backend.grow
                    await change(sandbox, row.incarnation, timeout=RESIZE_TIMEOUT)
            except SandboxdError as error:
                log.warning("recovery.not_resized", sandbox=sandbox, error=error.message)

    async def _end_failed(self, rows: Mapping[SandboxId, Sandbox], seen: Mapping[SandboxId, Observation]) -> None:
        """End what came up after its start was given up: a world that was away may have kept the wish."""
        for sandbox, found in seen.items():
            row = rows.get(sandbox)
            if row is None or row.state is not SandboxState.FAILED or row.incarnation is None:
                continue
            if found.find(row.incarnation) is None:
                continue
            log.warning("recovery.failed_start_ended", sandbox=sandbox, incarnation=row.incarnation)
            try:
                # It names that life alone: a Resume that begins meanwhile has another one.
                await self.backend.stop(sandbox, row.incarnation, grace=timedelta(0), timeout=END_TIMEOUT)
            except SandboxdError as error:
                log.warning("recovery.not_ended", sandbox=sandbox, error=error.message)

    async def _note_living(self, lives: Sequence[Life], seen: Mapping[SandboxId, Observation]) -> None:
        """Write which incarnations were found alive, now and then: one that dies unseen is paid for until then."""
        if self.clock.monotonic() < self._note_at:
            return
        living = [
            life.incarnation.id
            for life in lives
            if (found := seen.get(life.sandbox.id)) is not None and found.find(life.incarnation.id) is not None
        ]
        if living:
            async with self.units.begin() as work:
                await work.incarnations.seen(living, at=self.clock.now())
                await work.commit()
        self._note_at = self.clock.monotonic() + SEEN_EVERY.total_seconds()

    async def _orphans(self, rows: Mapping[SandboxId, Sandbox], seen: Mapping[SandboxId, Observation]) -> Orphans:
        suspects = {
            *(sandbox for sandbox, found in seen.items() if _odd(rows.get(sandbox), found)),
            *(sandbox for sandbox, row in rows.items() if _odd(row, seen.get(sandbox))),
        }
        unknown, strays, missing = set[str](), set[str](), set[str]()
        if not suspects:
            return Orphans()
        # Looked at again, because the two looks were not one moment; together, because they may be many after a
        # disaster, and what nobody mends must not cost a transaction and a look for each of them every time.
        async with self.units.begin() as work:
            rows = await work.sandboxes.find(suspects)
            members = await work.pools.known(suspects)
            worked_in = await rowless(work)
        seen = {observation.sandbox: observation for observation in await self.backend.list()}
        for sandbox in suspects:
            row, found = rows.get(sandbox), seen.get(sandbox)
            if not _odd(row, found):
                continue
            if row is None and (sandbox in members or sandbox in worked_in):
                continue  # the refill, an upgrade and a drill care for their own
            if row is None or row.state in GONE:
                unknown.add(sandbox)
            elif found is not None and found.present:
                strays.update(_strays(row, found))
            else:
                missing.add(sandbox)
        return Orphans(sandboxes=frozenset(unknown), incarnations=frozenset(strays), missing=frozenset(missing))

    async def _lives(self) -> Sequence[Life]:
        lives: list[Life] = []
        after = None
        while True:
            async with self.units.begin() as work:
                page = await work.incarnations.living(limit=PAGE, after=after)
            if not page:
                return lives
            lives.extend(page)
            after = page[-1].incarnation.id

    async def _rows(self) -> Mapping[SandboxId, Sandbox]:
        rows: dict[SandboxId, Sandbox] = {}
        after = None
        while True:
            async with self.units.begin() as work:
                page = await work.sandboxes.in_states(PRESENT, limit=PAGE, after=after)
            if not page:
                return rows
            rows.update((sandbox.id, sandbox) for sandbox in page)
            after = page[-1].id

    def _report(self, orphans: Orphans) -> None:
        kinds: tuple[tuple[Orphan, frozenset[str], frozenset[str]], ...] = (
            ("sandbox_unknown", orphans.sandboxes, self._reported.sandboxes),
            ("incarnation_unknown", orphans.incarnations, self._reported.incarnations),
            ("files_missing", orphans.missing, self._reported.missing),
        )
        for kind, now, before in kinds:
            self.metrics.orphans(kind, len(now))
            for name in sorted(now - before):
                log.warning("recovery.orphan", kind=kind, name=name)
        self._reported = orphans

    async def _forget_requests(self) -> None:
        async with self.units.begin() as work:
            await work.requests.forget_expired(at=self.clock.now(), limit=10_000)
            await work.commit()


def _strays(row: Sandbox, found: Observation) -> frozenset[str]:
    """Incarnations that run although they should not."""
    wanted = row.incarnation if row.state in RUNNING else None
    return frozenset(life.incarnation for life in found.running if life.incarnation != wanted)


def _odd(row: Sandbox | None, found: Observation | None) -> bool:
    """Tell whether row and world do not go together."""
    present = found is not None and found.present
    running = found is not None and bool(found.running)
    if row is None or row.state in GONE:
        return present or running
    if row.state.transient:
        return False  # somebody is at it
    if found is not None and _strays(row, found):
        return True
    return not present and row.state is not SandboxState.FAILED

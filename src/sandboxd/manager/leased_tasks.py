"""Tasks of this process, each under a lease that keeps others from the same work: owned here, renewed, and drained.

What a task does is its maker's; so is what a crash leaves, and who takes that up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from sandboxd.manager.draining import drain
from sandboxd.manager.intents import LEASE
from sandboxd.manager.ports import Operation, OperationId, UnitOfWork, UnitsOfWork
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sources import IdSource

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to do a piece of work until it is not renewed any more."""

    key: SandboxId
    """What the work is on; no sandbox's own id, whose lease is for its states."""
    operation: OperationId


@dataclass(slots=True, kw_only=True)
class LeasedTasks:
    """Runs work under leases. Whoever waits for a task may go away; the task stays."""

    units: UnitsOfWork
    ids: IdSource
    replica: str
    lease: timedelta = LEASE
    on_count: Callable[[int], None] = lambda _: None
    """Told how many run here whenever that has changed."""
    _running: dict[SandboxId, asyncio.Task[None]] = field(default_factory=dict, init=False)
    """All of which something is left to do, be it to give the lease back."""
    _kept: dict[OperationId, asyncio.Task[None]] = field(default_factory=dict, init=False)
    """Those whose leases are prolonged."""

    async def take(self, work: UnitOfWork, key: SandboxId) -> Lease | None:
        """Take a lease in a transaction; None while somebody else holds it."""
        operation = Operation(id=OperationId(self.ids.new("opr")), replica=self.replica)
        taken = await work.operations.take(key, operation, lease=self.lease)
        return Lease(key=key, operation=operation.id) if taken else None

    def start(self, lease: Lease, work: Callable[[], Awaitable[None]], *, name: str) -> None:
        """Begin work whose lease is durable. It must not raise what is not worth a line in the log."""
        task = asyncio.create_task(self._guard(lease, work, name), name=name)
        self._running[lease.key] = self._kept[lease.operation] = task
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its guard has logged it
        self.on_count(self.count)

    def busy(self, key: SandboxId) -> bool:
        """Tell whether this process works on it."""
        return key in self._running

    @property
    def count(self) -> int:
        """How many run here."""
        return len(self._running)

    async def run(self) -> None:
        """Prolong leases until cancelled."""
        while True:
            await asyncio.sleep(self.lease.total_seconds() / 3)
            await self.renew()

    async def renew(self) -> None:
        """Prolong all leases, and end what is no longer ours."""
        mine = dict(self._kept)
        if not mine:
            return
        try:
            async with self.units.begin() as work:
                kept = frozenset(await work.operations.renew([*mine], lease=self.lease))
                await work.commit()
        except SandboxdError as error:
            log.warning("task.lease_not_renewed", tasks=len(mine), error=error.message)
            return
        for lost in mine.keys() - kept:
            if lost in self._kept:  # and has not ended meanwhile
                log.warning("task.lost", task=mine[lost].get_name())
                mine[lost].cancel()

    async def drain(self, *, grace: timedelta) -> None:
        """Let tasks end within the grace, then leave the rest to whoever comes next."""
        await drain(set(self._running.values()), grace=grace, undone_within=2.0)

    async def _guard(self, lease: Lease, work: Callable[[], Awaitable[None]], name: str) -> None:
        try:
            await work()
        except SandboxdError as error:
            log.warning("task.left", task=name, error=error.message)
        except Exception:  # a task guard: what it worked on stays, and is found again
            log.exception("task.broken", task=name)
        finally:
            self._kept.pop(lease.operation, None)
            try:
                await asyncio.shield(self._release(lease))
            finally:
                self._running.pop(lease.key, None)
                self.on_count(self.count)

    async def _release(self, lease: Lease) -> None:
        try:
            async with self.units.begin() as work:
                await work.operations.release(lease.key, lease.operation)
                await work.commit()
        except SandboxdError as error:
            log.warning("task.lease_not_released", error=error.message)

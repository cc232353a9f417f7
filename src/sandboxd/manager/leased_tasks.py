"""Tasks of this process, each under a lease that keeps others from the same work: owned here, renewed, and drained.

What a task does is its maker's; so is what a crash leaves, and who takes that up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, Self, TypeVar

import structlog

from sandboxd.manager.changes import Changes
from sandboxd.manager.draining import drain
from sandboxd.manager.intents import LEASE, POLL_SECONDS
from sandboxd.manager.lease_keeping import LeaseKeeping
from sandboxd.manager.ports import Operation, OperationId, UnitOfWork, UnitsOfWork
from sandboxd.model.errors import DeadlineError, NotFoundError, SandboxdError, StaleOwnerError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sources import Clock, IdSource

log = structlog.get_logger(__name__)


class Attempt(Protocol):
    """A row that says of work how far it is. Its name is the key of the lease."""

    @property
    def sandbox(self) -> SandboxId:
        """Whose changes tell of it."""
        ...

    @property
    def in_flight(self) -> bool:
        """True until it has ended."""
        ...

    def begun_again(self) -> Self:
        """Return it with one more attempt, in its next version; itself where that does not count."""
        ...


_Name_contra = TypeVar("_Name_contra", bound=str, contravariant=True)
_Name = TypeVar("_Name", bound=str)
_Row = TypeVar("_Row", bound=Attempt)
_Result = TypeVar("_Result")


class Rows(Protocol[_Name_contra, _Row]):
    """The rows of one kind of work."""

    async def get(self, name: _Name_contra, /, *, for_update: bool = False) -> _Row:
        """The row of this name. Raises NotFoundError where there is none."""
        ...

    async def save(self, row: _Row, /) -> None:
        """Write it."""
        ...


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
    changes: Changes
    clock: Clock
    ids: IdSource
    replica: str
    lease: timedelta = LEASE
    on_count: Callable[[int], None] = lambda _: None
    """Told how many run here whenever that has changed."""
    _running: dict[SandboxId, asyncio.Task[Any]] = field(default_factory=dict, init=False)
    """All of which something is left to do, be it to give the lease back. Any: what they come to is for who waits."""
    _keeping: LeaseKeeping = field(init=False)

    def __post_init__(self) -> None:
        """Begin without a task."""
        self._keeping = LeaseKeeping(units=self.units, lease=self.lease)

    async def take(self, work: UnitOfWork, key: SandboxId) -> Lease | None:
        """Take a lease in a transaction; None while somebody else holds it."""
        operation = Operation(id=OperationId(self.ids.new("opr")), replica=self.replica)
        taken = await work.operations.take(key, operation, lease=self.lease)
        return Lease(key=key, operation=operation.id) if taken else None

    async def adopt(self, name: _Name, rows: Callable[[UnitOfWork], Rows[_Name, _Row]]) -> tuple[_Row, Lease] | None:
        """Take over what a row says of work that broke off, its attempt counted; `start` it then.

        None where somebody works on it, here or elsewhere, or there is nothing to go on with any more.
        """
        key = SandboxId(name)
        if self.busy(key):
            return None
        async with self.units.begin() as work:
            try:
                found = await rows(work).get(name, for_update=True)
            except NotFoundError:
                return None
            if not found.in_flight or (lease := await self.take(work, key)) is None:
                return None
            again = found.begun_again()
            if again is not found:
                await rows(work).save(again)
            await work.commit()
        return again, lease

    async def ended(
        self,
        name: _Name,
        rows: Callable[[UnitOfWork], Rows[_Name, _Row]],
        *,
        timeout: timedelta,
        late: Callable[[_Row], DeadlineError],
    ) -> _Row:
        """Wait for the end of what a row says, wherever it is worked on; where that is here, until it is let go.

        Raises:
            DeadlineError: What `late` makes of a row that is in flight at the end of `timeout`; the work goes on.
        """
        deadline = self.clock.monotonic() + timeout.total_seconds()
        while True:
            async with self.units.begin() as work:
                found = await rows(work).get(name)
            left, task = deadline - self.clock.monotonic(), self._running.get(SandboxId(name))
            if not found.in_flight and (task is None or left <= 0):
                return found
            if left <= 0:
                raise late(found)
            if found.in_flight or task is None:
                await self.changes.wait(found.sandbox, timeout=min(left, POLL_SECONDS))
            else:
                await asyncio.wait({task}, timeout=left)

    def start(self, lease: Lease, work: Callable[[], Awaitable[None]], *, name: str) -> None:
        """Begin work whose lease is durable. It must not raise what is not worth a line in the log."""

        async def logged() -> None:
            try:
                await work()
            except SandboxdError as error:
                log.warning("task.left", task=name, error=error.message)
            except Exception:  # a task guard: what it worked on stays, and is found again
                log.exception("task.broken", task=name)

        _ = self._begin(lease, logged, name)  # it is owned here

    async def finish(self, lease: Lease, work: Callable[[], Awaitable[_Result]], *, name: str) -> _Result:
        """Begin work whose lease is durable, wait for it, and answer what it comes to, or raise what it raises.

        Raises:
            StaleOwnerError: The lease was lost, or this process goes: the work has ended before its end.
        """
        task = self._begin(lease, work, name)
        await asyncio.wait({task})
        if task.cancelled():
            raise StaleOwnerError(f"The work {name} was taken from this replica.", task=name)
        return task.result()

    def busy(self, key: SandboxId) -> bool:
        """Tell whether this process works on it."""
        return key in self._running

    @property
    def count(self) -> int:
        """How many run here."""
        return len(self._running)

    async def run(self) -> None:
        """Prolong leases until cancelled."""
        await self._keeping.run()

    async def renew(self) -> None:
        """Prolong all leases, and end what is no longer ours."""
        await self._keeping.renew()

    async def drain(self, *, grace: timedelta) -> None:
        """Let tasks end within the grace, then leave the rest to whoever comes next."""
        await drain(set(self._running.values()), grace=grace, undone_within=2.0)

    def _begin(self, lease: Lease, work: Callable[[], Awaitable[_Result]], name: str) -> asyncio.Task[_Result]:
        task = asyncio.create_task(self._under(lease, work), name=name)
        self._running[lease.key] = task
        self._keeping.keep(lease.operation, task)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waited may have gone
        self.on_count(self.count)
        return task

    async def _under(self, lease: Lease, work: Callable[[], Awaitable[_Result]]) -> _Result:
        try:
            return await work()
        finally:
            self._keeping.drop(lease.operation)
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

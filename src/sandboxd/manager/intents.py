"""The two transactions around every piece of work on a sandbox: its intent before the world, its outcome after it.

Who works on a sandbox holds its operation's lease, taken in the transaction of the intent. A lease, and not an advisory
lock for each sandbox: it needs no connection of its own for minutes, it survives a restart of PostgreSQL, and it runs
out when a replica stands still; a replica that died is known at once by its one advisory lock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.changes import Changes
from sandboxd.manager.lines import Lines
from sandboxd.manager.outcome import record_error
from sandboxd.manager.ports import Operation, OperationId, RequestOutcome, RequestRecord, UnitOfWork, UnitsOfWork
from sandboxd.model.client_errors import QuotaExceededError
from sandboxd.model.errors import ConflictError, SandboxdError, StaleOwnerError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Incarnation, Sandbox, SandboxState
from sandboxd.model.sources import Clock, IdSource

LEASE: Final = timedelta(seconds=15)
"""How long the work on a sandbox is ours without a sign of life."""
POLL_SECONDS: Final = 0.25
"""How often to look by ourselves while another replica is at work."""
METHODS: Final = {
    SandboxState.CREATING: ("Create",),
    SandboxState.PAUSING: ("Pause",),
    SandboxState.RESUMING: ("Resume",),
    SandboxState.RESTORING: ("Restore", "Create"),
    SandboxState.TERMINATING: ("Terminate",),
}
"""Which requests a transient state answers. One that is made from a backup is RESTORING from its beginning."""

Plan = Callable[[UnitOfWork, Sandbox], Awaitable[Sandbox]]
"""Answers the sandbox as it shall be, and writes what goes with it; raises where the state does not allow it."""

CreatePlan = Callable[[UnitOfWork], Awaitable[tuple[Sandbox, Incarnation | None] | None]]
"""Answers a new sandbox with its first life, if it begins with one, which are to be inserted; None where it cannot be
made now."""

log = structlog.get_logger(__name__)


class SandboxInUseError(ConflictError):
    """Another operation works on the sandbox."""

    reason = "OPERATION_IN_PROGRESS"

    def __init__(self, sandbox: SandboxId) -> None:
        super().__init__(
            f"Another operation is working on sandbox {sandbox}. Try again in a moment.",
            sandbox=sandbox,
            retry_after=timedelta(seconds=1),
        )


class OvertakenError(ConflictError):
    """Another request changed the sandbox before this one was done."""

    reason = "OVERTAKEN"

    def __init__(self, sandbox: SandboxId, *, method: str) -> None:
        super().__init__(
            f"{method} of sandbox {sandbox} was overtaken by another request.", sandbox=sandbox, method=method
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A sandbox on its way, and the operation that is at it."""

    sandbox: Sandbox
    operation: Operation


class Intents:
    """Writes intents and outcomes."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        clock: Clock,
        ids: IdSource,
        replica: str,
        changes: Changes,
        lease: timedelta = LEASE,
    ) -> None:
        self._units = units
        self._clock = clock
        self._ids = ids
        self._replica = replica
        self._changes = changes
        self._lease = lease
        self._lines = Lines()

    async def create(self, plan: CreatePlan, *, claim: RequestRecord) -> Intent | Sandbox | RequestRecord | None:
        """Insert a new sandbox, or answer what an earlier request of the same id left.

        One that is ACTIVE at once needs no operation: its request has its outcome in the same transaction, and it is
        for the caller to announce it. None: the plan has changed nothing.
        """
        operation = self._operation()
        async with self._lines.turn(claim.client), self._units.begin() as work:
            earlier = await work.requests.get(claim.client, claim.request_id)
            if earlier is not None and not _expired(earlier, claim):
                return earlier
            try:
                made = await plan(work)
            except QuotaExceededError:
                # Its own twin may have taken the last place while this one waited for the client's lock.
                earlier = await work.requests.get(claim.client, claim.request_id)
                if earlier is not None and not _expired(earlier, claim):
                    return earlier
                raise
            if made is None:
                return None
            planned, life = made
            done = planned.state is SandboxState.ACTIVE
            record = replace(claim, sandbox=planned.id, outcome=RequestOutcome(sandbox=planned) if done else None)
            if not await work.sandboxes.create(planned, life, record):
                return await work.requests.get(claim.client, claim.request_id)
            if done:
                failpoint("claim.before_commit")
                await work.commit()
                return planned
            await work.operations.take(planned.id, operation, lease=self._lease)
            await work.commit()
        await self._changes.announce(planned.id)
        return Intent(sandbox=planned, operation=operation)

    async def open(
        self, sandbox: SandboxId, plan: Plan, *, claim: RequestRecord | None = None, timeout: timedelta
    ) -> Intent | RequestRecord:
        """Write an intent as soon as nobody else works on the sandbox.

        Raises:
            SandboxInUseError: Somebody else does, for all of `timeout`.
        """
        operation = self._operation()
        deadline = self._clock.monotonic() + timeout.total_seconds()
        while True:
            result = await self._try_open(sandbox, plan, operation, claim)
            if result is not None:
                return result
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise SandboxInUseError(sandbox)
            await self._changes.wait(sandbox, timeout=min(left, POLL_SECONDS))

    async def _try_open(
        self, sandbox: SandboxId, plan: Plan, operation: Operation, claim: RequestRecord | None
    ) -> Intent | RequestRecord | None:
        async with self._units.begin() as work:
            if claim is not None:
                earlier = await work.requests.claim(claim)
                if earlier is not None:
                    return earlier
            planned = await plan(work, await work.sandboxes.get(sandbox, for_update=True))
            if not await work.operations.take(sandbox, operation, lease=self._lease):
                return None  # and the claim is undone with it
            await work.sandboxes.save(planned)
            await work.commit()
        await self._changes.announce(sandbox)
        return Intent(sandbox=planned, operation=operation)

    async def adopt(self, sandbox: SandboxId) -> Intent | None:
        """Take over a sandbox that was left on its way; None when it is not, or somebody works on it."""
        operation = self._operation()
        async with self._units.begin() as work:
            found = await work.sandboxes.get(sandbox, for_update=True)
            if not found.state.transient or not await work.operations.take(sandbox, operation, lease=self._lease):
                return None
            await work.commit()
        return Intent(sandbox=found, operation=operation)

    async def advance(self, intent: Intent, plan: Plan) -> Intent:
        """Write a step on the way and keep working.

        Raises:
            StaleOwnerError: Somebody else has taken the sandbox over.
        """
        async with self._units.begin() as work:
            planned = await plan(work, await self._held(work, intent))
            await work.sandboxes.save(planned)
            await work.commit()
        await self._changes.announce(planned.id)
        return Intent(sandbox=planned, operation=intent.operation)

    async def settle(
        self, intent: Intent, plan: Plan, *, kept: str = "", error: SandboxdError | None = None
    ) -> Sandbox:
        """Write the outcome, answer the requests that wait for it, and let the sandbox go.

        Raises:
            StaleOwnerError: Somebody else has taken the sandbox over.
        """
        async with self._units.begin() as work:
            before = await self._held(work, intent)
            settled = await plan(work, before)
            await work.sandboxes.save(settled)
            outcome = RequestOutcome(sandbox=settled, kept=kept, error=None if error is None else record_error(error))
            for record in await work.requests.in_progress(settled.id):
                answers = record.method in METHODS.get(before.state, ())
                overtaken = RequestOutcome(error=record_error(OvertakenError(settled.id, method=record.method)))
                await work.requests.finish(record.client, record.request_id, outcome if answers else overtaken)
            await work.operations.release(settled.id, intent.operation.id)
            await work.commit()
        await self._changes.announce(settled.id)
        return settled

    async def abandon(self, intent: Intent) -> None:
        """Let go of a sandbox whose work was cut off, so that recovery need not wait for the lease to run out."""
        try:
            async with self._units.begin() as work:
                await work.operations.release(intent.sandbox.id, intent.operation.id)
                await work.commit()
        except SandboxdError as error:
            log.warning("sandbox.operation_not_released", sandbox=intent.sandbox.id, error=error.message)

    async def _held(self, work: UnitOfWork, intent: Intent) -> Sandbox:
        sandbox = await work.sandboxes.get(intent.sandbox.id, for_update=True)
        if not await work.operations.holds(sandbox.id, intent.operation.id):
            raise StaleOwnerError(
                f"Another replica has taken over the work on sandbox {sandbox.id}.", sandbox=sandbox.id
            )
        return sandbox

    def _operation(self) -> Operation:
        return Operation(id=OperationId(self._ids.new("opr")), replica=self._replica)


def _expired(earlier: RequestRecord, mine: RequestRecord) -> bool:
    return earlier.expire_time is not None and earlier.expire_time <= mine.create_time

"""The tasks that work on sandboxes in this process: each is owned here, outlives its caller and keeps its lease."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from sandboxd.manager.draining import drain
from sandboxd.manager.intents import Intent, Intents
from sandboxd.manager.lease_keeping import LeaseKeeping
from sandboxd.manager.metrics import ManagerMetrics
from sandboxd.model.errors import DeadlineError, SandboxdError, UnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.sources import Clock
from sandboxd.model.trace import NO_TRACES, Tracer

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What an operation came to."""

    sandbox: Sandbox
    kept: str = ""
    """Terminate: where the files were kept."""


Work = Callable[[Intent], Awaitable[Settled]]
"""Carries an intent out in the world and settles it. Safe to repeat from its beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    intent: Intent
    task: asyncio.Task[Settled]


class Operations:
    """Runs the work on sandboxes. A caller that goes away does not end it."""

    def __init__(
        self,
        *,
        intents: Intents,
        leases: LeaseKeeping,
        clock: Clock,
        metrics: ManagerMetrics,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._intents = intents
        self._leases = leases
        self._clock = clock
        self._metrics = metrics
        self._tracer = tracer
        self._running: dict[SandboxId, _Running] = {}

    def start(self, intent: Intent, work: Work) -> asyncio.Task[Settled]:
        """Begin the work on a sandbox whose intent is durable."""
        name = intent.sandbox.state.value.lower()
        task = asyncio.create_task(self._guard(intent, work), name=f"{name}-{intent.sandbox.id}")
        self._running[intent.sandbox.id] = _Running(intent=intent, task=task)
        self._leases.keep(intent.operation.id, task)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its guard has logged it
        return task

    async def finish(self, intent: Intent, work: Work, *, timeout: timedelta) -> Settled:
        """Begin the work and wait for it.

        Raises:
            DeadlineError: It is not done within `timeout`; it goes on.
        """
        task = self.start(intent, work)
        await asyncio.wait({task}, timeout=timeout.total_seconds())
        if not task.done():
            raise DeadlineError(
                f"Sandbox {intent.sandbox.id} is still {intent.sandbox.state.value}. The work goes on: "
                "repeat the call with the same request id for its result.",
                sandbox=intent.sandbox.id,
                state=intent.sandbox.state.value,
            )
        if task.cancelled():
            raise UnavailableError("The service is going down. Repeat the call with the same request id.")
        return task.result()

    def busy(self, sandbox: SandboxId) -> bool:
        """Tell whether this process works on the sandbox."""
        return sandbox in self._running

    async def drain(self, *, grace: timedelta) -> None:
        """Let the work end within the grace, then leave the rest to the recovery of whoever comes next."""
        await drain({entry.task for entry in self._running.values()}, grace=grace, undone_within=1.0)

    async def _guard(self, intent: Intent, work: Work) -> Settled:
        sandbox, operation = intent.sandbox.id, intent.sandbox.state
        began = self._clock.monotonic()
        outcome = "error"
        name = f"sandbox.{operation.value.lower()}"
        try:
            with self._tracer.span(name, attributes={"sandbox": sandbox, "client": intent.sandbox.client}):
                settled = await work(intent)
        except asyncio.CancelledError:
            outcome = "cancelled"
            await asyncio.shield(self._intents.abandon(intent))
            raise
        except SandboxdError as error:
            outcome = "refused"
            log.warning("sandbox.operation_failed", sandbox=sandbox, operation=operation.value, error=error.message)
            await self._intents.abandon(intent)
            raise
        except Exception:
            log.exception("sandbox.operation_broken", sandbox=sandbox, operation=operation.value)
            await self._intents.abandon(intent)
            raise
        else:
            outcome = "done"
            log.info("sandbox.settled", sandbox=sandbox, operation=operation.value, state=settled.sandbox.state.value)
            return settled
        finally:
            self._leases.drop(intent.operation.id)
            entry = self._running.get(sandbox)
            if entry is not None and entry.intent.operation == intent.operation:  # not that of a successor
                del self._running[sandbox]
            self._metrics.operation(operation, outcome=outcome, seconds=self._clock.monotonic() - began)

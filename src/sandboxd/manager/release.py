"""Takes compute away: the conversation is closed, the incarnation ended, the files kept. For pause, stop, terminate."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.agents import visit
from sandboxd.manager.backend_port import Backend, Observation
from sandboxd.manager.intents import Intent, Intents
from sandboxd.manager.operations import Settled
from sandboxd.manager.ports import Conversations, UnitOfWork
from sandboxd.model.errors import (
    AgentUnavailableError,
    DatabaseUnavailableError,
    DeadlineError,
    OpenTurnsError,
    SandboxdError,
)
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.stream.agent_port import AgentConnector

CLOSE_TIMEOUT: Final = timedelta(seconds=10)
"""How long the CLI may take to end by itself."""
STOP_GRACE: Final = timedelta(seconds=5)
"""How long processes have between TERM and KILL."""
STOP_TIMEOUT: Final = timedelta(seconds=30)
THAW_TIMEOUT: Final = timedelta(seconds=5)
RESTS: Final = {
    SandboxState.PAUSING: SandboxState.PAUSED,
    SandboxState.STOPPING: SandboxState.STOPPED,
    SandboxState.TERMINATING: SandboxState.TERMINATED,
}
"""Where each way ends."""
VERBS: Final = {SandboxState.PAUSING: "pause", SandboxState.STOPPING: "stop", SandboxState.TERMINATING: "terminate"}
"""Names of the failpoints on the way."""

log = structlog.get_logger(__name__)


class Release:
    """Carries out PAUSING, STOPPING and TERMINATING. A failure leaves the state as it is: recovery goes on with it."""

    def __init__(
        self,
        *,
        intents: Intents,
        backend: Backend,
        conversations: Conversations,
        connector: AgentConnector,
        clock: Clock,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._intents = intents
        self._backend = backend
        self._conversations = conversations
        self._connector = connector
        self._clock = clock
        self._tracer = tracer

    async def finish(self, intent: Intent) -> Settled:
        """Release the sandbox's compute; TERMINATING takes it from its place too.

        Raises:
            OpenTurnsError: It is STOPPING, which nobody asked for, and a turn is open. Its processes run.
        """
        sandbox, state = intent.sandbox.id, intent.sandbox.state
        verb, rest = VERBS[state], RESTS[state]
        failpoint(f"{verb}.after_commit")
        observation = await self._backend.observe(sandbox)
        await self._thaw(observation)  # a frozen CLI cannot end by itself
        with self._tracer.step("conversation.close"):
            await self._close(sandbox, reason=rest.value, only_idle=state is SandboxState.STOPPING)
        failpoint(f"{verb}.after_close")
        for life in observation.running:
            with self._tracer.step("backend.stop"):
                await self._backend.stop(sandbox, life.incarnation, grace=STOP_GRACE, timeout=STOP_TIMEOUT)
        failpoint(f"{verb}.after_stop")
        kept = ""
        if state is SandboxState.TERMINATING:
            with self._tracer.step("backend.remove"):
                kept = await self._backend.remove(sandbox, timeout=STOP_TIMEOUT)
            failpoint(f"{verb}.after_remove")
        with self._tracer.step("sandbox.settle"):
            settled = await self._intents.settle(intent, lambda work, before: self._rest(work, before, rest), kept=kept)
        failpoint(f"{verb}.after_settle")
        return Settled(sandbox=settled, kept=kept)

    async def _rest(self, work: UnitOfWork, sandbox: Sandbox, rest: SandboxState) -> Sandbox:
        now = self._clock.now()
        current = await work.incarnations.current(sandbox.id)
        if current is not None:
            await work.incarnations.save(replace(current, end_time=now, end_reason=rest.value))
        return sandbox.enter(rest, at=now)

    async def _close(self, sandbox: SandboxId, *, reason: str, only_idle: bool) -> None:
        try:
            await self._conversations.close(sandbox, reason=reason, timeout=CLOSE_TIMEOUT, only_idle=only_idle)
        except (DatabaseUnavailableError, OpenTurnsError):
            raise
        except (SandboxdError, TimeoutError) as error:
            # Its processes are ended next; whoever owns the conversation sees that and ends the turns.
            log.warning("sandbox.conversation_not_closed", sandbox=sandbox, error=str(error))

    async def _thaw(self, observation: Observation) -> None:
        for life in observation.running:
            if life.endpoint is None:
                continue
            try:
                async with visit(self._connector, life.endpoint) as agent:
                    await agent.thaw(timeout=THAW_TIMEOUT)
            except (AgentUnavailableError, DeadlineError) as error:
                log.warning("sandbox.not_thawed", sandbox=observation.sandbox, error=error.message)

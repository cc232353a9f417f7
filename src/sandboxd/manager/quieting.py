"""HIBERNATING and STOPPING as policy does them: called off where somebody begins to use the sandbox in that moment.

Why nothing falls between: the state is durable before it is asked whether a turn is open, and a turn is durable before
its owner asks for the state. So either this sees the turn, or the turn's owner sees the state, waits for its end and
wakes the sandbox. Recovery carries out the same work, so a crash in between changes nothing of this.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.agents import visit
from sandboxd.manager.freezing import Freezing
from sandboxd.manager.intents import Intent, Intents
from sandboxd.manager.operations import Settled
from sandboxd.manager.ports import Conversations, UnitOfWork, UnitsOfWork
from sandboxd.manager.release import Release
from sandboxd.model.errors import AgentUnavailableError, DeadlineError, OpenTurnsError
from sandboxd.model.next_step import idle_since
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock
from sandboxd.stream.agent_port import AgentConnector

ASK_TIMEOUT: Final = timedelta(seconds=3)

log = structlog.get_logger(__name__)


class Quieting:
    """Carries out what the sweep began."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        intents: Intents,
        freezing: Freezing,
        release: Release,
        conversations: Conversations,
        connector: AgentConnector,
        clock: Clock,
    ) -> None:
        self._units = units
        self._intents = intents
        self._freezing = freezing
        self._release = release
        self._conversations = conversations
        self._connector = connector
        self._clock = clock

    async def hibernate(self, intent: Intent) -> Settled:
        """Freeze it, unless it is used: HIBERNATED, or ACTIVE as it was.

        Raises:
            DeadlineError: Not everything could be stopped; it is ACTIVE again.
        """
        if await self._in_use(intent.sandbox):
            return await self._call_off(intent, SandboxState.ACTIVE)
        return await self._freezing.freeze(intent)

    async def stop(self, intent: Intent) -> Settled:
        """Release its compute, unless it is used: STOPPED, or as it was. A prompt that comes meanwhile starts it."""
        if await self._in_use(intent.sandbox):
            return await self._call_off(intent, await self._was(intent.sandbox))
        try:
            return await self._release.finish(intent)
        except OpenTurnsError:
            # A turn began since; whoever holds it waits for our end and wakes the sandbox, which also renews its token.
            return await self._call_off(intent, SandboxState.HIBERNATED)

    async def _in_use(self, sandbox: Sandbox) -> bool:
        if await self._conversations.open_turns(sandbox.id):
            return True
        since = idle_since(sandbox)
        async with self._units.begin() as work:
            incarnation = await work.incarnations.current(sandbox.id)
        if incarnation is None or incarnation.endpoint is None:
            return False
        try:
            async with visit(self._connector, incarnation.endpoint) as agent:
                activity = await agent.get_activity(timeout=ASK_TIMEOUT)
        except (AgentUnavailableError, DeadlineError):
            return False  # whoever freezes or stops it finds out what is the matter
        if activity.frozen:
            return False
        moments = (activity.last_input_time, activity.last_model_request_time)
        return bool(activity.open_model_requests) or any(one is not None and one > since for one in moments)

    async def _was(self, sandbox: Sandbox) -> SandboxState:
        """Say what a sandbox on its way to STOPPED was before: its processes are still as they were."""
        async with self._units.begin() as work:
            incarnation = await work.incarnations.current(sandbox.id)
        if incarnation is None or incarnation.endpoint is None:
            return SandboxState.HIBERNATED  # the next use finds that it has no life, and makes one
        try:
            async with visit(self._connector, incarnation.endpoint) as agent:
                frozen = (await agent.get_activity(timeout=ASK_TIMEOUT)).frozen
        except (AgentUnavailableError, DeadlineError):
            return SandboxState.HIBERNATED
        return SandboxState.HIBERNATED if frozen else SandboxState.ACTIVE

    async def _call_off(self, intent: Intent, back: SandboxState) -> Settled:
        async def plan(_: UnitOfWork, sandbox: Sandbox) -> Sandbox:
            now = self._clock.now()
            return replace(sandbox.enter(back, at=now), last_use_time=now)

        log.info("lifecycle.called_off", sandbox=intent.sandbox.id, state=intent.sandbox.state.value)
        return Settled(sandbox=await self._intents.settle(intent, plan))

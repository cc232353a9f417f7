"""Freezes sandboxes in place and thaws them: HIBERNATING and WAKING."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.agents import visit
from sandboxd.manager.backend_port import Backend
from sandboxd.manager.intents import Intent, Intents
from sandboxd.manager.losses import AGENT_LOST
from sandboxd.manager.operations import Settled
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.manager.startup import Startup
from sandboxd.manager.tokens import TokenKeeper
from sandboxd.model.errors import AgentUnavailableError, DeadlineError, SandboxdError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.sandbox import AgentEndpoint, Incarnation, Sandbox, SandboxState
from sandboxd.model.sources import Clock
from sandboxd.stream.agent_port import AgentConnector

FREEZE_TIMEOUT: Final = timedelta(seconds=10)
THAW_TIMEOUT: Final = timedelta(seconds=10)
SHRINK_TIMEOUT: Final = timedelta(seconds=5)
GROW_TIMEOUT: Final = timedelta(milliseconds=500)
"""How long a wake waits at most for the request to grow back, which goes out beside the thaw. Recovery repeats it."""

log = structlog.get_logger(__name__)


class Freezing:
    """Carries out HIBERNATING and WAKING."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        intents: Intents,
        backend: Backend,
        connector: AgentConnector,
        startup: Startup,
        tokens: TokenKeeper,
        clock: Clock,
    ) -> None:
        self._units = units
        self._intents = intents
        self._backend = backend
        self._connector = connector
        self._startup = startup
        self._tokens = tokens
        self._clock = clock

    async def freeze(self, intent: Intent, *, briefly: bool = False) -> Settled:
        """Stop all processes where they are; HIBERNATED, for the reason that it was HIBERNATING for.

        Args:
            intent: A sandbox that is HIBERNATING.
            briefly: It keeps its size: a moment is not worth two changes of it.

        Raises:
            DeadlineError: Not everything could be stopped; the sandbox is ACTIVE again.
        """
        failpoint("hibernate.after_commit")
        incarnation, endpoint = await self._present(intent.sandbox)
        if endpoint is not None:
            try:
                async with visit(self._connector, endpoint) as agent:
                    await agent.freeze(timeout=FREEZE_TIMEOUT)
            except (AgentUnavailableError, DeadlineError):
                if await self._runs(incarnation):
                    await self.wake(await self._intents.advance(intent, self._waking))
                    raise
                endpoint = None
        failpoint("hibernate.after_freeze")
        gone = endpoint is None
        if incarnation is not None and not gone and not briefly:
            await self._size(incarnation, self._backend.shrink, within=SHRINK_TIMEOUT)
        settled = await self._intents.settle(intent, lambda work, before: self._hibernated(work, before, gone=gone))
        return Settled(sandbox=settled)

    async def wake(self, intent: Intent, *, used: bool = True) -> Settled:
        """Continue all processes; ACTIVE. An incarnation that is no more is made anew instead.

        Args:
            intent: A sandbox that is WAKING.
            used: Somebody uses it; else it is as long unused as before.

        Raises:
            AgentUnavailableError, DeadlineError: The agent is there and does not do it; recovery tries again.
        """
        failpoint("wake.after_commit")
        incarnation, endpoint = await self._present(intent.sandbox)
        if incarnation is not None and endpoint is not None:
            growing = asyncio.create_task(
                self._size(incarnation, self._backend.grow, within=GROW_TIMEOUT), name=f"grow-{incarnation.id}"
            )
            try:
                await self._tokens.give(intent.sandbox, incarnation.id, endpoint)
                async with visit(self._connector, endpoint) as agent:
                    await agent.thaw(timeout=THAW_TIMEOUT)
                await growing
            except (AgentUnavailableError, DeadlineError):
                if await self._runs(incarnation):
                    raise
            else:
                failpoint("wake.after_thaw")
                active = self._active if used else self._active_again
                return Settled(sandbox=await self._intents.settle(intent, active))
            finally:
                growing.cancel()
        anew = await self._intents.advance(
            intent, lambda work, now: self._startup.plan(work, now, SandboxState.STARTING, lost=AGENT_LOST)
        )
        return await self._startup.bring_up(anew)

    async def _present(self, sandbox: Sandbox) -> tuple[Incarnation | None, AgentEndpoint | None]:
        async with self._units.begin() as work:
            incarnation = await work.incarnations.current(sandbox.id)
        return incarnation, None if incarnation is None else incarnation.endpoint

    async def _size(self, life: Incarnation, change: Callable[..., Awaitable[None]], *, within: timedelta) -> None:
        """Make a request about size: that it fails changes what a sandbox costs, and nothing that it does."""
        try:
            async with asyncio.timeout(within.total_seconds()):
                await change(life.sandbox, life.id, timeout=within)
        except (SandboxdError, TimeoutError) as error:
            log.warning("sandbox.not_sized", error=str(error) or "not in time")

    async def _runs(self, incarnation: Incarnation | None) -> bool:
        if incarnation is None:
            return False
        observation = await self._backend.observe(incarnation.sandbox)
        return observation.find(incarnation.id) is not None

    async def _waking(self, _: UnitOfWork, sandbox: Sandbox) -> Sandbox:
        return sandbox.enter(SandboxState.WAKING, at=self._clock.now())

    async def _active(self, _: UnitOfWork, sandbox: Sandbox) -> Sandbox:
        now = self._clock.now()
        return replace(sandbox.enter(SandboxState.ACTIVE, at=now), last_use_time=now)

    async def _active_again(self, _: UnitOfWork, sandbox: Sandbox) -> Sandbox:
        return sandbox.enter(SandboxState.ACTIVE, at=self._clock.now())

    async def _hibernated(self, work: UnitOfWork, sandbox: Sandbox, *, gone: bool) -> Sandbox:
        now = self._clock.now()
        current = await work.incarnations.current(sandbox.id)
        if gone and current is not None:
            await work.incarnations.save(replace(current, end_time=now, end_reason=AGENT_LOST))
        return sandbox.enter(SandboxState.HIBERNATED, at=now, reason=sandbox.state_reason)

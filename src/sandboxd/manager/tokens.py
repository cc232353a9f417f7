"""Keeps every active sandbox's agent supplied with the gateway's address and a fresh sandbox token.

The token lives for minutes and the agent holds it in memory alone. It is given when an incarnation starts or wakes, and
renewed for all at a third of its lifetime; the first round comes at once, because the service may have been away. When
the machine's clock is set, the tokens that are out are over, or not valid yet: then a round comes at once, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from sandboxd.manager.agents import visit
from sandboxd.manager.metrics import ManagerMetrics
from sandboxd.manager.ports import Life, ModelTokens, UnitsOfWork
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import IncarnationId
from sandboxd.model.pool import POOLED, Member
from sandboxd.model.sandbox import AgentEndpoint, Sandbox, SandboxState
from sandboxd.model.sources import Clock
from sandboxd.model.tokens import SANDBOX_TOKEN_LIFETIME, SandboxIdentity
from sandboxd.stream.agent_port import AgentConnector

PAGE = 500
"""Incarnations read at once."""
CONCURRENCY = 16
"""Agents spoken to at once in a round: a TLS handshake each, and one core must not drown in them."""
GIVE_TIMEOUT = timedelta(seconds=5)
CLOCK_STEP_SECONDS = 2.0
"""A clock that has moved by so much more, or less, than time has passed was set; below the gateway's leeway of 5 s."""
LOOK_SECONDS = 1.0
"""How often the clock is looked at."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEndpointTarget:
    """Where the agents' model endpoints forward to."""

    base_url: str
    """Base URL of the gateway."""
    ca_pem: bytes = b""
    """Authorities to trust for an https gateway; empty: those of the system."""


class TokenKeeper:
    """Gives agents their tokens."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        connector: AgentConnector,
        tokens: ModelTokens,
        target: ModelEndpointTarget,
        metrics: ManagerMetrics,
        clock: Clock,
        every: timedelta = SANDBOX_TOKEN_LIFETIME / 3,
    ) -> None:
        self._units = units
        self._connector = connector
        self._tokens = tokens
        self._target = target
        self._metrics = metrics
        self._clock = clock
        self._every = every

    async def give(self, sandbox: Sandbox, incarnation: IncarnationId, endpoint: AgentEndpoint) -> None:
        """Give one agent the gateway's address and a fresh token.

        Raises:
            AgentUnavailableError, DeadlineError: The agent did not take it.
        """
        await self._give(
            SandboxIdentity(
                client=sandbox.client, freelancer=sandbox.freelancer, sandbox=sandbox.id, incarnation=incarnation
            ),
            endpoint,
        )

    async def give_member(self, member: Member, endpoint: AgentEndpoint) -> None:
        """Give the agent of a pool's member its token: good for that life of that sandbox, whoever claims it.

        It says no freelancer. The gateway takes who that is from the sandbox's row, and refuses while there is none.

        Raises:
            AgentUnavailableError, DeadlineError: The agent did not take it.
        """
        await self._give(
            SandboxIdentity(
                client=member.client, freelancer=POOLED, sandbox=member.sandbox, incarnation=member.incarnation
            ),
            endpoint,
        )

    async def _give(self, identity: SandboxIdentity, endpoint: AgentEndpoint) -> None:
        token = self._tokens.mint(identity)
        try:
            async with visit(self._connector, endpoint) as agent:
                await agent.set_model_endpoint(
                    base_url=self._target.base_url,
                    token=token.text,
                    expire_time=token.expire_time,
                    ca_pem=self._target.ca_pem,
                    timeout=GIVE_TIMEOUT,
                )
        except SandboxdError:
            self._metrics.token(given=False)
            raise
        self._metrics.token(given=True)

    async def run(self) -> None:
        """Renew all tokens, at once and then every third of their lifetime, until cancelled."""
        while True:
            try:
                await self.renew_all()
            except SandboxdError as error:
                log.warning("sandbox.token_round_failed", error=error.message)
                await asyncio.sleep(1.0)  # sooner than the next round: agents may be about to run dry
                continue
            await self._until_due()

    async def _until_due(self) -> None:
        """Wait for the next round, or until the clock was set."""
        began, moment = self._clock.monotonic(), self._clock.now()
        while (passed := self._clock.monotonic() - began) < self._every.total_seconds():
            await asyncio.sleep(min(LOOK_SECONDS, self._every.total_seconds() - passed))
            shown = (self._clock.now() - moment).total_seconds()
            step = shown - (self._clock.monotonic() - began)
            if abs(step) > CLOCK_STEP_SECONDS:
                log.warning("sandbox.clock_was_set", step_seconds=round(step, 1))
                return

    async def renew_all(self) -> int:
        """Give every active sandbox's agent a fresh token; answers how many took it. Who does not answer is logged."""
        async with self._units.begin() as work:
            members = await work.pools.waiting()
        given, after = await self._renew_members(members), None
        while True:
            async with self._units.begin() as work:
                lives = await work.incarnations.living(limit=PAGE, after=after)
            if not lives:
                return given
            given += await self._renew(lives)
            after = lives[-1].incarnation.id

    async def _renew_members(self, members: Sequence[Member]) -> int:
        gate = asyncio.Semaphore(CONCURRENCY)

        async def renew(member: Member, endpoint: AgentEndpoint) -> bool:
            async with gate:
                try:
                    await self.give_member(member, endpoint)
                except SandboxdError as error:
                    log.warning("pool.token_not_renewed", sandbox=member.sandbox, error=error.message)
                    return False
                return True

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(renew(member, member.endpoint), name=f"token-{member.sandbox}")
                for member in members
                if member.endpoint is not None
            ]
        return sum(task.result() for task in tasks)

    async def _renew(self, lives: Sequence[Life]) -> int:
        gate = asyncio.Semaphore(CONCURRENCY)

        async def renew(life: Life, endpoint: AgentEndpoint) -> bool:
            async with gate:
                try:
                    await self.give(life.sandbox, life.incarnation.id, endpoint)
                except SandboxdError as error:
                    log.warning("sandbox.token_not_renewed", sandbox=life.sandbox.id, error=error.message)
                    return False
                return True

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(renew(life, life.incarnation.endpoint), name=f"token-{life.sandbox.id}")
                for life in lives
                # A frozen one gets its token when it wakes.
                if life.incarnation.endpoint is not None and life.sandbox.state is SandboxState.ACTIVE
            ]
        return sum(task.result() for task in tasks)

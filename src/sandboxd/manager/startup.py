"""Brings a sandbox up: a new incarnation, its agent, its token, ACTIVE. Used by create, resume, start and recovery."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from sandboxd.manager.backend_port import Backend, SandboxSpec
from sandboxd.manager.image_fallback import ImageFallback
from sandboxd.manager.image_trust import ImageTrust
from sandboxd.manager.intents import Intent, Intents
from sandboxd.manager.operations import Settled
from sandboxd.manager.ports import UnitOfWork
from sandboxd.manager.tokens import TokenKeeper
from sandboxd.model.errors import InternalError, SandboxdError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import IncarnationId
from sandboxd.model.image_errors import ImageBrokenError
from sandboxd.model.sandbox import TIER_RESOURCES, AgentEndpoint, Incarnation, Sandbox, SandboxState
from sandboxd.model.sources import Clock, IdSource
from sandboxd.model.trace import NO_TRACES, Tracer

START_TIMEOUT: Final = timedelta(seconds=60)
"""How long a backend may take until the agent answers."""
CLEANUP_TIMEOUT: Final = timedelta(seconds=15)
PULLING: Final = "Its node is fetching and unpacking its image."
"""`state_reason` of a sandbox whose start waits for that; gone when it is up."""
VERBS: Final = {
    SandboxState.CREATING: "create",
    SandboxState.RESUMING: "resume",
    SandboxState.STARTING: "start",
    SandboxState.RESTORING: "restore",
}
"""Names of the failpoints on the way."""

log = structlog.get_logger(__name__)


def spec_of(sandbox: Sandbox) -> SandboxSpec:
    """Say what a backend must know of a sandbox."""
    return SandboxSpec(
        sandbox=sandbox.id,
        client=sandbox.client,
        freelancer=sandbox.freelancer,
        resources=TIER_RESOURCES[sandbox.tier],
        tier=sandbox.tier,
        image=sandbox.image.reference if sandbox.image else "",
    )


class Startup:
    """Plans new incarnations, and starts them."""

    def __init__(
        self,
        *,
        intents: Intents,
        backend: Backend,
        tokens: TokenKeeper,
        clock: Clock,
        ids: IdSource,
        fallback: ImageFallback,
        trust: ImageTrust | None = None,
        timeout: timedelta = START_TIMEOUT,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._intents = intents
        self._backend = backend
        self._tokens = tokens
        self._clock = clock
        self._ids = ids
        self._fallback = fallback
        self._trust = trust
        self._timeout = timeout
        self._tracer = tracer

    def new_life(self, sandbox: Sandbox) -> tuple[Sandbox, Incarnation]:
        """Give a sandbox its next incarnation; nothing is written."""
        incarnation = Incarnation(
            id=IncarnationId(self._ids.new("inc")),
            sandbox=sandbox.id,
            number=sandbox.incarnations + 1,
            start_time=self._clock.now(),
        )
        return replace(sandbox, incarnation=incarnation.id, incarnations=incarnation.number), incarnation

    async def plan(self, work: UnitOfWork, sandbox: Sandbox, state: SandboxState, *, lost: str) -> Sandbox:
        """Write the next incarnation in the transaction of the intent, and answer the sandbox on its way.

        Args:
            work: The transaction.
            sandbox: The sandbox as it is.
            state: STARTING or RESUMING.
            lost: End reason of an incarnation that is still on record as living.

        Raises:
            InvalidTransitionError: The sandbox's state does not allow it.
        """
        now = self._clock.now()
        entered = sandbox.enter(state, at=now)
        former = await work.incarnations.current(sandbox.id)
        if former is not None:
            await work.incarnations.save(replace(former, end_time=now, end_reason=lost))
        planned, incarnation = self.new_life(entered)
        await work.incarnations.add(incarnation)
        return planned

    async def bring_up(self, intent: Intent) -> Settled:
        """Start the planned incarnation until its agent answers and has its token; ACTIVE, or FAILED with the reason.

        Raises:
            SandboxdError: It could not be started; the sandbox is FAILED.
        """
        sandbox, verb = intent.sandbox, VERBS[intent.sandbox.state]
        if sandbox.incarnation is None:
            raise InternalError(f"Sandbox {sandbox.id} is {sandbox.state.value} without an incarnation.")
        failpoint(f"{verb}.after_commit")
        try:
            with self._tracer.step("backend.start"):
                intent, endpoint = await self._start(intent, sandbox.incarnation)
            failpoint(f"{verb}.after_start")
            with self._tracer.step("sandbox.token"):
                await self._tokens.give(sandbox, sandbox.incarnation, endpoint)
            failpoint(f"{verb}.after_token")
        except SandboxdError as error:
            cause = error.message
            error.add(
                f"Sandbox {sandbox.id} is FAILED: Resume tries again, Terminate ends it.",
                sandbox=sandbox.id,
                state=SandboxState.FAILED.value,
            )
            await self._give_up(intent, sandbox.incarnation, error, cause=cause)
            raise
        with self._tracer.step("sandbox.settle"):
            active = await self._intents.settle(intent, lambda work, before: self._live(work, before, endpoint))
        failpoint(f"{verb}.after_settle")
        return Settled(sandbox=active)

    async def _start(self, intent: Intent, incarnation: IncarnationId) -> tuple[Intent, AgentEndpoint]:
        """Start it from its image; from the one before where that does not boot, and then from the base."""
        fallen = False
        while True:
            try:
                if self._trust is not None:
                    await self._trust.check(intent.sandbox)
                endpoint = await self._backend.start(
                    spec_of(intent.sandbox),
                    incarnation,
                    timeout=self._timeout,
                    pulling=partial(self._tell_of_pull, intent),
                )
                return intent, endpoint
            except ImageBrokenError as error:
                intent = await self._fallback.take(intent, error, to_base=fallen)
                fallen = True

    async def _tell_of_pull(self, intent: Intent) -> None:
        async def told(_: UnitOfWork, sandbox: Sandbox) -> Sandbox:
            reason = f"{_without_pull(sandbox.state_reason)} {PULLING}".strip()
            return replace(sandbox, state_reason=reason, version=sandbox.version + 1)

        try:
            await self._intents.advance(intent, told)
        except SandboxdError as error:  # a word to people, which no start depends on
            log.warning("sandbox.pull_not_told", sandbox=intent.sandbox.id, error=error.message)

    async def _live(self, work: UnitOfWork, sandbox: Sandbox, endpoint: AgentEndpoint) -> Sandbox:
        now = self._clock.now()
        incarnation = await work.incarnations.current(sandbox.id)
        if incarnation is None or incarnation.id != sandbox.incarnation:
            raise InternalError(f"Sandbox {sandbox.id} has lost the record of its incarnation.")
        await work.incarnations.save(replace(incarnation, endpoint=endpoint, ready_time=now))
        # What was said on the way of the image that did not boot stands until the next state.
        reason = _without_pull(sandbox.state_reason)
        return replace(sandbox.enter(SandboxState.ACTIVE, at=now, reason=reason), last_use_time=now)

    async def _give_up(self, intent: Intent, incarnation: IncarnationId, error: SandboxdError, *, cause: str) -> None:
        try:
            await self._backend.stop(
                intent.sandbox.id, incarnation, grace=timedelta(seconds=0), timeout=CLEANUP_TIMEOUT
            )
        except SandboxdError as left:
            # The next start ends it: a sandbox never has two.
            log.warning("sandbox.leftover", sandbox=intent.sandbox.id, incarnation=incarnation, error=left.message)

        async def fail(work: UnitOfWork, sandbox: Sandbox) -> Sandbox:
            now = self._clock.now()
            current = await work.incarnations.current(sandbox.id)
            if current is not None:
                await work.incarnations.save(replace(current, end_time=now, end_reason="START_FAILED"))
            return sandbox.enter(SandboxState.FAILED, at=now, reason=cause)

        await self._intents.settle(intent, fail, error=error)


def _without_pull(reason: str) -> str:
    return reason.removesuffix(PULLING).rstrip()

"""Freezes sandboxes for a moment, for work that wants their volumes to stand still, and lets them go on.

A hibernation like policy's, with a reason that says for what: whoever uses the sandbox wakes it at once, and what a
crash leaves frozen is known by its reason to whoever goes on with that work.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.changes import Changes
from sandboxd.manager.freezing import Freezing
from sandboxd.manager.intents import Intent, Intents, SandboxInUseError
from sandboxd.manager.operations import Operations, Settled
from sandboxd.manager.ports import Conversations, UnitOfWork, UnitsOfWork
from sandboxd.model.errors import ConflictError, InternalError, OpenTurnsError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock

FREEZE_TIMEOUT: Final = timedelta(seconds=15)
THAW_TIMEOUT: Final = timedelta(seconds=60)
LOOK_SECONDS: Final = 0.5
"""How often it is looked whether a turn has ended."""
_S = SandboxState

log = structlog.get_logger(__name__)


class Stillness:
    """Freezes and thaws for others."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        intents: Intents,
        operations: Operations,
        freezing: Freezing,
        conversations: Conversations,
        changes: Changes,
        clock: Clock,
    ) -> None:
        self._units = units
        self._intents = intents
        self._operations = operations
        self._freezing = freezing
        self._conversations = conversations
        self._changes = changes
        self._clock = clock

    async def freeze(self, sandbox: SandboxId, *, reason: str, wait: timedelta) -> Sandbox:
        """Stop all processes of an ACTIVE sandbox where they are; answers it HIBERNATED.

        Args:
            sandbox: Which.
            reason: Its `state_reason` meanwhile; open streams are told.
            wait: How long the end of a turn that is open is waited for.

        Raises:
            OpenTurnsError: A turn was open all the time.
            InvalidTransitionError: It is not ACTIVE.
            SandboxInUseError: Something else works on it all the time.
            DeadlineError: Not everything could be stopped; it is ACTIVE again, or will be.
        """

        async def plan(_: UnitOfWork, found: Sandbox) -> Sandbox:
            return found.enter(_S.HIBERNATING, at=self._clock.now(), reason=reason)

        deadline = self._clock.monotonic() + wait.total_seconds()
        while True:
            turns = await self._conversations.open_turns(sandbox)
            if not turns:
                left = max(1.0, deadline - self._clock.monotonic())
                intent = _intent(await self._intents.open(sandbox, plan, timeout=timedelta(seconds=left)))
                settled = await self._operations.finish(intent, self._freeze, timeout=FREEZE_TIMEOUT)
                if settled.sandbox.state is _S.HIBERNATED:
                    return settled.sandbox
            if self._clock.monotonic() >= deadline:
                raise OpenTurnsError(sandbox, turns=turns)
            await self._changes.wait(sandbox, timeout=LOOK_SECONDS)

    async def is_still(self, frozen: Sandbox) -> bool:
        """Tell whether nothing of a sandbox can have run since it was frozen."""
        async with self._units.begin() as work:
            found = await work.sandboxes.get(frozen.id)
        return (found.state, found.state_time, found.incarnation) == (
            frozen.state,
            frozen.state_time,
            frozen.incarnation,
        )

    async def thaw(self, sandbox: SandboxId, *, reason: str) -> None:
        """Let go on what was frozen for this reason, also by who is dead by now; what is otherwise is left alone.

        Raises:
            SandboxInUseError: Something else works on it all the time.
            SandboxdError: Its agent does not do it; recovery tries again.
        """

        async def plan(_: UnitOfWork, found: Sandbox) -> Sandbox:
            if found.state is not _S.HIBERNATED or found.state_reason != reason:
                raise _ElsewhereError(f"Sandbox {sandbox} is not frozen for this any more.", sandbox=sandbox)
            return found.enter(_S.WAKING, at=self._clock.now())

        deadline = self._clock.monotonic() + THAW_TIMEOUT.total_seconds()
        while True:
            async with self._units.begin() as work:
                found = await work.sandboxes.get(sandbox)
            if found.state_reason != reason or found.state not in (_S.HIBERNATING, _S.HIBERNATED):
                return
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise SandboxInUseError(sandbox)
            if found.state is _S.HIBERNATED:
                try:
                    intent = _intent(await self._intents.open(sandbox, plan, timeout=timedelta(seconds=left)))
                except _ElsewhereError:
                    return
                await self._operations.finish(intent, self._thaw, timeout=timedelta(seconds=left))
                return
            # On its way, in a replica that may be dead: recovery brings it to rest.
            await self._changes.wait(sandbox, timeout=LOOK_SECONDS)

    async def _freeze(self, intent: Intent) -> Settled:
        """Freeze it, unless a turn has begun since it was looked: HIBERNATED, or ACTIVE as it was."""
        if await self._conversations.open_turns(intent.sandbox.id):
            return Settled(sandbox=await self._intents.settle(intent, self._active))
        return await self._freezing.freeze(intent, briefly=True)

    async def _thaw(self, intent: Intent) -> Settled:
        return await self._freezing.wake(intent, used=False)

    async def _active(self, _: UnitOfWork, sandbox: Sandbox) -> Sandbox:
        return sandbox.enter(_S.ACTIVE, at=self._clock.now())


class _ElsewhereError(ConflictError):
    """It is not what it was when it was looked at."""


def _intent(opened: object) -> Intent:
    if not isinstance(opened, Intent):
        raise InternalError("An intent without a request met an earlier request.")
    return opened

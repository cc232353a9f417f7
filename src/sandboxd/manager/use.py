"""Makes sandboxes ready for whoever uses them: implements the stream's `Sandboxes` port."""

from __future__ import annotations

from collections import OrderedDict
from datetime import timedelta
from typing import Final, assert_never

from typing_extensions import override

from sandboxd.manager.announcing import Announcements
from sandboxd.manager.backend_port import Backend
from sandboxd.manager.changes import Changes
from sandboxd.manager.freezing import Freezing
from sandboxd.manager.intents import POLL_SECONDS, Intent, Intents, SandboxInUseError
from sandboxd.manager.losses import AGENT_LOST, Losses
from sandboxd.manager.operations import Operations, Work
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.manager.startup import Startup
from sandboxd.model.errors import (
    DeadlineError,
    InvalidTransitionError,
    SandboxPausedError,
    UnavailableError,
)
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.sandbox import Incarnation, Sandbox, SandboxState
from sandboxd.model.sources import Clock
from sandboxd.stream.ports import ActiveSandbox, CliPlace, Sandboxes

TOUCH_SECONDS: Final = 5.0
"""How often a use of the same sandbox is written at most."""
MAX_REMEMBERED_TOUCHES: Final = 10_000
_S = SandboxState


class SandboxUse(Sandboxes):
    """Wakes, starts and finds sandboxes. One start at a time: the intent in the database decides who makes it."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        intents: Intents,
        operations: Operations,
        startup: Startup,
        freezing: Freezing,
        losses: Losses,
        backend: Backend,
        changes: Changes,
        announcements: Announcements,
        clock: Clock,
    ) -> None:
        self._units = units
        self._intents = intents
        self._operations = operations
        self._startup = startup
        self._freezing = freezing
        self._losses = losses
        self._backend = backend
        self._changes = changes
        self._announcements = announcements
        self._clock = clock
        self._touched: OrderedDict[SandboxId, float] = OrderedDict()

    @override
    async def get(self, sandbox: SandboxId) -> Sandbox:
        async with self._units.begin() as work:
            return await work.sandboxes.get(sandbox)

    @override
    async def use(self, sandbox: SandboxId, *, timeout: timedelta) -> ActiveSandbox:
        deadline = self._clock.monotonic() + timeout.total_seconds()
        while True:
            async with self._units.begin() as work:
                found = await work.sandboxes.get(sandbox)
                incarnation = await work.incarnations.current(sandbox)
            if found.state is _S.ACTIVE and incarnation is not None and incarnation.ready_time is not None:
                await self.touch(sandbox)
                return ActiveSandbox(sandbox=found, incarnation=incarnation)
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise DeadlineError(
                    f"Sandbox {sandbox} is still {found.state.value}. Try again.",
                    sandbox=sandbox,
                    state=found.state.value,
                )
            way = _way(found, incarnation)
            if way is None:
                await self._changes.wait(sandbox, timeout=min(left, POLL_SECONDS))
            else:
                await self._bring(found, way, timeout=timedelta(seconds=left))

    @override
    async def present(self, sandbox: SandboxId) -> ActiveSandbox | None:
        async with self._units.begin() as work:
            found = await work.sandboxes.get(sandbox)
            incarnation = await work.incarnations.current(sandbox)
        if incarnation is None or incarnation.ready_time is None:
            return None
        return ActiveSandbox(sandbox=found, incarnation=incarnation)

    @override
    async def incarnation_lost(self, sandbox: SandboxId, incarnation: IncarnationId) -> bool:
        return await self._losses.check(sandbox, incarnation)

    @override
    async def touch(self, sandbox: SandboxId) -> None:
        now = self._clock.monotonic()
        if now - self._touched.get(sandbox, -TOUCH_SECONDS) < TOUCH_SECONDS:
            return
        self._touched[sandbox] = now
        self._touched.move_to_end(sandbox)
        while len(self._touched) > MAX_REMEMBERED_TOUCHES:
            self._touched.popitem(last=False)
        async with self._units.begin() as work:
            await work.sandboxes.touch(sandbox, at=self._clock.now())
            await work.commit()
        await self._announcements.used(sandbox)

    @override
    async def place(self, active: ActiveSandbox) -> CliPlace:
        return await self._backend.place(active.sandbox.id, active.incarnation.id)

    async def _bring(self, seen: Sandbox, way: SandboxState, *, timeout: timedelta) -> None:
        async def plan(work: UnitOfWork, sandbox: Sandbox) -> Sandbox:
            if sandbox.version != seen.version:
                raise _ChangedMeanwhileError(sandbox.id)
            if way is _S.WAKING:
                return sandbox.enter(way, at=self._clock.now())
            return await self._startup.plan(work, sandbox, way, lost=AGENT_LOST)

        work: Work = self._freezing.wake if way is _S.WAKING else self._startup.bring_up
        try:
            intent = await self._intents.open(seen.id, plan, timeout=timedelta(seconds=0))
        except (_ChangedMeanwhileError, SandboxInUseError):
            await self._changes.wait(seen.id, timeout=POLL_SECONDS / 10)
            return
        if isinstance(intent, Intent):  # always: without a claim there is no earlier request
            await self._operations.finish(intent, work, timeout=timeout)


class _ChangedMeanwhileError(UnavailableError):
    """Somebody was faster; look again."""

    def __init__(self, sandbox: SandboxId) -> None:
        super().__init__(f"Sandbox {sandbox} has changed meanwhile.", sandbox=sandbox)


def _way(sandbox: Sandbox, incarnation: Incarnation | None) -> SandboxState | None:
    """Say how a sandbox becomes ACTIVE; None: somebody is at it, wait.

    Raises:
        SandboxPausedError: Its owner paused it.
        InvalidTransitionError: It has ended or failed.
    """
    state = sandbox.state
    match state:
        case _S.ACTIVE | _S.STOPPED:
            return _S.STARTING
        case _S.HIBERNATED:
            return _S.STARTING if incarnation is None else _S.WAKING
        case _S.CREATING | _S.STARTING | _S.RESUMING | _S.RESTORING | _S.WAKING | _S.HIBERNATING | _S.STOPPING:
            return None
        case _S.PAUSED | _S.PAUSING:
            raise SandboxPausedError(sandbox.id)
        case _S.FAILED:
            raise InvalidTransitionError(
                sandbox.id, state=state.value, wanted=_S.ACTIVE.value, hint=f"{sandbox.state_reason} Call Resume."
            )
        case _S.TERMINATING | _S.TERMINATED:
            raise InvalidTransitionError(sandbox.id, state=state.value, wanted=_S.ACTIVE.value)
        case _:
            assert_never(state)

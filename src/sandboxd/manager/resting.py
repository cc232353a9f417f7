"""Pauses sandboxes and resumes them: compute given back and asked for by the caller's wish; and hibernates them."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.access import require_visible
from sandboxd.manager.intents import Intent, Intents, Plan
from sandboxd.manager.operations import Operations, Settled, Work
from sandboxd.manager.ports import Conversations, RequestRecord, UnitOfWork, UnitsOfWork
from sandboxd.manager.quieting import Quieting
from sandboxd.manager.release import Release
from sandboxd.manager.requests import Requests
from sandboxd.manager.saving import RootSaving
from sandboxd.manager.startup import Startup
from sandboxd.model.caller import Request
from sandboxd.model.commit_errors import RootNotSavedError
from sandboxd.model.errors import DeadlineError, InternalError, OpenTurnsError, SandboxdError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.model.image import CommitTrigger
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock

FORCED: Final = timedelta(seconds=30)
"""How long a commit is waited for that is given up after that: whoever forces wants an end."""
FREEZE_FOR_COMMIT: Final = timedelta(seconds=15)
SUPERSEDED = "RESUMED"
"""End reason of an incarnation that was still on record when its sandbox was resumed."""


log = structlog.get_logger(__name__)


class Resting:
    """Pause, resume, terminate: what a caller asks for; and hibernate: what policy asks for."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        intents: Intents,
        operations: Operations,
        requests: Requests,
        startup: Startup,
        release: Release,
        quieting: Quieting,
        conversations: Conversations,
        saving: RootSaving,
        clock: Clock,
    ) -> None:
        self._saving = saving
        self._units = units
        self._intents = intents
        self._operations = operations
        self._requests = requests
        self._startup = startup
        self._release = release
        self._quieting = quieting
        self._conversations = conversations
        self._clock = clock

    async def pause(self, request: Request, sandbox: SandboxId, *, force: bool, timeout: timedelta) -> Sandbox:
        """Release the sandbox's compute and keep its files.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            InvalidTransitionError: It is not active, hibernated or stopped.
            OpenTurnsError: A turn is open and `force` was not given.
            RootNotSavedError: What was installed could not be kept, and `force` was not given.
            DeadlineError: Keeping it takes longer than `timeout`; it goes on.
        """
        began = self._clock.monotonic()

        async def plan(_: UnitOfWork, found: Sandbox) -> Sandbox:
            return require_visible(found, request.caller).enter(SandboxState.PAUSING, at=self._clock.now())

        if not force:
            await self._refuse_open_turns(sandbox, plan, unless=self._requests.record(request, "Pause", sandbox))
        if self._saving.active:
            await self._keep(request, sandbox, CommitTrigger.PAUSE, plan, force=force, timeout=timeout)
        left = max(timedelta(0), timeout - timedelta(seconds=self._clock.monotonic() - began))
        return (await self._run(request, "Pause", sandbox, plan, self._release.finish, left)).sandbox

    async def resume(self, request: Request, sandbox: SandboxId, *, timeout: timedelta) -> Sandbox:
        """Bring a paused or failed sandbox back, and answer when its agent answers.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            InvalidTransitionError: It is neither paused nor failed.
            UnavailableError: It could not be started; the sandbox is FAILED.
        """

        async def plan(work: UnitOfWork, found: Sandbox) -> Sandbox:
            require_visible(found, request.caller)
            return await self._startup.plan(work, found, SandboxState.RESUMING, lost=SUPERSEDED)

        return (await self._run(request, "Resume", sandbox, plan, self._startup.bring_up, timeout)).sandbox

    async def terminate(
        self, request: Request, sandbox: SandboxId, *, timeout: timedelta, force: bool = False, keep: bool = True
    ) -> Settled:
        """End a sandbox; open turns end as interrupted, and the answer says where its files were kept.

        Args:
            request: Who asks.
            sandbox: Which.
            timeout: How long the caller waits.
            force: End it also where what was installed cannot be kept.
            keep: False commits nothing: for what is erased.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            InvalidTransitionError: It is terminated, or on its way there.
            RootNotSavedError: What was installed could not be kept, and `force` was not given.
            DeadlineError: Keeping it takes longer than `timeout`; it goes on.
        """
        began = self._clock.monotonic()

        async def plan(_: UnitOfWork, found: Sandbox) -> Sandbox:
            return require_visible(found, request.caller).enter(SandboxState.TERMINATING, at=self._clock.now())

        if keep and self._saving.active:
            await self._keep(request, sandbox, CommitTrigger.TERMINATE, plan, force=force, timeout=timeout)
        left = max(timedelta(0), timeout - timedelta(seconds=self._clock.monotonic() - began))
        return await self._run(request, "Terminate", sandbox, plan, self._release.finish, left)

    async def hibernate(self, sandbox: SandboxId, *, timeout: timedelta) -> Sandbox:
        """Freeze an idle sandbox in place; whoever calls has decided that it is idle.

        Raises:
            InvalidTransitionError: It is not active.
            OpenTurnsError: A turn is open.
        """

        async def plan(_: UnitOfWork, found: Sandbox) -> Sandbox:
            return found.enter(SandboxState.HIBERNATING, at=self._clock.now())

        await self._refuse_open_turns(sandbox, plan)
        intent = await self._intents.open(sandbox, plan, timeout=timeout)
        if not isinstance(intent, Intent):
            raise InternalError("An intent without a request met an earlier request.")
        return (await self._operations.finish(intent, self._quieting.hibernate, timeout=timeout)).sandbox

    async def _keep(
        self,
        request: Request,
        sandbox: SandboxId,
        trigger: CommitTrigger,
        plan: Plan,
        *,
        force: bool,
        timeout: timedelta,
    ) -> None:
        """Commit what would go with the compute, frozen where nothing is open, so that nothing changes after that."""
        async with self._units.begin() as work:
            if await work.requests.get(request.caller.client, request.request_id) is not None:
                return  # it is only repeated
            found = await work.sandboxes.get(sandbox)
            await plan(work, found)  # who must not see it, or may not end it, must not learn more
        try:
            if found.state is SandboxState.ACTIVE and not force and not await self._conversations.open_turns(sandbox):
                with suppress(SandboxdError):  # then it is committed while it runs
                    await self.hibernate(sandbox, timeout=min(timeout, FREEZE_FOR_COMMIT))
            await self._saving.save(
                sandbox,
                trigger=trigger,
                request_id=request.request_id,
                timeout=min(timeout, FORCED) if force else timeout,
            )
        except (RootNotSavedError, DeadlineError) as error:
            if not force:
                raise
            log.warning("sandbox.root_given_up", sandbox=sandbox, reason=error.reason, error=error.message)

    async def _refuse_open_turns(self, sandbox: SandboxId, plan: Plan, *, unless: RequestRecord | None = None) -> None:
        """Refuse while turns are open, except to a request that is only repeated.

        Outside the intent's transaction: it asks another room, and that must not happen under a row's lock. A turn
        that begins after this look ends as interrupted; the close that follows is what ends turns for sure.
        """
        async with self._units.begin() as work:
            if unless is not None and await work.requests.get(unless.client, unless.request_id) is not None:
                return
            await plan(work, await work.sandboxes.get(sandbox))  # who must not see it must not learn of its turns
        turns = await self._conversations.open_turns(sandbox)
        if turns:
            raise OpenTurnsError(sandbox, turns=turns)

    async def _run(
        self, request: Request, method: str, sandbox: SandboxId, plan: Plan, work: Work, timeout: timedelta
    ) -> Settled:
        claim = self._requests.record(request, method, sandbox)
        failpoint(f"{method.lower()}.before_commit")
        began = self._clock.monotonic()
        intent = await self._intents.open(sandbox, plan, claim=claim, timeout=timeout)
        left = max(timedelta(0), timeout - timedelta(seconds=self._clock.monotonic() - began))
        if isinstance(intent, RequestRecord):
            return await self._requests.repeat(intent, claim, timeout=left)
        return await self._operations.finish(intent, work, timeout=left)

"""Makes sandboxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sandboxd.manager.access import choose_freelancer
from sandboxd.manager.admission import Admission
from sandboxd.manager.intents import Intents
from sandboxd.manager.operations import Operations
from sandboxd.manager.ports import RequestRecord, UnitOfWork
from sandboxd.manager.requests import Requests
from sandboxd.manager.rest_policy import require_allowed
from sandboxd.manager.startup import Startup
from sandboxd.model.caller import Request
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import FreelancerId, SandboxId
from sandboxd.model.lifecycle import NO_OVERRIDES, LifecycleOverrides
from sandboxd.model.sandbox import ApprovalMode, Sandbox, Tier
from sandboxd.model.sources import Clock, IdSource


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSandbox:
    """What a caller wishes for."""

    freelancer: FreelancerId | None = None
    """None takes the caller."""
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    tier: Tier = Tier.BASIC
    model: str = ""
    approval_mode: ApprovalMode = ApprovalMode.DEFAULT
    lifecycle: LifecycleOverrides = NO_OVERRIDES
    keep_awake_until: datetime | None = None


class Creation:
    """Creates sandboxes."""

    def __init__(
        self,
        *,
        intents: Intents,
        operations: Operations,
        requests: Requests,
        startup: Startup,
        admission: Admission,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._intents = intents
        self._operations = operations
        self._requests = requests
        self._startup = startup
        self._admission = admission
        self._clock = clock
        self._ids = ids

    async def create(self, request: Request, wish: NewSandbox, *, timeout: timedelta) -> Sandbox:
        """Make a sandbox and answer when its agent answers.

        Raises:
            ForbiddenError: The caller is a freelancer and names another, or sets when the sandbox rests.
            InvalidRequestError: It shall be kept awake for too long.
            QuotaExceededError: A quota of the client or the freelancer does not hold it.
            RequestIdReusedError: The request id was used with another body.
            UnavailableError: It could not be started; the sandbox is FAILED.
            DeadlineError: It is not done within `timeout`; the work goes on.
        """
        caller = request.caller
        now = self._clock.now()
        require_allowed(
            caller,
            changes_lifecycle=wish.lifecycle != NO_OVERRIDES,
            keep_awake_until=wish.keep_awake_until,
            at=now,
        )
        sandbox, incarnation = self._startup.new_life(
            Sandbox(
                id=SandboxId(self._ids.new("sbx")),
                client=caller.client,
                freelancer=choose_freelancer(caller, wish.freelancer),
                display_name=wish.display_name,
                labels=dict(wish.labels),
                tier=wish.tier,
                model=wish.model,
                approval_mode=wish.approval_mode,
                create_time=now,
                update_time=now,
                last_use_time=now,
                lifecycle=wish.lifecycle,
                keep_awake_until=wish.keep_awake_until,
            )
        )

        async def insert(work: UnitOfWork, sandbox: Sandbox) -> Sandbox:
            await self._admission.admit(work, sandbox.client, sandbox.freelancer, tier=sandbox.tier, at=now)
            await work.sandboxes.add(sandbox)
            await work.incarnations.add(incarnation)
            return sandbox

        claim = self._requests.record(request, "Create", sandbox.id, kept_for=None)
        failpoint("create.before_commit")
        intent = await self._intents.create(sandbox, insert, claim=claim)
        if isinstance(intent, RequestRecord):
            return (await self._requests.repeat(intent, claim, timeout=timeout)).sandbox
        return (await self._operations.finish(intent, self._startup.bring_up, timeout=timeout)).sandbox

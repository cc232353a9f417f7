"""Makes sandboxes: out of the client's warm pool where it has a member to spare, else from the beginning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from sandboxd.manager.access import choose_freelancer
from sandboxd.manager.admission import Admission
from sandboxd.manager.backend_port import Backend
from sandboxd.manager.claims import PoolClaims
from sandboxd.manager.cold_starts import ColdStarts
from sandboxd.manager.intents import Intent, Intents
from sandboxd.manager.operations import Operations, Settled, Work
from sandboxd.manager.pool_metrics import PoolMetrics
from sandboxd.manager.pool_ports import Claim
from sandboxd.manager.ports import RequestRecord, UnitOfWork
from sandboxd.manager.requests import Requests
from sandboxd.manager.rest_policy import require_allowed
from sandboxd.manager.startup import Startup
from sandboxd.model.backup import BackupSetId
from sandboxd.model.caller import Request
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import FreelancerId, IncarnationId, SandboxId
from sandboxd.model.lifecycle import NO_OVERRIDES, LifecycleOverrides
from sandboxd.model.pool import Member
from sandboxd.model.sandbox import ApprovalMode, Incarnation, Sandbox, SandboxState, Tier
from sandboxd.model.sources import Clock, IdSource
from sandboxd.model.startup import MissReason, StartPath, StartReport, StartStep, StartStepName

REMEMBERED_REPORTS: Final = 2000
"""How sandboxes came up is told of so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSandbox:
    """What a caller wishes for."""

    freelancer: FreelancerId | None = None
    """None takes the caller."""
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    tier: Tier | None = None
    """None takes the backup's, or BASIC."""
    model: str = ""
    """Empty takes the backup's, if it has one."""
    approval_mode: ApprovalMode | None = None
    """None takes the backup's, or DEFAULT."""
    lifecycle: LifecycleOverrides = NO_OVERRIDES
    keep_awake_until: datetime | None = None
    from_backup: tuple[SandboxId, BackupSetId] | None = None
    """A set to make it from, and whose that is; see `Rebuilding`."""
    workspace_only: bool = False
    """Of that the workspace alone."""

    def sandbox(self, request: Request, name: SandboxId, *, at: datetime) -> Sandbox:
        """Return the sandbox that is wished for, as it begins.

        Raises:
            ForbiddenError: The caller is a freelancer and names another, or sets when the sandbox rests.
            InvalidRequestError: It shall be kept awake for too long.
        """
        caller = request.caller
        require_allowed(
            caller,
            changes_lifecycle=self.lifecycle != NO_OVERRIDES,
            keep_awake_until=self.keep_awake_until,
            at=at,
        )
        return Sandbox(
            id=name,
            client=caller.client,
            freelancer=choose_freelancer(caller, self.freelancer),
            display_name=self.display_name,
            labels=dict(self.labels),
            tier=self.tier or Tier.BASIC,
            model=self.model,
            approval_mode=self.approval_mode or ApprovalMode.DEFAULT,
            create_time=at,
            update_time=at,
            last_use_time=at,
            lifecycle=self.lifecycle,
            keep_awake_until=self.keep_awake_until,
        )


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """What one Create has come to so far."""

    began: float
    base: Sandbox
    """As it was wished for, with the id that it has if it is made anew."""
    cold: bool
    """True while this Create holds a place for a start."""
    claim: Claim = field(default_factory=Claim)
    queued: float = 0.0
    """Seconds that it waited for its place."""


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
        claims: PoolClaims,
        cold_starts: ColdStarts,
        backend: Backend,
        metrics: PoolMetrics,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._intents = intents
        self._operations = operations
        self._requests = requests
        self._startup = startup
        self._admission = admission
        self._claims = claims
        self._cold_starts = cold_starts
        self._backend = backend
        self._metrics = metrics
        self._clock = clock
        self._ids = ids
        self._reports: OrderedDict[IncarnationId, StartReport] = OrderedDict()

    async def create(self, request: Request, wish: NewSandbox, *, timeout: timedelta) -> Sandbox:
        """Make a sandbox and answer when its agent answers.

        Raises:
            ForbiddenError: The caller is a freelancer and names another, or sets when the sandbox rests.
            InvalidRequestError: It shall be kept awake for too long.
            QuotaExceededError: A quota of the client or the freelancer does not hold it.
            CapacityError: No member waits, and so many sandboxes are being started that nothing was begun.
            RequestIdReusedError: The request id was used with another body.
            UnavailableError: It could not be started; the sandbox is FAILED.
            DeadlineError: It is not done within `timeout`; the work goes on.
        """
        attempt = _Attempt(
            began=self._clock.monotonic(),
            base=wish.sandbox(request, SandboxId(self._ids.new("sbx")), at=self._clock.now()),
            cold=self._cold_starts.try_take(request.caller.client),
        )
        try:
            return await self._create(request, attempt, timeout=timeout)
        finally:
            if attempt.cold:
                self._cold_starts.release(request.caller.client)

    def startup(self, sandbox: Sandbox) -> StartReport | None:
        """How a sandbox came up, as far as this replica knows."""
        if sandbox.incarnation is None:
            return None
        return self._reports.get(sandbox.incarnation) or self._backend.startup(sandbox.incarnation)

    async def _create(self, request: Request, attempt: _Attempt, *, timeout: timedelta) -> Sandbox:
        record = self._requests.record(request, "Create", attempt.base.id, kept_for=None)
        failpoint("create.before_commit")
        made = await self._intents.create(lambda work: self._plan(work, attempt), claim=record)
        if made is None:  # no member waits, and this one holds no place: then with one
            await self._cold_starts.take(request.caller.client, timeout=self._left(attempt, timeout))
            attempt.cold, attempt.queued = True, self._clock.monotonic() - attempt.began
            made = await self._intents.create(lambda work: self._plan(work, attempt), claim=record)
        match made:
            case RequestRecord():
                return (await self._requests.repeat(made, record, timeout=self._left(attempt, timeout))).sandbox
            case Sandbox():
                self._claimed(attempt, made)
                return made
            case Intent():
                self._missed(attempt, made.sandbox)
                # The place is the work's now: it is given back when the start has ended, and not with the caller.
                attempt.cold = False
                work = self._in_place(made)
                settled = await self._operations.finish(made, work, timeout=self._left(attempt, timeout))
                return settled.sandbox
            case None:
                raise AssertionError("who holds a place for a start is never told to wait for one")

    async def _plan(self, work: UnitOfWork, attempt: _Attempt) -> tuple[Sandbox, Incarnation] | None:
        """In the one transaction of a Create: quotas, then a member of the pool, or else a first life of its own."""
        base, now = attempt.base, self._clock.now()
        await self._admission.admit(work, base.client, base.freelancer, tier=base.tier, at=now)
        attempt.claim = await self._claims.take(work, base.client, base.tier)
        if attempt.claim.member is not None:
            return _taken_over(base, attempt.claim.member, at=now)
        return self._startup.new_life(base) if attempt.cold else None

    def _claimed(self, attempt: _Attempt, sandbox: Sandbox) -> None:
        failpoint("claim.after_commit")
        seconds = self._clock.monotonic() - attempt.began
        self._metrics.claimed(None, seconds=seconds)
        step = StartStep(name=StartStepName.CLAIM, duration=timedelta(seconds=seconds))
        self._remember(sandbox, StartReport(path=StartPath.WARM, steps=[step]))
        self._claims.follow(attempt.claim, sandbox)

    def _missed(self, attempt: _Attempt, sandbox: Sandbox) -> None:
        miss = attempt.claim.miss or MissReason.NO_POOL
        self._metrics.claimed(miss, seconds=0.0)
        queue = StartStep(name=StartStepName.QUEUE, duration=timedelta(seconds=attempt.queued))
        # Its path is not known yet: `_in_place` completes the report.
        self._remember(sandbox, StartReport(path=StartPath.LOCAL, steps=[queue] if attempt.queued else [], miss=miss))
        self._claims.follow(attempt.claim, sandbox)

    def _in_place(self, intent: Intent) -> Work:
        client, incarnation = intent.sandbox.client, intent.sandbox.incarnation

        async def bring_up(intent: Intent) -> Settled:
            try:
                return await self._startup.bring_up(intent)
            finally:
                self._cold_starts.release(client)
                known = None if incarnation is None else self._backend.startup(incarnation)
                begun = None if incarnation is None else self._reports.pop(incarnation, None)
                if known is not None and begun is not None:
                    whole = replace(known, steps=[*begun.steps, *known.steps], miss=begun.miss)
                    self._remember(intent.sandbox, whole)

        return bring_up

    def _remember(self, sandbox: Sandbox, report: StartReport) -> None:
        if sandbox.incarnation is not None:
            self._reports[sandbox.incarnation] = report
        if len(self._reports) > REMEMBERED_REPORTS:
            self._reports.popitem(last=False)

    def _left(self, attempt: _Attempt, timeout: timedelta) -> timedelta:
        return max(timedelta(0), timeout - timedelta(seconds=self._clock.monotonic() - attempt.began))


def _taken_over(base: Sandbox, member: Member, *, at: datetime) -> tuple[Sandbox, Incarnation]:
    """Make the sandbox out of the member: it has the member's ids, and lives from now on. Waiting is not its time."""
    incarnation = Incarnation(
        id=member.incarnation, sandbox=member.sandbox, number=1, endpoint=member.endpoint, start_time=at, ready_time=at
    )
    named = replace(base, id=member.sandbox, incarnation=member.incarnation, incarnations=1)
    return named.enter(SandboxState.ACTIVE, at=at), incarnation

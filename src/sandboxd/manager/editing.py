"""Changes what a sandbox is called and what its new sessions begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from sandboxd.manager.access import require_visible
from sandboxd.manager.admission import Admission
from sandboxd.manager.backend_port import Backend
from sandboxd.manager.changes import Changes
from sandboxd.manager.intents import SandboxInUseError
from sandboxd.manager.ports import RequestOutcome, RequestRecord, UnitsOfWork
from sandboxd.manager.requests import Requests
from sandboxd.manager.rest_policy import require_allowed
from sandboxd.manager.startup import spec_of
from sandboxd.manager.verdicts import WITH_COMPUTE
from sandboxd.model.caller import Caller, Request
from sandboxd.model.errors import InvalidTransitionError, SandboxdError, StaleEtagError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.lifecycle import LifecycleOverrides
from sandboxd.model.sandbox import ApprovalMode, Sandbox, SandboxState, Tier
from sandboxd.model.sources import Clock

log = structlog.get_logger(__name__)

RESIZE_TIMEOUT: Final = timedelta(seconds=10)
"""How long the backend may take to note another tier; that it comes about is not waited for."""
KEEP: Final = object()
"""Stands for "leave this field as it is", where None is a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxEdit:
    """What shall change; None leaves a field as it is."""

    display_name: str | None = None
    labels: Mapping[str, str] | None = None
    """All labels: those that are not named go."""
    model: str | None = None
    approval_mode: ApprovalMode | None = None
    tier: Tier | None = None
    lifecycle: LifecycleOverrides | None = None
    """All wishes: those that are not named go."""
    keep_awake_until: datetime | object | None = KEEP

    def apply(self, sandbox: Sandbox) -> Sandbox:
        """Answer the sandbox with these fields."""
        awake = self.keep_awake_until
        return replace(
            sandbox,
            display_name=sandbox.display_name if self.display_name is None else self.display_name,
            labels=sandbox.labels if self.labels is None else dict(self.labels),
            model=sandbox.model if self.model is None else self.model,
            approval_mode=sandbox.approval_mode if self.approval_mode is None else self.approval_mode,
            tier=sandbox.tier if self.tier is None else self.tier,
            lifecycle=sandbox.lifecycle if self.lifecycle is None else self.lifecycle,
            keep_awake_until=awake if awake is None or isinstance(awake, datetime) else sandbox.keep_awake_until,
        )


class Editing:
    """Updates sandboxes."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        requests: Requests,
        admission: Admission,
        backend: Backend,
        changes: Changes,
        clock: Clock,
    ) -> None:
        self._units = units
        self._requests = requests
        self._admission = admission
        self._backend = backend
        self._changes = changes
        self._clock = clock

    async def update(
        self, request: Request, sandbox: SandboxId, edit: SandboxEdit, *, etag: str, timeout: timedelta
    ) -> Sandbox:
        """Change a sandbox. One transaction does it all, but for another tier, which what runs gets after it.

        Args:
            request: Who asks.
            sandbox: Which sandbox.
            edit: What shall change.
            etag: The version that the caller has seen; empty where it does not care.
            timeout: How long to wait for an earlier request of the same id.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            StaleEtagError: Somebody else has changed it since.
            InvalidTransitionError: It is terminated.
            ForbiddenError: A freelancer sets when it rests.
            InvalidRequestError: It shall be kept awake for too long.
            QuotaExceededError: The tier does not fit.
            SandboxInUseError: It is on its way: its tier cannot change now.
        """
        claim = self._requests.record(request, "Update", sandbox)
        changed = await self._change(claim, request.caller, edit, etag)
        if isinstance(changed, RequestRecord):
            return (await self._requests.repeat(changed, claim, timeout=timeout)).sandbox
        await self._changes.announce(sandbox)
        if edit.tier is not None and changed.state in WITH_COMPUTE and changed.incarnation is not None:
            await self._resize(changed, changed.incarnation)
        return changed

    async def _resize(self, sandbox: Sandbox, incarnation: IncarnationId) -> None:
        failpoint("update.before_resize")
        try:
            await self._backend.resize(spec_of(sandbox), incarnation, timeout=RESIZE_TIMEOUT)
        except SandboxdError as error:
            # It is wanted, durably: recovery compares what is with what is wanted, and asks again.
            log.warning("sandbox.not_resized", sandbox=sandbox.id, error=error.message)

    async def _change(
        self, claim: RequestRecord, caller: Caller, edit: SandboxEdit, etag: str
    ) -> Sandbox | RequestRecord:
        async with self._units.begin() as work:
            earlier = await work.requests.claim(claim)
            if earlier is not None:
                return earlier
            found = require_visible(await work.sandboxes.get(claim.sandbox, for_update=True), caller)
            if found.state is SandboxState.TERMINATED:
                raise InvalidTransitionError(found.id, state=found.state.value, wanted="changed")
            if etag and etag != str(found.version):
                raise StaleEtagError(found.id)
            now = self._clock.now()
            if edit.tier not in (None, found.tier):
                if found.state.transient:
                    raise SandboxInUseError(found.id)
                await self._admission.readmit(work, found, tier=edit.tier, at=now)
            edited = replace(edit.apply(found), update_time=now, version=found.version + 1)
            require_allowed(
                caller,
                changes_lifecycle=edited.lifecycle != found.lifecycle,
                keep_awake_until=edited.keep_awake_until if edit.keep_awake_until is not KEEP else None,
                at=now,
            )
            await work.sandboxes.save(edited)
            await work.requests.finish(claim.client, claim.request_id, RequestOutcome(sandbox=edited))
            await work.commit()
        return edited

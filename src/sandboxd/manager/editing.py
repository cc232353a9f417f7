"""Changes what a sandbox is called and what its new sessions begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sandboxd.manager.access import require_visible
from sandboxd.manager.changes import Changes
from sandboxd.manager.ports import RequestOutcome, RequestRecord, UnitsOfWork
from sandboxd.manager.requests import Requests
from sandboxd.manager.rest_policy import require_allowed
from sandboxd.model.caller import Caller, Request
from sandboxd.model.errors import InvalidTransitionError, StaleEtagError
from sandboxd.model.ids import SandboxId
from sandboxd.model.lifecycle import LifecycleOverrides
from sandboxd.model.sandbox import ApprovalMode, Sandbox, SandboxState
from sandboxd.model.sources import Clock

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
            lifecycle=sandbox.lifecycle if self.lifecycle is None else self.lifecycle,
            keep_awake_until=awake if awake is None or isinstance(awake, datetime) else sandbox.keep_awake_until,
        )


class Editing:
    """Updates sandboxes."""

    def __init__(self, *, units: UnitsOfWork, requests: Requests, changes: Changes, clock: Clock) -> None:
        self._units = units
        self._requests = requests
        self._changes = changes
        self._clock = clock

    async def update(
        self, request: Request, sandbox: SandboxId, edit: SandboxEdit, *, etag: str, timeout: timedelta
    ) -> Sandbox:
        """Change a sandbox; the world outside the database is not touched, so one transaction does it all.

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
        """
        claim = self._requests.record(request, "Update", sandbox)
        changed = await self._change(claim, request.caller, edit, etag)
        if isinstance(changed, RequestRecord):
            return (await self._requests.repeat(changed, claim, timeout=timeout)).sandbox
        await self._changes.announce(sandbox)
        return changed

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

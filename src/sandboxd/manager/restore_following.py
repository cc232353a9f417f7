"""Restores on record while they are at work: how far they are, and the wish that one ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.access import require_visible
from sandboxd.manager.changes import Changes
from sandboxd.manager.ports import RequestOutcome, UnitsOfWork
from sandboxd.manager.requests import Requests
from sandboxd.manager.restore_rules import cancelled
from sandboxd.manager.volume_notes import VolumeNote
from sandboxd.model.backup import BackupSetProgress, BackupSetStatus, RestoreId
from sandboxd.model.backup_errors import RestoreCancelledError, RestoreTooLateError
from sandboxd.model.caller import Caller, Request
from sandboxd.model.errors import DeadlineError, RequestIdReusedError, SandboxdError
from sandboxd.model.ids import SandboxId
from sandboxd.model.restore_view import RestoreNotRunningError, RestoreStep, RestoreView, view_of
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock

WATCH_SECONDS: Final = 1.0
"""How often a restore that is followed is looked at."""
RECENT_SETS: Final = 100

log = structlog.get_logger(__name__)


class RestoreFollowing:
    """The use cases beside Restore itself."""

    def __init__(self, *, units: UnitsOfWork, changes: Changes, requests: Requests, clock: Clock) -> None:
        self._units = units
        self._changes = changes
        self._requests = requests
        self._clock = clock

    async def watch(self, caller: Caller, sandbox: SandboxId) -> AsyncIterator[RestoreView]:
        """Follow the restore of a sandbox: as it is now, then each change, until it has ended.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            RestoreNotRunningError: No restore of it is at work.
        """
        found, seen = await self._look(caller, sandbox)
        if seen is None:
            raise RestoreNotRunningError(sandbox, state=found.state.value)
        yield seen
        while True:
            await self._changes.wait(sandbox, timeout=WATCH_SECONDS)
            _, view = await self._look(caller, sandbox)
            if view is None or view.id != seen.id:
                yield RestoreView(id=seen.id, step=RestoreStep.ENDED)
                return
            if view != seen:
                seen = view
                yield seen

    async def cancel(self, request: Request, sandbox: SandboxId, *, timeout: timedelta) -> Sandbox:
        """End the restore of a sandbox before anything takes its place; answers the sandbox as it was before it.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            RestoreNotRunningError: No restore of it is at work.
            RestoreTooLateError: What comes back takes its place already.
            RequestIdReusedError: The request id was used with another body.
            DeadlineError: It has not ended in time; the wish stands.
        """
        claim = self._requests.record(request, "CancelRestore", sandbox, outcome=RequestOutcome())
        async with self._units.begin() as work:
            found: Sandbox = require_visible(await work.sandboxes.get(sandbox, for_update=True), request.caller)
            earlier = await work.requests.claim(claim)
            if earlier is None:
                found = _wish_for_the_end(found)
                await work.sandboxes.save(found)
            elif (earlier.method, earlier.subject, earlier.body_hash) != (claim.method, claim.subject, claim.body_hash):
                raise RequestIdReusedError(claim.request_id)
            await work.commit()
        await self._changes.announce(sandbox)
        deadline = self._clock.monotonic() + timeout.total_seconds()
        while (restoring := found.restoring) is not None and restoring.cancelled:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise DeadlineError(
                    f"The restore of sandbox {sandbox} has not ended yet. The wish stands: WatchRestore says when.",
                    sandbox=sandbox,
                )
            await self._changes.wait(sandbox, timeout=min(left, WATCH_SECONDS))
            async with self._units.begin() as work:
                found = await work.sandboxes.get(sandbox)
        return found

    async def _look(self, caller: Caller, sandbox: SandboxId) -> tuple[Sandbox, RestoreView | None]:
        first: BackupSetProgress | None = None
        async with self._units.begin() as work:
            found: Sandbox = require_visible(await work.sandboxes.get(sandbox), caller)
            if found.state is SandboxState.RESTORING:
                sets = await work.backup_sets.of_sandbox(sandbox, limit=RECENT_SETS)
                first = next((one.progress for one in sets if one.status is BackupSetStatus.CREATING), None)
        return found, view_of(found, first=first)


async def report_restore(
    units: UnitsOfWork, sandbox: SandboxId, restore: RestoreId, note: VolumeNote, *, every: timedelta
) -> RestoreCancelledError:
    """Write how far a restore is, until somebody wishes that it ends."""
    written: BackupSetProgress | None = None
    while True:
        await asyncio.sleep(every.total_seconds())
        progress = note.progress
        try:
            async with units.begin() as work:
                found = (await work.sandboxes.get(sandbox)).restoring
                if progress is not None and progress != written:
                    await work.backup_sets.note_restore(sandbox, restore, progress)
                    await work.commit()
                    written = progress
        except SandboxdError as error:
            log.info("restore.progress_not_written", sandbox=sandbox, error=error.message)
            continue
        if found is not None and found.id == restore and found.cancelled:
            return cancelled(sandbox)


def _wish_for_the_end(sandbox: Sandbox) -> Sandbox:
    restoring = sandbox.restoring
    if sandbox.state is not SandboxState.RESTORING or restoring is None:
        raise RestoreNotRunningError(sandbox.id, state=sandbox.state.value)
    if restoring.placing or restoring.restored:
        raise RestoreTooLateError(sandbox.id)
    return replace(sandbox, restoring=replace(restoring, cancelled=True), version=sandbox.version + 1)

"""Restores on record while they are at work: how far they are, for those who follow them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final, NoReturn

import structlog

from sandboxd.manager.access import require_visible
from sandboxd.manager.changes import Changes
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.manager.volume_notes import VolumeNote
from sandboxd.model.backup import BackupSetProgress, BackupSetStatus, RestoreId
from sandboxd.model.caller import Caller
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import SandboxId
from sandboxd.model.restore_view import RestoreNotRunningError, RestoreStep, RestoreView, view_of
from sandboxd.model.sandbox import Sandbox, SandboxState

WATCH_SECONDS: Final = 1.0
"""How often a restore that is followed is looked at."""
RECENT_SETS: Final = 100

log = structlog.get_logger(__name__)


class RestoreFollowing:
    """The use cases beside Restore itself."""

    def __init__(self, *, units: UnitsOfWork, changes: Changes) -> None:
        self._units = units
        self._changes = changes

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
) -> NoReturn:
    """Write how far a restore is, until cancelled."""
    written: BackupSetProgress | None = None
    while True:
        await asyncio.sleep(every.total_seconds())
        progress = note.progress
        if progress is None or progress == written:
            continue
        try:
            async with units.begin() as work:
                await work.backup_sets.note_restore(sandbox, restore, progress)
                await work.commit()
        except SandboxdError as error:
            log.info("restore.progress_not_written", sandbox=sandbox, error=error.message)
            continue
        written = progress

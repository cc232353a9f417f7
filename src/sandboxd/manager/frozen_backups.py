"""Takes the volumes of a running sandbox as they are at one moment: while it runs, and again while it stands still.

The first reading stores nearly everything and takes as long as it takes; the second finds what has changed since, so
the freeze is short. Whatever happens, the sandbox goes on: here, or where somebody goes on with the set after a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.backup_metrics import BackupMetrics
from sandboxd.manager.backup_tools import BackupTools, volumes_of
from sandboxd.manager.stillness import Stillness
from sandboxd.model.backup import BackupFreeze, BackupSet
from sandboxd.model.backup_errors import BackupNotQuiescedError
from sandboxd.model.errors import (
    DatabaseUnavailableError,
    DeadlineError,
    OpenTurnsError,
    SandboxdError,
    StaleOwnerError,
)
from sandboxd.model.failpoints import failpoint
from sandboxd.model.frozen_reason import frozen_for
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.sources import Clock
from sandboxd.volumes.ports import TakenVolumes, VolumesProgress

END_TIMEOUT: Final = timedelta(seconds=60)
TURN_PATIENCE: Final = timedelta(seconds=30)
"""How long the end of an open turn is waited for."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read of a sandbox, and whether that is of one moment."""

    sandbox: Sandbox
    taken: TakenVolumes
    still: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenBackups:
    """Reads while a sandbox stands still."""

    tools: BackupTools
    stillness: Stillness
    metrics: BackupMetrics
    clock: Clock
    turn_patience: timedelta = TURN_PATIENCE

    async def take(
        self, backup: BackupSet, sandbox: Sandbox, wish: BackupFreeze, *, progress: Callable[[VolumesProgress], None]
    ) -> Reading:
        """Read the volumes of a sandbox that is ACTIVE, twice.

        Raises:
            BackupNotQuiescedError: It could not be frozen, not for long enough, or was used, and that is required.
            SandboxdError: What reading failed with. The sandbox goes on.
        """
        volumes, first = self.tools.of(backup.method), 2 * backup.attempts - 1
        if backup.attempts > 1:
            await volumes.end(backup.id, timeout=END_TIMEOUT)  # it may be at a reading that counts no more
        running = await volumes.take(
            backup.id, volumes_of(sandbox), timeout=self.tools.take_timeout, progress=progress, reading=first
        )
        await volumes.end(backup.id, timeout=END_TIMEOUT)
        failpoint("backup.before_freeze")
        why = ""
        try:
            frozen = await self.stillness.freeze(sandbox.id, reason=frozen_for(backup), wait=self.turn_patience)
        except (DatabaseUnavailableError, StaleOwnerError):
            raise
        except OpenTurnsError:
            why = f"A turn was open for all of {self.turn_patience.total_seconds():.0f} s."
        except SandboxdError as error:
            why = error.message
        else:
            try:
                reading = await self._read(backup, frozen, wish, reading=first + 1, progress=progress)
            finally:
                began = self.clock.monotonic()
                await asyncio.shield(self.let_go(backup))
                log.info("backup.thawed", backup=backup.id, seconds=round(self.clock.monotonic() - began, 3))
            if isinstance(reading, Reading):
                return reading
            why = reading
            await volumes.end(backup.id, timeout=END_TIMEOUT)
        if wish.required:
            raise BackupNotQuiescedError(
                f"Sandbox {sandbox.id} did not stand still for backup {backup.id}. {why}",
                sandbox=sandbox.id,
                backup=backup.id,
            )
        log.info("backup.not_quiesced", sandbox=sandbox.id, backup=backup.id, why=why)
        return Reading(sandbox=sandbox, taken=running, still=False)

    async def let_go(self, backup: BackupSet) -> None:
        """See that nothing is frozen for this set, by whomever it was. Raises as `Stillness.thaw`."""
        await self.stillness.thaw(backup.sandbox, reason=frozen_for(backup))

    async def _read(
        self,
        backup: BackupSet,
        frozen: Sandbox,
        wish: BackupFreeze,
        *,
        reading: int,
        progress: Callable[[VolumesProgress], None],
    ) -> Reading | str:
        """Read what stands still; a text says why that came to nothing."""
        failpoint("backup.after_freeze")
        began = self.clock.monotonic()
        late = f"The second reading did not end within {wish.longest.total_seconds():.0f} s."
        try:
            async with asyncio.timeout(wish.longest.total_seconds()):
                taken = await self.tools.of(backup.method).take(
                    backup.id,
                    volumes_of(frozen),
                    timeout=max(wish.longest, self.tools.shortest),
                    progress=progress,
                    reading=reading,
                )
            still = await self.stillness.is_still(frozen)
        except (TimeoutError, DeadlineError):
            return late
        finally:
            self.metrics.frozen(self.clock.monotonic() - began)
        return Reading(sandbox=frozen, taken=taken, still=True) if still else "Somebody used it meanwhile."

"""Takes the volumes of a running sandbox as they are at one moment, for which it stands still.

Files are read twice: while it runs, which stores nearly everything and takes as long as it takes, and again while it
stands still, which finds what has changed since. Snapshots are asked for while it stands still, and it goes on when
both are cut. Whatever happens, it goes on: here, or where somebody goes on with the set after a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import structlog

from sandboxd.manager.backup_metrics import BackupMetrics
from sandboxd.manager.backup_tools import BackupTools, volumes_of
from sandboxd.manager.cutting import Cutting
from sandboxd.manager.stillness import Stillness
from sandboxd.model.backup import BackupFreeze, BackupMethod, BackupSet
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
        """Read the volumes of a sandbox that is ACTIVE: as files twice, by snapshots once.

        Raises:
            BackupNotQuiescedError: It could not be frozen, not for long enough, or was used, and that is required.
            SandboxdError: What reading failed with. The sandbox goes on.
        """
        volumes, first = self.tools.of(backup.method), 2 * backup.attempts - 1
        if backup.attempts > 1:
            await volumes.end(backup.id, timeout=END_TIMEOUT)  # it may be at a reading that counts no more

        async def while_it_runs() -> TakenVolumes:
            return await volumes.take(
                backup.id, volumes_of(sandbox), timeout=self.tools.take_timeout, progress=progress, reading=first
            )

        running = None
        if backup.method is BackupMethod.FILES:
            running = await while_it_runs()
            await volumes.end(backup.id, timeout=END_TIMEOUT)
        failpoint("backup.before_freeze")
        why = ""
        try:
            frozen = await self.stillness.freeze(sandbox.id, reason=frozen_for(backup), wait=self.turn_patience)
        except asyncio.CancelledError:
            await asyncio.shield(self.let_go(backup))
            raise
        except (DatabaseUnavailableError, StaleOwnerError):
            raise
        except OpenTurnsError:
            why = f"A turn was open for all of {self.turn_patience.total_seconds():.0f} s."
        except SandboxdError as error:
            why = error.message
        else:
            reading = await self._read(backup, frozen, wish, reading=first + 1, progress=progress)
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
        return Reading(sandbox=sandbox, taken=running or await while_it_runs(), still=False)

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
        """Read what stands still, and let it go on as soon as that may be; a text says why it came to nothing."""
        by_files = backup.method is BackupMethod.FILES
        volumes = self.tools.of(backup.method)
        timeout = max(wish.longest, self.tools.shortest) if by_files else self.tools.take_timeout

        def begin(told: Callable[[VolumesProgress], None]) -> Coroutine[Any, Any, TakenVolumes]:  # Any: asyncio's
            return volumes.take(backup.id, volumes_of(frozen), timeout=timeout, progress=told, reading=reading)

        async with Cutting(begin, progress=progress, name=f"backup-{backup.id}-frozen") as taking:
            if why := await self._while_still(backup, frozen, wish, taking):
                return why
            failpoint("backup.after_cut")
            return Reading(sandbox=frozen, taken=await taking.taken(), still=True)

    async def _while_still(self, backup: BackupSet, frozen: Sandbox, wish: BackupFreeze, taking: Cutting) -> str:
        """Wait until it need not stand still any more, and let it go on; a text says why that came to nothing."""
        began = self.clock.monotonic()
        try:
            failpoint("backup.after_freeze")
            async with asyncio.timeout(wish.longest.total_seconds()):
                await taking.cut()
            return "" if await self.stillness.is_still(frozen) else "Somebody used it meanwhile."
        except (TimeoutError, DeadlineError):
            what = "The second reading did not end" if backup.method is BackupMethod.FILES else "Nothing was cut"
            return f"{what} within {wish.longest.total_seconds():.0f} s."
        finally:
            ended = self.clock.monotonic()
            self.metrics.frozen(ended - began)
            await asyncio.shield(self.let_go(backup))
            log.info(
                "backup.thawed",
                backup=backup.id,
                frozen_seconds=round(ended - began, 3),
                seconds=round(self.clock.monotonic() - ended, 3),
            )

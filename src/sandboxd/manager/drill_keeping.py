"""The schedule of restore drills: one at a time, each client's sandboxes in turn, by the replica that has the duty."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.drilling import Drilling
from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.manager.on_duty import pass_on_duty
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.backup import BackupSetStatusError
from sandboxd.model.drill import DrillInProgressError, DrillStatus, DrillTrigger
from sandboxd.model.errors import NotFoundError

DUTY: Final = "drills"
RETRY: Final = timedelta(hours=1)
"""How long after one that could not be carried out another one is begun."""
SWEEP_EVERY: Final = timedelta(minutes=10)
KEPT_FOR: Final = timedelta(days=400)
"""How long a drill can be read that has ended."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class DrillKeeping:
    """One pass after the other."""

    units: UnitsOfWork
    drilling: Drilling
    duties: Duties
    _sweep_at: float = field(default=0.0, init=False)

    async def run(self) -> None:
        """Pass again and again where this replica has the duty, until cancelled."""
        await pass_on_duty(
            self.duties,
            DUTY,
            self.keep,
            pause=self.drilling.tools.pause,
            name="drill.keeping",
            off_duty=lambda: self.drilling.metrics.silent(timedelta(0)),
        )

    async def keep(self) -> bool:
        """Pass once; answers whether a drill was begun."""
        clock = self.drilling.clock
        if clock.monotonic() >= self._sweep_at:
            await self.drilling.sweep()
            async with self.units.begin() as work:
                await work.drills.forget(before=clock.now() - KEPT_FOR, limit=1000)
                await work.commit()
            self._sweep_at = clock.monotonic() + SWEEP_EVERY.total_seconds()
        await self._tell()
        return await self._begin()

    async def _begin(self) -> bool:
        tools, now = self.drilling.tools, self.drilling.clock.now()
        if not tools.drill_every:
            return False
        async with self.units.begin() as work:
            last = await work.drills.newest()
            if last is not None:
                wait = RETRY if last.status is DrillStatus.ABANDONED else tools.drill_every
                if last.status is DrillStatus.RUNNING or now < last.create_time + min(wait, tools.drill_every):
                    return False
            name = await work.drills.pick(most_bytes=tools.drill_bytes)
            chosen = None if name is None else await work.backup_sets.get(name)
        if chosen is None:
            return False
        try:
            await self.drilling.begin(chosen, trigger=DrillTrigger.SCHEDULE)
        except (BackupSetStatusError, DrillInProgressError, NotFoundError):
            return False  # somebody was faster, or it goes
        return True

    async def _tell(self) -> None:
        """Say since when nothing has been proven."""
        if not self.drilling.tools.drill_every:
            self.drilling.metrics.silent(timedelta(0))
            return
        async with self.units.begin() as work:
            since = await work.drills.proven_since()
        now = self.drilling.clock.now()
        self.drilling.metrics.silent(timedelta(0) if since is None else now - since)

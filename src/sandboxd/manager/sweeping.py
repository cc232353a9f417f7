"""The sweep in `serve`: the replica that has the duty passes every few seconds; the others wait for it to fall free."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.lifecycle_metrics import LifecycleMetrics
from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.manager.sweep import Sweep
from sandboxd.model.errors import SandboxdError

DUTY: Final = "lifecycle"
SHORTEST_LEASE: Final = timedelta(seconds=30)

log = structlog.get_logger(__name__)


class SweepLoop:
    """Runs the sweep again and again. A replica that dies is followed at once, one that stands still after the lease.

    Two at the same time do no harm, only twice the work: steps are fenced by themselves.
    """

    def __init__(self, sweep: Sweep, *, duties: Duties, every: timedelta, metrics: LifecycleMetrics) -> None:
        """Take what it works with; `every` zero leaves the sweep to others."""
        self._sweep = sweep
        self._duties = duties
        self._every = every
        self._metrics = metrics
        self._epoch: int | None = None

    async def run(self) -> None:
        """Sweep until cancelled."""
        if not self._every:
            log.info("lifecycle.left_to_others")
            return
        while True:
            try:
                await self.once()
            except SandboxdError as error:
                log.warning("lifecycle.pass_failed", error=error.message)
            except Exception:  # a loop: one bad pass must not end all that follow
                log.exception("lifecycle.pass_broken")
            await asyncio.sleep(self._every.total_seconds())

    async def once(self) -> bool:
        """Pass once, if the duty is ours; answers whether it is."""
        epoch = await self._duties.take(DUTY, lease=max(SHORTEST_LEASE, 3 * self._every))
        self._metrics.leads(epoch is not None)
        if epoch is None:
            self._epoch = None
            return False
        # Who comes new to it may have other limits than whoever looked before.
        everything = epoch != self._epoch
        if everything:
            log.info("lifecycle.leading", epoch=epoch)
        await self._sweep.run(everything=everything)
        self._epoch = epoch
        await self._duties.done(DUTY)
        return True

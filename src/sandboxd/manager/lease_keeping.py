"""Leases of this process's tasks: prolonged while they run, and a task whose lease was lost is ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog

from sandboxd.manager.intents import LEASE
from sandboxd.manager.ports import OperationId, UnitsOfWork
from sandboxd.model.errors import SandboxdError

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class LeaseKeeping:
    """Prolongs leases. Taking them, and giving them back, is for who has the tasks."""

    units: UnitsOfWork
    lease: timedelta = LEASE
    _kept: dict[OperationId, asyncio.Task[Any]] = field(default_factory=dict, init=False)
    """Any: what tasks come to is their owners'."""

    def keep(self, operation: OperationId, task: asyncio.Task[Any]) -> None:
        """Prolong a task's lease from now on."""
        self._kept[operation] = task

    def drop(self, operation: OperationId) -> None:
        """Prolong it no more: the task has ended, or gives the lease back."""
        self._kept.pop(operation, None)

    async def run(self) -> None:
        """Prolong leases until cancelled."""
        while True:
            await asyncio.sleep(self.lease.total_seconds() / 3)
            await self.renew()

    async def renew(self) -> None:
        """Prolong all leases, and end what is no longer ours."""
        mine = dict(self._kept)
        if not mine:
            return
        try:
            async with self.units.begin() as work:
                kept = frozenset(await work.operations.renew([*mine], lease=self.lease))
                await work.commit()
        except SandboxdError as error:
            log.warning("lease.not_renewed", tasks=len(mine), error=error.message)
            return
        for lost in mine.keys() - kept:
            if lost in self._kept:  # and has not ended meanwhile
                log.warning("lease.lost", task=mine[lost].get_name())
                mine[lost].cancel()

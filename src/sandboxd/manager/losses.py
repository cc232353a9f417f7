"""Incarnations whose agent is gone: how that is found out, and made official."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog

from sandboxd.manager.backend_port import Backend, Observation
from sandboxd.manager.changes import Changes
from sandboxd.manager.metrics import ManagerMetrics
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.sandbox import Incarnation, Sandbox, SandboxState
from sandboxd.model.sources import Clock

AGENT_LOST: Final = "AGENT_LOST"
"""End reason of an incarnation whose agent was found gone."""
LOSING: Final = frozenset({SandboxState.ACTIVE, SandboxState.HIBERNATED})
"""States in which a lost incarnation is nobody's work in progress."""

log = structlog.get_logger(__name__)


class Losses:
    """Ends incarnations that are no more. The sandbox keeps its state: the next use makes a new one."""

    def __init__(
        self, *, units: UnitsOfWork, backend: Backend, clock: Clock, changes: Changes, metrics: ManagerMetrics
    ) -> None:
        self._units = units
        self._backend = backend
        self._clock = clock
        self._changes = changes
        self._metrics = metrics

    async def check(self, sandbox: SandboxId, incarnation: IncarnationId) -> bool:
        """Ask the backend whether that life is over; True has made it official."""
        async with self._units.begin() as work:
            row = await work.incarnations.get(incarnation)
        if row is None or row.end_time is not None:
            return True
        return await self.record(incarnation, await self._backend.observe(sandbox))

    async def record(self, incarnation: IncarnationId, observation: Observation) -> bool:
        """End an incarnation that was not observed; True when it is over.

        One that somebody is just starting or stopping is left to them: it counts as over while its compute is being
        taken away, and as living while it is being made.
        """
        if observation.find(incarnation) is not None:
            return False
        async with self._units.begin() as work:
            sandbox = await work.sandboxes.get(observation.sandbox, for_update=True)
            row = await work.incarnations.get(incarnation)
            if row is None or row.end_time is not None:
                return True
            if sandbox.state not in LOSING:
                return row.ready_time is not None
            now = self._clock.now()
            await work.incarnations.save(replace(row, end_time=now, end_reason=AGENT_LOST))
            await work.sandboxes.save(
                replace(
                    sandbox,
                    state_reason=await self._told(work, sandbox, row),
                    update_time=now,
                    version=sandbox.version + 1,
                )
            )
            await work.commit()
        self._metrics.lost()
        log.warning("sandbox.incarnation_lost", sandbox=sandbox.id, incarnation=incarnation)
        await self._changes.announce(sandbox.id)
        return True

    async def _told(self, work: UnitOfWork, sandbox: Sandbox, life: Incarnation) -> str:
        """Say what happened, and what is lost by it: what no commit has of that life's root file system."""
        told = "Its agent has ended; the next use starts it again."
        if self._backend.describe().keeps_root:
            return told
        saved = await work.generations.saved_time(sandbox.id, life.id)
        if saved is not None and sandbox.dirty_since is None:
            return (
                f"{told} Its root file system was committed at {_moment(saved)}; what was changed there since is lost."
            )
        since = saved or life.start_time
        unsaved = sandbox.unsaved_packages
        packages = f", {unsaved} {'package' if unsaved == 1 else 'packages'} among it" if unsaved else ""
        return (
            f"{told} What was installed or changed outside home and workspace since {_moment(since)} is lost{packages}."
        )


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

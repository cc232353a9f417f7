"""The sweep's looks and duties in memory; tests/contract/test_looks.py holds the looks to what PostgreSQL does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from typing_extensions import override

from sandboxd.manager.lifecycle_ports import RESTING, Candidate, Duties, Look, LookRepository, Noted
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.lifecycle import NO_OVERRIDES

if TYPE_CHECKING:
    from tests.fakes.manager import FakeUnitOfWork


class FakeLookRepository(LookRepository):
    """Looks of one transaction."""

    def __init__(self, work: FakeUnitOfWork) -> None:
        self._work = work

    @override
    async def due(self, *, at: datetime, limit: int) -> Sequence[Candidate]:
        rows = await self._work.read()
        found = await self.find([name for name, time in rows.look_times.items() if time <= at])
        return [found[name] for name in sorted(found, key=lambda name: (rows.look_times[name], name))][:limit]

    @override
    async def every(self, *, limit: int, after: SandboxId | None = None) -> Sequence[Candidate]:
        rows = await self._work.read()
        found = await self.find([name for name in rows.sandboxes if name > (after or "")])
        return [found[name] for name in sorted(found)][:limit]

    @override
    async def note(self, noted: Sequence[Noted]) -> None:
        rows = await self._work.write()
        for one in noted:
            rows.looks[one.sandbox] = one.look
            row = rows.sandboxes[one.sandbox]
            if (row.version, row.dirty_since) == (one.version, one.dirty_since):
                rows.look_times[one.sandbox] = one.look_time

    @override
    async def find(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, Candidate]:
        rows = await self._work.read()
        return {
            name: Candidate(
                sandbox=row,
                wishes=rows.clients[row.client].policy.lifecycle if row.client in rows.clients else NO_OVERRIDES,
                look=rows.looks.get(name, Look()),
            )
            for name in sandboxes
            if (row := rows.sandboxes.get(name)) is not None and row.state in RESTING
        }

    @override
    async def hasten(self, client: ClientId, *, at: datetime) -> None:
        rows = await self._work.write()
        for name, row in rows.sandboxes.items():
            if row.client == client:
                rows.look_times[name] = min(rows.look_times[name], at)


class FakeDuties(Duties):
    """One holder a duty, until it is let go."""

    def __init__(self, holders: dict[str, tuple[str, int]], *, replica: str) -> None:
        self._holders = holders
        self._replica = replica
        self.finished = 0

    @override
    async def take(self, duty: str, *, lease: timedelta) -> int | None:
        holder, epoch = self._holders.get(duty, ("", 0))
        if holder not in ("", self._replica):
            return None
        epoch += holder != self._replica
        self._holders[duty] = (self._replica, epoch)
        return epoch

    @override
    async def done(self, duty: str) -> None:
        self.finished += 1

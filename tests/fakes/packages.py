"""Packages as agents tell them and as the database keeps them, from memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from typing_extensions import override

from sandboxd.manager.package_ports import ChangeSelection, PackageRepository, PackageSource, Watched
from sandboxd.model.errors import AgentUnavailableError, SandboxNotFoundError
from sandboxd.model.ids import IncarnationId, SandboxId, SessionId
from sandboxd.model.package_history import MAX_CHANGES, KeptChange, PackageRecord
from sandboxd.model.packages import InstalledPackages, PackageNews
from sandboxd.model.processes import ProcessId
from sandboxd.model.sandbox import AgentEndpoint, Incarnation, SandboxState

if TYPE_CHECKING:
    from tests.fakes.manager import FakeUnitOfWork


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeTurn:
    """A turn of the CLI of a sandbox, which is the process that is named."""

    sandbox: SandboxId
    incarnation: IncarnationId
    process: ProcessId
    session: SessionId
    start_time: datetime
    end_time: datetime | None = None


class FakePackageRepository(PackageRepository):
    """Records of one transaction."""

    def __init__(self, work: FakeUnitOfWork) -> None:
        self._work = work

    @override
    async def hold(self, sandbox: SandboxId, incarnation: IncarnationId) -> PackageRecord:
        rows = await self._work.write()
        if sandbox not in rows.sandboxes:
            raise SandboxNotFoundError(sandbox)
        return rows.package_records.setdefault(sandbox, PackageRecord(sandbox=sandbox, incarnation=incarnation))

    @override
    async def get(self, sandbox: SandboxId) -> PackageRecord | None:
        return (await self._work.read()).package_records.get(sandbox)

    @override
    async def save(self, record: PackageRecord, changes: Sequence[KeptChange]) -> None:
        rows = await self._work.write()
        name, history = record.sandbox, rows.package_changes
        rows.package_records[name] = replace(record, owner=rows.package_records[name].owner)
        if record.dirty_since is not None and record.dirty_since != rows.sandboxes[name].dirty_since:
            rows.look_times[name] = min(rows.look_times.get(name, record.dirty_since), record.dirty_since)
        rows.sandboxes[name] = replace(
            rows.sandboxes[name], dirty_since=record.dirty_since, unsaved_packages=record.unsaved_packages
        )
        told = {(one.incarnation, one.change.sequence) for one in history.get(name, ())}
        assert not told & {(one.incarnation, one.change.sequence) for one in changes}, "told twice"
        kept = [*history.get(name, ()), *changes]
        history[name] = [one for one in kept if one.number > record.number - MAX_CHANGES]

    @override
    async def mark_saved(
        self, sandbox: SandboxId, incarnation: IncarnationId, *, up_to: int, kept_by: datetime
    ) -> None:
        rows = await self._work.write()
        rows.package_changes[sandbox] = [
            replace(one, saved=True)
            if one.incarnation == incarnation and (one.change.sequence <= up_to or one.kept_time <= kept_by)
            else one
            for one in rows.package_changes.get(sandbox, ())
        ]

    @override
    async def changes(
        self, sandbox: SandboxId, where: ChangeSelection, *, limit: int, falling: bool = False, from_number: int = 0
    ) -> Sequence[KeptChange]:
        rows = await self._work.read()
        found = [one for one in rows.package_changes.get(sandbox, ()) if where.takes(one)]
        if from_number:
            found = [one for one in found if (one.number < from_number if falling else one.number > from_number)]
        return sorted(found, key=lambda one: one.number, reverse=falling)[:limit]

    @override
    async def numbers(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, int]:
        records = (await self._work.read()).package_records
        return {name: records[name].number for name in sandboxes if name in records and records[name].number}

    @override
    async def claim(self, *, replica: str, limit: int, among: Collection[SandboxId] | None = None) -> Sequence[Watched]:
        rows = await self._work.write()
        free = [
            life
            for life in await self._running(among)
            if (record := rows.package_records.get(life.sandbox)) is None
            or record.owner == ""
            or (record.owner != replica and not self._work.lives(record.owner))
        ][:limit]
        for life in free:
            record = await self.hold(life.sandbox, life.id)
            rows.package_records[life.sandbox] = replace(record, owner=replica)
        return [await self._watched(life) for life in free]

    @override
    async def owned(self, *, replica: str, among: Collection[SandboxId] | None = None) -> Sequence[Watched]:
        records = (await self._work.read()).package_records
        return [
            await self._watched(life)
            for life in await self._running(among)
            if life.sandbox in records and records[life.sandbox].owner == replica
        ]

    @override
    async def release(self, sandboxes: Collection[SandboxId], *, replica: str) -> None:
        records = (await self._work.write()).package_records
        for name in sandboxes:
            if name in records and records[name].owner == replica:
                records[name] = replace(records[name], owner="")

    @override
    async def session_of(
        self, sandbox: SandboxId, incarnation: IncarnationId, process: ProcessId, *, since: datetime, until: datetime
    ) -> tuple[bool, SessionId | None]:
        turns = [one for one in (await self._work.read()).package_turns if one.sandbox == sandbox]
        cli = any((one.incarnation, one.process) == (incarnation, process) for one in turns)
        sessions = {
            one.session for one in turns if one.start_time <= until and (one.end_time is None or one.end_time >= since)
        }
        return cli, sessions.pop() if cli and len(sessions) == 1 else None

    async def _running(self, among: Collection[SandboxId] | None) -> list[Incarnation]:
        rows = await self._work.read()
        return sorted(
            (
                life
                for life in rows.incarnations.values()
                if life.end_time is None
                and life.endpoint is not None
                and rows.sandboxes[life.sandbox].state is SandboxState.ACTIVE
                and (among is None or life.sandbox in among)
            ),
            key=lambda life: life.sandbox,
        )

    async def _watched(self, life: Incarnation) -> Watched:
        record = (await self._work.read()).package_records[life.sandbox]
        assert life.endpoint is not None
        return Watched(
            sandbox=life.sandbox,
            incarnation=life.id,
            endpoint=life.endpoint,
            after=record.sequence if record.incarnation == life.id else 0,
        )


class FakePackageSource(PackageSource):
    """Answers what a test says; an endpoint that it does not know is an agent that does not answer."""

    def __init__(self) -> None:
        self.installed: dict[AgentEndpoint, InstalledPackages] = {}
        self.terminals: set[ProcessId] = set()
        self.told: dict[AgentEndpoint, asyncio.Queue[PackageNews | Exception]] = {}
        """What watchers are told after what is installed; an exception ends the watch."""
        self.watches: list[tuple[AgentEndpoint, int]] = []
        """Every watch that was begun, with its `after`."""
        self.watching = 0

    @override
    async def list(self, endpoint: AgentEndpoint, *, timeout: timedelta) -> InstalledPackages:
        if endpoint not in self.installed:
            raise AgentUnavailableError("Nobody is there.")
        return self.installed[endpoint]

    @override
    async def watch(self, endpoint: AgentEndpoint, *, after: int) -> AsyncGenerator[PackageNews, None]:
        self.watches.append((endpoint, after))
        self.watching += 1
        try:
            yield await self.list(endpoint, timeout=timedelta(seconds=1))
            while True:
                news = await self.news(endpoint).get()
                if isinstance(news, Exception):
                    raise news
                yield news
        finally:
            self.watching -= 1

    @override
    async def has_terminal(self, endpoint: AgentEndpoint, process: ProcessId, *, timeout: timedelta) -> bool:
        return process in self.terminals

    def news(self, endpoint: AgentEndpoint) -> asyncio.Queue[PackageNews | Exception]:
        """Where to put what the watchers of an endpoint are told."""
        return self.told.setdefault(endpoint, asyncio.Queue())

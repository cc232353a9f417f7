"""Keeps what agents tell of packages: each change once, in the life it belongs to, and what of all that is unsaved.

What an agent says was written by the freelancer's processes. It is checked, bounded, and believed only as far as a
history goes: nothing is allowed or paid by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog
from typing_extensions import override

from sandboxd.manager.changes import Changes
from sandboxd.manager.package_ports import PackageSource, Watched
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.package_history import Asked, KeptChange, PackageRecord, Requester
from sandboxd.model.packages import MAX_PACKAGES, InstalledPackages, Package, PackageChange
from sandboxd.model.processes import ProcessId
from sandboxd.model.sandbox import Incarnation
from sandboxd.model.sources import Clock

MAX_DIRECTORY_CHARACTERS: Final = 1024
MAX_SET_CHARACTERS: Final = 4 * 1024 * 1024
"""Names, versions and directories of one set together; a desktop of 3,000 packages has 0.2 million."""
LARGE_SET: Final = 2000
"""A larger set is compared in a thread: 20,000 packages take a tenth of a second."""
NOTICE_LAG: Final = timedelta(seconds=20)
"""An agent notices a change this long after it was done, at most: it looks every 3 s, and waits 10 s for an end."""
LOOK_TIMEOUT: Final = timedelta(seconds=15)
"""A look waits up to 10 s for an installation to stand still."""
CATCH_UP: Final = timedelta(seconds=3)
"""How long news are waited for that the agent has: they are on their way."""
CATCH_UP_LOOK_SECONDS: Final = 0.2
ASK_TIMEOUT: Final = timedelta(seconds=3)

log = structlog.get_logger(__name__)


class SavedMarks(Protocol):
    """What a commit tells of what it has saved."""

    async def mark_saved(
        self,
        sandbox: SandboxId,
        incarnation: IncarnationId,
        *,
        captured_at: datetime,
        seen: InstalledPackages | None = None,
    ) -> bool:
        """Note, after the image was activated, that a commit has what was there when its capture was asked for.

        What became known after that moment stays unsaved. Safe to repeat. A life that is over is left alone: what it
        had is in the image, or gone.

        Args:
            sandbox: Whose.
            incarnation: Whose root file system was captured.
            captured_at: When the capture was asked for, by the service's clock, not when it ended.
            seen: What the agent listed before that moment, if it was asked (`PackageSource.list`): then a change that
                it saw, and whose news come only later, does not make the sandbox dirty again.

        Returns:
            True where nothing is unsaved now, as far as is known.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
            DatabaseUnavailableError: Nothing was noted, or nobody knows.
        """
        ...

    async def catch_up(self, life: Incarnation) -> bool:
        """Let the agent look now, and wait a few seconds until what it tells is kept: to be called before the capture.

        What was installed in the seconds before is then known before `captured_at`, and does not make the sandbox dirty
        again right after the commit that has it. Answers whether all is kept; False does no harm.
        """
        ...


class PackageKeeping(SavedMarks):
    """Writes records and histories."""

    def __init__(self, *, units: UnitsOfWork, source: PackageSource, changes: Changes, clock: Clock) -> None:
        self._units = units
        self._source = source
        self._changes = changes
        self._clock = clock

    @override
    async def mark_saved(
        self,
        sandbox: SandboxId,
        incarnation: IncarnationId,
        *,
        captured_at: datetime,
        seen: InstalledPackages | None = None,
    ) -> bool:
        async with self._units.begin() as work:
            clean = await self.mark_saved_in(work, sandbox, incarnation, captured_at=captured_at, seen=seen)
            await work.commit()
        await self._changes.announce(sandbox)
        return clean

    async def mark_saved_in(
        self,
        work: UnitOfWork,
        sandbox: SandboxId,
        incarnation: IncarnationId,
        *,
        captured_at: datetime,
        seen: InstalledPackages | None = None,
    ) -> bool:
        """Do the same in somebody's transaction: with the activation of an image. They announce the change."""
        record = await work.packages.hold(sandbox, incarnation)
        if record.incarnation != incarnation:
            current = await work.incarnations.current(sandbox)
            if current is None or current.id != incarnation:
                return record.dirty_since is None
            record = record.living(incarnation)  # nobody has told anything of this life yet
        record = record.saved(captured_at=captured_at, seen=seen)
        await work.packages.save(record, [])
        await work.packages.mark_saved(
            sandbox, incarnation, up_to=0 if seen is None else seen.sequence, kept_by=captured_at
        )
        return record.dirty_since is None

    @override
    async def catch_up(self, life: Incarnation) -> bool:
        if life.endpoint is None:
            return False
        try:
            installed = await self._source.list(life.endpoint, timeout=LOOK_TIMEOUT)
        except SandboxdError as error:
            log.info("packages.not_caught_up", sandbox=life.sandbox, error=error.message)
            return False
        began = self._clock.monotonic()
        while True:
            async with self._units.begin() as work:
                record = await work.packages.get(life.sandbox)
            if record is None or not record.owner:
                return False  # nobody watches: it is frozen, or has just begun
            if record.incarnation == life.id and record.has(installed):
                return True
            if self._clock.monotonic() - began > CATCH_UP.total_seconds():
                return False
            await self._changes.wait(life.sandbox, timeout=CATCH_UP_LOOK_SECONDS)

    async def keep(
        self,
        watched: Watched,
        changes: Sequence[PackageChange],
        installed: InstalledPackages | None,
        *,
        replica: str,
    ) -> Kept | None:
        """Take news of an agent, in one transaction; None where they are not for this replica to take any more.

        Args:
            watched: Whose news.
            changes: Changes, in their order.
            installed: What is installed after them, if that was told.
            replica: The one that watches: another one may have taken over since.

        Raises:
            SandboxNotFoundError: The sandbox's row is gone.
            DatabaseUnavailableError: Nothing was kept, or nobody knows; the same news may be given again.
        """
        changes = [one for one in changes if _fits(one.package)]
        terminals = await self._terminals(watched, changes)
        if installed is not None:
            installed = bounded(installed)
        async with self._units.begin() as work:
            before = await work.packages.hold(watched.sandbox, watched.incarnation)
            current = await work.incarnations.current(watched.sandbox)
            if before.owner != replica or current is None or current.id != watched.incarnation:
                return None
            asked = await self._asked(work, watched, changes, terminals)
            now = self._clock.now()
            record, kept = before.living(watched.incarnation).changed(
                changes, at=now, asked=lambda change: asked.get(change.process, Asked())
            )
            if installed is not None:
                if len(installed.packages) > LARGE_SET:  # other sandboxes must not wait for that
                    record, between = await asyncio.to_thread(record.seen, installed, at=now)
                else:
                    record, between = record.seen(installed, at=now)
                kept = [*kept, *between]
            await work.packages.save(record, kept)
            await work.commit()
        if kept or _shown(record) != _shown(before):
            await self._changes.announce(watched.sandbox)
        missed = record.missed - (before.missed if before.incarnation == record.incarnation else 0)
        return Kept(record=record, changes=kept, missed=missed)

    async def _terminals(self, watched: Watched, changes: Sequence[PackageChange]) -> frozenset[ProcessId]:
        """Which of the processes that are named are at a terminal; asked before the transaction."""
        found = set[ProcessId]()
        for process in {one.process for one in changes if one.process is not None}:
            try:
                if await self._source.has_terminal(watched.endpoint, process, timeout=ASK_TIMEOUT):
                    found.add(process)
            except SandboxdError as error:
                log.info("packages.requester_unknown", sandbox=watched.sandbox, error=error.message)
        return frozenset(found)

    async def _asked(
        self,
        work: UnitOfWork,
        watched: Watched,
        changes: Sequence[PackageChange],
        terminals: frozenset[ProcessId],
    ) -> Mapping[ProcessId | None, Asked]:
        asked: dict[ProcessId | None, Asked] = {one: Asked(requester=Requester.TERMINAL) for one in terminals}
        for process in {one.process for one in changes if one.process is not None} - terminals:
            moments = [one.time for one in changes if one.process == process]
            is_cli, session = await work.packages.session_of(
                watched.sandbox,
                watched.incarnation,
                process,
                since=min(moments) - NOTICE_LAG,
                until=max(moments),
            )
            if is_cli:
                asked[process] = Asked(requester=Requester.SESSION, session=session)
        return asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What became of news."""

    record: PackageRecord
    changes: Sequence[KeptChange]
    """Those that were not known before."""
    missed: int
    """How many more the agent had numbered."""


def bounded(installed: InstalledPackages) -> InstalledPackages:
    """Leave out what no package manager writes, and the rest of a set that is larger than anything real."""
    packages: list[Package] = []
    characters = 0
    for one in installed.packages:
        if not _fits(one):
            continue
        characters += len(one.key.name) + len(one.key.directory) + len(one.version)
        if len(packages) >= MAX_PACKAGES or characters > MAX_SET_CHARACTERS:
            return replace(installed, packages=packages, complete=False)
        packages.append(one)
    return replace(installed, packages=packages)


def _fits(package: Package) -> bool:
    """Names and versions were checked when they were read from the wire."""
    directory = package.key.directory
    return len(directory) <= MAX_DIRECTORY_CHARACTERS and directory.isprintable()


def _shown(record: PackageRecord) -> tuple[datetime | None, int]:
    return record.dirty_since, record.unsaved_packages

"""Notices what is installed and removed: looks at the databases while somebody wants to know, and keeps the changes.

A change is told only after two looks in a row have said the same: pip removes the old version before it puts the new
one in its place, and that is one change and not two.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from sandboxd.agent.broadcast import Broadcast
from sandboxd.agent.clock import now
from sandboxd.agent.package_databases import Found
from sandboxd.agent.package_reader import Reading
from sandboxd.model.packages import InstalledPackages, Package, PackageChange, PackageNews, difference
from sandboxd.model.processes import ProcessId

LOOK_EVERY: Final = timedelta(seconds=3)
"""How often a watched sandbox is looked at. Nothing is looked at where nobody watches."""
SETTLE: Final = timedelta(milliseconds=500)
"""How long two looks that agree lie apart."""
SETTLE_LOOKS: Final = 20
"""After so many looks that did not agree, what was seen last is told."""
KEPT_CHANGES: Final = 4096
"""Changes that are kept for who comes back."""

log = logging.getLogger(__name__)


class PackageWatch:
    """The packages of one sandbox."""

    def __init__(
        self,
        *,
        read: Callable[[], Reading],
        requester: Callable[[datetime], ProcessId | None] = lambda _: None,
        every: timedelta = LOOK_EVERY,
        settle: timedelta = SETTLE,
    ) -> None:
        """Take the parts.

        Args:
            read: Reads the databases; called in a thread, one call at a time.
            requester: Tells which started process can have changed something since a moment.
            every: Pause between two looks.
            settle: Pause between two looks at something that has changed.
        """
        self._read = read
        self._requester = requester
        self._every = every
        self._settle = settle
        self._start_ns = time.time_ns()
        self._packages: Found = {}
        self._initial: Found = {}
        self._complete = False
        self._root_change_ns = 0
        self._changes: deque[PackageChange] = deque(maxlen=KEPT_CHANGES)
        self._sequence = 0
        self._looking = asyncio.Lock()
        self._looked = -float("inf")
        self._look_time = now()
        self._changed = Broadcast()

    async def begin(self) -> None:
        """Take what is there now as what was there before the first process; no change of it is told."""
        try:
            reading = await asyncio.to_thread(self._read)
        except OSError:  # the kernel refuses the freelancer's rights: no reason for an agent not to start
            log.warning("packages.unreadable", exc_info=True)
            return
        self._packages, self._complete = reading.packages, reading.complete
        self._initial = reading.packages
        self._start_ns, self._look_time = time.time_ns(), now()

    async def look(self) -> InstalledPackages:
        """Look now, and tell what is there once it stands still."""
        async with self._looking:
            await self._look()
        return self.state

    @property
    def state(self) -> InstalledPackages:
        """What was there at the last look."""
        changed = self._root_change_ns > self._start_ns
        return InstalledPackages(
            packages=[self._marked(self._packages[key]) for key in sorted(self._packages)],
            sequence=self._sequence,
            complete=self._complete,
            root_change_time=datetime.fromtimestamp(self._root_change_ns / 1e9, UTC) if changed else None,
        )

    def _marked(self, package: Package) -> Package:
        before = self._initial.get(package.key)
        return replace(package, initial=before is not None and before.version == package.version)

    async def watch(self, after: int) -> AsyncGenerator[PackageNews, None]:
        """Tell the kept changes after a sequence number, then what is there, then every change as it is noticed.

        What is there comes again whenever the root file system was changed outside packages. Ends with its reader.

        Args:
            after: The last sequence number that the reader has; 0 for none. One from an earlier agent means nothing.
        """
        await self.look()
        told = after if after <= self._sequence else 0
        owed = True
        while True:
            for change in [one for one in self._changes if one.sequence > told]:
                yield change
                told = change.sequence
            if told < self._sequence:  # more came while these went out
                continue
            if owed:
                owed = False
                yield self.state
                continue
            before = self._root_change_ns, self._complete
            await self._wait()
            owed = before != (self._root_change_ns, self._complete)

    async def _wait(self) -> None:
        """Wait until something has changed, or it is time for a look; then look, unless somebody just has."""
        try:
            async with asyncio.timeout(self._every.total_seconds()):
                await self._changed.wait()
        except TimeoutError:
            async with self._looking:
                if time.monotonic() - self._looked >= self._every.total_seconds() / 2:
                    await self._look()

    async def _look(self) -> None:
        since = self._look_time
        reading = await asyncio.to_thread(self._read)
        process = None
        if reading.packages != self._packages:
            process = await asyncio.to_thread(self._requester, since)
            reading = await self._settled(reading)
        self._looked, self._look_time = time.monotonic(), now()
        self._take(reading, process)

    async def _settled(self, reading: Reading) -> Reading:
        for _ in range(SETTLE_LOOKS):
            await asyncio.sleep(self._settle.total_seconds())
            following = await asyncio.to_thread(self._read)
            if following.packages == reading.packages:
                return following
            reading = following
        return reading

    def _take(self, reading: Reading, process: ProcessId | None) -> None:
        for kind, package, old_version in difference(self._packages, reading.packages):
            self._sequence += 1
            self._changes.append(
                PackageChange(
                    sequence=self._sequence,
                    kind=kind,
                    package=package,
                    old_version=old_version,
                    time=self._look_time,
                    process=process,
                )
            )
        told = (self._packages, self._complete, self._root_change_ns)
        self._packages, self._complete = reading.packages, reading.complete
        self._root_change_ns = max(self._root_change_ns, reading.root_change_ns)
        if told != (self._packages, self._complete, self._root_change_ns):
            self._changed.notify()

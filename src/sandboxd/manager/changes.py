"""Who waits for a change of a sandbox, in this process; changes elsewhere come in as hints from the other replicas.

A hint says only "look again". It may be lost: whoever waits also looks by itself now and then.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.stream.ports import Wakeups

TOPIC = "sandboxes"
MAX_PENDING = 10_000
"""Changed sandboxes that one watcher may leave unread; beyond it is told to look at everything again."""
RETRY_SECONDS = 1.0

log = structlog.get_logger(__name__)


class ChangeFeed:
    """The changed sandboxes that one watcher has not looked at yet; coalesced."""

    def __init__(self) -> None:
        self._pending: set[SandboxId] = set()
        self._everything = False
        self._arrived = asyncio.Event()

    def add(self, sandbox: SandboxId) -> None:
        """Note a change."""
        if len(self._pending) >= MAX_PENDING:
            self._everything = True
            self._pending.clear()
        self._pending.add(sandbox)
        self._arrived.set()

    async def take(self, *, timeout: float) -> frozenset[SandboxId] | None:
        """Wait for changes; None when it is time to look at everything: too much came, or nothing came for so long."""
        try:
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        except TimeoutError:
            return None
        taken, everything = frozenset(self._pending), self._everything
        self._pending.clear()
        self._everything = False
        self._arrived.clear()
        return None if everything else taken


class Changes:
    """Hands hints on to those who wait here, and sends ours to the other replicas."""

    def __init__(self, *, wakeups: Wakeups) -> None:
        self._wakeups = wakeups
        self._waiters: defaultdict[SandboxId, set[asyncio.Event]] = defaultdict(set)
        self._feeds: set[ChangeFeed] = set()

    async def announce(self, sandbox: SandboxId) -> None:
        """Tell everybody that a sandbox has changed; to be called after the commit."""
        self._tell(sandbox)
        try:
            await self._wakeups.notify(TOPIC, sandbox)
        except UnavailableError as error:
            log.warning("sandbox.hint_lost", sandbox=sandbox, error=error.message)

    async def wait(self, sandbox: SandboxId, *, timeout: float) -> None:
        """Wait until the sandbox has changed, or that many seconds."""
        event = asyncio.Event()
        self._waiters[sandbox].add(event)
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiters[sandbox].discard(event)
            if not self._waiters[sandbox]:
                del self._waiters[sandbox]

    @contextmanager
    def feed(self) -> Iterator[ChangeFeed]:
        """All changes from now on."""
        feed = ChangeFeed()
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.discard(feed)

    async def run(self) -> None:
        """Take in the hints of the other replicas until cancelled."""
        while True:
            try:
                async for sandbox in self._wakeups.listen(TOPIC):
                    self._tell(SandboxId(sandbox))
            except UnavailableError as error:
                log.warning("sandbox.hints_interrupted", error=error.message)
            await asyncio.sleep(RETRY_SECONDS)

    def _tell(self, sandbox: SandboxId) -> None:
        for event in self._waiters.get(sandbox, ()):
            event.set()
        for feed in self._feeds:
            feed.add(sandbox)

"""Open streams that are told of their sandbox, whichever replica came to know what is told.

Hints say when to look; they may be lost, so everybody who is followed is looked at now and then, at once.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from sandboxd.manager.changes import Changes
from sandboxd.model.ids import SandboxId

LOOK_SECONDS: Final = 30.0
MAX_PENDING: Final = 16
"""What one slow stream may leave unread; the oldest is let fall."""

News = TypeVar("News")
Look = Callable[[Collection[SandboxId]], Awaitable[None]]
"""Finds out what is new of these, and tells it."""


class Followers(Generic[News]):
    """Who follows which sandbox in this replica."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._queues: defaultdict[SandboxId, set[asyncio.Queue[News]]] = defaultdict(set)

    def __contains__(self, sandbox: SandboxId) -> bool:
        return sandbox in self._queues

    def __len__(self) -> int:
        """How many sandboxes are followed."""
        return len(self._queues)

    @contextmanager
    def join(self, sandbox: SandboxId) -> Iterator[asyncio.Queue[News]]:
        """Follow a sandbox by a queue of one's own."""
        queue = asyncio.Queue[News](MAX_PENDING)
        self._queues[sandbox].add(queue)
        try:
            yield queue
        finally:
            self._queues[sandbox].discard(queue)
            if not self._queues[sandbox]:
                del self._queues[sandbox]

    def tell(self, sandbox: SandboxId, news: News) -> None:
        """Tell everybody who follows a sandbox."""
        for queue in self._queues.get(sandbox, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(news)

    async def run(self, look: Look) -> None:
        """Look at what changes until cancelled."""
        with self._changes.feed() as feed:
            while True:
                changed = await feed.take(timeout=LOOK_SECONDS)
                await look(self._queues.keys() if changed is None else self._queues.keys() & changed)

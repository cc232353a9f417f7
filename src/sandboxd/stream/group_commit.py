"""Group commit: appends of many conversations share one journal transaction.

Committing is the dearest step between the CLI's output and a client's event. While one transaction is on its way, the
next entries gather; they go together as soon as a lane is free. Nothing waits on purpose: an idle service commits at
once, a busy one in batches. It cannot reorder: a conversation has at most one append under way, and awaits it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.stream.ports import Appended, Entry, Journal

log = structlog.get_logger(__name__)

LANES: Final = 2
"""Transactions at the same time: one on its way to disk, one being filled by the server."""
MAX_BATCH: Final = 256
"""Entries in one transaction; bounds its size and how long others wait for it."""
FIRST_RETRY_SECONDS: Final = 0.05
LAST_RETRY_SECONDS: Final = 2.0


class GroupCommit:
    """Appends entries in shared transactions and repeats them while the database is away.

    An append does not fail when PostgreSQL does not answer: it waits, and with it the conversation, the agent's spool
    and in the end the CLI. A caller who cannot wait so long gives its own deadline; the entry stays queued, because it
    may be durable already.
    """

    def __init__(self, journal: Journal, *, appended: Callable[[int, float], None] | None = None) -> None:
        """Make it.

        Args:
            journal: Where entries go.
            appended: Told of each transaction: its entries, and its seconds.
        """
        self._journal = journal
        self._appended = appended
        self._queue: deque[tuple[Entry, asyncio.Future[Appended]]] = deque()
        self._ready = asyncio.Event()
        self._closing = False

    async def append(self, entry: Entry) -> Appended:
        """Make one entry durable and tell what became of it. Cancelling the wait does not take the entry back."""
        done: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._queue.append((entry, done))
        self._ready.set()
        return await asyncio.shield(done)

    @property
    def queued(self) -> int:
        """How many entries wait for a transaction."""
        return len(self._queue)

    async def run(self) -> None:
        """Serve appends until cancelled or closed; owned by the service's task group."""
        async with asyncio.TaskGroup() as lanes:
            for number in range(LANES):
                lanes.create_task(self._lane(), name=f"group-commit-{number}")

    def close(self) -> None:
        """Let `run` return once the queue is empty."""
        self._closing = True
        self._ready.set()

    async def _lane(self) -> None:
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._ready.clear()
                await self._ready.wait()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
            began = time.monotonic()
            try:
                outcomes = await self._append(tuple(entry for entry, _ in batch))
            except BaseException as error:
                for _, done in batch:
                    if done.done():
                        continue
                    if isinstance(error, Exception):
                        done.set_exception(error)
                    else:
                        done.cancel()
                if not isinstance(error, Exception):
                    raise
                log.exception("journal.append_failed", entries=len(batch))
                continue
            if self._appended is not None:
                self._appended(len(batch), time.monotonic() - began)
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                if not done.done():
                    done.set_result(outcome)

    async def _append(self, entries: Sequence[Entry]) -> Sequence[Appended]:
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                return await self._journal.append(entries)
            except DatabaseUnavailableError as error:
                log.warning("journal.unavailable", entries=len(entries), retry_seconds=delay, error=str(error))
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter is no secret
            delay = min(delay * 2, LAST_RETRY_SECONDS)

"""A queue of keys, with back-off.

A key waits once however often it is added, is worked on by one worker, and comes back slower each time it fails.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_DELAY: Final = 0.02
LONGEST_DELAY: Final = 30.0


class WorkQueue(Generic[Key]):
    """Bounded by the number of keys. For one event loop."""

    def __init__(self, *, first_delay: float = FIRST_DELAY, longest_delay: float = LONGEST_DELAY) -> None:
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._waiting: deque[Key] = deque()
        self._dirty: set[Key] = set()
        self._working: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._later: dict[Key, tuple[float, asyncio.Handle]] = {}
        """When, by the loop's clock, and what does it: uvloop's handle of a call within a millisecond tells no time."""
        self._something = asyncio.Event()

    def __len__(self) -> int:
        """How many keys wait for a worker."""
        return len(self._dirty)

    def add(self, key: Key) -> None:
        """Have a key worked on. One that is being worked on is worked on once more afterwards."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._waiting.append(key)
            self._something.set()

    def add_later(self, key: Key, seconds: float) -> None:
        """Add a key after a time; the sooner of several times counts."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        known = self._later.get(key)
        if known is not None:
            if known[0] <= due:
                return
            known[1].cancel()
        self._later[key] = (due, loop.call_at(due, self._due, key))

    async def take(self) -> Key:
        """Wait for a key, and take it. Call `done` for it."""
        while not self._waiting:
            self._something.clear()
            await self._something.wait()
        key = self._waiting.popleft()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: Key) -> None:
        """Give a key back."""
        self._working.discard(key)
        if key in self._dirty:
            self._waiting.append(key)
            self._something.set()

    def retry(self, key: Key) -> float:
        """Add a key again after its back-off; answers after how many seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay: float = min(self._first_delay * 2.0 ** min(failures, 30), self._longest_delay)
        delay *= random.uniform(0.75, 1.0)  # noqa: S311  spread, not a secret
        self.add_later(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """Let the next failure of a key be its first."""
        self._failures.pop(key, None)

    def clear(self) -> None:
        """Drop everything that waits."""
        for _, timer in self._later.values():
            timer.cancel()
        self._later.clear()
        self._failures.clear()
        self._waiting.clear()
        self._dirty.clear()

    def _due(self, key: Key) -> None:
        self._later.pop(key, None)
        self.add(key)

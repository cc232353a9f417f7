"""When to try again what failed: each time twice as long a wait, up to the longest."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

from sandboxd.model.sources import Clock

Key = TypeVar("Key", bound=Hashable)


class Patience(Generic[Key]):
    """Waits by key, in seconds of the monotonic clock. In memory: another process begins anew."""

    def __init__(self, clock: Clock, *, first: float, longest: float) -> None:
        self._clock = clock
        self._first = first
        self._longest = longest
        self._waits: dict[Key, tuple[float, float]] = {}
        """Not before that moment, and the next wait."""

    def waits(self, key: Key) -> bool:
        """Tell whether it is too early to try again."""
        return key in self._waits and self._clock.monotonic() < self._waits[key][0]

    def failed(self, key: Key) -> None:
        """Wait, and longer than the last time."""
        _, wait = self._waits.get(key, (0.0, self._first))
        self._waits[key] = (self._clock.monotonic() + wait, min(wait * 2, self._longest))

    def forget(self, key: Key) -> None:
        """It went well, or it is gone: the next failure is the first one."""
        self._waits.pop(key, None)

    def keep(self, keys: Collection[Key]) -> None:
        """Forget all others."""
        for gone in self._waits.keys() - keys:
            del self._waits[gone]

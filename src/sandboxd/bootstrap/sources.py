"""The real clock and the real ids."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from typing_extensions import override

from sandboxd.model.ids import ENTROPY_BYTES, make_id
from sandboxd.stream.ports import Wakeups


class SystemClock:
    """The machine's time."""

    def now(self) -> datetime:
        """The moment, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()


class RandomIds:
    """Ids from the clock and the kernel's randomness."""

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock

    def new(self, prefix: str) -> str:
        """A new id of that kind."""
        return make_id(prefix, at=self._clock.now(), entropy=os.urandom(ENTROPY_BYTES))


class NoWakeups(Wakeups):
    """Hears no hints and sends none: whoever asks looks again by itself."""

    @override
    async def listen(self, topic: str) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    @override
    async def notify(self, topic: str, payload: str) -> None:
        """Tell nobody."""

"""The real clock and the real ids."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

from sandboxd.model.ids import ENTROPY_BYTES, make_id


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

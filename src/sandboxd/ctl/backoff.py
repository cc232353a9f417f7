"""How long to wait before the same is tried again: exponential, with full jitter, within one budget of time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patient a caller is."""

    first: timedelta = timedelta(milliseconds=200)
    """Longest wait before the second attempt."""
    longest: timedelta = timedelta(seconds=5)
    """Longest wait between two attempts."""
    budget: timedelta = timedelta(seconds=4)
    """After this much time since the first failure the next failure is final."""


UNARY = RetryPolicy()
"""For calls: a restart of the service is bridged, a wrong address is told soon."""
RECONNECT = RetryPolicy(budget=timedelta(minutes=2))
"""For a conversation that was open: a turn is worth waiting for."""


class Backoff:
    """One series of failures; `reset` after a success starts the next one."""

    def __init__(
        self, policy: RetryPolicy, *, clock: Callable[[], float] = time.monotonic, chance: random.Random | None = None
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._chance = chance or random.Random()  # noqa: S311  # jitter, not a secret
        self._failures = 0
        self._since = 0.0

    def reset(self) -> None:
        """Forget the failures so far."""
        self._failures = 0

    def next_delay(self, *, at_least: timedelta | None = None) -> float | None:
        """Count one failure and tell how many seconds to wait, or None where patience is over.

        Args:
            at_least: What the service asked for.
        """
        now = self._clock()
        if self._failures == 0:
            self._since = now
        ceiling = min(self._policy.longest, self._policy.first * 2 ** min(self._failures, 10)).total_seconds()
        self._failures += 1
        delay = self._chance.uniform(0, ceiling)
        if at_least is not None:
            delay = max(delay, at_least.total_seconds())
        if now + delay - self._since > self._policy.budget.total_seconds():
            return None
        return delay

"""A circuit breaker for the one upstream: after failures in a row, calls rest for a moment instead of queueing up.

A failure is no connection, no answer in time, or a 5xx. A 429 is not: the API is well and says "slower". While the
circuit is open every call is refused without a ledger row; then one call is let through as a probe, which decides.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass


class CircuitState(enum.Enum):
    """Where the circuit is. Closed set: it is a metric's label."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When the circuit opens, and for how long."""

    failures: int = 10
    """Failures in a row. The CLI tries 3 times by itself, so a few prompts may fail before."""
    rest_seconds: float = 5.0
    """How long it stays open the first time; doubled after each failed probe."""
    longest_rest_seconds: float = 60.0


class CircuitBreaker:
    """Decides whether a call may be made. One for each upstream; not for threads."""

    def __init__(self, *, policy: BreakerPolicy, monotonic: Callable[[], float]) -> None:
        self._policy = policy
        self._monotonic = monotonic
        self._failures = 0
        self._rest = policy.rest_seconds
        self._opened = 0.0
        self._probing = False
        self.state = CircuitState.CLOSED

    def admit(self) -> int | None:
        """Ask to make a call. Every admitted call must end in `succeeded`, `failed` or `withdrawn`.

        Returns:
            None where the call may be made; else the seconds to wait.
        """
        if self.state is CircuitState.CLOSED:
            return None
        left = self._opened + self._rest - self._monotonic()
        if left > 0:
            return math.ceil(left)
        if self._probing:
            return 1
        self.state = CircuitState.HALF_OPEN
        self._probing = True
        return None

    def succeeded(self) -> None:
        """Report that the upstream answered."""
        self.state = CircuitState.CLOSED
        self._failures = 0
        self._rest = self._policy.rest_seconds
        self._probing = False

    def failed(self) -> None:
        """Report that the upstream did not answer, or with a 5xx."""
        if self.state is CircuitState.HALF_OPEN:
            self._rest = min(self._rest * 2, self._policy.longest_rest_seconds)
            self._open()
            return
        self._failures += 1
        if self.state is CircuitState.CLOSED and self._failures >= self._policy.failures:
            self._open()

    def withdrawn(self) -> None:
        """Report that the call ended without saying anything about the upstream (refused later, the CLI went away)."""
        self._probing = False

    def reset(self) -> None:
        """Close the circuit: an operator knows that the upstream is well."""
        self.succeeded()

    def _open(self) -> None:
        self.state = CircuitState.OPEN
        self._opened = self._monotonic()
        self._probing = False

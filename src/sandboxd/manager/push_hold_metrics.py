"""Figures of the hold on pushes: the same from every replica, as the database has it."""

from __future__ import annotations

from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge

from sandboxd.model.push_hold import PushHold


class PushHoldMetrics:
    """What is measured of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._held = Gauge(
            "sandboxd_push_hold_seconds",
            "How long pushes to the registry have been held without a break, at the last look; 0 where they are not.",
            registry=registry,
        )
        self._overdue = Gauge(
            "sandboxd_push_hold_overdue_seconds",
            "How long ago the time of a hold ran out that nobody has released, at the last look; else 0.",
            registry=registry,
        )

    def seen(self, hold: PushHold | None, *, at: datetime) -> None:
        """Note a look."""
        held = overdue = 0.0
        if hold is not None and hold.running:
            held = (at - hold.since_time).total_seconds()
        elif hold is not None:
            overdue = (at - hold.until_time).total_seconds()
        self._held.set(max(held, 0.0))
        self._overdue.set(max(overdue, 0.0))

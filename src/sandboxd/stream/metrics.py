"""The stream's figures. Labels come from closed sets: kinds of events, reasons why turns stop."""

from __future__ import annotations

import time
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sandboxd.model.session import StopReason
from sandboxd.stream.codec import kind_of
from sandboxd.stream.ports import Entry

_QUICK: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG: Final = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_ENTRIES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class StreamMetrics:
    """What is counted and measured of conversations."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Register them; in a registry of their own if None."""
        registry = registry if registry is not None else CollectorRegistry()
        self._events = Counter(
            "sandboxd_stream_events_total", "Events that were committed, by kind.", ("kind",), registry=registry
        )
        self._kinds: dict[type, Counter] = {}
        self._lag = Histogram(
            "sandboxd_stream_publish_lag_seconds",
            "From the CLI's output as it was read to its events as they were published, for the oldest of a step.",
            buckets=_QUICK,
            registry=registry,
        )
        self._turns = Counter(
            "sandboxd_turns_total", "Turns that ended, by stop reason.", ("stop_reason",), registry=registry
        )
        self._turn_seconds = Histogram(
            "sandboxd_turn_seconds", "Turns from their acceptance to their end.", buckets=_LONG, registry=registry
        )
        self._append_seconds = Histogram(
            "sandboxd_journal_append_seconds",
            "One transaction of the journal, repetitions while the database is away included.",
            buckets=_QUICK,
            registry=registry,
        )
        self._append_entries = Histogram(
            "sandboxd_journal_append_entries",
            "Conversations that one transaction of the journal wrote for.",
            buckets=_ENTRIES,
            registry=registry,
        )
        self.owned = Gauge("sandboxd_conversations_owned", "Conversations that this replica owns.", registry=registry)
        self.open_turns = Gauge(
            "sandboxd_open_turns", "Turns that are open in conversations of this replica.", registry=registry
        )
        self.watchers = Gauge(
            "sandboxd_stream_watchers", "Readers that follow sessions on this replica.", registry=registry
        )
        self.queued = Gauge(
            "sandboxd_journal_queued_entries", "Appends that wait for a transaction.", registry=registry
        )
        self.agents = Gauge(
            "sandboxd_agent_connections", "Connections to agents that this replica holds.", registry=registry
        )
        self._taken = Counter(
            "sandboxd_conversations_taken_total",
            "Conversations that this replica became the owner of, by how (use, adoption).",
            ("how",),
            registry=registry,
        )
        self._errands = Counter(
            "sandboxd_errands_forwarded_total",
            "Errands that were sent to another replica, by how it ended (done, refused, moved, unanswered).",
            ("outcome",),
            registry=registry,
        )
        self._lost = Counter(
            "sandboxd_conversations_lost_total", "Conversations that another replica took over.", registry=registry
        )

    def forwarded(self, outcome: Literal["done", "refused", "moved", "unanswered"]) -> None:
        """Note how an errand at another replica ended."""
        self._errands.labels(outcome=outcome).inc()

    def published(self, entry: Entry, *, oldest: float) -> None:
        """Note a committed entry.

        Args:
            entry: What was committed and shown.
            oldest: When the oldest output in it was read, on the monotonic clock; 0 where there is none.
        """
        kinds = self._kinds
        for event in entry.events:
            body = type(event.body)
            counter = kinds.get(body)
            if counter is None:
                counter = kinds[body] = self._events.labels(kind_of(event.body))
            counter.inc()
        if oldest and entry.events:
            self._lag.observe(time.monotonic() - oldest)
        for turn in entry.turns:
            if turn.end_time is not None:
                self._turns.labels((turn.stop_reason or StopReason.ERROR).value).inc()
                self._turn_seconds.observe(max(0.0, (turn.end_time - turn.start_time).total_seconds()))

    def appended(self, entries: int, seconds: float) -> None:
        """Note a transaction of the journal."""
        self._append_seconds.observe(seconds)
        self._append_entries.observe(entries)

    def taken(self, *, adopted: bool) -> None:
        """Note that this replica became the owner of a conversation."""
        self._taken.labels("adoption" if adopted else "use").inc()

    def lost(self) -> None:
        """Note that another replica took a conversation over."""
        self._lost.inc()

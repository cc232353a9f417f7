"""The feed: committed events of sessions, to any number of watchers, each at its own pace.

A watcher has a cursor, not a queue. What is recent comes from a small ring in memory, what is older from the journal; a
slow watcher falls back to the journal and costs no memory. Whoever publishes has committed before.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from sandboxd.model.events import SessionEvent
from sandboxd.model.ids import SessionId
from sandboxd.stream.ports import Journal

RING_EVENTS: Final = 256
"""Recent events kept per watched session: a watcher within this distance costs no query."""
MAX_RINGS: Final = 4096
"""Sessions with a ring; the least recently published one goes first."""
PAGE_EVENTS: Final = 500
PAGE_BYTES: Final = 256 << 10
"""What a watcher that reads the journal holds in memory at most, but for one event that is larger."""
POLL_SECONDS: Final = 5.0
"""How long a watcher of a session that nobody has published here waits until it looks by itself."""


class _Ring:
    """The newest events of one session, contiguous."""

    __slots__ = ("changed", "events", "tip", "watchers")

    def __init__(self) -> None:
        self.tip: int | None = None
        """Newest sequence number that is known here."""
        self.events: deque[SessionEvent] = deque(maxlen=RING_EVENTS)
        self.changed = asyncio.Event()
        self.watchers = 0

    def add(self, events: Sequence[SessionEvent]) -> None:
        if self.events and events and events[0].sequence != self.events[-1].sequence + 1:
            self.events.clear()
        self.events.extend(events)
        self.reach(events[-1].sequence)
        self.wake()

    def reach(self, sequence: int) -> None:
        """Know that the log goes as far as this. A ring that does not is no ground to say that there is nothing new."""
        if self.events and self.events[-1].sequence < sequence:
            self.events.clear()
        self.tip = sequence if self.tip is None else max(self.tip, sequence)

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, cursor: int) -> Sequence[SessionEvent] | None:
        """Events after the cursor, or None where the ring does not reach back that far (or knows nothing)."""
        if not self.events:
            return None
        first, last = self.events[0].sequence, self.events[-1].sequence
        if cursor >= last:
            return ()
        if cursor + 1 < first:
            return None
        return [event for event in self.events if event.sequence > cursor]


class EventFeed:
    """Hands committed events to watchers."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._rings: OrderedDict[SessionId, _Ring] = OrderedDict()
        self._closed = False

    @property
    def watchers(self) -> int:
        """How many readers follow sessions here."""
        return sum(ring.watchers for ring in self._rings.values())

    def publish(self, events: Sequence[SessionEvent]) -> None:
        """Show events that were just committed by this replica; sessions may be mixed, each in order."""
        grouped: dict[SessionId, list[SessionEvent]] = {}
        for event in events:
            grouped.setdefault(event.session, []).append(event)
        for session, group in grouped.items():
            self._ring(session).add(group)

    def tip(self, session: SessionId) -> int | None:
        """The newest sequence number of a session that is known here; None where none is."""
        ring = self._rings.get(session)
        return None if ring is None else ring.tip

    def learn(self, session: SessionId, events: Sequence[SessionEvent]) -> None:
        """Show events that another replica committed, read from the journal; what is known already is left out."""
        ring = self._rings.get(session)
        if ring is not None:
            fresh = [event for event in events if ring.tip is None or event.sequence > ring.tip]
            if fresh:
                ring.add(fresh)

    def wake(self, session: SessionId) -> None:
        """Let a session's watchers look."""
        ring = self._rings.get(session)
        if ring is not None:
            ring.wake()

    def forget(self, session: SessionId) -> None:
        """Drop what is remembered of a session's events: the journal has other words for them now."""
        ring = self._rings.get(session)
        if ring is not None:
            ring.events.clear()

    def close(self) -> None:
        """End every watcher's events after what it can still read: the service is going away."""
        self._closed = True
        for ring in self._rings.values():
            ring.wake()

    async def follow(
        self, session: SessionId, *, after: int, head: int | None = None
    ) -> AsyncGenerator[Sequence[SessionEvent], None]:
        """Yield every event after a sequence number, in order and without gaps, in batches, until `close`.

        `head`, where it is given, is the newest event that the journal had a moment ago.
        """
        ring = self._ring(session)
        if head is not None:
            ring.reach(head)
        ring.watchers += 1
        cursor = after
        try:
            while True:
                changed = ring.changed  # taken before the look, so that what comes during it is not slept through
                batch = ring.after(cursor)
                if batch is None:
                    batch = await self._journal.events(session, after=cursor, limit=PAGE_EVENTS, max_bytes=PAGE_BYTES)
                if batch:
                    cursor = batch[-1].sequence
                    yield batch
                    continue
                if self._closed:
                    return
                try:
                    async with asyncio.timeout(POLL_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            ring.watchers -= 1

    def _ring(self, session: SessionId) -> _Ring:
        ring = self._rings.get(session)
        if ring is None:
            ring = self._rings[session] = _Ring()
            self._evict()
        self._rings.move_to_end(session)
        return ring

    def _evict(self) -> None:
        surplus = len(self._rings) - MAX_RINGS
        if surplus <= 0:
            return
        for session in [name for name, ring in self._rings.items() if ring.watchers == 0][:surplus]:
            del self._rings[session]

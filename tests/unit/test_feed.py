"""The feed hands every committed event to every watcher once, in order, whatever its pace."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sandboxd.model.events import SessionEvent, Text
from sandboxd.model.ids import SessionId
from sandboxd.stream.feed import RING_EVENTS, EventFeed
from tests.fakes.journal import FakeJournal, FakeStore

SESSION = SessionId("ses-00000000000000000000000001")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def an_event(sequence: int) -> SessionEvent:
    return SessionEvent(session=SESSION, sequence=sequence, turn=None, event_time=NOW, body=Text(text=str(sequence)))


@dataclass(kw_only=True)
class Desk:
    """A feed with its journal; `happen` commits and publishes."""

    journal: FakeJournal = field(default_factory=lambda: FakeJournal(store=FakeStore()))
    reads: int = 0

    def __post_init__(self) -> None:
        self.feed = EventFeed(self.journal)

    def happen(self, *sequences: int, published: bool = True) -> None:
        events = [an_event(number) for number in sequences]
        self.journal.store.log.setdefault(SESSION, []).extend(events)
        if published:
            self.feed.publish(events)

    async def collect(self, count: int, *, after: int = 0) -> Sequence[int]:
        seen: list[int] = []
        async with asyncio.timeout(5):
            async for batch in self.feed.follow(SESSION, after=after):
                seen.extend(event.sequence for event in batch)
                if len(seen) >= count:
                    break
        return seen


async def test_a_watcher_catches_up_from_the_journal_and_goes_on_live() -> None:
    desk = Desk()
    desk.happen(1, 2, 3, published=False)

    watcher = asyncio.create_task(desk.collect(5))
    await asyncio.sleep(0)
    desk.happen(4)
    desk.happen(5)

    assert await watcher == [1, 2, 3, 4, 5]


async def test_a_watcher_gets_only_what_it_has_not_seen() -> None:
    desk = Desk()
    desk.happen(1, 2, 3)

    assert await desk.collect(1, after=2) == [3]


async def test_a_slow_watcher_falls_back_to_the_journal_and_misses_nothing() -> None:
    desk = Desk()
    desk.happen(1)
    follower = desk.feed.follow(SESSION, after=0)
    assert [event.sequence for event in await anext(follower)] == [1]

    last = RING_EVENTS * 3
    for number in range(2, last + 1):
        desk.happen(number)
    seen = [1]
    async with asyncio.timeout(5):
        while seen[-1] < last:
            seen.extend(event.sequence for event in await anext(follower))

    assert seen == list(range(1, last + 1))


async def test_an_event_that_is_published_while_the_journal_is_read_is_not_slept_through() -> None:
    desk = Desk()
    desk.journal.store.hanging = asyncio.Event()
    watcher = asyncio.create_task(desk.collect(1))
    await asyncio.sleep(0)

    desk.happen(1)
    desk.journal.store.hanging.set()

    assert await watcher == [1]


async def test_many_watchers_see_the_same() -> None:
    desk = Desk()
    watchers = [asyncio.create_task(desk.collect(3)) for _ in range(20)]
    await asyncio.sleep(0)

    desk.happen(1, 2)
    desk.happen(3)

    assert [await watcher for watcher in watchers] == [[1, 2, 3]] * 20


async def test_a_watcher_that_knows_of_newer_events_than_the_ring_reads_the_journal() -> None:
    """As after a freeze: others have committed meanwhile, and nothing more is coming."""
    desk = Desk()
    desk.happen(1, 2)
    desk.happen(3, 4, published=False)

    seen: list[int] = []
    async with asyncio.timeout(2):
        async for batch in desk.feed.follow(SESSION, after=2, head=4):
            seen.extend(event.sequence for event in batch)
            if len(seen) == 2:
                break

    assert seen == [3, 4]


async def test_closing_ends_every_watcher_after_what_it_could_still_read() -> None:
    desk = Desk()
    desk.happen(1, 2)
    watcher = asyncio.create_task(desk.collect(99))
    await asyncio.sleep(0)

    desk.feed.close()

    assert await watcher == [1, 2]

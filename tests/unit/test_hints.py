"""Hints between replicas: whoever watches elsewhere is woken soon, and an owner that nobody watches tells nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from typing_extensions import override

from sandboxd.model.events import SessionEvent, Text
from sandboxd.model.ids import SandboxId, SessionId
from sandboxd.stream.feed import EventFeed
from sandboxd.stream.hints import EVENTS, REGISTRATIONS, EventHints
from tests.eventually import eventually
from tests.fakes.journal import FakeJournal, FakeStore
from tests.fakes.manager import FakeWakeups

SANDBOX = SandboxId("sbx-1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEVER = timedelta(hours=1)
SOON = timedelta(milliseconds=50)


def a_session(number: int = 1) -> SessionId:
    return SessionId(f"ses-{number}")


class CountingJournal(FakeJournal):
    """Counts what it is asked."""

    alone = 0
    together = 0

    @override
    async def events(
        self, session: SessionId, *, after: int, limit: int, max_bytes: int = 2 << 20
    ) -> Sequence[SessionEvent]:
        self.alone += 1
        return await super().events(session, after=after, limit=limit, max_bytes=max_bytes)

    @override
    async def events_of(
        self, cursors: Mapping[SessionId, int], *, limit: int, max_bytes: int
    ) -> Mapping[SessionId, Sequence[SessionEvent]]:
        self.together += 1
        before, found = self.alone, await super().events_of(cursors, limit=limit, max_bytes=max_bytes)
        self.alone = before
        return found


class LossyWakeups(FakeWakeups):
    """Hints, counted by topic; they are lost while it rains."""

    raining = False

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    @override
    async def notify(self, topic: str, payload: str) -> None:
        self.sent.append(topic)
        if not self.raining:
            await super().notify(topic, payload)


@dataclass(kw_only=True)
class Side:
    """One replica's part in it."""

    journal: CountingJournal
    feed: EventFeed
    hints: EventHints

    async def follow(self, count: int, *, session: SessionId | None = None, after: int = 0) -> list[int]:
        name = session or a_session()
        seen: list[int] = []
        with self.hints.following(SANDBOX, name):
            async with asyncio.timeout(5):
                async for batch in self.feed.follow(name, after=after, head=await self.head(name)):
                    seen.extend(event.sequence for event in batch)
                    if len(seen) >= count:
                        break
        return seen

    async def head(self, session: SessionId) -> int:
        return len(self.journal.store.log.get(session, []))


@dataclass(kw_only=True)
class Pair:
    """An owner and a watcher on one journal."""

    store: FakeStore = field(default_factory=FakeStore)
    wakeups: LossyWakeups = field(default_factory=LossyWakeups)
    every: timedelta = NEVER

    @asynccontextmanager
    async def side(self, name: str) -> AsyncIterator[Side]:
        journal = CountingJournal(store=self.store)
        feed = EventFeed(journal)
        hints = EventHints(feed=feed, journal=journal, wakeups=self.wakeups, replica=name, register_every=self.every)
        task = asyncio.create_task(hints.run())
        await asyncio.sleep(0.01)  # it listens
        try:
            yield Side(journal=journal, feed=feed, hints=hints)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def happen(self, owner: Side, count: int = 1, *, session: SessionId | None = None) -> None:
        """The owner commits events and shows them."""
        name = session or a_session()
        log = self.store.log.setdefault(name, [])
        events = [
            SessionEvent(session=name, sequence=len(log) + 1 + n, turn=None, event_time=NOW, body=Text(text="x"))
            for n in range(count)
        ]
        log.extend(events)
        owner.feed.publish(events)
        owner.hints.published(SANDBOX)

    @property
    def told(self) -> int:
        return self.wakeups.sent.count(EVENTS)


async def test_a_watcher_elsewhere_is_told_of_every_event_without_polling() -> None:
    pair = Pair()
    async with pair.side("owner") as owner, pair.side("watcher") as watcher:
        owner.hints.took_over(SANDBOX)
        pair.happen(owner)
        following = asyncio.create_task(watcher.follow(4))
        await asyncio.sleep(0.05)

        async with asyncio.timeout(1):
            for _ in range(3):
                pair.happen(owner)
                await asyncio.sleep(0.02)
            seen = await following

    assert seen == [1, 2, 3, 4]


async def test_an_owner_that_nobody_else_watches_tells_nothing() -> None:
    pair = Pair()
    async with pair.side("owner") as owner:
        owner.hints.took_over(SANDBOX)
        following = asyncio.create_task(owner.follow(101))
        await asyncio.sleep(0.02)
        before = len(pair.wakeups.sent)
        for _ in range(101):
            pair.happen(owner)
            await asyncio.sleep(0)

        assert await following == list(range(1, 102))
        assert len(pair.wakeups.sent) == before


async def test_events_that_are_committed_while_the_registration_is_on_its_way_are_seen() -> None:
    pair = Pair()
    async with pair.side("owner") as owner, pair.side("watcher") as watcher:
        owner.hints.took_over(SANDBOX)
        pair.happen(owner)
        following = asyncio.create_task(watcher.follow(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pair.happen(owner)  # not registered yet: no hint for this one

        async with asyncio.timeout(1):
            assert await following == [1, 2]


async def test_a_lost_hint_is_made_up_for_by_looking() -> None:
    pair = Pair(every=SOON)
    async with pair.side("owner") as owner, pair.side("watcher") as watcher:
        owner.hints.took_over(SANDBOX)
        pair.happen(owner)
        following = asyncio.create_task(watcher.follow(3))
        await asyncio.sleep(0.05)
        pair.wakeups.raining = True

        pair.happen(owner, 2)

        async with asyncio.timeout(2):
            assert await following == [1, 2, 3]


async def test_a_new_owner_learns_at_once_who_watches() -> None:
    pair = Pair()
    async with pair.side("first") as first, pair.side("second") as second, pair.side("watcher") as watcher:
        first.hints.took_over(SANDBOX)
        pair.happen(first)
        following = asyncio.create_task(watcher.follow(3))
        await asyncio.sleep(0.05)

        first.hints.let_go(SANDBOX)
        second.hints.took_over(SANDBOX)
        pair.happen(second)
        await asyncio.sleep(0.05)
        pair.happen(second)

        async with asyncio.timeout(1):
            assert await following == [1, 2, 3]


async def test_a_watcher_whose_own_replica_was_the_owner_goes_on_by_hints() -> None:
    pair = Pair()
    async with pair.side("first") as first, pair.side("second") as second:
        first.hints.took_over(SANDBOX)
        following = asyncio.create_task(first.follow(3))
        pair.happen(first)
        await asyncio.sleep(0.02)

        first.hints.let_go(SANDBOX)
        second.hints.took_over(SANDBOX)
        await asyncio.sleep(0.05)
        pair.happen(second)
        await asyncio.sleep(0.02)
        pair.happen(second)

        async with asyncio.timeout(1):
            assert await following == [1, 2, 3]


async def test_a_registration_runs_out_when_nobody_watches_any_more() -> None:
    pair = Pair(every=SOON)
    async with pair.side("owner") as owner, pair.side("watcher") as watcher:
        owner.hints.took_over(SANDBOX)
        pair.happen(owner)
        await watcher.follow(1)
        await asyncio.sleep(0.02)

        async def quiet() -> bool:
            before = pair.told
            pair.happen(owner)
            await asyncio.sleep(0.02)
            return pair.told == before

        await eventually(quiet, within=SOON.total_seconds() * (REGISTRATIONS + 20))


async def test_many_watched_sessions_are_read_together() -> None:
    pair = Pair()
    async with pair.side("owner") as owner, pair.side("watcher") as watcher:
        owner.hints.took_over(SANDBOX)
        sessions = [a_session(number) for number in range(30)]
        for session in sessions:
            pair.happen(owner, session=session)
        following = [asyncio.create_task(watcher.follow(11, session=session)) for session in sessions]
        await asyncio.sleep(0.05)
        watcher.journal.alone = watcher.journal.together = 0

        for _ in range(10):
            for session in sessions:
                pair.happen(owner, session=session)
            await asyncio.sleep(0.01)

        async with asyncio.timeout(2):
            assert [await one for one in following] == [list(range(1, 12))] * 30
    assert watcher.journal.alone == 0
    assert watcher.journal.together <= 30  # and not 300


async def test_a_burst_that_is_larger_than_a_look_arrives_whole() -> None:
    pair = Pair()
    async with pair.side("owner") as owner, pair.side("watcher") as watcher:
        owner.hints.took_over(SANDBOX)
        pair.happen(owner)
        following = asyncio.create_task(watcher.follow(1501))
        await asyncio.sleep(0.05)

        pair.happen(owner, 1500)

        async with asyncio.timeout(3):
            assert await following == list(range(1, 1502))

"""Who cares for kept texts, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from typing_extensions import override

from sandboxd.model.client import ClientPolicy, TextPolicy
from sandboxd.model.events import Text, TextState
from sandboxd.model.ids import SessionId
from sandboxd.model.session import PromptInput, Session, TurnState
from sandboxd.stream.feed import EventFeed
from sandboxd.stream.ports import Wakeups
from sandboxd.stream.text_care import TextCare
from sandboxd.stream.texts import treat
from tests.contract.journal_world import CLIENT, a_sandbox_id, a_session, a_turn, an_event
from tests.eventually import eventually
from tests.fakes.journal import FakeJournal, FakeStore
from tests.fakes.texts import FakeKeptTexts


@dataclass(kw_only=True)
class Hints(Wakeups):
    sent: list[tuple[str, str]] = field(default_factory=list)
    heard: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    @override
    async def notify(self, topic: str, payload: str) -> None:
        self.sent.append((topic, payload))

    @override
    async def listen(self, topic: str) -> AsyncIterator[str]:
        while True:
            yield await self.heard.get()


class World:
    def __init__(self, policy: ClientPolicy) -> None:
        self.store = FakeStore()
        self.texts = FakeKeptTexts(store=self.store, policies={CLIENT: policy})
        self.feed = EventFeed(FakeJournal(store=self.store))
        self.hints = Hints()
        self.care = TextCare(texts=self.texts, feed=self.feed, wakeups=self.hints, every=0.01)

    def given_session(self, *, ended: timedelta) -> Session:
        session = a_session(a_sandbox_id(), title="title")
        at = datetime.now(UTC) - ended
        turn = a_turn(session.id, prompt=PromptInput(text="prompt"))
        turn = replace(turn, state=TurnState.COMPLETED, end_time=at)
        event = an_event(session.id, 1, Text(text="secret"), turn=turn.id)
        self.store.sessions[session.id] = replace(session, head_sequence=1)
        self.store.turns[turn.id] = turn
        self.store.log[session.id] = [event]
        self.feed.publish([event])
        return session

    async def shown(self, session: SessionId) -> list[TextState]:
        async for batch in self.feed.follow(session, after=0):
            return [event.text_state for event in batch]
        return []


async def test_what_was_erased_is_not_shown_from_memory_either() -> None:
    world = World(ClientPolicy(text=TextPolicy.NONE))
    session = world.given_session(ended=timedelta(minutes=2))
    assert await world.shown(session.id) == [TextState.KEPT]

    assert await world.care.care_for_recent() == 1

    assert await world.shown(session.id) == [TextState.ERASED]
    assert world.hints.sent == [("texts", session.id)], "the other replicas were not told"
    assert await world.care.care_for_recent() == 0


async def test_what_another_replica_has_erased_is_not_shown_from_memory_either() -> None:
    world = World(ClientPolicy())
    session = world.given_session(ended=timedelta(minutes=2))
    world.store.log[session.id] = treat(world.store.log[session.id], TextState.ERASED)
    task = asyncio.create_task(world.care.run())

    await world.hints.heard.put(session.id)

    async def forgotten() -> bool:
        return await world.shown(session.id) == [TextState.ERASED]

    await eventually(forgotten)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_old_turns_are_for_the_full_round() -> None:
    world = World(ClientPolicy(text_lifetime=timedelta(days=1)))
    old, young = world.given_session(ended=timedelta(days=2)), world.given_session(ended=timedelta(hours=2))

    assert await world.care.care_for_recent() == 0
    assert await world.care.care_for_all() == 1

    assert await world.shown(old.id) == [TextState.ERASED]
    assert await world.shown(young.id) == [TextState.KEPT]


async def test_a_session_that_cannot_be_treated_does_not_keep_the_others_from_it() -> None:
    world = World(ClientPolicy(text=TextPolicy.NONE))
    first, second = world.given_session(ended=timedelta(minutes=2)), world.given_session(ended=timedelta(minutes=2))
    del world.store.log[first.id]

    assert await world.care.care_for_all() == 1

    assert await world.shown(second.id) == [TextState.ERASED]


async def test_an_outage_of_the_database_only_delays_it() -> None:
    world = World(ClientPolicy(text=TextPolicy.NONE))
    session = world.given_session(ended=timedelta(minutes=2))
    world.store.down = True
    task = asyncio.create_task(world.care.run())
    await asyncio.sleep(0.05)

    world.store.down = False

    async def erased() -> bool:
        return world.texts.erased.get(session.id) == 1

    await eventually(erased)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

"""What becomes of kept texts by the client's policy, against the fake and against PostgreSQL: the same suite."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.model.client import ClientPolicy, TextPolicy
from sandboxd.model.events import EventBody, SessionEvent, SessionOpened, Text, TextState, TurnCompleted, TurnStarted
from sandboxd.model.ids import RequestId, SessionId
from sandboxd.model.session import PromptInput, Session, StopReason, Turn, TurnState
from sandboxd.persistence.engine import Database
from sandboxd.stream.ports import Command, Conversation, Entry
from tests.contract.journal_world import (
    CLIENT,
    FREELANCER,
    FakeJournalWorld,
    JournalWorld,
    a_sandbox_id,
    a_session,
    a_turn,
    an_event,
    an_id,
)

GRACE = timedelta(minutes=1)
SECRET = "ada@example.org"
NONE, REDACTED = ClientPolicy(text=TextPolicy.NONE), ClientPolicy(text=TextPolicy.REDACTED)
DAY = ClientPolicy(text_lifetime=timedelta(days=1))


@pytest.fixture(params=["fake", "postgres"])
def world(request: pytest.FixtureRequest) -> JournalWorld:
    if request.param == "fake":
        return FakeJournalWorld()
    made: JournalWorld = request.getfixturevalue("postgres_journal_world")
    return made


@dataclass(kw_only=True)
class Talk:
    """A session in which turns are taken, at moments of the test's choice."""

    world: JournalWorld
    conversation: Conversation
    session: Session
    head: int = 1
    turns: int = 0

    async def say(self, *, ended: timedelta | None) -> None:
        """A turn of four events that ended so long ago; None: it is still open."""
        self.turns += 1
        at = datetime.now(UTC) - (ended or timedelta(0))
        turn = a_turn(self.session.id, number=self.turns, prompt=PromptInput(text=f"prompt {SECRET}"))
        turn = replace(turn, start_time=at)
        bodies: list[EventBody] = [
            TurnStarted(request_id="r", number=self.turns, text=f"prompt {SECRET}"),
            Text(text="write to ada@exa"),
            Text(text="mple.org"),
        ]
        if ended is not None:
            turn = replace(turn, state=TurnState.COMPLETED, stop_reason=StopReason.END_TURN, end_time=at)
            bodies.append(TurnCompleted(stop_reason=StopReason.END_TURN))
        events = [
            replace(an_event(self.session.id, self.head + n, body, turn=turn.id), event_time=at)
            for n, body in enumerate(bodies, start=1)
        ]
        self.head += len(events)
        await self._append(turn, events)

    async def _append(self, turn: Turn, events: list[SessionEvent]) -> None:
        self.conversation = replace(self.conversation, consumed=self.head)
        open_turn = turn.id if turn.end_time is None else None
        self.session = replace(self.session, turns=self.turns, open_turn=open_turn, head_sequence=self.head)
        entry = Entry(conversation=self.conversation, events=events, sessions=[self.session], turns=[turn])
        await self.world.journal.append([entry])

    async def settle(self) -> int:
        treated = 0
        while part := await self.world.texts.settle(self.session.id, grace=GRACE):
            treated += part
        return treated

    async def log(self) -> list[SessionEvent]:
        return list(await self.world.journal.events(self.session.id, after=0, limit=1000))

    async def texts(self) -> list[str]:
        return [event.body.text for event in await self.log() if isinstance(event.body, Text | TurnStarted)]

    async def title(self) -> str:
        return (await self.world.sessions.get(self.session.id, client=CLIENT, freelancer=FREELANCER)).title


async def a_talk(world: JournalWorld) -> Talk:
    sandbox = a_sandbox_id()
    await world.given_sandbox(sandbox)
    owned = await world.journal.acquire(sandbox, owner="one", lease=timedelta(minutes=1))
    assert owned is not None
    session = a_session(sandbox, title=f"about {SECRET}")
    command = Command(client=CLIENT, request_id=RequestId(an_id("req")), body_hash=b"", session=session.id)
    opened = an_event(session.id, 1, SessionOpened(title=session.title))
    await world.sessions.create(session, opened=opened, command=command)
    return Talk(world=world, conversation=owned, session=session)


async def due(world: JournalWorld) -> set[SessionId]:
    recent = await world.texts.recent(ended_within=timedelta(minutes=15), grace=GRACE, limit=100)
    return set(recent)


async def test_a_client_that_keeps_everything_keeps_it(world: JournalWorld) -> None:
    talk = await a_talk(world)
    await talk.say(ended=timedelta(days=300))

    assert await talk.settle() == 0
    assert await due(world) == set()
    assert list(await world.texts.every(after=None, limit=10)) == []
    assert (await talk.texts())[0] == f"prompt {SECRET}"
    assert await talk.title() == f"about {SECRET}"


async def test_what_is_not_to_be_kept_goes_a_moment_after_its_turn(world: JournalWorld) -> None:
    await world.given_policy(NONE)
    talk = await a_talk(world)
    await talk.say(ended=timedelta(minutes=2))
    await talk.say(ended=timedelta(seconds=5))

    assert await due(world) == {talk.session.id}
    assert await talk.settle() == 5

    assert await talk.texts() == ["", "", "", f"prompt {SECRET}", "write to ada@exa", "mple.org"]
    assert [event.text_state for event in await talk.log()] == [TextState.ERASED] * 5 + [TextState.KEPT] * 4
    assert [event.sequence for event in await talk.log()] == list(range(1, 10))
    assert await talk.title() == ""
    assert await talk.settle() == 0


async def test_an_open_turn_is_left_alone_however_old_it_is(world: JournalWorld) -> None:
    await world.given_policy(NONE)
    talk = await a_talk(world)
    await talk.say(ended=timedelta(minutes=2))
    await talk.say(ended=None)

    await talk.settle()

    assert await talk.texts() == ["", "", "", f"prompt {SECRET}", "write to ada@exa", "mple.org"]


async def test_secrets_go_also_where_they_were_cut_into_chunks(world: JournalWorld) -> None:
    await world.given_policy(REDACTED)
    talk = await a_talk(world)
    await talk.say(ended=timedelta(minutes=2))

    assert await due(world) == {talk.session.id}
    assert await talk.settle() == 5

    assert await talk.texts() == ["prompt [redacted]", "write to [redacted]", ""]
    assert {event.text_state for event in await talk.log()} == {TextState.REDACTED}
    assert await talk.title() == "about [redacted]"
    assert await due(world) == set()


async def test_a_lifetime_ends_what_was_kept_until_then(world: JournalWorld) -> None:
    await world.given_policy(DAY)
    talk = await a_talk(world)
    await talk.say(ended=timedelta(hours=25))
    await talk.say(ended=timedelta(hours=23))

    assert list(await world.texts.every(after=None, limit=10)) == [talk.session.id]
    assert list(await world.texts.every(after=talk.session.id, limit=10)) == []
    assert await talk.settle() == 5

    assert await talk.texts() == ["", "", "", f"prompt {SECRET}", "write to ada@exa", "mple.org"]


async def test_a_stricter_policy_reaches_what_is_there_and_a_milder_one_brings_nothing_back(
    world: JournalWorld,
) -> None:
    talk = await a_talk(world)
    await talk.say(ended=timedelta(hours=2))

    await world.given_policy(REDACTED)
    await talk.settle()
    await world.given_policy(NONE)
    await talk.settle()
    await world.given_policy(REDACTED)
    assert await talk.settle() == 0

    assert await talk.texts() == ["", "", ""]


async def test_the_owner_of_the_conversation_does_not_write_the_title_back(world: JournalWorld) -> None:
    await world.given_policy(NONE)
    talk = await a_talk(world)
    await talk.say(ended=timedelta(minutes=2))
    await talk.settle()

    await talk.say(ended=timedelta(seconds=1))

    assert await talk.title() == ""


async def test_nothing_of_the_text_is_left_in_any_table(
    database: Database, postgres_journal_world: JournalWorld
) -> None:
    world = postgres_journal_world
    await world.given_policy(NONE)
    talk = await a_talk(world)
    await talk.say(ended=timedelta(minutes=2))
    assert await places_of(SECRET, database) == ["events", "sessions", "turns"]

    await talk.settle()

    assert await places_of(SECRET, database) == []


async def test_a_session_of_thousands_of_chunks_is_treated_in_parts(
    database: Database, postgres_journal_world: JournalWorld
) -> None:
    world = postgres_journal_world
    await world.given_policy(REDACTED)
    talk = await a_talk(world)
    for _ in range(3):
        await talk.say(ended=timedelta(minutes=2))
    async with database.raw() as connection:
        await connection.execute(
            """INSERT INTO events SELECT session, sequence + n * 20, turn, kind, payload, size, event_time
            FROM events, generate_series(1, 400) AS n WHERE session = $1""",
            talk.session.id,
        )
        await connection.execute(
            "UPDATE sessions SET head_sequence = (SELECT max(sequence) FROM events WHERE session = id) WHERE id = $1",
            talk.session.id,
        )

    parts = []
    while part := await world.texts.settle(talk.session.id, grace=GRACE):
        parts.append(part)

    assert sum(parts) == 13 * 401
    assert len(parts) >= 3
    assert await places_of("mple.org", database) == []


async def places_of(text: str, database: Database) -> list[str]:
    """The tables that hold a text."""
    async with database.raw() as connection:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        return [
            name
            for (name,) in tables
            if await connection.fetchval(
                f'SELECT count(*) FROM "{name}" AS t WHERE position($1 IN t::text) > 0',
                text,
            )
        ]

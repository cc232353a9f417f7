"""The session rows' promise, against the fake and against PostgreSQL: the same suite."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.model.errors import InvalidRequestError, RequestIdReusedError, SessionNotFoundError
from sandboxd.model.events import SessionOpened, Text
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId, SessionId
from sandboxd.model.session import Session, TurnState
from sandboxd.stream.ports import Appended, Command, Entry, SessionOrder
from tests.contract.journal_world import (
    CLIENT,
    FREELANCER,
    NOON,
    FakeJournalWorld,
    JournalWorld,
    a_sandbox_id,
    a_session,
    a_turn,
    an_event,
    an_id,
)


@pytest.fixture(params=["fake", "postgres"])
def world(request: pytest.FixtureRequest) -> JournalWorld:
    if request.param == "fake":
        return FakeJournalWorld()
    made: JournalWorld = request.getfixturevalue("postgres_journal_world")
    return made


async def a_sandbox(world: JournalWorld) -> SandboxId:
    sandbox = a_sandbox_id()
    await world.given_sandbox(sandbox)
    return sandbox


async def create(world: JournalWorld, session: Session, *, request_id: str = "") -> tuple[Session, bool]:
    command = Command(
        client=session.client,
        request_id=RequestId(request_id or an_id("req")),
        body_hash=session.title.encode(),
        session=session.id,
    )
    opened = an_event(session.id, 1, SessionOpened(title=session.title))
    return await world.sessions.create(session, opened=opened, command=command)


async def test_a_session_begins_with_its_first_event(world: JournalWorld) -> None:
    session = a_session(await a_sandbox(world), title="hello")

    made, new = await create(world, session)

    assert (made, new) == (replace(session, head_sequence=1), True)
    assert await world.sessions.get(session.id, client=CLIENT, freelancer=FREELANCER) == made
    assert [event.body for event in await world.journal.events(session.id, after=0, limit=10)] == [
        SessionOpened(title="hello")
    ]


async def test_the_same_request_makes_one_session(world: JournalWorld) -> None:
    sandbox = await a_sandbox(world)
    first, second = a_session(sandbox, title="x"), a_session(sandbox, title="x")
    made, _ = await create(world, first, request_id="r")

    again = await create(world, second, request_id="r")

    assert again == (made, False)
    assert len(await world.sessions.of_sandbox(sandbox)) == 1


async def test_a_request_id_with_another_body_is_refused(world: JournalWorld) -> None:
    sandbox = await a_sandbox(world)
    await create(world, a_session(sandbox, title="x"), request_id="r")

    with pytest.raises(RequestIdReusedError):
        await create(world, a_session(sandbox, title="y"), request_id="r")


async def test_of_many_at_once_with_one_request_id_one_makes_the_session(world: JournalWorld) -> None:
    sandbox = await a_sandbox(world)

    answers = await asyncio.gather(*(create(world, a_session(sandbox, title="x"), request_id="r") for _ in range(5)))

    assert sum(new for _, new in answers) == 1
    assert len({session.id for session, _ in answers}) == 1


@pytest.mark.parametrize(
    ("client", "freelancer"),
    [(ClientId("other"), None), (CLIENT, FreelancerId("other")), (ClientId("other"), FREELANCER)],
)
async def test_a_session_of_somebody_else_is_not_found(
    world: JournalWorld, client: ClientId, freelancer: FreelancerId | None
) -> None:
    session = a_session(await a_sandbox(world))
    await create(world, session)

    with pytest.raises(SessionNotFoundError):
        await world.sessions.get(session.id, client=client, freelancer=freelancer)
    assert (await world.sessions.get(session.id, client=CLIENT, freelancer=None)).id == session.id


async def test_a_deleted_session_takes_its_log_and_its_turns_with_it(world: JournalWorld) -> None:
    sandbox = await a_sandbox(world)
    session, other = a_session(sandbox), a_session(sandbox)
    for one in (session, other):
        await create(world, one)
    await world.given_replica("one")
    mine = await world.journal.acquire(sandbox, owner="one", lease=timedelta(seconds=9))
    assert mine is not None
    turns = [a_turn(session.id), a_turn(other.id)]
    await world.journal.append([Entry(conversation=mine, turns=turns)])

    await world.sessions.delete(session.id, at=NOON)
    await world.sessions.delete(session.id, at=NOON + timedelta(days=1))

    with pytest.raises(SessionNotFoundError):
        await world.sessions.get(session.id, client=CLIENT, freelancer=None)
    with pytest.raises(SessionNotFoundError):
        await world.journal.head(session.id)
    assert list(await world.journal.events(session.id, after=0, limit=10)) == []
    assert [turn.id for turn in await world.sessions.open_turns(sandbox)] == [turns[1].id]
    assert [one.id for one in await world.sessions.of_sandbox(sandbox)] == [other.id]


async def test_what_an_owner_still_writes_to_a_deleted_session_is_let_fall(world: JournalWorld) -> None:
    sandbox = await a_sandbox(world)
    session = a_session(sandbox)
    made, _ = await create(world, session)
    await world.given_replica("one")
    mine = await world.journal.acquire(sandbox, owner="one", lease=timedelta(seconds=9))
    assert mine is not None
    await world.sessions.delete(session.id, at=NOON)

    outcomes = [
        (
            await world.journal.append(
                [
                    Entry(
                        conversation=replace(mine, consumed=sequence),
                        events=[an_event(session.id, sequence, Text(text="late"))],
                        sessions=[replace(made, title="late", head_sequence=sequence)],
                        turns=[a_turn(session.id)],
                    )
                ]
            )
        )[0]
        for sequence in (2, 3)
    ]

    assert outcomes == [Appended.DURABLE, Appended.DURABLE]
    assert list(await world.journal.events(session.id, after=0, limit=10)) == []
    assert list(await world.sessions.open_turns(sandbox)) == []
    assert list(await world.sessions.of_sandbox(sandbox)) == []


async def test_deleting_what_never_was_is_success(world: JournalWorld) -> None:
    await world.sessions.delete(SessionId(an_id("ses")), at=NOON)


async def test_open_turns_are_listed_oldest_first(world: JournalWorld) -> None:
    sandbox = await a_sandbox(world)
    session = a_session(sandbox)
    await create(world, session)
    await world.given_replica("one")
    mine = await world.journal.acquire(sandbox, owner="one", lease=timedelta(seconds=9))
    assert mine is not None
    states = [TurnState.COMPLETED, TurnState.FINISHING, TurnState.RUNNING, TurnState.QUEUED, TurnState.FAILED]
    turns = [
        replace(a_turn(session.id, number=number), state=state, start_time=NOON - timedelta(seconds=number))
        for number, state in enumerate(states, start=1)
    ]

    await world.journal.append([Entry(conversation=mine, turns=turns)])

    assert list(await world.sessions.open_turns(sandbox)) == [turns[3], turns[2], turns[1]]


# --- lists


@pytest.mark.parametrize("order", list(SessionOrder))
async def test_a_list_is_walked_page_by_page(world: JournalWorld, order: SessionOrder) -> None:
    sandbox = await a_sandbox(world)
    sessions = [a_session(sandbox, at=NOON + timedelta(seconds=number // 2)) for number in range(5)]
    for session in sessions:
        await create(world, session)
    await create(world, a_session(await a_sandbox(world)))

    seen: list[SessionId] = []
    token = ""
    while True:
        page = await world.sessions.list(
            sandbox,
            client=CLIENT,
            freelancer=None,
            order=order,
            title_contains="",
            page_size=2,
            page_token=token,
        )
        seen += [session.id for session in page.items]
        token = page.next_token
        if not token:
            break

    expected = [session.id for session in sessions]
    assert seen == (expected[::-1] if order.value.endswith("desc") else expected)


@pytest.mark.parametrize(("needle", "found"), [("", 3), ("fix", 2), ("FIX THE", 1), ("50%", 1), ("_", 0), ("\x00", 0)])
async def test_titles_are_searched_without_regard_to_case(world: JournalWorld, needle: str, found: int) -> None:
    sandbox = await a_sandbox(world)
    for title in ("Fix the tests", "a FIX", "50% done"):
        await create(world, a_session(sandbox, title=title))

    page = await world.sessions.list(
        sandbox,
        client=CLIENT,
        freelancer=FREELANCER,
        order=SessionOrder.CREATE_TIME,
        title_contains=needle,
        page_size=10,
        page_token="",
    )

    assert (len(page.items), page.next_token) == (found, "")


async def test_a_list_shows_nothing_of_others_and_nothing_deleted(world: JournalWorld) -> None:
    sandbox = await a_sandbox(world)
    session, deleted = a_session(sandbox), a_session(sandbox)
    for one in (session, deleted):
        await create(world, one)
    await world.sessions.delete(deleted.id, at=NOON)

    async def listed(client: ClientId, freelancer: FreelancerId | None) -> list[SessionId]:
        page = await world.sessions.list(
            sandbox,
            client=client,
            freelancer=freelancer,
            order=SessionOrder.CREATE_TIME,
            title_contains="",
            page_size=10,
            page_token="",
        )
        return [one.id for one in page.items]

    assert await listed(CLIENT, FREELANCER) == [session.id]
    assert await listed(CLIENT, FreelancerId("other")) == []
    assert await listed(ClientId("other"), None) == []


async def test_a_token_of_another_list_is_refused(world: JournalWorld) -> None:
    sandbox = await a_sandbox(world)
    for _ in range(3):
        await create(world, a_session(sandbox))

    async def page(order: SessionOrder, token: str) -> str:
        found = await world.sessions.list(
            sandbox,
            client=CLIENT,
            freelancer=None,
            order=order,
            title_contains="",
            page_size=1,
            page_token=token,
        )
        return found.next_token

    token = await page(SessionOrder.CREATE_TIME, "")

    for order, wrong in ((SessionOrder.UPDATE_TIME, token), (SessionOrder.CREATE_TIME, "nonsense")):
        with pytest.raises(InvalidRequestError) as caught:
            await page(order, wrong)
        assert [violation.field for violation in caught.value.violations] == ["page_token"]

"""The journal's promise, against the fake and against PostgreSQL: the same suite."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.model.errors import DatabaseUnavailableError, SessionNotFoundError
from sandboxd.model.events import (
    AttachmentInfo,
    Diff,
    EventBody,
    SessionOpened,
    Text,
    ToolOutput,
    ToolStatus,
    TurnStarted,
    Unparsed,
)
from sandboxd.model.ids import IncarnationId, RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.session import Attachment, PromptInput, Session, StopReason, TurnState
from sandboxd.stream.ports import Appended, Command, Conversation, Entry, StdinRecord
from tests.contract.journal_world import (
    NOON,
    FakeJournalWorld,
    JournalWorld,
    a_sandbox_id,
    a_session,
    a_turn,
    an_event,
    an_id,
)

LEASE = timedelta(seconds=15)
NASTY = "nul \x00, lone \ud83d, mark \ue000, mark like \ue0000000, crab 🦀, ' \" \\u0000 \\"


@pytest.fixture(params=["fake", "postgres"])
def world(request: pytest.FixtureRequest) -> JournalWorld:
    if request.param == "fake":
        return FakeJournalWorld()
    made: JournalWorld = request.getfixturevalue("postgres_journal_world")
    return made


async def owned(world: JournalWorld, *, owner: str = "one") -> Conversation:
    """A conversation of a new sandbox with a living owner."""
    sandbox = a_sandbox_id()
    await world.given_sandbox(sandbox)
    await world.given_replica(owner)
    mine = await world.journal.acquire(sandbox, owner=owner, lease=LEASE)
    assert mine is not None
    return replace(
        mine, incarnation=IncarnationId(an_id("inc")), process=an_id("prc"), dialect="acp", snapshot={"version": 1}
    )


async def opened(world: JournalWorld, sandbox: SandboxId) -> Session:
    """A session with its first event."""
    session = a_session(sandbox)
    event = an_event(session.id, 1, SessionOpened(title="first"))
    command = Command(client=session.client, request_id=RequestId(an_id("req")), body_hash=b"open", session=session.id)
    made, _ = await world.sessions.create(session, opened=event, command=command)
    return made


async def appended(world: JournalWorld, entry: Entry) -> Appended:
    (outcome,) = await world.journal.append([entry])
    return outcome


async def log_of(world: JournalWorld, session: SessionId) -> Sequence[EventBody]:
    return [event.body for event in await world.journal.events(session, after=0, limit=1000)]


# --- appending


async def test_an_entry_is_kept_whole(world: JournalWorld) -> None:
    mine = await owned(world)
    session = await opened(world, mine.sandbox)
    turn = a_turn(session.id, prompt=PromptInput(text="hello"))
    command = Command(
        client=session.client, request_id=turn.request_id, body_hash=b"\x00\xff", session=session.id, turn=turn.id
    )
    after = replace(mine, consumed=120, written=7, snapshot={"version": 1, "open": [1, {"a": None}]})
    events = [
        an_event(session.id, 2, TurnStarted(request_id="r", number=1, text="hello"), turn=turn.id),
        an_event(session.id, 3, Text(text="hi"), turn=turn.id),
    ]

    outcome = await appended(
        world,
        Entry(
            conversation=after,
            events=events,
            stdin=StdinRecord(offset=0, data=b"prompt\n"),
            commands=[command],
            sessions=[replace(session, title="hello", turns=1, open_turn=turn.id, head_sequence=3)],
            turns=[turn],
        ),
    )

    again = await world.journal.acquire(mine.sandbox, owner=mine.owner, lease=LEASE)
    known = await world.sessions.get(session.id, client=session.client, freelancer=None)
    assert outcome is Appended.DURABLE
    assert again == replace(after, epoch=after.epoch + 1)
    assert list(await world.journal.events(session.id, after=1, limit=10)) == events
    assert await world.journal.head(session.id) == 3
    assert (known.title, known.turns, known.open_turn, known.head_sequence) == ("hello", 1, turn.id, 3)
    assert list(await world.sessions.open_turns(mine.sandbox)) == [turn]
    assert await world.journal.find_command(session.client, turn.request_id) == command
    assert after.incarnation is not None
    pending = await world.journal.pending_stdin(mine.sandbox, incarnation=after.incarnation, process=after.process)
    assert list(pending) == [StdinRecord(offset=0, data=b"prompt\n")]


async def test_an_entry_of_a_lost_epoch_changes_nothing_and_leaves_the_others(world: JournalWorld) -> None:
    lost, kept = await owned(world), await owned(world)
    of_lost, of_kept = await opened(world, lost.sandbox), await opened(world, kept.sandbox)
    taken = await world.journal.acquire(lost.sandbox, owner="two", lease=LEASE, force=True)
    entries = [
        Entry(
            conversation=replace(lost, consumed=9),
            events=[an_event(of_lost.id, 2, Text(text="late"))],
            stdin=StdinRecord(offset=0, data=b"late"),
        ),
        Entry(conversation=replace(kept, consumed=9), events=[an_event(of_kept.id, 2, Text(text="fine"))]),
    ]

    outcomes = await world.journal.append(entries)

    assert list(outcomes) == [Appended.STALE, Appended.DURABLE]
    assert await log_of(world, of_lost.id) == [SessionOpened(title="first")]
    assert await log_of(world, of_kept.id) == [SessionOpened(title="first"), Text(text="fine")]
    again = await world.journal.acquire(lost.sandbox, owner="two", lease=LEASE)
    assert taken is not None
    assert again == replace(taken, epoch=taken.epoch + 1)


async def test_an_entry_of_an_unknown_conversation_is_stale(world: JournalWorld) -> None:
    nowhere = Conversation(sandbox=a_sandbox_id(), epoch=1, owner="one")

    assert await appended(world, Entry(conversation=nowhere)) is Appended.STALE


async def test_an_append_whose_answer_was_lost_may_be_repeated(world: JournalWorld) -> None:
    mine = await owned(world)
    session = await opened(world, mine.sandbox)
    turn = a_turn(session.id, prompt=PromptInput(text="x", attachments=[an_attachment("a.png")]))
    entry = Entry(
        conversation=replace(mine, consumed=5, written=3),
        events=[an_event(session.id, 2, Text(text="a")), an_event(session.id, 3, Text(text="b"))],
        stdin=StdinRecord(offset=0, data=b"abc"),
        sessions=[replace(session, title="t", head_sequence=3)],
        turns=[turn],
    )
    await world.lose_next_answer()

    with pytest.raises(DatabaseUnavailableError):
        await world.journal.append([entry])
    repeated = await appended(world, entry)

    assert repeated is Appended.DURABLE
    assert await log_of(world, session.id) == [SessionOpened(title="first"), Text(text="a"), Text(text="b")]
    assert await world.journal.head(session.id) == 3
    assert list(await world.sessions.open_turns(mine.sandbox)) == [turn]
    follows = Entry(conversation=replace(mine, consumed=6, written=3), events=[an_event(session.id, 4, Text(text="c"))])
    assert await appended(world, follows) is Appended.DURABLE


async def test_an_append_without_events_may_be_repeated_too(world: JournalWorld) -> None:
    mine = await owned(world)
    entry = Entry(conversation=replace(mine, written=3), stdin=StdinRecord(offset=0, data=b"abc"))
    await appended(world, entry)

    outcome = await appended(world, entry)

    assert mine.incarnation is not None
    pending = await world.journal.pending_stdin(mine.sandbox, incarnation=mine.incarnation, process=mine.process)
    assert (outcome, list(pending)) == (Appended.DURABLE, [StdinRecord(offset=0, data=b"abc")])


@pytest.mark.parametrize("sequence", [1, 3])
async def test_events_that_do_not_continue_the_log_are_refused(world: JournalWorld, sequence: int) -> None:
    mine = await owned(world)
    session = await opened(world, mine.sandbox)
    entry = Entry(conversation=replace(mine, consumed=1), events=[an_event(session.id, sequence, Text(text="?"))])

    outcome = await appended(world, entry)

    assert outcome is Appended.STALE
    assert await log_of(world, session.id) == [SessionOpened(title="first")]


async def test_sessions_of_one_conversation_have_their_own_sequences(world: JournalWorld) -> None:
    mine = await owned(world)
    one, two = await opened(world, mine.sandbox), await opened(world, mine.sandbox)
    events = [
        an_event(one.id, 2, Text(text="1")),
        an_event(two.id, 2, Text(text="2")),
        an_event(one.id, 3, Text(text="3")),
    ]

    outcome = await appended(world, Entry(conversation=replace(mine, consumed=1), events=events))

    assert outcome is Appended.DURABLE
    assert await log_of(world, one.id) == [SessionOpened(title="first"), Text(text="1"), Text(text="3")]
    assert (await world.journal.head(one.id), await world.journal.head(two.id)) == (3, 2)


async def test_an_entry_may_bring_a_new_session(world: JournalWorld) -> None:
    mine = await owned(world)
    session = a_session(mine.sandbox)

    outcome = await appended(
        world,
        Entry(
            conversation=mine,
            sessions=[session],
            events=[an_event(session.id, 1, SessionOpened()), an_event(session.id, 2, Text(text="x"))],
        ),
    )

    assert outcome is Appended.DURABLE
    assert await world.journal.head(session.id) == 2


async def test_every_character_comes_back_as_it_was(world: JournalWorld) -> None:
    mine = await owned(world)
    session = await opened(world, mine.sandbox)
    turn = a_turn(session.id, prompt=PromptInput(text=NASTY, attachments=[an_attachment(NASTY)]))
    bodies: list[EventBody] = [
        Text(text=NASTY),
        ToolOutput(
            call=NASTY,
            tool="x",
            status=ToolStatus.FAILED,
            diffs=(Diff(path=NASTY, old_text=None, new_text=NASTY),),
        ),
        Unparsed(data=bytes(range(256)), size=256, why="NOT_UTF8"),
        TurnStarted(
            request_id="r",
            number=1,
            text=NASTY,
            attachments=(AttachmentInfo(name=NASTY, mime_type="a/b", size=1, sha256=""),),
        ),
    ]
    events = [an_event(session.id, 2 + index, body) for index, body in enumerate(bodies)]

    await appended(
        world,
        Entry(
            conversation=replace(mine, consumed=1, snapshot={NASTY: [NASTY]}),
            events=events,
            sessions=[replace(session, title=NASTY, cli_session=NASTY)],
            turns=[turn],
        ),
    )

    again = await world.journal.acquire(mine.sandbox, owner=mine.owner, lease=LEASE)
    known = await world.sessions.get(session.id, client=session.client, freelancer=None)
    assert again is not None
    assert again.snapshot == {NASTY: [NASTY]}
    assert (known.title, known.cli_session) == (NASTY, NASTY)
    assert await log_of(world, session.id) == [SessionOpened(title="first"), *bodies]
    assert list(await world.sessions.open_turns(mine.sandbox)) == [turn]


def an_attachment(name: str) -> Attachment:
    return Attachment(name=name, mime_type="image/png", data=b"\x89PNG\x00")


async def test_a_turn_keeps_its_attachments_until_it_is_over(world: JournalWorld) -> None:
    mine = await owned(world)
    session = await opened(world, mine.sandbox)
    files = [an_attachment("b.png"), an_attachment("a.png")]
    turn = a_turn(session.id, prompt=PromptInput(text="see", attachments=files))
    await appended(world, Entry(conversation=mine, turns=[turn]))
    running = replace(turn, state=TurnState.RUNNING)

    await appended(world, Entry(conversation=mine, turns=[replace(running, prompt=PromptInput(text="see"))]))

    assert list(await world.sessions.open_turns(mine.sandbox)) == [running]
    over = replace(running, state=TurnState.COMPLETED, stop_reason=StopReason.END_TURN, end_time=NOON)
    await appended(world, Entry(conversation=mine, turns=[over]))
    assert list(await world.sessions.open_turns(mine.sandbox)) == []


# --- stdin


async def test_stdin_is_forgotten_up_to_an_offset_and_with_its_process(world: JournalWorld) -> None:
    mine = await owned(world)
    assert mine.incarnation is not None
    for offset, data in ((0, b"abc"), (3, b"de"), (5, b"f")):
        written = offset + len(data)
        entry = Entry(conversation=replace(mine, written=written), stdin=StdinRecord(offset=offset, data=data))
        await appended(world, entry)

    await world.journal.forget_stdin(mine.sandbox, before=4)

    async def pending(process: str) -> list[int]:
        assert mine.incarnation is not None
        found = await world.journal.pending_stdin(mine.sandbox, incarnation=mine.incarnation, process=process)
        return [record.offset for record in found]

    assert await pending(mine.process) == [3, 5]
    new = replace(mine, process="another", written=1, consumed=0)
    await appended(world, Entry(conversation=new, stdin=StdinRecord(offset=0, data=b"n")))
    assert (await pending(mine.process), await pending("another")) == ([], [0])


# --- reading


async def test_events_are_read_in_order_after_a_number_and_within_bounds(world: JournalWorld) -> None:
    mine = await owned(world)
    session = await opened(world, mine.sandbox)
    events = [an_event(session.id, 2 + index, Text(text="x" * 1000)) for index in range(5)]
    await appended(world, Entry(conversation=replace(mine, consumed=1), events=events))

    async def read(*, after: int, limit: int = 100, max_bytes: int = 1 << 20) -> list[int]:
        found = await world.journal.events(session.id, after=after, limit=limit, max_bytes=max_bytes)
        return [event.sequence for event in found]

    assert await read(after=0) == [1, 2, 3, 4, 5, 6]
    assert await read(after=4) == [5, 6]
    assert await read(after=6) == []
    assert await read(after=1, limit=2) == [2, 3]
    assert await read(after=1, max_bytes=1) == [2]
    assert await read(after=1, max_bytes=1500) == [2, 3]


async def test_events_of_several_sessions_are_read_together_each_after_its_own_number(world: JournalWorld) -> None:
    mine = await owned(world)
    one, two, three = [await opened(world, mine.sandbox) for _ in range(3)]
    events = [an_event(one.id, 2 + index, Text(text="x" * 1000)) for index in range(3)]
    events += [an_event(two.id, 2, Text(text="?"))]
    await appended(world, Entry(conversation=replace(mine, consumed=1), events=events))

    async def read(limit: int = 100, max_bytes: int = 1 << 20) -> dict[SessionId, list[int]]:
        cursors = {one.id: 1, two.id: 0, three.id: 1}
        found = await world.journal.events_of(cursors, limit=limit, max_bytes=max_bytes)
        return {session: [event.sequence for event in events] for session, events in found.items()}

    assert await read() == {one.id: [2, 3, 4], two.id: [1, 2]}
    assert await read(limit=1) == {one.id: [2], two.id: [1]}
    assert await read(max_bytes=1) == {one.id: [2], two.id: [1]}


async def test_renewing_leases_never_runs_into_appends(world: JournalWorld) -> None:
    """Both touch many conversations in one transaction; a collision once ended a whole replica."""
    mine = [await owned(world) for _ in range(30)]
    names = [one.sandbox for one in mine]
    deadline = time.monotonic() + 1.5

    async def append(start: int) -> None:
        # Two lanes, as group commit has: each with every second conversation.
        rows = mine[start::2]
        while time.monotonic() < deadline:
            rows = [replace(row, consumed=row.consumed + 1) for row in rows]
            assert set(await world.journal.append([Entry(conversation=row) for row in rows])) == {Appended.DURABLE}

    async def renew() -> None:
        while time.monotonic() < deadline:
            shuffled = random.sample(names, len(names))
            still = await world.journal.renew(shuffled, owner=mine[0].owner, lease=timedelta(seconds=15))
            assert set(still) == set(names)
            await asyncio.sleep(0)

    await asyncio.gather(append(0), append(1), *(renew() for _ in range(4)))


async def test_the_head_of_an_unknown_session_is_an_error(world: JournalWorld) -> None:
    with pytest.raises(SessionNotFoundError):
        await world.journal.head(SessionId(an_id("ses")))


async def test_an_unknown_command_is_none(world: JournalWorld) -> None:
    mine = await owned(world)
    session = await opened(world, mine.sandbox)

    assert await world.journal.find_command(session.client, RequestId("never")) is None


async def test_a_command_that_was_remembered_stays_as_it_was_first(world: JournalWorld) -> None:
    mine = await owned(world)
    session = await opened(world, mine.sandbox)
    first = Command(client=session.client, request_id=RequestId("r"), body_hash=b"1", session=session.id)
    await appended(world, Entry(conversation=mine, commands=[first]))

    await appended(world, Entry(conversation=mine, commands=[replace(first, body_hash=b"2", turn=TurnId("t"))]))

    assert await world.journal.find_command(session.client, RequestId("r")) == first


# --- ownership


async def test_a_new_conversation_begins_empty_at_epoch_one(world: JournalWorld) -> None:
    sandbox = a_sandbox_id()
    await world.given_sandbox(sandbox)

    made = await world.journal.acquire(sandbox, owner="one", lease=LEASE)

    assert made == Conversation(sandbox=sandbox, epoch=1, owner="one")


async def test_a_living_owner_keeps_its_conversation_unless_it_is_forced(world: JournalWorld) -> None:
    mine = await owned(world)

    refused = await world.journal.acquire(mine.sandbox, owner="two", lease=LEASE)
    forced = await world.journal.acquire(mine.sandbox, owner="two", lease=LEASE, force=True)

    assert refused is None
    assert forced is not None
    assert (forced.owner, forced.epoch) == ("two", mine.epoch + 1)


async def test_the_owner_itself_may_acquire_again(world: JournalWorld) -> None:
    mine = await owned(world)

    again = await world.journal.acquire(mine.sandbox, owner=mine.owner, lease=LEASE)

    assert again is not None
    assert again.epoch == mine.epoch + 1


async def test_a_dead_owner_is_replaced_at_once(world: JournalWorld) -> None:
    mine = await owned(world)

    await world.kill_replica(mine.owner)

    taken = await world.journal.acquire(mine.sandbox, owner="two", lease=LEASE)
    assert taken is not None
    assert await appended(world, Entry(conversation=replace(mine, consumed=1))) is Appended.STALE


async def test_an_owner_whose_lease_ran_out_is_replaced(world: JournalWorld) -> None:
    sandbox = a_sandbox_id()
    await world.given_sandbox(sandbox)
    await world.given_replica("one")
    await world.journal.acquire(sandbox, owner="one", lease=timedelta(0))

    assert await world.journal.acquire(sandbox, owner="two", lease=LEASE) is not None


async def test_a_renewed_lease_holds_and_tells_what_was_lost(world: JournalWorld) -> None:
    kept, lost = await owned(world), await owned(world)
    await world.journal.acquire(lost.sandbox, owner="two", lease=LEASE, force=True)

    ours = await world.journal.renew([lost.sandbox, kept.sandbox, a_sandbox_id()], owner="one", lease=timedelta(0))

    assert list(ours) == [kept.sandbox]
    assert await world.journal.acquire(kept.sandbox, owner="two", lease=LEASE) is not None


async def test_a_conversation_that_was_given_up_is_free(world: JournalWorld) -> None:
    mine = await owned(world)

    await world.journal.release(mine.sandbox, owner="one", epoch=mine.epoch - 1)
    still_mine = await world.journal.acquire(mine.sandbox, owner="two", lease=LEASE)
    await world.journal.release(mine.sandbox, owner="one", epoch=mine.epoch)
    free = await world.journal.acquire(mine.sandbox, owner="two", lease=LEASE)

    assert still_mine is None
    assert free is not None
    assert free.epoch == mine.epoch + 1


async def test_what_has_a_process_or_an_open_turn_and_no_owner_is_unattended(world: JournalWorld) -> None:
    with_process, with_turn, idle, attended = [await owned(world) for _ in range(4)]
    await appended(world, Entry(conversation=with_process))
    await appended(world, Entry(conversation=attended))
    session = await opened(world, with_turn.sandbox)
    turn = a_turn(session.id)
    await appended(world, Entry(conversation=replace(with_turn, process=""), turns=[turn]))
    await appended(world, Entry(conversation=replace(idle, process="")))
    for conversation in (with_process, with_turn, idle):
        await world.journal.release(conversation.sandbox, owner="one", epoch=conversation.epoch)

    found = await world.journal.unattended(limit=100)
    one = await world.journal.unattended(limit=1)
    await world.kill_replica("one")
    after_death = await world.journal.unattended(limit=100)

    assert sorted(found) == sorted([with_process.sandbox, with_turn.sandbox])
    assert len(one) == 1
    assert sorted(after_death) == sorted([with_process.sandbox, with_turn.sandbox, attended.sandbox])


async def test_of_many_who_want_a_free_conversation_one_gets_it(world: JournalWorld) -> None:
    sandbox = a_sandbox_id()
    await world.given_sandbox(sandbox)
    owners = [f"replica-{number}" for number in range(5)]
    for owner in owners:
        await world.given_replica(owner)

    answers = await asyncio.gather(*(world.journal.acquire(sandbox, owner=owner, lease=LEASE) for owner in owners))

    assert sum(answer is not None for answer in answers) == 1

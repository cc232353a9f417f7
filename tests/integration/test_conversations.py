"""Conversations across clients, replicas and deaths: the stream room with a journal, an agent and a CLI in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.model.caller import Caller, Request, Role
from sandboxd.model.errors import (
    ForbiddenError,
    RequestIdReusedError,
    SandboxNotFoundError,
    SandboxPausedError,
    SessionNotFoundError,
    TurnInProgressError,
    UnavailableError,
    WrongStateError,
)
from sandboxd.model.events import (
    Error,
    Notice,
    PermissionAnswered,
    PermissionRequest,
    TurnCompleted,
    TurnStarted,
    Waking,
)
from sandboxd.model.ids import ClientId, RequestId, SessionId
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.session import StopReason
from sandboxd.stream.moves import MovedError, OwnedElsewhereError
from tests.eventually import eventually
from tests.stream_world import ADA, SANDBOX, StreamWorld


async def test_a_turn_streams_from_prompt_to_completion_with_a_log_without_gaps() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()

        completed = await client.turn("tool one two")

    assert completed.stop_reason is StopReason.END_TURN
    assert client.text == "one two "
    assert client.sequences == list(range(1, len(client.seen) + 1))
    assert client.kinds[0] == "SessionOpened"
    assert client.kinds.count("ToolCall") == client.kinds.count("ToolOutput") == 1


async def test_a_prompt_that_is_sent_again_is_acknowledged_again_and_paid_once() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        first = await client.prompt("say hello", request_id="request-1")
        await client.until(TurnCompleted)

        again = await client.prompt("say hello", request_id="request-1")

    assert (first.repeated, again.repeated) == (False, True)
    assert again.turn == first.turn
    assert world.prompts == ["say hello"]


async def test_the_same_request_at_the_same_moment_is_done_once() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()

        answers = await asyncio.gather(*(client.prompt("say hello", request_id="request-1") for _ in range(5)))
        await client.until(TurnCompleted)

    assert sorted(answer.repeated for answer in answers) == [False, True, True, True, True]
    assert world.prompts == ["say hello"]


async def test_a_request_id_with_another_body_is_refused() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.prompt("say hello", request_id="request-1")
        await client.until(TurnCompleted)

        with pytest.raises(RequestIdReusedError):
            await client.prompt("say goodbye", request_id="request-1")


async def test_one_turn_at_a_time_per_session_and_sessions_beside_each_other() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        first, second = await replica.open(), await replica.open()
        await first.prompt("ask may I")
        await first.until(PermissionRequest)

        with pytest.raises(TurnInProgressError):
            await first.prompt("say hello")
        assert (await second.turn("say meanwhile")).stop_reason is StopReason.END_TURN

    assert second.text == "meanwhile "


async def test_a_permission_is_answered_once_by_whoever_is_first() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.prompt("ask may I")
        asked = await client.until(PermissionRequest)
        assert isinstance(asked, PermissionRequest)

        answer = client.handle.answer
        await answer(
            request_id=RequestId("request-1"), body_hash=b"", permission=asked.permission, option="proceed_once"
        )
        with pytest.raises(WrongStateError):
            await answer(request_id=RequestId("request-2"), body_hash=b"", permission=asked.permission, option="cancel")
        await client.until(TurnCompleted)

    assert client.text == "allowed "
    assert client.kinds.count("PermissionAnswered") == 1


async def test_a_cancel_closes_an_open_permission_and_ends_the_turn() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.prompt("ask may I")
        await client.until(PermissionRequest)

        await client.handle.cancel(request_id=RequestId("request-1"), body_hash=b"")
        answered = await client.until(PermissionAnswered)
        completed = await client.until(TurnCompleted)

    assert isinstance(answered, PermissionAnswered)
    assert isinstance(completed, TurnCompleted)
    assert answered.option == ""
    assert completed.stop_reason is StopReason.CANCELLED


async def test_watchers_see_the_same_and_a_client_that_comes_back_gets_only_the_rest() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        watcher = await replica.open(client.session, watch_only=True)
        await client.turn("say one")
        await watcher.until(TurnCompleted)
        assert watcher.seen == client.seen
        last = client.sequences[-1]

        await client.turn("say two")
        back = await replica.open(client.session, after_sequence=last)
        await back.until(TurnCompleted)

    assert back.sequences == list(range(last + 1, client.sequences[-1] + 1))


async def test_a_watcher_gives_no_commands() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        watcher = await replica.open(client.session, watch_only=True)

        with pytest.raises(WrongStateError) as caught:
            await watcher.prompt("say hello")

    assert caught.value.reason == "WATCH_ONLY"


async def test_a_killed_service_is_continued_by_its_next_life_from_the_committed_byte() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.prompt("ask may I")
        asked = await client.until(PermissionRequest)
        assert isinstance(asked, PermissionRequest)
        last = client.sequences[-1]

    async with world.replica() as replica:
        back = await replica.open(client.session, after_sequence=last)
        await back.handle.answer(
            request_id=RequestId("request-1"), body_hash=b"", permission=asked.permission, option="proceed_once"
        )
        completed = await back.until(TurnCompleted)

    assert isinstance(completed, TurnCompleted)
    assert completed.stop_reason is StopReason.END_TURN
    assert back.sequences == list(range(last + 1, last + 1 + len(back.seen)))
    assert world.prompts == ["ask may I"]
    assert len(world.clis) == 1


async def test_a_turn_is_finished_by_the_next_life_even_when_no_client_comes_back() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.prompt("ask may I")
        await client.until(PermissionRequest)

    async with world.replica() as replica:
        await eventually(lambda: replica.custody.owned == 1)
        agent = world.sandboxes.agent
        agent.die()
        world.sandboxes.lives += 1

        await eventually(lambda: world.store.sessions[client.session].open_turn is None)

    last = world.store.log[client.session][-1].body
    assert isinstance(last, TurnCompleted)
    assert last.stop_reason is StopReason.INTERRUPTED


async def test_two_replicas_do_not_own_the_same_conversation_and_the_stale_one_writes_nothing() -> None:
    world = StreamWorld()
    async with world.replica() as first, world.replica() as second:
        client = await first.open()
        await client.turn("say one")

        with pytest.raises(OwnedElsewhereError):
            await second.custody.owner(SANDBOX)
        stale = first.custody.held(SANDBOX)
        assert stale is not None

        world.dead.add(first.name)  # its lock is free: it is dead for everybody but itself
        taker = await second.open(client.session, after_sequence=client.sequences[-1])
        await taker.turn("say two")
        book = stale.conversation.book
        with pytest.raises(MovedError):
            await stale.act(lambda: book.emit(client.session, Notice(code="X", message="x")))
        await client.prompt("say three")  # which the other one does
        await taker.until(TurnCompleted)
        assert (await taker.turn("say four")).stop_reason is StopReason.END_TURN

    assert world.prompts == ["say one", "say two", "say three", "say four"]
    taker_log = world.store.log[client.session]
    assert [event.sequence for event in taker_log] == list(range(1, len(taker_log) + 1))


async def test_a_cli_that_dies_ends_the_turn_and_the_next_prompt_loads_the_conversation_again() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()

        died = await client.turn("die half way")
        again = await client.turn("say hello")

    assert (died.stop_reason, again.stop_reason) == (StopReason.INTERRUPTED, StopReason.END_TURN)
    assert [event.body.reason for event in client.seen if isinstance(event.body, Error)] == ["CLI_EXITED"]
    assert len(world.clis) == 2


async def test_a_cli_that_never_comes_up_in_acp_is_run_once_per_prompt_instead() -> None:
    world = StreamWorld(acp_broken=True)
    async with world.replica() as replica:
        client = await replica.open()

        first, second = await client.turn("say hello"), await client.turn("say more")

    assert (first.stop_reason, second.stop_reason) == (StopReason.END_TURN, StopReason.END_TURN)
    assert client.text == "hello hello "
    assert ["say hello" in world.runs[0], "say more" in world.runs[1]] == [True, True]
    assert len(world.runs) == 2
    assert "CLI_FALLBACK" in [event.body.code for event in client.seen if isinstance(event.body, Notice)]
    assert client.sequences == list(range(1, len(client.seen) + 1))


async def test_a_prompt_in_the_moment_in_which_a_life_ends_is_answered_by_the_next_one() -> None:
    world = StreamWorld()
    world.sandboxes.ending = True
    async with world.replica() as replica:
        client = await replica.open()

        completed = await client.turn("say hello")

    assert (completed.stop_reason, world.sandboxes.lives) == (StopReason.END_TURN, 2)


async def test_a_lost_incarnation_ends_the_turn_and_the_next_prompt_uses_the_next_life() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.prompt("ask may I")
        await client.until(PermissionRequest)

        world.sandboxes.new_life()
        completed = await client.until(TurnCompleted)
        again = await client.turn("say hello")

    assert isinstance(completed, TurnCompleted)
    assert (completed.stop_reason, again.stop_reason) == (StopReason.INTERRUPTED, StopReason.END_TURN)


async def test_a_vanished_client_does_not_end_its_turn_unless_it_asked_for_that() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        keeping, cancelling = await replica.open(), await replica.open(cancel_on_disconnect=True)
        for client in (keeping, cancelling):
            await client.prompt("ask may I")
            await client.until(PermissionRequest)

        await keeping.handle.leave(clean=False)
        await cancelling.handle.leave(clean=False)
        completed = await cancelling.until(TurnCompleted)

    assert isinstance(completed, TurnCompleted)
    assert completed.stop_reason is StopReason.CANCELLED
    assert world.store.sessions[keeping.session].open_turn is not None


async def test_a_paused_sandbox_refuses_prompts_and_still_shows_its_sessions() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.turn("say hello")
        await replica.hub.close(SANDBOX, reason="PAUSED", timeout=timedelta(seconds=5))
        world.sandboxes.sandbox = replace(world.sandboxes.sandbox, state=SandboxState.PAUSED)

        back = await replica.open(client.session)
        await back.until(TurnCompleted)
        with pytest.raises(SandboxPausedError):
            await back.prompt("say more")
        with pytest.raises(SandboxPausedError):
            await replica.open()

    assert back.seen == client.seen


async def test_closing_interrupts_open_turns_durably_and_ends_the_cli() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.prompt("ask may I")
        await client.until(PermissionRequest)
        assert await replica.hub.open_turns(SANDBOX) == 1

        await replica.hub.close(SANDBOX, reason="PAUSED", timeout=timedelta(seconds=5))

        assert await replica.hub.open_turns(SANDBOX) == 0
        completed = await client.until(TurnCompleted)
    assert isinstance(completed, TurnCompleted)
    assert completed.stop_reason is StopReason.INTERRUPTED
    assert all(process.exit is not None for process in world.sandboxes.agent.processes.values())


async def test_using_a_stopped_sandbox_says_that_it_is_waking() -> None:
    world = StreamWorld()
    world.sandboxes.sandbox = replace(world.sandboxes.sandbox, state=SandboxState.STOPPED)
    async with world.replica() as replica:
        client = await replica.open()

        await client.turn("say hello")

    assert [event.body.from_state for event in client.seen if isinstance(event.body, Waking)] == ["STOPPED"]


async def test_a_cli_that_cannot_be_started_ends_the_prompt_with_an_error() -> None:
    world = StreamWorld()
    del world.sandboxes.agent.programs["node"]
    async with world.replica() as replica:
        client = await replica.open()
        await client.until(Error)

        completed = await client.turn("say hello")

    assert completed.stop_reason is StopReason.ERROR
    assert [event.body.reason for event in client.seen if isinstance(event.body, Error)] == ["PROCESS_START_FAILED"] * 2


async def test_a_journal_that_is_away_delays_the_turn_and_loses_nothing() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.turn("say one")

        world.store.answers_lost = 3
        assert (await client.turn("say two")).stop_reason is StopReason.END_TURN

    assert client.sequences == list(range(1, len(client.seen) + 1))
    assert world.prompts == ["say one", "say two"]


async def test_a_turn_whose_bill_does_not_come_ends_anyway_and_says_so() -> None:
    world = StreamWorld()
    world.ledger.open_calls = 1
    async with world.replica() as replica:
        client = await replica.open()

        completed = await client.turn("say hello")

    assert completed.stop_reason is StopReason.END_TURN
    assert not completed.usage_complete


async def test_draining_hands_over_and_the_next_life_goes_on_in_the_middle_of_a_turn() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.prompt("ask may I")
        asked = await client.until(PermissionRequest)
        assert isinstance(asked, PermissionRequest)
        await replica.hub.drain()
        with pytest.raises(UnavailableError):
            await client.prompt("say hello")

        async with world.replica() as heir:
            back = await heir.open(client.session, after_sequence=client.sequences[-1])
            await back.handle.answer(
                request_id=RequestId("request-1"), body_hash=b"", permission=asked.permission, option="proceed_once"
            )
            await back.until(TurnCompleted)

    assert back.text == "allowed "
    assert world.prompts == ["ask may I"]


async def test_nobody_sees_what_is_not_theirs() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        foreign = Caller(client=ClientId("other"), subject="ada", role=Role.PLATFORM)
        neighbour = Caller(client=ClientId("acme"), subject="bob", role=Role.FREELANCER)
        auditor = Caller(client=ClientId("acme"), subject="eve", role=Role.AUDITOR)

        for caller in (foreign, neighbour):
            with pytest.raises(SandboxNotFoundError):
                await replica.open(client.session, caller=caller)
        with pytest.raises(SessionNotFoundError):
            await replica.open(SessionId("ses-00000000000000000000000099"))
        with pytest.raises(ForbiddenError):
            await replica.open(client.session, caller=auditor)
        watching = await replica.open(client.session, caller=auditor, watch_only=True)
        assert watching.session == client.session


async def test_a_deleted_session_is_gone_and_its_neighbour_goes_on() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        gone, kept = await replica.open(), await replica.open()
        await gone.turn("say one")
        request = _request("delete-1")

        await replica.directory.delete(request, SANDBOX, gone.session)
        await replica.directory.delete(request, SANDBOX, gone.session)

        with pytest.raises(SessionNotFoundError):
            await replica.open(gone.session)
        assert (await kept.turn("say two")).stop_reason is StopReason.END_TURN


async def test_a_session_with_an_open_turn_is_not_deleted() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open()
        await client.prompt("ask may I")
        await client.until(TurnStarted)

        with pytest.raises(TurnInProgressError):
            await replica.directory.delete(_request("delete-1"), SANDBOX, client.session)


async def test_the_mode_can_be_set_before_and_while_the_cli_is_up() -> None:
    world = StreamWorld()
    async with world.replica() as replica:
        client = await replica.open(mode="plan")
        await client.turn("say hello")

        await client.handle.set_mode(request_id=RequestId("request-1"), body_hash=b"", mode="yolo")
        await eventually(lambda: world.store.sessions[client.session].mode == "yolo")


def _request(request_id: str) -> Request:
    return Request(caller=ADA, request_id=RequestId(request_id), body_hash=b"d")


async def test_renewals_that_collide_with_other_transactions_end_no_conversation() -> None:
    world = StreamWorld(lease=timedelta(milliseconds=300))
    async with world.replica() as replica:
        client = await replica.open()
        await client.turn("say hello")

        world.store.collisions = 3
        await eventually(lambda: world.store.collisions == 0)
        completed = await client.turn("say hello again")

    assert completed.stop_reason is StopReason.END_TURN

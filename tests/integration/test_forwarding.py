"""Commands that arrive at a replica which does not own the conversation: done once, by whoever owns it then."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.model.caller import Caller, Request, Role
from sandboxd.model.errors import (
    PermissionNotOpenError,
    RequestIdReusedError,
    SandboxPausedError,
    SessionNotFoundError,
    TurnInProgressError,
    UnavailableError,
)
from sandboxd.model.events import CancelRequested, ModeChanged, PermissionRequest, TurnCompleted
from sandboxd.model.ids import ClientId, RequestId
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.session import StopReason
from sandboxd.stream.errands import Order
from sandboxd.stream.moves import OwnedElsewhereError
from tests.eventually import eventually
from tests.stream_world import ADA, SANDBOX, Client, Replica, StreamWorld

LEASE = timedelta(seconds=1.5)


async def reopened(client: Client, replica: Replica) -> Client:
    """The same session at another replica, from where it was."""
    return await replica.open(client.session, after_sequence=client.sequences[-1] if client.seen else 0)


async def test_a_prompt_at_another_replica_is_done_by_the_owner_and_seen_there() -> None:
    world = StreamWorld()
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.turn("say one")
        other = await reopened(client, edge)

        completed = await other.turn("say two")

        assert (owner.custody.owned, edge.custody.owned) == (1, 0)
    assert completed.stop_reason is StopReason.END_TURN
    assert world.prompts == ["say one", "say two"]
    orders = [(name, errand) for name, errand in world.errands if isinstance(errand, Order)]
    assert [(name, order.caller, len(order.body_hash)) for name, order in orders] == [(owner.name, ADA, 32)]


async def test_every_kind_of_command_can_be_forwarded() -> None:
    world = StreamWorld()
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.turn("say one")
        other = await reopened(client, edge)

        await other.handle.set_mode(request_id=RequestId("mode-0001"), body_hash=b"m", mode="yolo")
        assert isinstance(await other.until(ModeChanged), ModeChanged)
        await other.prompt("ask may I")
        asked = await other.until(PermissionRequest)
        assert isinstance(asked, PermissionRequest)
        await other.handle.answer(
            request_id=RequestId("answer-01"), body_hash=b"a", permission=asked.permission, option="proceed_once"
        )
        await other.until(TurnCompleted)
        await other.prompt("ask may I")
        await other.until(PermissionRequest)
        await other.handle.cancel(request_id=RequestId("cancel-01"), body_hash=b"c")
        assert isinstance(await other.until(CancelRequested), CancelRequested)
        await other.until(TurnCompleted)
        request = Request(caller=ADA, request_id=RequestId("delete-01"), body_hash=b"d")
        await edge.directory.delete(request, SANDBOX, client.session)
        await edge.directory.delete(request, SANDBOX, client.session)  # again, and done once

        with pytest.raises(SessionNotFoundError):
            await edge.open(client.session)
        assert edge.custody.owned == 0


async def test_refusals_of_the_owner_come_back_as_they_are() -> None:
    world = StreamWorld()
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.prompt("ask may I", request_id="prompt-01")
        await client.until(PermissionRequest)
        other = await reopened(client, edge)

        with pytest.raises(TurnInProgressError):
            await other.prompt("say two")
        with pytest.raises(RequestIdReusedError):
            await other.prompt("say two", request_id="prompt-01")
        with pytest.raises(PermissionNotOpenError):
            await other.handle.answer(request_id=RequestId("answer-1"), body_hash=b"", permission="no", option="x")


async def test_a_caller_is_checked_where_it_calls_and_nothing_of_a_stranger_is_forwarded() -> None:
    world = StreamWorld()
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.turn("say one")
        stranger = Caller(client=ClientId("other"), subject="eve", role=Role.CLIENT_ADMIN)

        with pytest.raises(Exception, match="does not exist"):
            await edge.open(client.session, caller=stranger)

        assert world.errands == []


async def test_a_command_whose_answer_was_lost_between_the_replicas_is_done_once() -> None:
    world = StreamWorld()
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.turn("say one")
        other = await reopened(client, edge)
        world.deaf.add(owner.name)

        accepted = await other.prompt("say two", request_id="prompt-02")
        await other.until(TurnCompleted)

        assert accepted.turn == world.store.commands[ADA.client, RequestId("prompt-02")].turn
    assert world.prompts == ["say one", "say two"]


async def test_a_command_that_a_dead_owner_had_made_durable_is_not_done_again_by_the_next_one() -> None:
    """The answer is lost, and the owner dies before the asker repeats: the next owner asks the journal."""
    world = StreamWorld()
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.turn("say one")
        other = await reopened(client, edge)
        world.deaf.add(owner.name)
        asking = asyncio.create_task(other.prompt("say two", request_id="prompt-02"))
        await eventually(lambda: (ADA.client, RequestId("prompt-02")) in world.store.commands, every=0)
        await owner.die()

        accepted = await asking
        await other.until(TurnCompleted)

        assert edge.custody.owned == 1
        assert accepted.turn == world.store.commands[ADA.client, RequestId("prompt-02")].turn
    assert world.prompts == ["say one", "say two"]


async def test_a_dead_owner_is_replaced_at_once_by_whoever_is_asked() -> None:
    world = StreamWorld()
    async with world.replica() as edge:
        async with world.replica() as owner:
            client = await owner.open()
            await client.turn("say one")
            other = await reopened(client, edge)
            await other.turn("say two")

        async with asyncio.timeout(5):
            await other.turn("say three")

        assert edge.custody.owned == 1
    assert world.prompts == ["say one", "say two", "say three"]


async def test_a_frozen_owner_is_replaced_after_its_lease_and_refused_when_it_thaws() -> None:
    world = StreamWorld(lease=LEASE)
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.turn("say one")
        other = await reopened(client, edge)
        world.freeze(owner)

        prompted = await other.prompt("say two", request_id="prompt-02")
        await other.until(TurnCompleted)
        world.thaw(owner)  # and it does what it was asked while it stood still

        await eventually(lambda: owner.custody.owned == 0)
        await other.turn("say three")
        assert not prompted.repeated
    assert world.prompts == ["say one", "say two", "say three"]
    log = world.store.log[client.session]
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))


async def test_an_owner_that_stays_frozen_within_its_lease_costs_the_caller_a_clear_error_and_not_for_ever() -> None:
    world = StreamWorld(lease=LEASE)
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.turn("say one")
        other = await reopened(client, edge)
        world.frozen.add(owner.name)  # it takes errands and never answers, and its lease is renewed

        with pytest.raises(UnavailableError) as refused:
            async with asyncio.timeout(10):
                await other.prompt("say two")

        assert refused.value.retry_after is not None
        world.frozen.clear()


async def test_pausing_at_any_replica_closes_the_conversation_where_it_is() -> None:
    world = StreamWorld()
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.prompt("ask may I")
        await client.until(PermissionRequest)

        await edge.hub.close(SANDBOX, reason="PAUSED", timeout=timedelta(seconds=5))

        completed = await client.until(TurnCompleted)
        assert isinstance(completed, TurnCompleted)
        assert completed.stop_reason is StopReason.INTERRUPTED
        assert (owner.custody.owned, edge.custody.owned) == (0, 0)
        assert world.store.conversations[SANDBOX].owner == ""


async def test_pausing_waits_for_a_frozen_owner_no_longer_than_its_lease() -> None:
    """A close may take long where its owner lives; one that stands still must not cost the caller all its patience."""
    world = StreamWorld(lease=LEASE)
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.prompt("ask may I")
        await client.until(PermissionRequest)
        other = await reopened(client, edge)
        world.frozen.add(owner.name)
        world.freeze(owner)

        await edge.hub.close(SANDBOX, reason="PAUSED", timeout=timedelta(minutes=1))

        completed = await other.until(TurnCompleted)
        assert isinstance(completed, TurnCompleted)
        assert completed.stop_reason is StopReason.INTERRUPTED
        world.frozen.clear()
        world.thaw(owner)


async def test_a_paused_sandbox_refuses_at_every_replica() -> None:
    world = StreamWorld()
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.turn("say one")
        other = await reopened(client, edge)
        world.sandboxes.sandbox = world.sandboxes.sandbox.enter(SandboxState.PAUSING, at=datetime.now(UTC))

        with pytest.raises(SandboxPausedError):
            await other.prompt("say two")


async def test_a_client_that_vanishes_from_another_replica_cancels_its_turn() -> None:
    world = StreamWorld()
    async with world.replica() as owner, world.replica() as edge:
        client = await owner.open()
        await client.turn("say one")
        other = await edge.open(client.session, cancel_on_disconnect=True)
        await other.prompt("ask may I")
        await other.until(PermissionRequest)

        await other.handle.leave(clean=False)

        completed = await other.until(TurnCompleted)
        assert isinstance(completed, TurnCompleted)
        assert completed.stop_reason is StopReason.CANCELLED


async def test_a_stopping_replica_hands_a_command_to_one_that_takes_the_conversation() -> None:
    world = StreamWorld()
    async with world.replica() as stopping, world.replica() as other:
        client = await stopping.open()
        await client.turn("say one")
        await stopping.custody.drain()

        accepted = await client.prompt("say two")

        taker = await reopened(client, other)
        await taker.until(TurnCompleted)
        assert (stopping.custody.owned, other.custody.owned) == (0, 1)
        assert not accepted.repeated
    assert world.prompts == ["say one", "say two"]


async def test_the_last_replica_that_stops_says_so() -> None:
    world = StreamWorld(lease=LEASE / 3)
    async with world.replica() as stopping:
        client = await stopping.open()
        await client.turn("say one")
        await stopping.custody.drain()

        with pytest.raises(UnavailableError, match="stopping"):
            await client.prompt("say two")


async def test_a_replica_does_no_errand_for_a_conversation_that_it_does_not_hold() -> None:
    world = StreamWorld()
    async with world.replica() as first, world.replica() as second:
        client = await first.open()
        await client.turn("say one")
        await reopened(client, second)
        _, wish = world.errands[-1]

        with pytest.raises(OwnedElsewhereError):
            await second.desk.run(wish, acquire=False)


@pytest.mark.parametrize("seed", range(5))
async def test_conversations_that_wander_between_replicas_lose_and_double_nothing(seed: int) -> None:
    """Prompts at random replicas, while owners die, freeze and hand over."""
    chance = random.Random(seed)
    world = StreamWorld(lease=timedelta(seconds=0.6))
    replicas = [world.make_replica() for _ in range(3)]
    client = await replicas[0].open()
    await client.turn("say 0")
    for number in range(1, 9):
        event = chance.choice(["die", "drain", "freeze", "nothing"])
        victim = chance.choice(replicas)
        if event == "freeze":
            world.freeze(victim)
        elif event != "nothing":
            await (victim.die() if event == "die" else victim.custody.drain())
            replicas.remove(victim)
            replicas.append(world.make_replica())
        able = [one for one in replicas if one.name not in world.cold]
        edge = await reopened(client, chance.choice(able))
        prompted = await edge.prompt(f"say {number}", request_id=f"prompt-{number}")
        again = await chance.choice(able).open(client.session)
        repeated = await again.prompt(f"say {number}", request_id=f"prompt-{number}")
        assert (repeated.repeated, repeated.turn) == (True, prompted.turn)
        await edge.until(TurnCompleted)
        client.seen.extend(edge.seen)
        if event == "freeze":
            world.thaw(victim)
    for replica in replicas:
        await replica.die()

    assert world.prompts == [f"say {number}" for number in range(9)]
    assert client.sequences == list(range(1, len(client.seen) + 1))
    assert [event.sequence for event in world.store.log[client.session]] == client.sequences

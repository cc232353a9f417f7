"""Turns of clients that were suspended, on the replicas that own them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from sandboxd.manager.account_cache import AccountCache
from sandboxd.model.client import AccountState, Client, Freelancer
from sandboxd.model.events import CancelRequested, PermissionRequest, TurnCompleted
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.session import StopReason
from sandboxd.stream.suspension import Suspensions
from tests.fakes.manager import NOON, FakeClock, FakeUnits, FakeWakeups
from tests.stream_world import Replica, StreamWorld

ACME, ADA = ClientId("acme"), FreelancerId("ada")
FAR = timedelta(hours=1)


def given(units: FakeUnits, *, client: AccountState, freelancer: AccountState = AccountState.ACTIVE) -> None:
    units.rows.clients[ACME] = Client(id=ACME, state=client, create_time=NOON, update_time=NOON)
    units.rows.freelancers[ACME, ADA] = Freelancer(
        client=ACME, id=ADA, state=freelancer, create_time=NOON, update_time=NOON
    )


@asynccontextmanager
async def enforced(replica: Replica, accounts: AccountCache) -> AsyncIterator[None]:
    loop = Suspensions(custody=replica.custody, standings=accounts, look_every=FAR).run()
    task = asyncio.create_task(loop)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_running_turns_of_a_suspended_client_are_cancelled_at_once() -> None:
    world, units = StreamWorld(), FakeUnits(FakeClock())
    given(units, client=AccountState.ACTIVE)
    accounts = AccountCache(units=units, wakeups=FakeWakeups(), clock=units.clock)
    async with world.replica() as replica, enforced(replica, accounts):
        client = await replica.open()
        await client.prompt("ask may I")
        await client.until(PermissionRequest)

        given(units, client=AccountState.SUSPENDED)
        await accounts.announce(ACME)
        asked = await client.until(CancelRequested)
        completed = await client.until(TurnCompleted)

        given(units, client=AccountState.ACTIVE)
        await accounts.announce(ACME)
        again = await client.turn("say hello")

    assert isinstance(asked, CancelRequested)
    assert isinstance(completed, TurnCompleted)
    assert (asked.reason, completed.stop_reason) == ("CLIENT_SUSPENDED", StopReason.CANCELLED)
    assert again.stop_reason is StopReason.END_TURN
    assert client.kinds.count("CancelRequested") == 1


async def test_a_turn_is_cancelled_by_whichever_replica_owns_it_by_then() -> None:
    world, units = StreamWorld(), FakeUnits(FakeClock())
    given(units, client=AccountState.ACTIVE, freelancer=AccountState.SUSPENDED)
    async with world.replica() as first:
        client = await first.open()
        await client.prompt("ask may I")
        await client.until(PermissionRequest)
    async with world.replica() as second:
        accounts = AccountCache(units=units, wakeups=FakeWakeups(), clock=units.clock)
        reopened = await second.open(client.session, after_sequence=0)
        suspensions = Suspensions(custody=second.custody, standings=accounts)

        cancelled = await suspensions.enforce()
        completed = await reopened.until(TurnCompleted)
        later = await suspensions.enforce()

    assert isinstance(completed, TurnCompleted)
    assert (cancelled, later, completed.stop_reason) == (1, 0, StopReason.CANCELLED)

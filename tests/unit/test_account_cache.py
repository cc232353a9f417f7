"""What hot paths learn of clients: quickly, seconds old at most, and never more than fits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from typing_extensions import override

from sandboxd.manager.account_cache import AccountCache
from sandboxd.model.client import AccountState, Client, ClientPolicy, Freelancer, TextPolicy
from sandboxd.model.client_errors import (
    ClientDeletedError,
    ClientSuspendedError,
    ClientUnknownError,
    FreelancerSuspendedError,
)
from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.model.ids import ClientId, FreelancerId
from tests.eventually import eventually
from tests.fakes.accounts import FakeClientRepository
from tests.fakes.manager import NOON, FakeClock, FakeUnitOfWork, FakeUnits, FakeWakeups

ACME, ADA = ClientId("acme"), FreelancerId("ada")


class SlowUnits(FakeUnits):
    """Reads a client, and is slow to answer."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.has_read, self.may_answer = asyncio.Event(), asyncio.Event()

    @override
    def begin(self) -> FakeUnitOfWork:
        return SlowUnitOfWork(self)


class SlowUnitOfWork(FakeUnitOfWork):
    def __init__(self, units: SlowUnits) -> None:
        super().__init__(units)
        self._clients = SlowClients(self, units)


class SlowClients(FakeClientRepository):
    def __init__(self, work: FakeUnitOfWork, units: SlowUnits) -> None:
        super().__init__(work)
        self._units = units

    @override
    async def find(self, client: ClientId, *, for_update: bool = False) -> Client | None:
        found = await super().find(client, for_update=for_update)
        self._units.has_read.set()
        await self._units.may_answer.wait()
        return found


class CacheWorld:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.units = FakeUnits(self.clock)
        self.wakeups = FakeWakeups()
        self.cache = self.another()

    def another(self, *, explicit: bool = False, max_entries: int = 100) -> AccountCache:
        return AccountCache(
            units=self.units, wakeups=self.wakeups, clock=self.clock, explicit=explicit, max_entries=max_entries
        )

    def given(self, *, client: AccountState = AccountState.ACTIVE, text: TextPolicy = TextPolicy.FULL) -> None:
        self.units.rows.clients[ACME] = Client(
            id=ACME, state=client, create_time=NOON, update_time=NOON, policy=ClientPolicy(text=text)
        )

    def given_freelancer(self, state: AccountState) -> None:
        self.units.rows.freelancers[ACME, ADA] = Freelancer(
            client=ACME, id=ADA, state=state, create_time=NOON, update_time=NOON
        )


@pytest.fixture
def world() -> CacheWorld:
    return CacheWorld()


@asynccontextmanager
async def running(cache: AccountCache) -> AsyncIterator[None]:
    task = asyncio.create_task(cache.run())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_answer_is_kept_for_five_seconds(world: CacheWorld) -> None:
    world.given(text=TextPolicy.NONE)
    before = await world.cache.policy(ACME)
    world.given(text=TextPolicy.FULL)
    world.units.down = True

    within = await world.cache.policy(ACME)
    world.clock.advance(5)
    with pytest.raises(DatabaseUnavailableError):
        await world.cache.policy(ACME)
    world.units.down = False
    after = await world.cache.policy(ACME)

    assert [before.text, within.text, after.text] == [TextPolicy.NONE, TextPolicy.NONE, TextPolicy.FULL]


async def test_who_is_not_known_yet_has_the_standard_policy(world: CacheWorld) -> None:
    assert await world.cache.policy(ACME) == ClientPolicy()
    await world.cache.require_active(ACME, ADA)


async def test_an_installation_may_refuse_who_is_not_known(world: CacheWorld) -> None:
    with pytest.raises(ClientUnknownError):
        await world.another(explicit=True).require_active(ACME, None)


async def test_a_hint_of_another_replica_is_heard_at_once(world: CacheWorld) -> None:
    world.given()
    other = world.another()
    async with running(other):
        await other.require_active(ACME, None)
        world.given(client=AccountState.SUSPENDED)

        await world.cache.announce(ACME)

        async def refused() -> bool:
            try:
                await other.require_active(ACME, None)
            except ClientSuspendedError:
                return True
            return False

        await eventually(refused)


async def test_a_suspended_freelancer_of_an_active_client_is_refused(world: CacheWorld) -> None:
    world.given()
    world.given_freelancer(AccountState.SUSPENDED)

    await world.cache.require_active(ACME, None)
    with pytest.raises(FreelancerSuspendedError):
        await world.cache.require_active(ACME, ADA)


@pytest.mark.parametrize("state", [AccountState.DELETING, AccountState.DELETED])
async def test_a_deleted_client_is_refused(world: CacheWorld, state: AccountState) -> None:
    world.given(client=state)

    with pytest.raises(ClientDeletedError):
        await world.cache.require_active(ACME, None)


async def test_who_waits_for_a_change_of_a_client_is_woken_by_it_and_by_no_other(world: CacheWorld) -> None:
    waiting = asyncio.create_task(world.cache.wait_for_change(ACME, timeout=timedelta(seconds=60)))
    await asyncio.sleep(0)

    world.cache.forget(ClientId("other"))
    await asyncio.sleep(0.01)
    before = waiting.done()
    world.cache.forget(ACME)
    async with asyncio.timeout(5):
        await waiting

    assert not before


async def test_who_waits_for_a_change_that_does_not_come_goes_on_in_time(world: CacheWorld) -> None:
    async with asyncio.timeout(5):
        await world.cache.wait_for_change(ACME, timeout=timedelta(milliseconds=10))


async def test_a_read_that_began_before_a_change_is_not_kept(world: CacheWorld) -> None:
    world.given()
    units = SlowUnits(world.clock)
    units.rows = world.units.rows
    cache = AccountCache(units=units, wakeups=world.wakeups, clock=world.clock)
    early = asyncio.create_task(cache.policy(ACME))
    await units.has_read.wait()

    world.given(text=TextPolicy.NONE)
    cache.forget(ACME)
    late = asyncio.create_task(cache.policy(ACME))
    units.may_answer.set()

    assert [(await early).text, (await late).text] == [TextPolicy.FULL, TextPolicy.NONE]
    assert (await cache.policy(ACME)).text is TextPolicy.NONE


async def test_the_least_used_entries_go_first(world: CacheWorld) -> None:
    cache = world.another(max_entries=2)
    for name in ("a", "b", "a", "c"):
        await cache.policy(ClientId(name))

    world.units.down = True

    await cache.policy(ClientId("a"))
    await cache.policy(ClientId("c"))
    with pytest.raises(DatabaseUnavailableError):
        await cache.policy(ClientId("b"))

"""Quotas, exact under crowds: held by the fake and by PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import count

import pytest
from typing_extensions import override

from sandboxd.manager.account_cache import AccountCache
from sandboxd.manager.admission import Admission
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.manager.turn_quotas import AccountTurnQuotas
from sandboxd.model.client import AccountState, Client, ClientPolicy, Freelancer, Quotas
from sandboxd.model.client_errors import (
    ClientSuspendedError,
    ClientUnknownError,
    FreelancerDeletedError,
    QuotaExceededError,
)
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId, SessionId, make_id
from sandboxd.model.sandbox import Sandbox, SandboxState, Tier
from sandboxd.model.session import Session
from tests.contract.units_world import UnitsWorld
from tests.fakes.manager import NOON, FakeClock, FakeWakeups

ACME, ADA, BOB = ClientId("acme"), FreelancerId("ada"), FreelancerId("bob")
GB = 10**9
_numbers = count(1)


async def given(world: UnitsWorld, policy: ClientPolicy, *, own: Quotas | None = None) -> None:
    async with world.units.begin() as work:
        await work.clients.add(Client(id=ACME, create_time=NOON, update_time=NOON, policy=policy))
        for name in (ADA, BOB):
            quotas = own if name == ADA else None
            await work.freelancers.add(
                Freelancer(client=ACME, id=name, create_time=NOON, update_time=NOON, quotas=quotas)
            )
        await work.commit()


async def create(
    world: UnitsWorld, *, freelancer: FreelancerId = ADA, tier: Tier = Tier.BASIC, explicit: bool = False
) -> Sandbox:
    """Make a sandbox as the manager does."""
    sandbox = Sandbox(
        id=SandboxId(make_id("sbx", at=NOON, entropy=next(_numbers).to_bytes(10, "big"))),
        client=ACME,
        freelancer=freelancer,
        tier=tier,
        create_time=NOON,
        update_time=NOON,
        last_use_time=NOON,
    )
    async with world.units.begin() as work:
        await Admission(explicit=explicit).admit(work, ACME, freelancer, tier=tier, at=NOON)
        await work.sandboxes.add(sandbox)
        await work.commit()
    return sandbox


def a_session(freelancer: FreelancerId = ADA) -> Session:
    return Session(
        id=SessionId(make_id("ses", at=NOON, entropy=next(_numbers).to_bytes(10, "big"))),
        sandbox=SandboxId("sbx"),
        client=ACME,
        freelancer=freelancer,
        create_time=NOON,
        update_time=NOON,
    )


def a_prompt() -> RequestId:
    return RequestId(f"request-{next(_numbers)}")


async def test_of_a_hundred_creates_at_once_exactly_as_many_succeed_as_fit(world: UnitsWorld) -> None:
    await given(world, ClientPolicy(quotas=Quotas(sandboxes=7)))

    outcomes = await asyncio.gather(
        *(create(world, freelancer=(ADA, BOB)[number % 2]) for number in range(100)), return_exceptions=True
    )

    made = [outcome for outcome in outcomes if isinstance(outcome, Sandbox)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, QuotaExceededError)]
    assert (len(made), len(refused)) == (7, 93)
    assert {error.metadata["value"] for error in refused} == {"7"}
    async with world.units.begin() as work:
        assert (await work.quotas.sandboxes(ACME)).count == 7


async def test_a_refusal_names_every_limit_with_its_subject_and_the_present_value(world: UnitsWorld) -> None:
    policy = ClientPolicy(
        quotas=Quotas(sandboxes=1, storage_bytes=60 * GB), freelancer_quotas=Quotas(tiers=frozenset({Tier.BASIC}))
    )
    await given(world, policy)
    await create(world)

    with pytest.raises(QuotaExceededError) as refused:
        await create(world, tier=Tier.PREMIUM)

    found = [(one.subject, one.quota, one.limit, one.value) for one in refused.value.violations]
    assert found == [
        ("clients/acme", "sandboxes", 1, 1),
        ("clients/acme", "storage_bytes", 60 * GB, 10 * GB),
        ("clients/acme/freelancers/ada", "tiers", None, None),
    ]
    assert "at most 1 sandboxes, and there are 1" in refused.value.violations[0].description


async def test_storage_fits_to_the_byte_and_what_is_terminated_gives_room(world: UnitsWorld) -> None:
    await given(world, ClientPolicy(quotas=Quotas(storage_bytes=60 * GB)))
    await create(world, tier=Tier.STANDARD)
    last = await create(world)
    with pytest.raises(QuotaExceededError):
        await create(world)

    async with world.units.begin() as work:
        going = last.enter(SandboxState.TERMINATING, at=NOON)
        await work.sandboxes.save(going)
        await work.sandboxes.save(going.enter(SandboxState.TERMINATED, at=NOON))
        await work.commit()

    await create(world)


async def test_a_freelancers_own_quotas_stand_in_for_those_of_each(world: UnitsWorld) -> None:
    await given(world, ClientPolicy(freelancer_quotas=Quotas(sandboxes=1)), own=Quotas(sandboxes=2))

    await create(world, freelancer=ADA)
    await create(world, freelancer=ADA)
    await create(world, freelancer=BOB)

    for freelancer in (ADA, BOB):
        with pytest.raises(QuotaExceededError) as refused:
            await create(world, freelancer=freelancer)
        assert refused.value.metadata["subject"] == f"clients/acme/freelancers/{freelancer}"


async def test_who_is_not_known_is_registered_unless_that_is_explicit(world: UnitsWorld) -> None:
    with pytest.raises(ClientUnknownError):
        await create(world, explicit=True)

    await create(world)

    async with world.units.begin() as work:
        assert (await work.clients.get(ACME)).state is AccountState.ACTIVE
        assert (await work.freelancers.get(ACME, ADA)).state is AccountState.ACTIVE


async def test_nothing_is_made_for_who_may_not_act(world: UnitsWorld) -> None:
    await given(world, ClientPolicy())
    errors: list[SandboxdError] = []

    async with world.units.begin() as work:
        ada = await work.freelancers.get(ACME, ADA)
        await work.freelancers.save(ada.enter(AccountState.DELETING, at=NOON))
        await work.commit()
    with pytest.raises(FreelancerDeletedError):
        await create(world, freelancer=ADA)
    async with world.units.begin() as work:
        acme = await work.clients.get(ACME)
        await work.clients.save(acme.enter(AccountState.SUSPENDED, at=NOON))
        await work.commit()
    with pytest.raises(ClientSuspendedError):
        await create(world, freelancer=BOB)

    assert errors == []


async def test_of_fifty_prompts_at_once_exactly_as_many_turns_get_a_place_as_may_run(world: UnitsWorld) -> None:
    await given(world, ClientPolicy(quotas=Quotas(concurrent_turns=5)))
    # Two replicas: nothing but the database is shared.
    replicas = [
        AccountTurnQuotas(
            units=world.units,
            accounts=AccountCache(units=world.units, wakeups=FakeWakeups(), clock=FakeClock()),
            replica=name,
        )
        for name in ("first", "second")
    ]
    for name in ("first", "second"):
        await world.given_replica(name)
    held, done = 0, asyncio.Event()
    decided = asyncio.Event()
    refused: list[QuotaExceededError] = []

    async def prompt(number: int) -> None:
        nonlocal held
        try:
            async with replicas[number % 2].place(a_session((ADA, BOB)[number % 2]), a_prompt()):
                held += 1
                _decide()
                await done.wait()
        except QuotaExceededError as error:
            refused.append(error)
            _decide()

    def _decide() -> None:
        if held + len(refused) == 50:
            decided.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for number in range(50):
            tasks.create_task(prompt(number))
        await decided.wait()
        at_once = held
        done.set()

    assert (at_once, len(refused)) == (5, 45)
    assert refused[0].violations[0].quota == "concurrent_turns"
    # All places were given back.
    async with world.units.begin() as work:
        assert await work.quotas.turns(ACME, but=SessionId("")) == 0


async def test_a_place_that_nobody_gives_back_is_free_when_its_lease_has_run_out(world: UnitsWorld) -> None:
    await given(world, ClientPolicy())
    async with world.units.begin() as work:
        lease = timedelta(milliseconds=200)
        await work.quotas.take_place(ACME, a_prompt(), ADA, SessionId("lost"), lease=lease, replica="")
        before = await work.quotas.turns(ACME, but=SessionId(""))
        own = await work.quotas.turns(ACME, but=SessionId("lost"))
        others = await work.quotas.turns(ACME, freelancer=BOB, but=SessionId(""))
        await work.commit()

    await world.pass_time(0.3)

    async with world.units.begin() as work:
        after = await work.quotas.turns(ACME, but=SessionId(""))
    assert (before, own, others, after) == (1, 0, 0, 0)


async def test_a_place_whose_replica_dies_is_free_at_once(world: UnitsWorld) -> None:
    await given(world, ClientPolicy())
    await world.given_replica("first")
    async with world.units.begin() as work:
        minute = timedelta(minutes=1)
        await work.quotas.take_place(ACME, a_prompt(), ADA, SessionId("lost"), lease=minute, replica="first")
        before = await work.quotas.turns(ACME, but=SessionId(""))
        await work.commit()

    await world.kill_replica("first")

    async with world.units.begin() as work:
        after = await work.quotas.turns(ACME, but=SessionId(""))
    assert (before, after) == (1, 0)


async def test_without_a_quota_of_turns_a_prompt_asks_the_database_for_nothing(world: UnitsWorld) -> None:
    clock = FakeClock()
    await given(world, ClientPolicy(quotas=Quotas(sandboxes=1)))
    accounts = AccountCache(units=world.units, wakeups=FakeWakeups(), clock=clock)
    await accounts.standing(ACME, ADA)
    quotas = AccountTurnQuotas(units=NoUnits(), accounts=accounts, replica="first")

    async with quotas.place(a_session(), a_prompt()):
        pass


class NoUnits(UnitsOfWork):
    """A database that must not be asked."""

    @override
    def begin(self) -> UnitOfWork:
        raise AssertionError("the database was asked")

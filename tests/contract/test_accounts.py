"""What rows of clients and freelancers promise, and calls that one transaction does; held by fake and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.manager.account_ports import AccountFilter
from sandboxd.manager.once import PLATFORM, Once
from sandboxd.manager.ports import UnitOfWork
from sandboxd.model.backup_retention import RetentionOverrides
from sandboxd.model.caller import Caller, Request, Role
from sandboxd.model.client import AccountState, Client, ClientPolicy, Freelancer, Quotas, TextPolicy
from sandboxd.model.client_errors import AccountExistsError, ClientNotFoundError, FreelancerNotFoundError
from sandboxd.model.errors import ConflictError, InvalidRequestError, RequestIdReusedError
from sandboxd.model.ids import ClientId, FreelancerId, RequestId
from sandboxd.model.lifecycle import NEVER, LifecycleOverrides, Limit
from sandboxd.model.sandbox import Tier
from tests.contract.units_world import UnitsWorld
from tests.fakes.manager import FakeClock

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
ACME, ADA = ClientId("acme"), FreelancerId("ada")
POLICY = ClientPolicy(
    text=TextPolicy.REDACTED,
    text_lifetime=timedelta(days=30),
    backup_every=timedelta(hours=6),
    backup_retention=RetentionOverrides(keep_last=0, keep_weekly=9, immutable_for=timedelta(days=30)),
    lifecycle=LifecycleOverrides(terminate_after=NEVER, terminate_paused_after=Limit(after=timedelta(days=90))),
    models=("gemini-2.5-*",),
    quotas=Quotas(sandboxes=3, tiers=frozenset({Tier.BASIC, Tier.PREMIUM}), storage_bytes=10**12),
    freelancer_quotas=Quotas(concurrent_turns=2),
)


def a_client(name: str = ACME, *, at: datetime = NOON, policy: ClientPolicy | None = None) -> Client:
    return Client(id=ClientId(name), create_time=at, update_time=at, policy=policy or ClientPolicy())


def a_freelancer(name: str = ADA, *, client: str = ACME) -> Freelancer:
    return Freelancer(client=ClientId(client), id=FreelancerId(name), create_time=NOON, update_time=NOON)


def a_request(request_id: str = "request-1", *, body: bytes = b"body", subject: str = "root") -> Request:
    caller = Caller(client=PLATFORM, subject=subject, role=Role.PLATFORM)
    return Request(caller=caller, request_id=RequestId(request_id), body_hash=body)


async def given(world: UnitsWorld, *rows: Client | Freelancer) -> None:
    async with world.units.begin() as work:
        for row in rows:
            await (work.clients.add(row) if isinstance(row, Client) else work.freelancers.add(row))
        await work.commit()


async def test_a_client_is_read_as_it_was_written(world: UnitsWorld) -> None:
    client = replace(a_client(policy=POLICY), display_name="Acme \x00 \ud800 & söhne", state_reason="new")

    await given(world, client)

    async with world.units.begin() as work:
        assert await work.clients.get(ACME) == client
        assert await work.clients.find(ClientId("other")) is None
        with pytest.raises(ClientNotFoundError):
            await work.clients.get(ClientId("other"))


async def test_a_freelancer_is_read_as_it_was_written(world: UnitsWorld) -> None:
    freelancer = replace(a_freelancer(), display_name="Ada", quotas=Quotas(sandboxes=0))

    await given(world, a_client(), freelancer)

    async with world.units.begin() as work:
        assert await work.freelancers.get(ACME, ADA) == freelancer
        with pytest.raises(FreelancerNotFoundError):
            await work.freelancers.get(ClientId("other"), ADA)


async def test_who_is_registered_on_first_use_is_active_with_the_standard_policy(world: UnitsWorld) -> None:
    async with world.units.begin() as work:
        await work.freelancers.ensure(ACME, ADA, at=NOON)
        await work.freelancers.ensure(ACME, ADA, at=NOON + timedelta(days=1))
        await work.commit()

    async with world.units.begin() as work:
        assert await work.clients.get(ACME) == a_client()
        assert await work.freelancers.get(ACME, ADA) == a_freelancer()


async def test_an_id_is_given_once(world: UnitsWorld) -> None:
    gone = a_client().enter(AccountState.DELETING, at=NOON).enter(AccountState.DELETED, at=NOON)
    await given(world, gone)

    with pytest.raises(AccountExistsError) as refused:
        await given(world, a_client())

    assert refused.value.metadata["state"] == "DELETED"


async def test_the_second_of_two_who_change_a_client_is_told(world: UnitsWorld) -> None:
    await given(world, a_client(), a_freelancer())
    suspended = a_client().enter(AccountState.SUSPENDED, at=NOON, reason="unpaid")
    resting = a_freelancer().enter(AccountState.SUSPENDED, at=NOON)
    async with world.units.begin() as work:
        await work.clients.save(suspended)
        await work.freelancers.save(resting)
        await work.commit()

    async with world.units.begin() as work:
        with pytest.raises(ConflictError):
            await work.clients.save(replace(suspended, state=AccountState.ACTIVE))
        with pytest.raises(ConflictError):
            await work.freelancers.save(resting)

    async with world.units.begin() as work:
        assert await work.clients.get(ACME) == suspended
        assert await work.freelancers.get(ACME, ADA) == resting


async def test_lists_are_pages_without_the_deleted(world: UnitsWorld) -> None:
    clients = [a_client(f"c{number}", at=NOON + timedelta(seconds=number)) for number in range(5)]
    gone = a_client("gone").enter(AccountState.DELETING, at=NOON).enter(AccountState.DELETED, at=NOON)
    await given(world, *clients, gone, a_freelancer("ada", client="c0"), a_freelancer("bob", client="c1"))

    async with world.units.begin() as work:
        first = await work.clients.list(AccountFilter(), page_size=3, page_token="")
        second = await work.clients.list(AccountFilter(), page_size=3, page_token=first.next_token)
        deleted = frozenset({AccountState.DELETED})
        only_deleted = await work.clients.list(AccountFilter(states=deleted), page_size=9, page_token="")
        people = await work.freelancers.list(ClientId("c0"), AccountFilter(), page_size=9, page_token="")

    assert [client.id for client in (*first.items, *second.items)] == [client.id for client in clients]
    assert (first.next_token != "", second.next_token) == (True, "")
    assert [client.id for client in only_deleted.items] == ["gone"]
    assert [freelancer.id for freelancer in people.items] == ["ada"]
    async with world.units.begin() as work:
        with pytest.raises(InvalidRequestError):
            await work.clients.list(AccountFilter(states=deleted), page_size=3, page_token=first.next_token)


async def test_a_locked_client_makes_the_next_one_wait(world: UnitsWorld) -> None:
    await given(world, a_client())
    order: list[str] = []

    async def second() -> None:
        async with world.units.begin() as work:
            await work.clients.get(ACME, for_update=True)
            order.append("second")

    async with world.units.begin() as work:
        await work.clients.get(ACME, for_update=True)
        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.1)
        order.append("first")
        await work.commit()
    await waiting

    assert order == ["first", "second"]


class Counter:
    """A change that counts how often it was made: it names the client anew."""

    def __init__(self) -> None:
        self.runs = 0

    async def __call__(self, work: UnitOfWork) -> str:
        self.runs += 1
        found = await work.clients.get(ACME, for_update=True)
        await work.clients.save(replace(found, display_name=f"run {self.runs}", version=found.version + 1))
        return f"run {self.runs}"


async def test_a_repeated_request_is_answered_with_the_first_answer(world: UnitsWorld) -> None:
    await given(world, a_client())
    once, change = Once(units=world.units, clock=FakeClock()), Counter()

    answers = await asyncio.gather(
        *(once.run(a_request(), "Rename", change, encode=str.encode, namespace=PLATFORM) for _ in range(5))
    )

    assert (set(answers), change.runs) == ({b"run 1"}, 1)
    async with world.units.begin() as work:
        assert (await work.clients.get(ACME)).display_name == "run 1"


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Rename", a_request(body=b"another")),
        ("Rename", a_request(subject="another")),
        ("Another", a_request()),
    ],
)
async def test_the_same_id_for_another_request_is_refused(world: UnitsWorld, method: str, request_: Request) -> None:
    await given(world, a_client())
    once = Once(units=world.units, clock=FakeClock())
    await once.run(a_request(), "Rename", Counter(), encode=str.encode)

    with pytest.raises(RequestIdReusedError):
        await once.run(request_, method, Counter(), encode=str.encode)


async def test_a_refused_request_may_be_tried_again_with_its_id(world: UnitsWorld) -> None:
    once, change = Once(units=world.units, clock=FakeClock()), Counter()
    with pytest.raises(ClientNotFoundError):
        await once.run(a_request(), "Rename", change, encode=str.encode)
    await given(world, a_client())

    answer = await once.run(a_request(), "Rename", change, encode=str.encode)

    assert answer == b"run 2"


async def test_a_collision_is_tried_again_within_the_call(world: UnitsWorld) -> None:
    await given(world, a_client())
    once, change = Once(units=world.units, clock=FakeClock()), Counter()

    async def collides_first(work: UnitOfWork) -> str:
        if not change.runs:
            change.runs += 1
            raise ConflictError("The transaction collided with another one.")
        return await change(work)

    answer = await once.run(a_request(), "Rename", collides_first, encode=str.encode)

    assert answer == b"run 2"

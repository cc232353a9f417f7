"""Forty at once on thirty members, over a real PostgreSQL and two replicas: each once, and the rest made anew."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

from sandboxd.manager.creation import NewSandbox
from sandboxd.model.ids import IncarnationId
from sandboxd.model.pool import POOLED, StartLimits
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.persistence.engine import Database
from sandboxd.persistence.ledger import PostgresUsageLedger
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from tests.contract.usage_world import a_call
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.manager import FakeBackend, FakeClock, FakeIds
from tests.manager_world import a_caller, a_request
from tests.pools_world import PoolReplica

LONG = timedelta(seconds=60)
MANY = StartLimits(total=50, per_client=50)


def two_replicas(database: Database) -> tuple[PoolReplica, PoolReplica]:
    clock = FakeClock()
    backend, ids = FakeBackend(FakeAgentConnector()), FakeIds(clock)
    units = PostgresUnitsOfWork(database)
    first, second = (
        PoolReplica(units, backend, clock=clock, ids=ids, name=name, starts=MANY) for name in ("first", "second")
    )
    return first, second


async def test_forty_creates_at_once_take_thirty_members_once_each_and_make_ten_anew(database: Database) -> None:
    first, second = two_replicas(database)
    await first.given_pool(30)
    await first.fill()
    members = {member.sandbox: member.incarnation for member in await first.members()}
    assert len(members) == 30

    async def create(number: int) -> Sandbox:
        caller = a_caller(subject=f"freelancer-{number % 7}")
        replica = first if number % 2 else second
        return await replica.manager.create(a_request(caller), NewSandbox(), timeout=LONG)

    made = await asyncio.gather(*(create(number) for number in range(40)))

    assert Counter(sandbox.state for sandbox in made) == {SandboxState.ACTIVE: 40}
    assert len({sandbox.id for sandbox in made}) == 40
    warm = {sandbox.id: sandbox.incarnation for sandbox in made if sandbox.id in members}
    assert warm == members
    assert first.backend.starts == 40
    await first.manager.claims.drain()
    await second.manager.claims.drain()
    assert {first.backend.owners[sandbox.id] for sandbox in made} == {sandbox.freelancer for sandbox in made}
    assert await first.members() == []


async def test_the_same_request_at_both_replicas_takes_one_member(database: Database) -> None:
    first, second = two_replicas(database)
    await first.given_pool(5)
    await first.fill()
    request = a_request()

    made = await asyncio.gather(
        *(replica.manager.create(request, NewSandbox(), timeout=LONG) for replica in (first, second) for _ in range(4))
    )

    assert len({sandbox.id for sandbox in made}) == 1
    await first.manager.claims.drain()
    await second.manager.claims.drain()
    assert len(await first.members()) == 4


async def test_time_of_waiting_is_billed_to_nobody(database: Database) -> None:
    first, _ = two_replicas(database)
    await first.given_pool(1)
    await first.fill()
    assert isinstance(first.clock, FakeClock)
    first.clock.advance(3600)

    sandbox = await first.manager.create(a_request(), NewSandbox(), timeout=LONG)

    async with database.raw() as connection:
        opened = await connection.fetch("SELECT kind, freelancer, opened_time FROM usage_intervals")
    assert {row["kind"] for row in opened} == {"RUNTIME", "STORAGE"}
    assert {row["freelancer"] for row in opened} == {sandbox.freelancer}
    assert {row["opened_time"] for row in opened} == {first.clock.now()}


async def test_a_members_token_spends_nothing_before_its_claim_and_for_its_freelancer_after(
    database: Database,
) -> None:
    first, _ = two_replicas(database)
    await first.given_pool(1)
    await first.fill()
    member = (await first.members())[0]
    identity = SandboxIdentity(
        client=member.client, freelancer=POOLED, sandbox=member.sandbox, incarnation=member.incarnation
    )
    ledger = PostgresUsageLedger(database)
    before = await ledger.open_call(a_call(identity))

    sandbox = await first.manager.create(a_request(a_caller(subject="bob")), NewSandbox(), timeout=LONG)
    after = await ledger.open_call(a_call(identity))

    assert type(before).__name__ == "CallRefused"
    assert type(after).__name__ == "OpenedCall"
    assert sandbox.incarnation == IncarnationId(member.incarnation)
    async with database.raw() as connection:
        assert await connection.fetchval("SELECT freelancer FROM usage_events") == "bob"

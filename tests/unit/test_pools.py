"""Warm pools: what a Create finds in them, what keeps them full, and what crashes leave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.manager.creation import NewSandbox
from sandboxd.manager.pools import PoolWish
from sandboxd.manager.refill import LONGEST_REST, rest_after
from sandboxd.model.client import Quotas
from sandboxd.model.client_errors import QuotaExceededError
from sandboxd.model.errors import InvalidRequestError, UnavailableError
from sandboxd.model.failpoints import FailpointError, arming
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, is_name
from sandboxd.model.pool import (
    POOLED,
    EndReason,
    Member,
    MemberState,
    Pool,
    PoolId,
    PoolSize,
    StartLimits,
    plan_pool,
)
from sandboxd.model.pool_errors import CapacityError
from sandboxd.model.sandbox import SandboxState, Tier
from sandboxd.model.startup import MissReason, StartPath
from tests.eventually import eventually
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.manager import NOON, FakeBackend, FakeClock, FakeIds, FakeUnits
from tests.manager_world import SOON, a_caller, a_request
from tests.pools_world import PoolReplica

M = MemberState
_numbers = count(1)


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.units = FakeUnits(self.clock)
        self.backend = FakeBackend(FakeAgentConnector())
        self.ids = FakeIds(self.clock)

    def replica(self, name: str = "first", *, starts: StartLimits | None = None) -> PoolReplica:
        return PoolReplica(self.units, self.backend, clock=self.clock, ids=self.ids, name=name, starts=starts)


def a_pool(*, least: int = 0, target: int = 0, most: int = 0) -> Pool:
    return Pool(
        id=PoolId("pol-1"),
        client=ClientId("acme"),
        size=PoolSize(min=least, target=target, max=max(most, target)),
        create_time=NOON,
        update_time=NOON,
        use_time=NOON,
    )


def a_member(state: MemberState = M.READY, *, recipe: str = "new", age: timedelta = timedelta(0)) -> Member:
    number = next(_numbers)
    return Member(
        sandbox=SandboxId(f"sbx-{number}"),
        incarnation=IncarnationId(f"inc-{number}"),
        pool=PoolId("pol-1"),
        client=ClientId("acme"),
        tier=Tier.BASIC,
        state=state,
        recipe=recipe,
        replica="first",
        start_time=NOON - age,
    )


async def test_a_create_takes_a_member_and_no_start_stands_in_its_way() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(2)
    await replica.fill()
    members = {member.sandbox: member for member in await replica.members()}
    world.backend.error = UnavailableError("The backend is away.")  # and a claim does not need it

    sandbox = await replica.manager.create(a_request(), NewSandbox(display_name="mine"), timeout=SOON)

    assert sandbox.state is SandboxState.ACTIVE
    assert sandbox.display_name == "mine"
    assert sandbox.incarnation == members[sandbox.id].incarnation
    report = replica.manager.startup(sandbox)
    assert report is not None
    assert (report.path, report.miss) == (StartPath.WARM, None)
    assert world.backend.starts == 2


async def test_time_that_a_member_waited_is_not_the_sandboxes() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(1)
    await replica.fill()
    world.clock.advance(3600)

    sandbox = await replica.manager.create(a_request(), NewSandbox(), timeout=SOON)

    life = world.units.rows.incarnations[IncarnationId(sandbox.incarnation or "")]
    assert life.ready_time == life.start_time == world.clock.now()


async def test_the_backend_learns_whose_it_is_and_the_pool_is_filled_again() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(2)
    await replica.fill()
    assert set(world.backend.owners.values()) == {POOLED}

    sandbox = await replica.manager.create(a_request(), NewSandbox(), timeout=SOON)
    await replica.adopted()
    world.clock.advance(5)
    await replica.fill()

    assert world.backend.owners[sandbox.id] == sandbox.freelancer
    assert (await replica.counts()).ready == 2


async def test_a_repeated_create_is_answered_with_the_member_of_the_first() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(3)
    await replica.fill()
    request = a_request()

    first = await replica.manager.create(request, NewSandbox(), timeout=SOON)
    again = await asyncio.gather(*(replica.manager.create(request, NewSandbox(), timeout=SOON) for _ in range(3)))

    assert {one.id for one in again} == {first.id}
    assert (await replica.counts()).ready == 2


async def test_without_a_member_a_sandbox_is_made_anew_and_says_why() -> None:
    world = World()
    replica = world.replica()

    sandbox = await replica.manager.create(a_request(), NewSandbox(), timeout=SOON)

    assert sandbox.state is SandboxState.ACTIVE
    # The fake tells nothing of its starts; what is known of the miss stays known in the metrics.
    metrics = replica.tools.pool_metrics
    assert metrics._claims.labels(MissReason.NO_POOL.value)._value.get() == 1


async def test_a_pool_of_one_client_gives_nothing_to_another() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(2)
    await replica.fill()
    stranger = a_caller(client="other")

    await replica.manager.create(a_request(stranger), NewSandbox(), timeout=SOON)

    assert world.backend.starts == 3
    assert (await replica.counts()).ready == 2


async def test_quotas_hold_for_warm_sandboxes_as_for_all() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(2)
    await replica.fill()
    client = world.units.rows.clients[ClientId("acme")]
    policy = replace(client.policy, quotas=Quotas(sandboxes=1))
    world.units.rows.clients[client.id] = replace(client, policy=policy)
    request = a_request()
    first = await replica.manager.create(request, NewSandbox(), timeout=SOON)

    with pytest.raises(QuotaExceededError):
        await replica.manager.create(a_request(), NewSandbox(), timeout=SOON)

    assert (await replica.counts()).ready == 1
    assert (await replica.manager.create(request, NewSandbox(), timeout=SOON)).id == first.id


async def test_a_member_whose_agent_is_gone_is_replaced() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(2)
    await replica.fill()
    lost = (await replica.members())[0]
    world.backend.kill(lost.sandbox, lost.incarnation)
    world.clock.advance(10)

    await replica.fill()

    assert (await replica.counts()).ready == 2
    assert lost.sandbox not in {member.sandbox for member in await replica.members()}
    assert lost.sandbox not in world.backend.files


async def test_members_are_replaced_when_they_would_be_made_from_something_else() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(2)
    await replica.fill()
    before = {member.sandbox for member in await replica.members()}
    world.backend.recipe = "two"
    world.clock.advance(10)

    await replica.fill()

    members = await replica.members()
    assert len(members) == 2
    assert {member.recipe for member in members} == {"two"}
    assert before.isdisjoint(world.backend.files)


async def test_an_idle_pool_shrinks_to_its_minimum_and_a_miss_wakes_it() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(3, least=1)
    await replica.fill()
    world.clock.advance(timedelta(hours=5).total_seconds())
    await replica.fill()
    assert (await replica.counts()).ready == 1

    await replica.manager.create(a_request(), NewSandbox(), timeout=SOON)
    await replica.adopted()
    await replica.manager.claims.drain()
    world.clock.advance(5)
    await replica.fill()

    assert (await replica.counts()).ready == 3


async def test_a_deleted_pool_ends_what_waits_and_leaves_what_was_claimed() -> None:
    world = World()
    replica = world.replica()
    pool = await replica.given_pool(3)
    await replica.fill()
    sandbox = await replica.manager.create(a_request(), NewSandbox(), timeout=SOON)

    await replica.pools.delete(a_request(), pool, encode=lambda _: b"")
    await replica.adopted()
    await replica.fill()

    assert world.units.rows.pools == {}
    assert world.backend.files == {sandbox.id}
    assert sandbox.id in world.backend.running


async def test_pools_whose_members_fail_to_start_are_tried_again_later_and_later() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(1)
    world.backend.error = UnavailableError("The backend is away.")
    for _ in range(5):
        await replica.refill.look()
        await replica.refill.settle()
    assert await replica.members() == [] or {m.state for m in await replica.members()} == {M.ENDING}
    world.backend.error = None

    world.clock.advance(0.5)
    await replica.fill()
    assert (await replica.counts()).ready == 0

    world.clock.advance(1)
    await replica.fill()
    assert (await replica.counts()).ready == 1


@pytest.mark.parametrize("point", ["refill.after_plan", "refill.after_start", "refill.after_token"])
async def test_a_refill_that_dies_loses_no_member_and_makes_none_twice(point: str) -> None:
    world = World()
    first, second = world.replica("first"), world.replica("second")
    await first.given_pool(3)
    with arming(f"{point}=error"):
        await first.refill.look()
        await first.refill.settle()
    planned = {member.sandbox for member in await first.members()}
    assert len(planned) == 3
    world.units.dead_replicas.add("first")

    await second.fill()

    members = await second.members()
    assert {member.sandbox for member in members} == planned
    assert {member.state for member in members} == {M.READY}
    assert world.backend.files == planned


@pytest.mark.parametrize("point", ["refill.after_end", "refill.after_erase"])
async def test_an_end_that_is_cut_off_is_finished_by_the_next_refill(point: str) -> None:
    world = World()
    first, second = world.replica("first"), world.replica("second")
    pool = await first.given_pool(2)
    await first.fill()
    await first.pools.delete(a_request(), pool, encode=lambda _: b"")
    with arming(f"{point}=error"):
        for _ in range(3):
            await first.refill.look()
            await first.refill.settle()
    world.units.dead_replicas.add("first")

    await second.fill()

    assert world.units.rows.pools == {}
    assert world.backend.files == set()


async def test_a_claim_that_dies_before_its_commit_has_claimed_nothing() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(1)
    await replica.fill()
    request = a_request()

    with arming("claim.before_commit=error"), pytest.raises(FailpointError):
        await replica.manager.create(request, NewSandbox(), timeout=SOON)
    assert (await replica.counts()).ready == 1

    assert (await replica.manager.create(request, NewSandbox(), timeout=SOON)).state is SandboxState.ACTIVE
    assert world.backend.starts == 1


@pytest.mark.parametrize("point", ["claim.after_commit", "claim.after_adopt"])
async def test_an_adoption_that_is_cut_off_is_finished_by_the_refill_of_another(point: str) -> None:
    world = World()
    first, second = world.replica("first"), world.replica("second")
    await first.given_pool(1)
    await first.fill()
    request = a_request()
    with arming(f"{point}=error"):
        result = await asyncio.gather(first.manager.create(request, NewSandbox(), timeout=SOON), return_exceptions=True)
        await first.manager.claims.drain()
    assert isinstance(result[0], FailpointError) is (point == "claim.after_commit")
    world.units.dead_replicas.add("first")

    for _ in range(3):
        await second.refill.look()
        await second.refill.settle()
        await second.manager.claims.drain()

    sandbox = await second.manager.create(request, NewSandbox(), timeout=SOON)
    assert world.backend.owners[sandbox.id] == sandbox.freelancer
    assert all(member.sandbox != sandbox.id for member in await second.members())


async def test_members_are_no_orphans_to_the_recovery() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(2)
    await replica.fill()

    orphans = await replica.manager.recovery.inspect()

    assert orphans.sandboxes == frozenset()


async def test_members_are_kept_supplied_with_tokens_that_name_no_freelancer() -> None:
    world = World()
    replica = world.replica()
    await replica.given_pool(2)
    await replica.fill()

    assert await replica.core.token_keeper.renew_all() == 2


async def test_numbers_that_do_not_go_together_are_refused() -> None:
    world = World()
    replica = world.replica()

    with pytest.raises(InvalidRequestError):
        await replica.pools.create(a_request(), Tier.BASIC, PoolWish(min=5, target=3, max=4), encode=lambda _: b"")
    with pytest.raises(QuotaExceededError):
        await replica.pools.create(a_request(), Tier.BASIC, PoolWish(target=5001), encode=lambda _: b"")


async def test_clients_take_turns_where_starts_are_short_and_waiting_has_an_end() -> None:
    world = World()
    starts = StartLimits(
        total=2, per_client=1, max_waiting=3, max_waiting_per_client=2, patience=timedelta(milliseconds=300)
    )
    replica = world.replica(starts=starts)
    world.backend.hanging = asyncio.Event()
    greedy, modest = a_caller(client="greedy"), a_caller(client="modest")

    def creating(caller: object) -> asyncio.Task[object]:
        return asyncio.create_task(replica.manager.create(a_request(caller), NewSandbox(), timeout=SOON))  # type: ignore[arg-type]

    first = [creating(greedy) for _ in range(3)]
    await eventually(lambda: replica.refill.cold.waiting == 2)
    assert replica.refill.cold.running == 1
    with pytest.raises(CapacityError) as full:
        await creating(greedy)
    late = creating(modest)
    await eventually(lambda: replica.refill.cold.running == 2)

    assert full.value.retry_after is not None
    results = await asyncio.gather(*first[1:], return_exceptions=True)
    assert all(isinstance(result, CapacityError) for result in results)
    assert len(world.units.rows.sandboxes) == 2  # what was refused has left nothing
    world.backend.hanging.set()
    await asyncio.gather(first[0], late)
    await eventually(lambda: replica.refill.cold.running == 0)


def members_of(states: Sequence[tuple[MemberState, bool]]) -> list[Member]:
    return [a_member(state, recipe="new" if fresh else "old") for state, fresh in states]


@settings(max_examples=300)
@given(
    least=st.integers(0, 5),
    more=st.integers(0, 5),
    spare=st.integers(0, 4),
    states=st.lists(st.tuples(st.sampled_from(MemberState), st.booleans()), max_size=12),
    may_act=st.booleans(),
)
def test_a_plan_never_goes_beyond_the_maximum_and_never_ends_what_was_claimed(
    least: int, more: int, spare: int, states: list[tuple[MemberState, bool]], may_act: bool
) -> None:
    pool = a_pool(least=least, target=least + more, most=least + more + spare)
    members = members_of(states)

    plan = plan_pool(pool, members, recipe="new", may_act=may_act, at=NOON)

    unclaimed = [member for member in members if member.state is not M.CLAIMED]
    assert plan.make == 0 or len(unclaimed) + plan.make <= pool.size.max
    ended = [member for member, _ in plan.end]
    assert all(member.state in (M.STARTING, M.READY) for member in ended)
    assert len({member.sandbox for member in ended}) == len(ended)


@settings(max_examples=300, deadline=None)
@given(
    target=st.integers(0, 4),
    spare=st.integers(0, 2),
    states=st.lists(st.tuples(st.sampled_from([M.STARTING, M.READY]), st.booleans()), max_size=8),
)
def test_following_the_plan_ends_with_as_many_fresh_members_as_are_wanted(
    target: int, spare: int, states: list[tuple[MemberState, bool]]
) -> None:
    pool = a_pool(target=target, most=target + spare)
    members = members_of(states)

    for _ in range(40):
        plan = plan_pool(pool, members, recipe="new", may_act=True, at=NOON)
        gone = {member.sandbox for member, _ in plan.end}
        members = [member for member in members if member.sandbox not in gone]
        members += [a_member() for _ in range(plan.make)]
        members = [a_member(recipe=one.recipe) if one.state is M.STARTING else one for one in members]

    assert len(members) == target
    assert all(member.recipe == "new" for member in members)


def test_the_oldest_members_go_first_and_with_their_reason() -> None:
    old, stale = a_member(age=timedelta(hours=30)), a_member(recipe="other")
    pool = a_pool(target=2, most=4)

    plan = plan_pool(pool, [old, stale, a_member(), a_member()], recipe="new", may_act=True, at=NOON)

    assert plan.make == 0
    assert list(plan.end) == [(old, EndReason.OLD), (stale, EndReason.STALE)]


def test_no_freelancer_can_have_the_name_that_members_have() -> None:
    assert not is_name(POOLED)
    assert FreelancerId(POOLED) == "POOL"


@pytest.mark.parametrize("took", [0.0, 0.004, 0.1, 0.5])
def test_looks_take_a_fifth_of_the_time_at_most_however_often_they_are_asked_for(took: float) -> None:
    assert took == pytest.approx((took + rest_after(took)) / 5)
    assert rest_after(3600) == LONGEST_REST, (
        "a look that hung on a database that was away is no reason to wait for long"
    )

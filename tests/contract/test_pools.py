"""What the rows of pools promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.manager.pool_ports import Claim
from sandboxd.model.client import Client
from sandboxd.model.ids import ClientId, IncarnationId, SandboxId
from sandboxd.model.pool import TEMPLATE, EndReason, Member, MemberState, Pool, PoolId, PoolSize
from sandboxd.model.pool_errors import PoolExistsError, PoolNotFoundError, StalePoolEtagError
from sandboxd.model.sandbox import AgentEndpoint, Tier
from sandboxd.model.startup import MissReason
from tests.contract.units_world import UnitsWorld, an_id

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
CLIENT = ClientId("acme")
ENDPOINT = AgentEndpoint(host="127.0.0.1", port=7443, server_name="agent.test")
SHORT = timedelta(milliseconds=200)


async def given_pool(world: UnitsWorld, *, client: str = CLIENT, target: int = 3) -> Pool:
    pool = Pool(
        id=PoolId(an_id("pol")),
        client=ClientId(client),
        size=PoolSize(min=0, target=target, max=target),
        create_time=NOON,
        update_time=NOON,
        use_time=NOON,
    )
    async with world.units.begin() as work:
        if await work.clients.find(pool.client) is None:
            await work.clients.add(Client(id=pool.client, create_time=NOON, update_time=NOON))
        await work.pools.add(pool)
        await work.commit()
    return pool


async def given_member(world: UnitsWorld, pool: Pool, *, replica: str = "one", ready: bool = True) -> Member:
    member = Member(
        sandbox=SandboxId(an_id("sbx")),
        incarnation=IncarnationId(an_id("inc")),
        pool=pool.id,
        client=pool.client,
        tier=pool.tier,
        recipe="a recipe",
        replica=replica,
        start_time=NOON,
    )
    async with world.units.begin() as work:
        await work.pools.add_member(member)
        if ready:
            assert await work.pools.ready(member.sandbox, ENDPOINT, replica=replica, at=NOON)
        await work.commit()
    return replace(member, state=MemberState.READY, endpoint=ENDPOINT, ready_time=NOON) if ready else member


async def claim(world: UnitsWorld, *, client: str = CLIENT, tier: Tier = Tier.BASIC, replica: str = "one") -> Claim:
    async with world.units.begin() as work:
        found = await work.pools.claim(ClientId(client), TEMPLATE, tier, replica=replica, at=NOON)
        await work.commit()
    return found


async def state(world: UnitsWorld, member: Member) -> MemberState | None:
    async with world.units.begin() as work:
        found = (await work.pools.known([member.sandbox])).get(member.sandbox)
    return found.state if found else None


async def test_a_member_is_claimed_with_all_that_it_is(world: UnitsWorld) -> None:
    pool = await given_pool(world)
    member = await given_member(world, pool)

    found = await claim(world)

    assert found == Claim(pool=pool.id, member=replace(member, state=MemberState.CLAIMED))


async def test_members_of_ones_own_replica_are_claimed_first(world: UnitsWorld) -> None:
    pool = await given_pool(world)
    others = await given_member(world, pool, replica="two")
    own = await given_member(world, pool, replica="one")

    taken = [await claim(world, replica="one") for _ in range(2)]

    assert [found.member and found.member.sandbox for found in taken] == [own.sandbox, others.sandbox]


async def test_a_miss_has_its_reason(world: UnitsWorld) -> None:
    pool = await given_pool(world)

    assert (await claim(world, client="other")).miss is MissReason.NO_POOL
    assert (await claim(world, tier=Tier.PREMIUM)).miss is MissReason.NO_POOL
    assert await claim(world) == Claim(pool=pool.id, miss=MissReason.POOL_EMPTY)

    await given_member(world, pool, ready=False)
    assert (await claim(world)).miss is MissReason.POOL_FILLING

    async with world.units.begin() as work:
        await work.pools.abandon(CLIENT)
        await work.commit()
    assert (await claim(world)).miss is MissReason.POOL_OFF


async def test_what_is_not_committed_claims_nothing(world: UnitsWorld) -> None:
    pool = await given_pool(world)
    member = await given_member(world, pool)

    async with world.units.begin() as work:
        assert (await work.pools.claim(CLIENT, TEMPLATE, Tier.BASIC, replica="one", at=NOON)).member is not None

    assert await state(world, member) is MemberState.READY


async def test_claims_at_once_take_each_member_once(world: UnitsWorld) -> None:
    pool = await given_pool(world)
    members = {(await given_member(world, pool, replica=f"{number % 2}")).sandbox for number in range(6)}

    found = await asyncio.gather(*(claim(world, replica=f"{number % 2}") for number in range(10)))

    taken = [one.member.sandbox for one in found if one.member is not None]
    assert len(taken) == len(set(taken))
    # Who found all members about to be taken by others has missed, and not waited; here everybody commits.
    assert set(taken) <= members


async def test_what_is_claimed_cannot_be_ended_and_what_is_ending_cannot_be_claimed(world: UnitsWorld) -> None:
    pool = await given_pool(world)
    first, second = await given_member(world, pool), await given_member(world, pool)
    taken = (await claim(world)).member
    assert taken is not None

    async with world.units.begin() as work:
        ended = await work.pools.end([first.sandbox, second.sandbox], EndReason.SHRUNK)
        await work.commit()

    assert set(ended) == {first.sandbox, second.sandbox} - {taken.sandbox}
    assert (await claim(world)).miss is MissReason.POOL_EMPTY


async def test_a_member_is_forgotten_only_in_the_state_that_it_should_be_in(world: UnitsWorld) -> None:
    pool = await given_pool(world)
    member = await given_member(world, pool)

    async with world.units.begin() as work:
        await work.pools.adopted(member.sandbox)
        await work.pools.remove_member(member.sandbox)
        assert not await work.pools.ready(member.sandbox, ENDPOINT, replica="one", at=NOON)
        await work.commit()
    assert await state(world, member) is MemberState.READY

    await claim(world)
    async with world.units.begin() as work:
        await work.pools.adopted(member.sandbox)
        await work.commit()
    assert await state(world, member) is None


async def test_a_pool_goes_when_it_is_being_deleted_and_empty(world: UnitsWorld) -> None:
    pool = await given_pool(world)
    member = await given_member(world, pool)

    async with world.units.begin() as work:
        assert not await work.pools.remove(pool.id)
        await work.pools.save(replace(pool, deleting=True, version=2))
        assert not await work.pools.remove(pool.id)
        await work.pools.end([member.sandbox], EndReason.SHRUNK)
        await work.pools.remove_member(member.sandbox)
        assert await work.pools.remove(pool.id)
        await work.commit()

    async with world.units.begin() as work:
        with pytest.raises(PoolNotFoundError):
            await work.pools.get(pool.id, client=CLIENT)


async def test_there_is_one_pool_for_each_client_template_and_tier(world: UnitsWorld) -> None:
    pool = await given_pool(world)

    with pytest.raises(PoolExistsError) as caught:
        await given_pool(world)
    assert caught.value.metadata["pool"] == pool.id

    other = await given_pool(world, client="other")
    async with world.units.begin() as work:
        with pytest.raises(PoolNotFoundError):
            await work.pools.get(other.id, client=CLIENT)
        with pytest.raises(StalePoolEtagError):
            await work.pools.save(replace(pool, version=7))
        assert await work.pools.total(CLIENT) == 3
        assert await work.pools.total(CLIENT, but=pool.id) == 0


async def test_one_replica_refills_until_it_dies_or_stands_still(world: UnitsWorld) -> None:
    await world.given_replica("one")
    await world.given_replica("two")

    async def lead(replica: str) -> bool:
        async with world.units.begin() as work:
            has = await work.pools.lead(replica, lease=timedelta(seconds=30) if replica == "one" else SHORT)
            await work.commit()
        return has

    assert await lead("one")
    assert await lead("one")
    assert not await lead("two")

    await world.kill_replica("one")
    assert await lead("two")

    await world.pass_time(SHORT.total_seconds() * 2)
    await world.given_replica("three")
    assert await lead("three")

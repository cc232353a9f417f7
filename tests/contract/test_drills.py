"""What the rows of restore drills promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sandboxd.model.backup import BackupSet, BackupSetId, SnapshotId, Volume, VolumeSnapshot
from sandboxd.model.client import AccountState
from sandboxd.model.drill import (
    Drill,
    DrilledVolume,
    DrillId,
    DrillInProgressError,
    DrillNotFoundError,
    DrillStatus,
    DrillTrigger,
)
from sandboxd.model.errors import ConflictError, UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId
from tests.contract.units_world import UnitsWorld, an_id, given_sandbox

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
ACME, OTHER = ClientId("acme"), ClientId("other")
S = DrillStatus


def minutes(number: int) -> datetime:
    return NOON + timedelta(minutes=number)


def a_drill(*, at: datetime = NOON, sandbox: str = "sbx-1", client: ClientId = ACME, **changes: Any) -> Drill:
    made = Drill(
        id=DrillId(an_id("drl")),
        backup=BackupSetId(an_id("bak")),
        sandbox=SandboxId(sandbox),
        client=client,
        freelancer=FreelancerId("ada"),
        trigger=DrillTrigger.SCHEDULE,
        create_time=at,
        update_time=at,
    )
    return replace(made, **changes)


def ended(drill: Drill, status: DrillStatus = S.PASSED) -> Drill:
    volume = DrilledVolume(
        volume=Volume.HOME,
        entries=3,
        bytes=5,
        expected="a" * 64,
        found="b" * 64,
        differences=("odd \x00 \udcff name differs",),
        difference_count=1,
    )
    error = None if status is S.PASSED else UnavailableError("No room.")
    return drill.end(
        status,
        at=drill.create_time + timedelta(minutes=1),
        error=error,
        volumes=[volume],
        seconds={"restore": 1.5},
        image="registry.test/acme@sha256:1",
    )


async def begun(world: UnitsWorld, drill: Drill) -> Drill:
    async with world.units.begin() as work:
        await work.drills.begin(drill)
        await work.commit()
    return drill


async def done(world: UnitsWorld, drill: Drill, status: DrillStatus = S.PASSED) -> Drill:
    await begun(world, drill)
    over = ended(drill, status)
    async with world.units.begin() as work:
        await work.drills.save(over)
        await work.commit()
    return over


async def a_set(
    world: UnitsWorld, client: ClientId, *, sandbox: SandboxId | None = None, at: datetime = NOON, size: int = 10
) -> BackupSet:
    if sandbox is None:
        sandbox = (await given_sandbox(world, client=client)).id
    made = BackupSet(
        id=BackupSetId(an_id("bak")),
        sandbox=sandbox,
        client=client,
        freelancer=FreelancerId("ada"),
        take_time=at,
        create_time=at,
        update_time=at,
    )
    volumes = [
        VolumeSnapshot(
            volume=one, snapshot=SnapshotId("0" * 64), tree="1" * 64, files=1, bytes=size // 2, added_bytes=1
        )
        for one in Volume
    ]
    whole = made.complete(volumes, at=at)
    async with world.units.begin() as work:
        await work.backup_sets.begin(made)
        await work.backup_sets.save(whole)
        await work.commit()
    return whole


async def picked(world: UnitsWorld, *, most: int = 1000) -> BackupSetId | None:
    async with world.units.begin() as work:
        return await work.drills.pick(most_bytes=most)


async def test_a_drill_is_kept_as_it_ends(world: UnitsWorld) -> None:
    drill = await begun(world, a_drill(request_id=RequestId("a-request"), trigger=DrillTrigger.REQUEST))
    async with world.units.begin() as work:
        assert await work.drills.get(drill.id) == drill
        assert await work.drills.unfinished() == [drill]
        assert await work.drills.asked_for(RequestId("a-request")) == drill
        assert await work.drills.asked_for(RequestId("another-one")) is None

    over = ended(drill, S.FAILED)
    async with world.units.begin() as work:
        await work.drills.save(over)
        with pytest.raises(ConflictError):
            await work.drills.save(over)
        await work.commit()

    async with world.units.begin() as work:
        found = await work.drills.get(drill.id, for_update=True)
        assert await work.drills.unfinished() == []
        with pytest.raises(DrillNotFoundError):
            await work.drills.get(DrillId("drl-none"))
    assert (found.status, found.failure, found.seconds, found.end_time) == (
        S.FAILED,
        "UNAVAILABLE",
        {"restore": 1.5},
        over.end_time,
    )
    assert found.volumes == over.volumes


async def test_one_runs_at_a_time(world: UnitsWorld) -> None:
    first = await begun(world, a_drill())
    with pytest.raises(DrillInProgressError):
        await begun(world, a_drill(client=OTHER))
    async with world.units.begin() as work:
        await work.drills.save(ended(first))
        await work.commit()

    await begun(world, a_drill())


async def test_a_wish_for_an_end_stays_beside_what_is_written(world: UnitsWorld) -> None:
    drill = await begun(world, a_drill())
    async with world.units.begin() as work:
        assert await work.drills.cancel(OTHER, None) == 0
        assert await work.drills.cancel(ACME, FreelancerId("bob")) == 0
        assert await work.drills.cancel(ACME, FreelancerId("ada")) == 1
        await work.drills.save(replace(drill, attempts=2, version=2))
        await work.commit()

    async with world.units.begin() as work:
        found = await work.drills.get(drill.id)
    assert (found.cancelled, found.attempts) == (True, 2)


async def test_they_are_listed_of_a_client_or_of_all_and_forgotten(world: UnitsWorld) -> None:
    first = await done(world, a_drill(at=minutes(1)), S.ABANDONED)
    second = await done(world, a_drill(at=minutes(2), client=OTHER))
    third = await done(world, a_drill(at=minutes(3)))

    async with world.units.begin() as work:
        page = await work.drills.list(None, page_size=2, page_token="")
        rest = await work.drills.list(None, page_size=2, page_token=page.next_token)
        own = await work.drills.list(ACME, page_size=10, page_token="")
        newest = await work.drills.newest()
        since = await work.drills.proven_since()
        assert await work.drills.forget(before=minutes(3), limit=10) == 1
        left = await work.drills.list(None, page_size=10, page_token="")
    assert [one.id for one in (*page.items, *rest.items)] == [third.id, second.id, first.id]
    assert [one.id for one in own.items] == [third.id, first.id]
    assert newest is not None
    assert (newest.id, since) == (third.id, minutes(3))
    assert [one.id for one in left.items] == [third.id, second.id]


async def test_nothing_was_proven_since_the_first_of_all_where_none_passed(world: UnitsWorld) -> None:
    async with world.units.begin() as work:
        assert await work.drills.proven_since() is None
        assert await work.drills.newest() is None
    await done(world, a_drill(at=minutes(1)), S.ABANDONED)
    await done(world, a_drill(at=minutes(2)), S.FAILED)

    async with world.units.begin() as work:
        assert await work.drills.proven_since() == minutes(1)


async def test_the_turn_is_the_clients_and_of_it_the_sandboxs_that_waits_longest(world: UnitsWorld) -> None:
    assert await picked(world) is None
    old = await a_set(world, ACME, at=minutes(1))
    new = await a_set(world, ACME, sandbox=old.sandbox, at=minutes(2))
    beside = await a_set(world, ACME, at=minutes(3))
    other = await a_set(world, OTHER, at=minutes(0))
    large = await a_set(world, OTHER, at=minutes(9), size=5000)
    turns = []
    for number in range(4):
        backup = await picked(world)
        turns.append(backup)
        of = next(one for one in (new, beside, other) if one.id == backup)
        await done(world, a_drill(at=minutes(20 + number), sandbox=of.sandbox, client=of.client))

    assert turns == [beside.id, other.id, new.id, other.id]
    assert await picked(world, most=10_000) != large.id, "its client had the last turn"
    async with world.units.begin() as work:
        client = await work.clients.get(ACME, for_update=True)
        await work.clients.save(client.enter(AccountState.DELETING, at=minutes(40)))
        await work.commit()
    assert await picked(world) == other.id

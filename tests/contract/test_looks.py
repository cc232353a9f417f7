"""What the sweep's looks promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sandboxd.manager.lifecycle_ports import RESTING, Announced, Look, Noted
from sandboxd.model.client import ClientPolicy
from sandboxd.model.idleness import Reading
from sandboxd.model.ids import IncarnationId
from sandboxd.model.lifecycle import NEVER, LifecycleOverrides, LifecycleStep
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.contract.test_unit_of_work import NOON, a_life, a_sandbox, given
from tests.contract.units_world import UnitsWorld

HOUR = timedelta(hours=1)
LOOK = Look(
    announced=Announced(step=LifecycleStep.STOP, time=NOON + HOUR, since=NOON - HOUR),
    reading=Reading(incarnation=IncarnationId("inc-7"), time=NOON, cpu_time=timedelta(seconds=12.25)),
    failures=3,
    hindrance="ROOT_UNKNOWN",
)


async def note(world: UnitsWorld, sandbox: Sandbox, look: Look = LOOK, *, later: timedelta = HOUR) -> None:
    noted = Noted(
        sandbox=sandbox.id,
        version=sandbox.version,
        dirty_since=sandbox.dirty_since,
        look=look,
        look_time=NOON + later,
    )
    async with world.units.begin() as work:
        await work.looks.note([noted])
        await work.commit()


async def due(world: UnitsWorld, *, at: timedelta = timedelta(0), limit: int = 10) -> list[Sandbox]:
    async with world.units.begin() as work:
        return [one.sandbox for one in await work.looks.due(at=NOON + at, limit=limit)]


async def ready(world: UnitsWorld, *sandboxes: Sandbox) -> None:
    """Sandboxes that have just changed: a look is wanted."""
    await given(world, *sandboxes)
    async with world.units.begin() as work:
        for sandbox in sandboxes:
            await work.sandboxes.save(replace(sandbox, version=2))
        await work.commit()


async def test_only_sandboxes_at_rest_are_candidates(world: UnitsWorld) -> None:
    sandboxes = [a_sandbox(state=state) for state in SandboxState]
    await ready(world, *sandboxes)

    found = await due(world, limit=99)

    assert {one.state for one in found} == RESTING


async def test_a_look_is_kept_as_it_was_noted(world: UnitsWorld) -> None:
    sandbox = replace(a_sandbox(), version=2)
    await ready(world, replace(sandbox, version=1))
    await note(world, sandbox)

    async with world.units.begin() as work:
        (found,) = await work.looks.every(limit=10)

    assert found.look == LOOK
    assert found.sandbox == sandbox


async def test_what_was_noted_is_looked_at_again_at_its_time_and_a_change_asks_for_a_look_at_once(
    world: UnitsWorld,
) -> None:
    sandbox = replace(a_sandbox(), version=2)
    await ready(world, replace(sandbox, version=1))
    await note(world, sandbox)
    assert await due(world) == []
    assert await due(world, at=HOUR) == [sandbox]

    changed = replace(sandbox, version=3)
    async with world.units.begin() as work:
        await work.sandboxes.save(changed)
        await work.commit()

    assert await due(world) == [changed]


async def test_an_install_asks_for_a_look_at_once_and_a_look_from_before_it_does_not_take_that_back(
    world: UnitsWorld,
) -> None:
    sandbox = replace(a_sandbox(), version=2)
    life = a_life(sandbox)
    await ready(world, replace(sandbox, version=1))
    async with world.units.begin() as work:
        await work.incarnations.add(life)
        await work.commit()
    await note(world, sandbox)
    assert await due(world) == []

    async with world.units.begin() as work:
        record = await work.packages.hold(sandbox.id, life.id)
        await work.packages.save(replace(record, dirty_since=NOON), [])
        await work.commit()
    await note(world, sandbox)
    (found,) = await due(world)
    await note(world, found)

    assert found.dirty_since == NOON
    assert await due(world) == []


async def test_a_note_about_an_older_version_does_not_put_the_next_look_off(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await ready(world, sandbox)

    await note(world, sandbox)

    assert [one.id for one in await due(world)] == [sandbox.id]


async def test_a_use_leaves_the_time_of_the_next_look_alone(world: UnitsWorld) -> None:
    sandbox = replace(a_sandbox(), version=2)
    await ready(world, replace(sandbox, version=1))
    await note(world, sandbox)

    async with world.units.begin() as work:
        await work.sandboxes.touch(sandbox.id, at=NOON + timedelta(minutes=1))
        await work.commit()

    assert await due(world) == []


async def test_the_longest_overdue_comes_first_and_no_more_than_asked_for(world: UnitsWorld) -> None:
    sandboxes = [a_sandbox() for _ in range(3)]
    await ready(world, *sandboxes)
    for minutes, sandbox in zip((3, 1, 2), sandboxes, strict=True):
        await note(world, replace(sandbox, version=2), later=timedelta(minutes=minutes))

    found = await due(world, at=HOUR, limit=2)

    assert [one.id for one in found] == [sandboxes[1].id, sandboxes[2].id]


async def test_all_candidates_come_by_id_page_by_page(world: UnitsWorld) -> None:
    sandboxes = [a_sandbox() for _ in range(5)]
    await ready(world, *sandboxes)

    async with world.units.begin() as work:
        first = await work.looks.every(limit=3)
        second = await work.looks.every(limit=3, after=first[-1].sandbox.id)

    assert [one.sandbox.id for one in [*first, *second]] == sorted(one.id for one in sandboxes)


async def test_candidates_bring_the_wishes_of_their_client_and_its_change_asks_for_looks(world: UnitsWorld) -> None:
    sandbox = replace(a_sandbox(), version=2)
    await ready(world, replace(sandbox, version=1))
    await note(world, sandbox)
    wishes = LifecycleOverrides(stop_after=NEVER)

    async with world.units.begin() as work:
        client = await work.clients.get(sandbox.client, for_update=True)
        policy = ClientPolicy(lifecycle=wishes)
        await work.clients.save(replace(client, policy=policy, version=client.version + 1))
        await work.looks.hasten(sandbox.client, at=NOON)
        await work.commit()

    async with world.units.begin() as work:
        (found,) = await work.looks.due(at=NOON, limit=10)
    assert found.wishes == wishes


async def test_a_sandbox_that_somebody_holds_is_left_out_of_the_note_and_nobody_waits(
    postgres_units_world: UnitsWorld,
) -> None:
    world = postgres_units_world  # the fake's writers wait for each other as if every row were one
    held, free = replace(a_sandbox(), version=2), replace(a_sandbox(), version=2)
    await ready(world, replace(held, version=1), replace(free, version=1))

    async with world.units.begin() as other:
        await other.sandboxes.get(held.id, for_update=True)
        async with world.units.begin() as work:
            noted = [Noted(sandbox=one.id, version=2, look=LOOK, look_time=NOON + HOUR) for one in (held, free)]
            await work.looks.note(noted)
            await work.commit()

    assert await due(world) == [held]

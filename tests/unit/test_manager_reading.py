"""List and watch: what a caller sees, and that a watcher misses nothing."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sandboxd.manager.changes import MAX_PENDING, ChangeFeed
from sandboxd.manager.creation import NewSandbox
from sandboxd.manager.editing import SandboxEdit
from sandboxd.manager.reading import ChangeKind, Reading, SandboxChange, Selection
from sandboxd.model.caller import Role
from sandboxd.model.ids import FreelancerId, SandboxId
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.manager_world import SOON, ManagerWorld, a_caller, a_request

S = SandboxState
ADA = a_caller(subject="ada", role=Role.FREELANCER)
BOB = a_caller(subject="bob", role=Role.FREELANCER)


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld()


async def next_change(changes: AsyncIterator[SandboxChange]) -> tuple[ChangeKind, Sandbox | None]:
    change = await anext(changes)
    return change.kind, change.sandbox


async def test_a_freelancer_lists_its_own_sandboxes_only(world: ManagerWorld) -> None:
    mine = await world.given_active(ADA)
    other = await world.given_active(BOB)

    assert list((await world.manager.list(ADA, Selection())).items) == [mine]
    assert list((await world.manager.list(ADA, Selection(freelancer=FreelancerId("bob")))).items) == []
    assert list((await world.manager.list(a_caller(), Selection())).items) == [mine, other]
    assert list((await world.manager.list(a_caller(client="other"), Selection())).items) == []


async def test_a_page_has_fifty_unless_asked_for_another_number(world: ManagerWorld) -> None:
    first = await world.given_active()
    for _ in range(59):
        copy = replace(first, id=SandboxId(world.ids.new("sbx")))
        world.units.rows.sandboxes[copy.id] = copy

    assert len((await world.manager.list(a_caller(), Selection())).items) == 50
    assert len((await world.manager.list(a_caller(), Selection(), page_size=3)).items) == 3
    assert len((await world.manager.list(a_caller(), Selection(), page_size=99999)).items) == 60


async def test_a_watcher_gets_what_is_there_then_every_change(world: ManagerWorld) -> None:
    there = await world.given_active()
    changes = world.manager.watch(a_caller(), Selection())

    assert await next_change(changes) == (ChangeKind.PRESENT, there)
    assert await next_change(changes) == (ChangeKind.SYNCED, None)
    edited = await world.manager.update(a_request(), there.id, SandboxEdit(display_name="x"), timeout=SOON)
    assert await next_change(changes) == (ChangeKind.UPDATED, edited)
    ended = (await world.manager.terminate(a_request(), there.id, timeout=SOON)).sandbox
    assert await next_change(changes) == (ChangeKind.REMOVED, ended)


async def test_a_watcher_is_told_when_something_becomes_unsaved_and_when_it_is_saved(world: ManagerWorld) -> None:
    there = await world.given_active()
    (life,) = world.lives(there.id)
    changes = world.manager.watch(a_caller(), Selection())
    await next_change(changes)
    await next_change(changes)

    async with world.units.begin() as work:
        record = await work.packages.hold(there.id, life.id)
        await work.packages.save(
            replace(record, dirty_since=world.clock.now(), other_unsaved_time=world.clock.now()), []
        )
        await work.commit()
    await world.core.changes.announce(there.id)
    _, dirty = await next_change(changes)
    await world.core.package_keeping.mark_saved(there.id, life.id, captured_at=world.clock.now())
    _, clean = await next_change(changes)

    assert dirty is not None
    assert (dirty.dirty_since, dirty.version) == (world.clock.now(), there.version)
    assert clean == there


async def test_a_watcher_sees_a_new_sandbox_and_not_those_of_others(world: ManagerWorld) -> None:
    changes = world.manager.watch(ADA, Selection())
    await next_change(changes)

    await world.given_active(BOB)
    mine = await world.given_active(ADA)

    assert await next_change(changes) == (ChangeKind.UPDATED, mine)


async def test_a_watcher_of_a_state_is_told_when_it_is_left(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    changes = world.manager.watch(a_caller(), Selection(states=frozenset({S.ACTIVE})))
    assert await next_change(changes) == (ChangeKind.PRESENT, sandbox)
    await next_change(changes)

    paused = await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    assert await next_change(changes) == (ChangeKind.REMOVED, paused)


async def test_a_watcher_finds_a_change_whose_hint_was_lost(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    reading = Reading(units=world.units, changes=world.core.changes, rescan_seconds=0.01)
    changes = reading.watch(a_caller(), Selection())
    await next_change(changes)
    await next_change(changes)

    silent = replace(sandbox, display_name="x", version=sandbox.version + 1)
    world.units.rows.sandboxes[sandbox.id] = silent

    assert await next_change(changes) == (ChangeKind.UPDATED, silent)


async def test_a_use_is_no_change_for_a_watcher(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    changes = world.manager.watch(a_caller(), Selection())
    await next_change(changes)
    await next_change(changes)
    world.clock.advance(60)

    await world.use.touch(sandbox.id)
    await world.core.changes.announce(sandbox.id)
    other = await world.given_active(wish=NewSandbox(display_name="other"))

    assert await next_change(changes) == (ChangeKind.UPDATED, other)


async def test_a_feed_that_overflows_says_look_at_everything() -> None:
    feed = ChangeFeed()
    for number in range(MAX_PENDING + 1):
        feed.add(SandboxId(f"sbx-{number}"))

    assert await feed.take(timeout=1) is None
    feed.add(SandboxId("sbx-a"))
    assert await feed.take(timeout=1) == frozenset({SandboxId("sbx-a")})
    assert await feed.take(timeout=0.01) is None

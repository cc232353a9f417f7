"""Nothing is released before it is kept: pause, terminate and the sweep commit first; a broken image is not started."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.manager.image_ports import QUIET
from sandboxd.manager.lifecycle_ports import Root
from sandboxd.manager.saving import FIRST_DELAY
from sandboxd.model.commit_errors import RootNotSavedError
from sandboxd.model.errors import DeadlineError, OpenTurnsError, SandboxdError, UnavailableError
from sandboxd.model.failpoints import FailpointError, arming
from sandboxd.model.image import CommitTrigger, Generation, GenerationStatus
from sandboxd.model.image_errors import ImageBrokenError, ImageTooLargeError
from sandboxd.model.lifecycle import NEVER, LifecycleOverrides
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.eventually import eventually
from tests.manager_world import NOW, SOON, ManagerWorld, a_caller, a_request

G, S = GenerationStatus, SandboxState
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld(keeps_root=False, commits=True)


def rows(world: ManagerWorld) -> list[Generation]:
    return sorted(world.units.rows.generations.values(), key=lambda row: row.number)


async def given(world: ManagerWorld, root: str = "with ripgrep") -> Sandbox:
    sandbox = await world.given_active()
    world.builder.roots[sandbox.id] = root
    return sandbox


async def commit(world: ManagerWorld, sandbox: Sandbox, root: str) -> Generation:
    world.builder.roots[sandbox.id] = root
    return (await world.manager.images.commit(a_request(), sandbox.id, timeout=SOON)).generation


async def test_pause_commits_what_was_installed_while_it_is_frozen(world: ManagerWorld) -> None:
    sandbox = await given(world)
    frozen = list[bool]()
    agent = world.backend.agent(sandbox.id)
    world.builder.looked = lambda: frozen.append(agent.frozen)

    paused = await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    resumed = await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    (row,) = rows(world)
    assert (paused.state, row.status, row.trigger) == (S.PAUSED, G.ACTIVE, CommitTrigger.PAUSE)
    assert frozen == [True]
    assert resumed.incarnation is not None
    assert world.backend.images[resumed.incarnation] == row.reference


async def test_terminate_commits_what_was_installed(world: ManagerWorld) -> None:
    sandbox = await given(world)

    settled = await world.manager.terminate(a_request(), sandbox.id, timeout=SOON)

    assert settled.sandbox.state is S.TERMINATED
    assert [(row.status, row.trigger) for row in rows(world)] == [(G.ACTIVE, CommitTrigger.TERMINATE)]
    assert settled.sandbox.image == rows(world)[0].image


@pytest.mark.parametrize("verb", ["pause", "terminate"])
async def test_what_cannot_be_kept_is_not_released_without_force(world: ManagerWorld, verb: str) -> None:
    sandbox = await given(world)
    world.builder.error = ImageTooLargeError("Too large: usr/share.", path="usr/share")

    async def end(*, force: bool) -> SandboxState:
        if verb == "pause":
            return (await world.manager.pause(a_request(), sandbox.id, force=force, timeout=SOON)).state
        return (await world.manager.terminate(a_request(), sandbox.id, force=force, timeout=SOON)).sandbox.state

    with pytest.raises(RootNotSavedError, match=r"usr/share.*force") as refused:
        await end(force=False)

    assert refused.value.metadata["cause"] == "IMAGE_TOO_LARGE"
    assert world.row(sandbox.id).state is S.HIBERNATED
    assert world.backend.running[sandbox.id]
    assert await end(force=True) in (S.PAUSED, S.TERMINATED)


async def test_a_pause_that_takes_longer_than_its_caller_waits_goes_on_with_the_same_commit(
    world: ManagerWorld,
) -> None:
    sandbox = await given(world)
    world.builder.hanging = asyncio.Event()
    request = a_request()
    with pytest.raises(DeadlineError):
        await world.core.saving.save(
            sandbox.id, trigger=CommitTrigger.PAUSE, request_id=request.request_id, timeout=NOW
        )
    world.builder.hanging.set()

    await world.manager.pause(request, sandbox.id, timeout=SOON)

    assert len(rows(world)) == len(world.builder.orders) == 1


async def test_a_commit_that_began_before_the_pause_is_not_enough(world: ManagerWorld) -> None:
    sandbox = await given(world, "without the last word")
    world.builder.hanging = asyncio.Event()
    await world.manager.images.commit(a_request(), sandbox.id, wait=False, timeout=NOW)
    await eventually(lambda: bool(world.builder.orders))
    world.clock.advance(1)
    pausing = asyncio.create_task(world.manager.pause(a_request(), sandbox.id, timeout=SOON))
    await eventually(lambda: world.row(sandbox.id).state is S.HIBERNATED)
    world.builder.hanging.set()

    assert (await pausing).state is S.PAUSED
    assert [row.trigger for row in rows(world)] == [CommitTrigger.REQUEST, CommitTrigger.PAUSE]


async def test_a_hibernated_sandbox_that_was_committed_since_is_paused_at_once(world: ManagerWorld) -> None:
    sandbox = await given(world)
    await world.manager.hibernate(sandbox.id, timeout=SOON)
    await commit(world, sandbox, "with ripgrep")

    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    assert len(rows(world)) == 1


async def test_an_open_turn_refuses_a_pause_before_anything_is_committed(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.conversations.turns[sandbox.id] = 1

    with pytest.raises(OpenTurnsError):
        await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    assert rows(world) == []

    await world.manager.pause(a_request(), sandbox.id, force=True, timeout=SOON)
    assert [row.status for row in rows(world)] == [G.ACTIVE]


async def test_what_was_rolled_back_is_given_up_at_a_pause(world: ManagerWorld) -> None:
    sandbox = await given(world)
    first = await commit(world, sandbox, "with ripgrep")
    await commit(world, sandbox, "with a mistake")
    await world.manager.images.rollback(a_request(), sandbox.id, 1)

    paused = await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    assert paused.image == first.image
    assert len(rows(world)) == 2


async def test_what_runs_is_kept_again_once_somebody_rolled_forward_to_it(world: ManagerWorld) -> None:
    sandbox = await given(world)
    for root in ("with ripgrep", "with a doubt"):
        world.clock.advance(1)
        await commit(world, sandbox, root)
    for number in (1, 2, 1, 2):
        world.clock.advance(1)
        await world.manager.images.rollback(a_request(), sandbox.id, number)
    world.builder.roots[sandbox.id] = "with certainty"

    paused = await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    assert (paused.image, len(rows(world))) == (rows(world)[-1].image, 3)


async def test_who_rolls_forward_to_another_image_than_what_runs_gives_that_up_still(world: ManagerWorld) -> None:
    sandbox = await given(world)
    for root in ("with ripgrep", "with tree", "with a mistake"):
        world.clock.advance(1)
        await commit(world, sandbox, root)
    for number in (1, 2):
        world.clock.advance(1)
        await world.manager.images.rollback(a_request(), sandbox.id, number)

    paused = await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    assert (paused.image, len(rows(world))) == (rows(world)[1].image, 3)


async def test_a_life_that_was_started_from_an_image_follows_it_also_after_back_and_forth(world: ManagerWorld) -> None:
    sandbox = await given(world)
    for root in ("with ripgrep", "with tree"):
        world.clock.advance(1)
        await commit(world, sandbox, root)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    for number in (1, 2):
        world.clock.advance(1)
        await world.manager.images.rollback(a_request(), sandbox.id, number)

    assert (await commit(world, sandbox, "with tree and more")).status is G.ACTIVE


async def test_where_a_stop_loses_nothing_nothing_is_committed() -> None:
    world = ManagerWorld(keeps_root=True, commits=True)
    sandbox = await given(world)

    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    assert rows(world) == []


async def test_the_sweep_commits_first_and_then_stops(world: ManagerWorld) -> None:
    sandbox = await given(world)
    assert await world.core.dirtiness.root_of(sandbox) is Root.COMMITTABLE

    stopped = await _swept(world, sandbox, S.STOPPED)

    (row,) = [row for row in rows(world) if row.status is not G.DISCARDED]
    assert (row.status, row.trigger) == (G.ACTIVE, CommitTrigger.STOP)
    assert stopped.image == row.image


async def test_the_sweep_keeps_what_cannot_be_committed_and_says_why(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.builder.error = ImageTooLargeError("Too large.")

    for _ in range(8):
        for seconds in (HOUR, 20):
            world.clock.advance(seconds)
            await _sweeps(world, 1)
    report = await world.manager.sweep.run(dry_run=True)

    assert world.row(sandbox.id).state is S.HIBERNATED
    assert world.backend.running[sandbox.id]
    assert world.units.rows.looks[sandbox.id].hindrance == "IMAGE_TOO_LARGE"
    assert report.failed == 0

    world.builder.error = None
    stopped = await _swept(world, sandbox, S.STOPPED)
    assert stopped.image is not None


async def test_the_sweep_waits_between_attempts(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.builder.error = UnavailableError("The registry does not answer.")
    await _swept(world, sandbox, S.HIBERNATED)
    world.clock.advance(HOUR)
    await _sweeps(world, 3)
    tried = len(rows(world))

    await _sweeps(world, 3)  # at once
    assert len(rows(world)) == tried

    world.clock.advance((4 * FIRST_DELAY).total_seconds())
    await _sweeps(world, 3)
    assert len(rows(world)) == tried + 1


async def test_who_gives_root_changes_up_is_stopped_without_a_commit(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.units.rows.sandboxes[sandbox.id] = replace(
        world.row(sandbox.id), lifecycle=LifecycleOverrides(discard_root_changes=True)
    )

    await _swept(world, sandbox, S.STOPPED)

    assert rows(world) == []


async def test_a_use_while_it_is_committed_calls_the_stop_off(world: ManagerWorld) -> None:
    sandbox = await given(world)
    await _swept(world, sandbox, S.HIBERNATED)
    world.builder.hanging = asyncio.Event()
    while not rows(world):
        world.clock.advance(120)
        await world.manager.sweep.run(everything=True)
    assert rows(world)[-1].status is G.BUILDING

    await world.use.use(sandbox.id, timeout=SOON)
    world.builder.hanging.set()
    await _quiet(world)
    await _sweeps(world, 2)

    assert world.row(sandbox.id).state is S.ACTIVE


async def test_what_was_installed_is_committed_some_minutes_later_while_it_is_idle(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.units.rows.sandboxes[sandbox.id] = replace(world.row(sandbox.id), dirty_since=world.clock.now())
    world.clock.advance(60)
    await _sweeps(world, 1)
    assert rows(world) == []

    world.clock.advance(240)
    await _sweeps(world, 2)

    assert [(row.status, row.trigger) for row in rows(world)] == [(G.ACTIVE, CommitTrigger.INSTALL)]
    assert world.row(sandbox.id).state is S.ACTIVE


async def test_an_installation_decides_how_soon_an_install_is_committed_or_never() -> None:
    soon, never = ManagerWorld(keeps_root=False, commits=True), ManagerWorld(keeps_root=False, commits=True)
    for world, quiet in ((soon, timedelta(seconds=10)), (never, None)):
        world.image_tools = replace(world.image_tools, install_quiet=quiet)
        world.core, world.manager = world.replica("first")
        sandbox = await given(world)
        world.units.rows.sandboxes[sandbox.id] = replace(world.row(sandbox.id), dirty_since=world.clock.now())
        world.clock.advance(300 if quiet is None else 20)

        await _sweeps(world, 2)

    assert [row.trigger for row in rows(soon)] == [CommitTrigger.INSTALL]
    assert rows(never) == []


async def test_an_install_that_cannot_be_committed_is_tried_again_after_a_while(world: ManagerWorld) -> None:
    sandbox = await given(world)
    long = LifecycleOverrides(hibernate_after=NEVER, stop_after=NEVER, terminate_after=NEVER)
    world.units.rows.sandboxes[sandbox.id] = replace(
        world.row(sandbox.id), dirty_since=world.clock.now(), lifecycle=long
    )
    world.builder.error = UnavailableError("The registry does not answer.")
    for _ in range(4):
        world.clock.advance(300)
        await _sweeps(world, 2)

    assert len(rows(world)) == 1
    world.clock.advance(1800)
    await _sweeps(world, 1)
    assert len(rows(world)) == 2


async def test_an_install_is_committed_in_its_own_time_where_no_step_of_policy_is_ever_due(world: ManagerWorld) -> None:
    sandbox = await given(world)
    never = LifecycleOverrides(hibernate_after=NEVER, stop_after=NEVER, terminate_after=NEVER)
    world.units.rows.sandboxes[sandbox.id] = replace(world.row(sandbox.id), lifecycle=never)
    await world.manager.sweep.run()
    assert world.units.rows.look_times[sandbox.id] > world.clock.now() + timedelta(minutes=30)

    await _install(world, sandbox)
    installed = world.clock.now()
    while not rows(world):
        assert world.clock.now() < installed + timedelta(minutes=10), world.units.rows.look_times
        world.clock.advance(10)
        await world.manager.sweep.run()
    await _quiet(world)

    assert [(row.status, row.trigger) for row in rows(world)] == [(G.ACTIVE, CommitTrigger.INSTALL)]
    assert rows(world)[0].create_time == installed + QUIET


async def test_who_uses_a_sandbox_that_never_rests_keeps_its_install_from_being_committed(world: ManagerWorld) -> None:
    sandbox = await given(world)
    never = LifecycleOverrides(hibernate_after=NEVER, stop_after=NEVER, terminate_after=NEVER)
    world.units.rows.sandboxes[sandbox.id] = replace(world.row(sandbox.id), lifecycle=never)
    await _install(world, sandbox)
    typed = world.clock.now() + timedelta(minutes=2)

    while world.clock.now() < typed + QUIET:
        world.backend.agent(sandbox.id).typed = min(typed, world.clock.now())
        world.clock.advance(10)
        await world.manager.sweep.run()
        assert rows(world) == [] or rows(world)[0].create_time >= typed + QUIET
    await _quiet(world)

    assert len(rows(world)) == 1


async def test_an_open_stream_is_told_what_was_lost(world: ManagerWorld) -> None:
    sandbox = await given(world)
    running = asyncio.create_task(world.core.announcements.run())
    told = list[tuple[str, str]]()

    async def follow() -> None:
        async for notice in world.core.announcements.follow(sandbox.id):
            told.append((notice.code, notice.message))

    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    assert sandbox.incarnation is not None
    world.backend.kill(sandbox.id, sandbox.incarnation)
    await world.core.losses.check(sandbox.id, sandbox.incarnation)

    await eventually(lambda: bool(told))
    for task in (running, following):
        task.cancel()
    ((code, message),) = told
    assert (code, "is lost" in message) == ("STATE_REASON", True)


async def test_an_image_that_does_not_boot_is_replaced_by_the_one_before_it(world: ManagerWorld) -> None:
    sandbox = await given(world)
    first = await commit(world, sandbox, "with ripgrep")
    world.clock.advance(1)
    second = await commit(world, sandbox, "without libc")
    world.backend.broken_images.add(second.reference)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    resumed = await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    assert (resumed.state, resumed.image) == (S.ACTIVE, first.image)
    assert "g000002 does not boot; it was started from g000001" in resumed.state_reason
    assert resumed.incarnation is not None
    assert world.backend.images[resumed.incarnation] == first.reference
    assert [row.status for row in rows(world)][:2] == [G.ACTIVE, G.FAILED]
    with pytest.raises(SandboxdError):
        await world.manager.images.rollback(a_request(), sandbox.id, 2)


async def test_where_the_one_before_does_not_boot_either_the_base_is_started(world: ManagerWorld) -> None:
    sandbox = await given(world)
    for root in ("one", "two", "three"):
        world.clock.advance(1)
        made = await commit(world, sandbox, root)
        world.backend.broken_images.add(made.reference)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    resumed = await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    assert (resumed.state, resumed.image) == (S.ACTIVE, None)
    assert "the base: what was installed is not there" in resumed.state_reason
    assert [row.status for row in rows(world)][:3] == [G.SUPERSEDED, G.FAILED, G.FAILED]  # one fallback, not two


async def test_a_base_that_does_not_boot_fails_the_start(world: ManagerWorld) -> None:
    sandbox = await given(world, "as the base")
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    world.backend.broken_images.add("")

    with pytest.raises(ImageBrokenError):
        await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    assert world.row(sandbox.id).state is S.FAILED


async def test_a_registry_that_is_away_moves_no_image(world: ManagerWorld) -> None:
    sandbox = await given(world)
    made = await commit(world, sandbox, "with ripgrep")
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    world.backend.error = UnavailableError("The registry does not answer.")

    with pytest.raises(UnavailableError):
        await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    assert world.row(sandbox.id).image == made.image


async def test_a_crash_after_the_fallback_goes_on_with_what_was_taken(world: ManagerWorld) -> None:
    sandbox = await given(world)
    first = await commit(world, sandbox, "with ripgrep")
    world.clock.advance(1)
    second = await commit(world, sandbox, "without libc")
    world.backend.broken_images.add(second.reference)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    with arming("start.after_fallback=error"), pytest.raises(FailpointError):
        await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    world.crash()
    _, second_replica = world.replica("second")

    await second_replica.recovery.finish_left_over()

    row = world.row(sandbox.id)
    assert (row.state, row.image) == (S.ACTIVE, first.image)
    assert "g000002 does not boot" in row.state_reason


async def test_a_life_that_ends_says_what_is_lost_since_when(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.clock.advance(60)
    await commit(world, sandbox, "with ripgrep")
    world.clock.advance(60)
    assert sandbox.incarnation is not None
    world.backend.kill(sandbox.id, sandbox.incarnation)

    await world.core.losses.check(sandbox.id, sandbox.incarnation)

    row = await world.manager.get(a_caller(), sandbox.id)
    assert "committed at 2026-11-23 12:01:00 UTC" in row.state_reason


async def test_a_life_that_ends_uncommitted_has_lost_everything_since_its_start(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.units.rows.sandboxes[sandbox.id] = replace(
        world.row(sandbox.id), dirty_since=world.clock.now(), unsaved_packages=3
    )
    assert sandbox.incarnation is not None
    world.backend.kill(sandbox.id, sandbox.incarnation)

    await world.core.losses.check(sandbox.id, sandbox.incarnation)

    reason = world.row(sandbox.id).state_reason
    assert "since 2026-11-23 12:00:00 UTC is lost, 3 packages among it" in reason


async def _install(world: ManagerWorld, sandbox: Sandbox) -> None:
    """Let the room of packages find something unsaved now."""
    assert sandbox.incarnation is not None
    async with world.units.begin() as work:
        record = await work.packages.hold(sandbox.id, sandbox.incarnation)
        await work.packages.save(replace(record, dirty_since=world.clock.now()), [])
        await work.commit()


async def _quiet(world: ManagerWorld) -> None:
    """Until nothing is committed any more."""
    commits = world.core.commits
    assert commits is not None
    await eventually(lambda: not commits.busy)


async def _sweeps(world: ManagerWorld, number: int) -> None:
    for _ in range(number):
        await world.manager.sweep.run(everything=True)
        await _quiet(world)


async def _swept(world: ManagerWorld, sandbox: Sandbox, state: SandboxState) -> Sandbox:
    """Let time pass in steps until policy has brought a sandbox so far."""
    for _ in range(300):
        await world.manager.sweep.run(everything=True)
        await _quiet(world)
        if world.row(sandbox.id).state is state:
            return world.row(sandbox.id)
        world.clock.advance(timedelta(minutes=2).total_seconds())
    raise AssertionError(f"{world.row(sandbox.id).state} and not {state}: {world.units.rows.looks}")

"""The sweep puts idle sandboxes to rest, tells before it does, and leaves alone what is used in that very moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from sandboxd.manager.sweep import PAGE, SweepReport
from sandboxd.manager.verdicts import Act
from sandboxd.model.client import Client, ClientPolicy
from sandboxd.model.errors import SandboxdError
from sandboxd.model.failpoints import arming
from sandboxd.model.ids import SandboxId
from sandboxd.model.lifecycle import NEVER, LifecycleOverrides, LifecyclePolicy, LifecycleStep, Limit
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.fakes.agent import FakeAgent
from tests.manager_world import SOON, ManagerWorld, a_request

S = SandboxState
MINUTE, HOUR = 60.0, 3600.0


def agent_of(world: ManagerWorld, sandbox: Sandbox) -> FakeAgent:
    lives = world.backend.running[sandbox.id]
    (endpoint,) = lives.values()
    return world.connector.agents[f"{endpoint.host}:{endpoint.port}"]


async def passes(world: ManagerWorld, seconds: float, *, every: float = MINUTE) -> list[SweepReport]:
    """Let time pass, and sweep as the loop does."""
    reports = []
    for _ in range(int(seconds / every)):
        world.clock.advance(every)
        reports.append(await world.manager.sweep.run())
    return reports


async def test_an_idle_sandbox_hibernates_then_stops_then_ends_each_at_its_time() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()

    seen: list[tuple[SandboxState, int]] = []
    for minute in range(1, 25 * 60):
        await passes(world, MINUTE)
        state = world.row(sandbox.id).state
        if not seen or seen[-1][0] is not state:
            seen.append((state, minute))

    assert [state for state, _ in seen] == [S.ACTIVE, S.HIBERNATED, S.STOPPED, S.TERMINATED]
    hibernated, stopped, ended = (minute for _, minute in seen[1:])
    assert 15 <= hibernated <= 17
    assert 60 <= stopped <= 62
    assert 24 * 60 <= ended <= 24 * 60 + 2
    assert world.backend.kept == {sandbox.id}


async def test_a_step_is_announced_before_it_is_taken_and_not_taken_before_it_is_due() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    await passes(world, 13 * MINUTE)
    assert sandbox.id not in world.units.rows.looks or world.units.rows.looks[sandbox.id].announced is None

    (report,) = await passes(world, MINUTE)
    announced = world.units.rows.looks[sandbox.id].announced

    assert report.announced == 1
    assert announced is not None
    assert announced.step is LifecycleStep.HIBERNATE
    assert announced.time == sandbox.last_use_time + timedelta(minutes=15)
    assert world.row(sandbox.id).state is S.ACTIVE


async def test_use_calls_an_announced_step_off() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    await passes(world, 14 * MINUTE)
    await world.use.touch(sandbox.id)

    reports = await passes(world, 2 * MINUTE)

    assert sum(report.called_off for report in reports) == 1
    assert world.units.rows.looks[sandbox.id].announced is None
    assert world.row(sandbox.id).state is S.ACTIVE


async def test_after_a_day_without_a_sweep_it_is_announced_first_and_the_strongest_step_taken() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    world.clock.advance(30 * HOUR)

    first = await world.manager.sweep.run()
    assert (first.taken, world.row(sandbox.id).state) == (0, S.ACTIVE)
    await passes(world, 3 * MINUTE)

    assert world.row(sandbox.id).state is S.TERMINATED
    assert world.backend.kept == {sandbox.id}


def busy(agent: FakeAgent, world: ManagerWorld) -> None:
    agent.cpu_time += timedelta(seconds=10)


def typing(agent: FakeAgent, world: ManagerWorld) -> None:
    agent.typed = world.clock.now()


def calling(agent: FakeAgent, world: ManagerWorld) -> None:
    agent.model_requests = 1


@pytest.mark.parametrize("use", [busy, typing, calling])
async def test_builds_input_and_model_calls_keep_a_sandbox_awake(
    use: Callable[[FakeAgent, ManagerWorld], None],
) -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    agent = agent_of(world, sandbox)

    for _ in range(40):
        use(agent, world)
        await passes(world, MINUTE)

    assert world.row(sandbox.id).state is S.ACTIVE


async def test_a_build_that_ended_between_two_prompts_is_a_use_too() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    await passes(world, 6 * MINUTE)
    agent_of(world, sandbox).cpu_time += timedelta(minutes=4)

    await passes(world, 10 * MINUTE)
    assert world.row(sandbox.id).state is S.ACTIVE
    await passes(world, 11 * MINUTE)

    assert world.row(sandbox.id).state is S.HIBERNATED


async def test_our_own_looks_are_no_use() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()

    await passes(world, 17 * MINUTE, every=5)

    assert world.row(sandbox.id).state is S.HIBERNATED
    assert agent_of(world, sandbox).asked < 40


async def test_a_frozen_agent_is_not_asked() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    await passes(world, 17 * MINUTE)
    agent = agent_of(world, sandbox)
    asked = agent.asked

    await passes(world, 30 * MINUTE)

    assert (world.row(sandbox.id).state, agent.asked) == (S.HIBERNATED, asked)


async def test_an_open_turn_keeps_a_sandbox_awake_and_so_does_keep_awake_until() -> None:
    world = ManagerWorld()
    working, kept = await world.given_active(), await world.given_active()
    world.conversations.turns[working.id] = 1
    world.units.rows.sandboxes[kept.id] = replace(
        world.row(kept.id), keep_awake_until=world.clock.now() + timedelta(hours=2)
    )

    await passes(world, 2 * HOUR)

    assert world.row(working.id).state is S.ACTIVE
    assert world.row(kept.id).state is S.ACTIVE


async def test_limits_of_the_client_and_of_the_sandbox_hold() -> None:
    world = ManagerWorld()
    quick, slow = await world.given_active(), await world.given_active()
    rows = world.units.rows
    client = rows.clients.get(quick.client) or Client(
        id=quick.client, create_time=world.clock.now(), update_time=world.clock.now()
    )
    wishes = LifecycleOverrides(hibernate_after=Limit(after=timedelta(minutes=3)))
    rows.clients[quick.client] = replace(client, policy=ClientPolicy(lifecycle=wishes))
    rows.sandboxes[slow.id] = replace(rows.sandboxes[slow.id], lifecycle=LifecycleOverrides(hibernate_after=NEVER))

    await passes(world, 6 * MINUTE)

    assert world.row(quick.id).state is S.HIBERNATED
    assert world.row(slow.id).state is S.ACTIVE


async def test_what_a_stop_would_lose_stays_hibernated_until_its_owner_says_otherwise() -> None:
    world = ManagerWorld(keeps_root=False)
    sandbox, careless = await world.given_active(), await world.given_active()
    world.units.rows.sandboxes[careless.id] = replace(
        world.row(careless.id), lifecycle=LifecycleOverrides(discard_root_changes=True)
    )

    await passes(world, 26 * HOUR, every=10 * MINUTE)
    report = await world.manager.sweep.run(dry_run=True)

    assert world.row(sandbox.id).state is S.HIBERNATED
    assert [plan.hindrance for plan in report.plans if plan.sandbox == sandbox.id] == ["ROOT_UNKNOWN"]
    assert world.row(careless.id).state is S.TERMINATED


async def test_what_is_known_to_be_unsaved_hinders_a_stop_and_is_called_so() -> None:
    world = ManagerWorld(keeps_root=False)
    sandbox = await world.given_active()
    world.units.rows.sandboxes[sandbox.id] = replace(world.row(sandbox.id), dirty_since=world.clock.now())

    await passes(world, 3 * HOUR, every=10 * MINUTE)
    report = await world.manager.sweep.run(dry_run=True)

    assert world.row(sandbox.id).state is S.HIBERNATED
    assert [plan.hindrance for plan in report.plans] == ["ROOT_DIRTY"]


async def test_a_paused_sandbox_ends_after_thirty_days_and_not_before() -> None:
    world = ManagerWorld(keeps_root=False)
    sandbox = await world.given_paused()

    await passes(world, 29 * 24 * HOUR, every=24 * HOUR)
    assert world.row(sandbox.id).state is S.PAUSED
    await passes(world, 2 * 24 * HOUR, every=6 * HOUR)

    assert world.row(sandbox.id).state is S.TERMINATED


async def test_a_dry_run_says_what_would_happen_and_changes_nothing() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    world.clock.advance(20 * MINUTE)
    before = world.units.rows

    report = await world.manager.sweep.run(dry_run=True)

    assert [(plan.sandbox, plan.step, plan.act) for plan in report.plans] == [
        (sandbox.id, LifecycleStep.HIBERNATE, Act.WAIT)
    ]
    assert world.units.rows is before


async def test_a_sandbox_that_fails_is_tried_again_later_and_stops_no_other() -> None:
    world = ManagerWorld()
    silent, other = await world.given_active(), await world.given_active()
    agent_of(world, silent).dead = True

    reports = await passes(world, 17 * MINUTE)

    assert world.row(other.id).state is S.HIBERNATED
    failed = sum(report.failed for report in reports)
    assert 0 < failed < 10, "it was tried with growing waits"


async def test_two_sweeps_at_once_do_a_step_once() -> None:
    world = ManagerWorld()
    _, second = world.replica("second")
    sandboxes = [await world.given_active() for _ in range(5)]
    await passes(world, 14 * MINUTE, every=30)
    world.clock.advance(2 * MINUTE)

    reports = await asyncio.gather(world.manager.sweep.run(), second.sweep.run())

    assert {world.row(sandbox.id).state for sandbox in sandboxes} == {S.HIBERNATED}
    assert all(world.row(sandbox.id).incarnations == 1 for sandbox in sandboxes)
    assert sum(report.taken for report in reports) <= 5


async def test_more_than_a_page_is_swept_in_one_pass() -> None:
    world = ManagerWorld()
    model = await world.given_paused()
    for number in range(PAGE + 20):
        name = SandboxId(f"sbx-many-{number:04}")
        world.units.rows.sandboxes[name] = replace(world.row(model.id), id=name)
        world.units.rows.look_times[name] = world.clock.now()

    report = await world.manager.sweep.run()

    assert report.looked == PAGE + 21


# Races: somebody uses, pauses, resumes or ends the sandbox in that very moment.


async def due(world: ManagerWorld, sandbox: Sandbox) -> None:
    await passes(world, 14 * MINUTE, every=30)
    assert world.row(sandbox.id).state is S.ACTIVE
    world.clock.advance(90)


async def test_a_prompt_that_comes_when_the_step_is_decided_calls_it_off() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    await due(world, sandbox)
    real = world.conversations.open_turns
    asked = 0

    async def open_turns(name: SandboxId) -> int:
        nonlocal asked
        asked += 1
        if asked == 3:  # the look and the last question before the intent found none; this is the one under the lease
            assert world.row(name).state is S.HIBERNATING
            world.conversations.turns[name] = 1
        return await real(name)

    world.conversations.open_turns = open_turns  # type: ignore[assignment,method-assign]  # our own fake

    report = await world.manager.sweep.run()

    assert asked == 3
    assert report.steps == {(LifecycleStep.HIBERNATE, "called_off"): 1}
    assert world.row(sandbox.id).state is S.ACTIVE
    assert not agent_of(world, sandbox).frozen


async def test_a_keystroke_after_the_decision_calls_it_off() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    await due(world, sandbox)
    agent, asked = agent_of(world, sandbox), agent_of(world, sandbox).asked
    real = agent.get_activity

    async def get_activity(*, timeout: timedelta | None = None) -> object:
        if agent.asked == asked + 1:
            agent.typed = world.clock.now()
        return await real(timeout=timeout)

    agent.get_activity = get_activity  # type: ignore[assignment,method-assign]  # our own fake

    report = await world.manager.sweep.run()

    assert report.steps == {(LifecycleStep.HIBERNATE, "called_off"): 1}
    assert world.row(sandbox.id).state is S.ACTIVE


async def test_a_prompt_that_comes_while_the_cli_is_ended_calls_the_stop_off_and_the_next_use_wakes() -> None:
    world = ManagerWorld(LifecyclePolicy(hibernate_after=None))
    sandbox = await world.given_active()
    await passes(world, 59 * MINUTE, every=30)
    world.clock.advance(90)
    real = world.conversations.close

    async def close(name: SandboxId, *, reason: str, timeout: timedelta, only_idle: bool = False) -> None:
        world.conversations.turns[name] = 1
        await real(name, reason=reason, timeout=timeout, only_idle=only_idle)

    world.conversations.close = close  # type: ignore[assignment,method-assign]  # our own fake

    await world.manager.sweep.run()
    active = await world.use.use(sandbox.id, timeout=SOON)

    assert world.conversations.turns[sandbox.id] == 1, "the turn was not ended"
    assert (active.sandbox.state, active.sandbox.incarnations) == (S.ACTIVE, 1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@for_all(
    other=st.sampled_from(["use", "touch", "pause", "resume", "terminate", "sweep"]),
    steps=st.integers(min_value=0, max_value=60),
    idle=st.sampled_from([15 * MINUTE, 60 * MINUTE]),
)
def test_whatever_comes_at_whatever_moment_the_sandbox_ends_in_a_state_that_fits(
    other: str, steps: int, idle: float
) -> None:
    async def scenario() -> None:
        world = ManagerWorld()
        sandbox = await world.given_active()
        await passes(world, idle - MINUTE, every=MINUTE)
        world.clock.advance(2 * MINUTE)
        _, second = world.replica("second")
        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "use": lambda: world.use.use(sandbox.id, timeout=SOON),
            "touch": lambda: world.use.touch(sandbox.id),
            "pause": lambda: world.manager.pause(a_request(), sandbox.id, timeout=SOON, force=True),
            "resume": lambda: world.manager.resume(a_request(), sandbox.id, timeout=SOON),
            "terminate": lambda: world.manager.terminate(a_request(), sandbox.id, timeout=SOON),
            "sweep": second.sweep.run,
        }

        async def after_a_while() -> bool:
            for _ in range(steps):
                await asyncio.sleep(0)
            try:
                await ways[other]()
            except SandboxdError:
                return False
            return True

        _, done = await asyncio.gather(world.manager.sweep.run(), after_a_while())
        row = world.row(sandbox.id)

        assert not row.state.transient
        running = world.backend.running.get(sandbox.id, {})
        assert bool(running) is (row.state in {S.ACTIVE, S.HIBERNATED})
        if done and other == "pause":
            assert row.state is S.PAUSED
        if done and other == "terminate":
            assert row.state is S.TERMINATED
        if row.state is S.ACTIVE:
            assert not agent_of(world, row).frozen
        if row.state not in {S.TERMINATED, S.PAUSED}:
            active = await world.use.use(sandbox.id, timeout=SOON)
            assert active.sandbox.state is S.ACTIVE

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "point", ["hibernate.after_commit", "hibernate.after_freeze", "stop.after_commit", "stop.after_stop"]
)
async def test_a_sweep_that_breaks_in_the_middle_is_finished_by_recovery(point: str) -> None:
    policy = LifecyclePolicy() if point.startswith("hibernate") else LifecyclePolicy(hibernate_after=None)
    world = ManagerWorld(policy)
    sandbox = await world.given_active()
    with arming(f"{point}=error"):
        await passes(world, 62 * MINUTE if policy.hibernate_after is None else 16.5 * MINUTE, every=30)
    assert world.row(sandbox.id).state.transient

    await world.manager.recovery.finish_left_over()

    assert world.row(sandbox.id).state in {S.HIBERNATED, S.STOPPED}


async def test_recovery_calls_a_stop_off_that_a_turn_overtook() -> None:
    world = ManagerWorld(LifecyclePolicy(hibernate_after=None))
    sandbox = await world.given_active()
    with arming("stop.after_commit=error"):
        await passes(world, 62 * MINUTE, every=30)
    assert world.row(sandbox.id).state is S.STOPPING
    world.conversations.turns[sandbox.id] = 1

    await world.manager.recovery.finish_left_over()

    assert world.row(sandbox.id).state is S.ACTIVE
    assert world.conversations.turns[sandbox.id] == 1


async def test_the_replica_with_the_duty_sweeps_and_the_other_waits() -> None:
    world = ManagerWorld()
    _, second = world.replica("second")

    assert await world.manager.sweeping.once()
    assert not await second.sweeping.once()

    world.duties.clear()
    assert await second.sweeping.once()

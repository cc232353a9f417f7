"""Use: what makes a sandbox ready, what refuses, what happens when its agent is gone; freeze, thaw and tokens."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.manager.tokens import PAGE
from sandboxd.model.errors import (
    AgentUnavailableError,
    DeadlineError,
    InvalidTransitionError,
    OpenTurnsError,
    SandboxNotFoundError,
    SandboxPausedError,
    UnavailableError,
)
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.processes import FreezeResult
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.tokens import SANDBOX_TOKEN_LIFETIME
from sandboxd.stream.agent_port import FreezeIncompleteError
from tests.eventually import eventually
from tests.fakes.agent import FakeAgent
from tests.manager_world import NOW, SOON, ManagerWorld, a_request

S = SandboxState


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld()


async def given_stopped(world: ManagerWorld) -> SandboxId:
    sandbox = await world.given_active()
    await world.backend.stop(sandbox.id, IncarnationId(str(sandbox.incarnation)), grace=NOW, timeout=SOON)
    (life,) = world.lives(sandbox.id)
    world.units.rows.incarnations[life.id] = replace(life, end_time=world.clock.now(), end_reason="STOPPED")
    world.units.rows.sandboxes[sandbox.id] = replace(sandbox, state=S.STOPPED, version=sandbox.version + 1)
    return sandbox.id


async def test_an_active_sandbox_is_answered_with_its_life(world: ManagerWorld) -> None:
    sandbox = await world.given_active()

    active = await world.use.use(sandbox.id, timeout=SOON)

    assert active.incarnation.id == sandbox.incarnation
    assert world.backend.starts == 1


async def test_a_stopped_sandbox_is_started_once_however_many_use_it(world: ManagerWorld) -> None:
    sandbox = await given_stopped(world)
    _, other = world.core, world.replica("second")[0]

    actives = await asyncio.gather(
        *(use.use(sandbox, timeout=SOON) for use in (world.use, world.use, world.use, other.use, other.use))
    )

    assert {active.incarnation.number for active in actives} == {2}
    assert world.backend.starts == 2


async def test_a_lost_life_is_made_anew_by_the_next_use(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    lost = IncarnationId(str(sandbox.incarnation))
    assert not await world.use.incarnation_lost(sandbox.id, lost)
    world.backend.kill(sandbox.id, lost)

    assert await world.use.incarnation_lost(sandbox.id, lost)
    assert await world.use.present(sandbox.id) is None
    active = await world.use.use(sandbox.id, timeout=SOON)

    assert active.incarnation.number == 2
    assert [life.end_reason for life in world.lives(sandbox.id)] == ["AGENT_LOST", ""]
    assert active.sandbox.state_reason == ""


async def test_a_loss_is_recorded_once(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    lost = IncarnationId(str(sandbox.incarnation))
    world.backend.kill(sandbox.id, lost)

    assert await world.use.incarnation_lost(sandbox.id, lost)
    version = world.row(sandbox.id).version
    assert await world.use.incarnation_lost(sandbox.id, lost)

    assert world.row(sandbox.id).version == version


async def test_a_life_that_a_pause_takes_away_counts_as_over_and_keeps_the_pauses_reason(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    lost = IncarnationId(str(sandbox.incarnation))
    world.backend.hanging = asyncio.Event()
    pause = asyncio.create_task(world.manager.pause(a_request(), sandbox.id, timeout=SOON))
    await eventually(lambda: world.row(sandbox.id).state is S.PAUSING)
    world.backend.kill(sandbox.id, lost)

    assert await world.use.incarnation_lost(sandbox.id, lost)

    world.backend.hanging.set()
    assert (await pause).state is S.PAUSED
    assert [life.end_reason for life in world.lives(sandbox.id)] == ["PAUSED"]


@pytest.mark.parametrize("state", [S.PAUSED, S.PAUSING])
async def test_no_use_wakes_a_paused_sandbox(world: ManagerWorld, state: SandboxState) -> None:
    sandbox = await world.given_paused()
    world.units.rows.sandboxes[sandbox.id] = replace(sandbox, state=state)

    with pytest.raises(SandboxPausedError):
        await world.use.use(sandbox.id, timeout=SOON)


@pytest.mark.parametrize("state", [S.FAILED, S.TERMINATING, S.TERMINATED])
async def test_what_has_ended_or_failed_is_not_used(world: ManagerWorld, state: SandboxState) -> None:
    sandbox = await world.given_active()
    world.units.rows.sandboxes[sandbox.id] = replace(sandbox, state=state)

    with pytest.raises(InvalidTransitionError):
        await world.use.use(sandbox.id, timeout=SOON)


async def test_a_sandbox_that_never_was_is_not_used(world: ManagerWorld) -> None:
    with pytest.raises(SandboxNotFoundError):
        await world.use.use(SandboxId("sbx-none"), timeout=SOON)


@pytest.mark.parametrize("state", [state for state in S if state.transient and state not in (S.PAUSING, S.TERMINATING)])
async def test_a_sandbox_on_its_way_is_waited_for_until_the_deadline(world: ManagerWorld, state: SandboxState) -> None:
    sandbox = await world.given_active()
    world.units.rows.sandboxes[sandbox.id] = replace(sandbox, state=state)
    waiting = asyncio.create_task(world.use.use(sandbox.id, timeout=SOON))
    await asyncio.sleep(0)

    world.units.rows.sandboxes[sandbox.id] = sandbox
    await world.core.changes.announce(sandbox.id)

    assert (await waiting).sandbox.state is S.ACTIVE
    world.units.rows.sandboxes[sandbox.id] = replace(sandbox, state=state)
    with pytest.raises(DeadlineError):
        await world.use.use(sandbox.id, timeout=NOW)


async def test_a_start_that_fails_tells_who_asked_and_leaves_a_failed_sandbox(world: ManagerWorld) -> None:
    sandbox = await given_stopped(world)
    world.backend.error = AgentUnavailableError("No answer.")

    with pytest.raises(AgentUnavailableError):
        await world.use.use(sandbox, timeout=SOON)

    assert world.row(sandbox).state is S.FAILED


async def test_uses_close_together_are_written_once(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    seen = []
    for seconds in (1, 1, 1, 5):
        world.clock.advance(seconds)
        await world.use.touch(sandbox.id)
        seen.append((world.row(sandbox.id).last_use_time - sandbox.last_use_time).total_seconds())

    assert seen == [1, 1, 1, 8]
    assert world.row(sandbox.id).version == sandbox.version


async def test_hibernate_freezes_and_any_use_thaws_with_a_fresh_token(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    agent = world.backend.agent(sandbox.id)
    token = agent.model_endpoint["token"]

    frozen = await world.manager.hibernate(sandbox.id, timeout=SOON)
    assert (frozen.state, agent.frozen) == (S.HIBERNATED, True)
    active = await world.use.use(sandbox.id, timeout=SOON)

    assert (active.sandbox.state, agent.frozen) == (S.ACTIVE, False)
    assert active.incarnation.number == 1
    assert agent.model_endpoint["token"] != token


async def test_a_frozen_sandbox_gives_back_what_it_does_not_need_and_a_use_asks_for_it(world: ManagerWorld) -> None:
    sandbox = await world.given_active()

    await world.manager.hibernate(sandbox.id, timeout=SOON)
    frozen = set(world.backend.shrunk)
    await world.use.use(sandbox.id, timeout=SOON)

    assert (frozen, world.backend.shrunk) == ({sandbox.id}, set())


async def test_a_world_that_does_not_size_keeps_nobody_from_freezing_and_waking(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.backend.error = UnavailableError("The cluster is away.")

    frozen = await world.manager.hibernate(sandbox.id, timeout=SOON)
    active = await world.use.use(sandbox.id, timeout=SOON)

    assert (frozen.state, active.sandbox.state, active.incarnation.number) == (S.HIBERNATED, S.ACTIVE, 1)


async def test_a_sandbox_with_an_open_turn_is_not_hibernated(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.conversations.turns[sandbox.id] = 1

    with pytest.raises(OpenTurnsError):
        await world.manager.hibernate(sandbox.id, timeout=SOON)
    assert not world.backend.agent(sandbox.id).frozen


async def test_a_freeze_that_is_incomplete_is_taken_back(world: ManagerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(agent: FakeAgent, *, timeout: timedelta | None = None) -> FreezeResult:
        agent.frozen = True
        raise FreezeIncompleteError("Something keeps running.")

    monkeypatch.setattr(FakeAgent, "freeze", refuse)
    sandbox = await world.given_active()

    with pytest.raises(FreezeIncompleteError):
        await world.manager.hibernate(sandbox.id, timeout=SOON)

    assert world.row(sandbox.id).state is S.ACTIVE
    assert not world.backend.agent(sandbox.id).frozen


async def test_a_hibernated_sandbox_whose_agent_died_is_made_anew(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    await world.manager.hibernate(sandbox.id, timeout=SOON)
    world.backend.kill(sandbox.id, IncarnationId(str(sandbox.incarnation)))

    active = await world.use.use(sandbox.id, timeout=SOON)

    assert (active.sandbox.state, active.incarnation.number) == (S.ACTIVE, 2)


async def test_a_frozen_sandbox_is_thawed_before_its_conversation_is_closed(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    agent = world.backend.agent(sandbox.id)
    await world.manager.hibernate(sandbox.id, timeout=SOON)

    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    assert not agent.frozen
    assert world.row(sandbox.id).state is S.PAUSED


async def test_every_active_agent_gets_a_fresh_token_and_one_that_is_gone_hinders_nobody(world: ManagerWorld) -> None:
    first, gone, frozen, last = [await world.given_active() for _ in range(4)]
    world.backend.agent(gone.id).die()
    await world.manager.hibernate(frozen.id, timeout=SOON)
    before = {s.id: world.backend.agent(s.id).model_endpoint["token"] for s in (first, frozen, last)}
    world.clock.advance(SANDBOX_TOKEN_LIFETIME.total_seconds())

    assert await world.core.token_keeper.renew_all() == 2

    after = {s.id: world.backend.agent(s.id).model_endpoint for s in (first, frozen, last)}
    assert {s for s in before if after[s]["token"] != before[s]} == {first.id, last.id}
    assert after[first.id]["expire_time"] == world.clock.now() + SANDBOX_TOKEN_LIFETIME


async def test_more_agents_than_one_page_get_their_tokens(world: ManagerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PAGE > 2
    monkeypatch.setattr("sandboxd.manager.tokens.PAGE", 2)
    for _ in range(5):
        await world.given_active()

    assert await world.core.token_keeper.renew_all() == 5

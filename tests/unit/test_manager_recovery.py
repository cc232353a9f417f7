"""What a crash leaves and how it is finished: at every step, once, and never against live work."""

import asyncio
from dataclasses import replace

import pytest

from sandboxd.manager.creation import NewSandbox
from sandboxd.manager.sandboxes import SandboxManager
from sandboxd.model.caller import Request
from sandboxd.model.errors import DatabaseUnavailableError, SandboxdError, UnavailableError
from sandboxd.model.failpoints import FailpointError, arming
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.monitor.own_deeds import AuditedDeeds
from tests.eventually import eventually
from tests.fakes.audit import FakeAuditTrail
from tests.manager_world import NOW, SOON, ManagerWorld, a_request

S = SandboxState
UP = ["after_commit", "after_start", "after_token", "after_settle"]
DOWN = ["after_commit", "after_close", "after_stop", "after_settle"]
STEPS = [
    *(("create", step) for step in UP),
    *(("resume", step) for step in UP),
    *(("pause", step) for step in DOWN),
    *(("terminate", step) for step in [*DOWN, "after_remove"]),
]
RESTS = {"create": S.ACTIVE, "resume": S.ACTIVE, "pause": S.PAUSED, "terminate": S.TERMINATED}


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld()


async def ask(manager: SandboxManager, verb: str, request: Request, sandbox: SandboxId | None) -> Sandbox:
    if sandbox is None:
        return await manager.create(request, NewSandbox(), timeout=SOON)
    if verb == "terminate":
        return (await manager.terminate(request, sandbox, timeout=SOON)).sandbox
    ways = {"pause": manager.pause, "resume": manager.resume}
    return await ways[verb](request, sandbox, timeout=SOON)


@pytest.mark.parametrize(("verb", "step"), STEPS)
async def test_another_replica_finishes_what_broke_off_at_any_step(world: ManagerWorld, verb: str, step: str) -> None:
    sandbox = None
    if verb == "resume":
        sandbox = (await world.given_paused()).id
    elif verb != "create":
        sandbox = (await world.given_active()).id
    request = a_request()
    lives = world.backend.starts
    with arming(f"{verb}.{step}=error"), pytest.raises(FailpointError):
        await ask(world.manager, verb, request, sandbox)
    world.crash()
    _, second = world.replica("second")

    await second.recovery.finish_left_over()
    answered = await ask(second, verb, request, sandbox)

    assert answered.state is RESTS[verb]
    assert len(world.units.rows.sandboxes) == 1
    assert world.backend.starts - lives == (1 if verb in ("create", "resume") else 0)
    running = world.backend.running.get(answered.id, {})
    assert [*running] == ([answered.incarnation] if answered.state is S.ACTIVE else [])
    assert sum(life.end_time is None for life in world.lives(answered.id)) == len(running)
    assert world.units.rows.leases == {}
    assert await second.recovery.finish_left_over() == 0


async def test_what_recovery_finishes_is_on_record_and_waits_while_it_cannot_be(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    with arming("pause.after_commit=error"), pytest.raises(FailpointError):
        await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    world.crash()
    _, second = world.replica("second")
    trail = FakeAuditTrail(down=True)
    second.recovery.deeds = AuditedDeeds(trail)

    assert await second.recovery.finish_left_over() == 0
    assert world.units.rows.sandboxes[sandbox.id].state is S.PAUSING

    trail.down = False
    world.clock.advance(60)
    assert await second.recovery.finish_left_over() == 1
    assert world.units.rows.sandboxes[sandbox.id].state is S.PAUSED
    assert [(what, deed.action, deed.role) for what, deed, _ in trail.said] == [
        ("intend", "Recovery/Finish", "system"),
        ("conclude", "Recovery/Finish", "system"),
    ]


async def test_a_crash_before_the_intent_leaves_nothing(world: ManagerWorld) -> None:
    request = a_request()
    with arming("create.before_commit=error"), pytest.raises(FailpointError):
        await world.manager.create(request, NewSandbox(), timeout=SOON)

    assert world.units.rows.sandboxes == {}
    assert (await world.manager.create(request, NewSandbox(), timeout=SOON)).state is S.ACTIVE


async def test_recovery_leaves_live_work_alone_here_and_in_another_replica(world: ManagerWorld) -> None:
    world.backend.hanging = asyncio.Event()
    create = asyncio.create_task(world.manager.create(a_request(), NewSandbox(), timeout=SOON))
    await eventually(lambda: world.units.rows.sandboxes)
    _, second = world.replica("second")

    assert await world.manager.recovery.finish_left_over() == 0
    assert await second.recovery.finish_left_over() == 0

    world.backend.hanging.set()
    assert (await create).state is S.ACTIVE
    assert world.backend.starts == 1


async def test_a_replica_that_stood_still_cannot_write_its_outcome_over_that_of_its_successor(
    world: ManagerWorld,
) -> None:
    sandbox = await world.given_active()
    world.backend.hanging = asyncio.Event()
    pause = asyncio.create_task(world.manager.pause(a_request(), sandbox.id, timeout=SOON))
    await eventually(lambda: world.row(sandbox.id).state is S.PAUSING)
    stalled = world.backend.hanging
    world.backend.hanging = None
    world.clock.advance(16)  # its lease runs out
    _, second = world.replica("second")
    await second.recovery.finish_left_over()
    resumed = await second.resume(a_request(), sandbox.id, timeout=SOON)

    stalled.set()
    with pytest.raises(SandboxdError):
        await pause

    assert world.row(sandbox.id) == resumed


async def test_work_whose_lease_was_lost_is_ended(world: ManagerWorld) -> None:
    world.backend.hanging = asyncio.Event()
    create = asyncio.create_task(world.manager.create(a_request(), NewSandbox(), timeout=SOON))
    await eventually(lambda: world.units.rows.leases)
    world.units.rows.leases.clear()

    await world.core.leases.renew()

    with pytest.raises(UnavailableError):
        await create


async def test_a_commit_whose_answer_was_lost_is_found_and_answered_by_the_repeated_request(
    world: ManagerWorld,
) -> None:
    request = a_request()
    world.units.answers_lost = 1
    with pytest.raises(DatabaseUnavailableError):
        await world.manager.create(request, NewSandbox(), timeout=SOON)
    world.clock.advance(16)

    assert await world.manager.recovery.finish_left_over() == 1

    assert (await world.manager.create(request, NewSandbox(), timeout=SOON)).state is S.ACTIVE
    assert len(world.units.rows.sandboxes) == 1


async def test_a_sandbox_that_keeps_failing_is_tried_less_and_less_often(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.backend.error = UnavailableError("No.")
    with pytest.raises(UnavailableError):
        await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    tries = []
    for second in range(16):
        before = len(world.conversations.closed)
        await world.manager.recovery.finish_left_over()
        if len(world.conversations.closed) > before:
            tries.append(second)
        world.clock.advance(1)

    assert tries == [0, 1, 3, 7, 15]


async def test_draining_waits_for_what_runs_and_leaves_the_rest_to_the_next_one(world: ManagerWorld) -> None:
    world.backend.hanging = asyncio.Event()
    request = a_request()
    create = asyncio.create_task(world.manager.create(request, NewSandbox(), timeout=SOON))
    await eventually(lambda: world.units.rows.sandboxes)

    await world.manager.drain(grace=NOW)

    with pytest.raises(UnavailableError):
        await create
    assert world.units.rows.leases == {}
    world.backend.hanging = None
    _, second = world.replica("second")
    assert await second.recovery.finish_left_over() == 1
    assert (await second.create(request, NewSandbox(), timeout=SOON)).state is S.ACTIVE


async def test_a_terminate_that_overtakes_a_create_answers_both(world: ManagerWorld) -> None:
    create = a_request()
    world.backend.error = UnavailableError("No.")
    world.units.answers_lost = 1
    with pytest.raises(DatabaseUnavailableError):
        await world.manager.create(create, NewSandbox(), timeout=SOON)
    world.backend.error = None
    (sandbox,) = world.units.rows.sandboxes
    world.clock.advance(16)

    assert (await world.manager.terminate(a_request(), sandbox, timeout=SOON)).sandbox.state is S.TERMINATED

    with pytest.raises(SandboxdError) as overtaken:
        await world.manager.create(create, NewSandbox(), timeout=SOON)
    assert overtaken.value.reason == "OVERTAKEN"


async def test_an_agent_that_died_unseen_is_noticed(world: ManagerWorld) -> None:
    dead, alive = await world.given_active(), await world.given_active()
    world.backend.kill(dead.id, IncarnationId(str(dead.incarnation)))

    await world.manager.recovery.inspect()

    assert [life.end_reason for life in world.lives(dead.id)] == ["AGENT_LOST"]
    assert world.row(dead.id).state is S.ACTIVE
    assert [life.end_reason for life in world.lives(alive.id)] == [""]


async def test_orphans_of_both_kinds_are_reported_and_not_touched(world: ManagerWorld) -> None:
    paused, missing, gone = await world.given_paused(), await world.given_paused(), await world.given_active()
    good = await world.given_active()
    stray = IncarnationId("inc-stray")
    world.backend.running[paused.id][stray] = next(iter(world.backend.running[good.id].values()))
    world.backend.files.discard(missing.id)
    del world.units.rows.sandboxes[gone.id]
    for life in world.lives(gone.id):
        del world.units.rows.incarnations[life.id]
    rows = dict(world.units.rows.sandboxes)

    orphans = await world.manager.recovery.inspect()

    assert orphans.sandboxes == {gone.id}
    assert orphans.incarnations == {stray}
    assert orphans.missing == {missing.id}
    assert world.units.rows.sandboxes == rows
    assert stray in world.backend.running[paused.id]
    assert world.backend.running[gone.id]


async def test_a_start_that_was_given_up_and_came_up_afterwards_is_ended(world: ManagerWorld) -> None:
    late, good = await world.given_active(), await world.given_active()
    row = world.row(late.id)
    world.units.rows.sandboxes[late.id] = replace(row, state=S.FAILED, state_reason="It could not be started.")
    (life,) = world.lives(late.id)
    world.units.rows.incarnations[life.id] = replace(life, end_time=life.start_time, end_reason="START_FAILED")
    assert world.backend.running[late.id]

    await world.manager.recovery.inspect()
    orphans = await world.manager.recovery.inspect()

    assert not world.backend.running[late.id]
    assert world.backend.running[good.id]
    assert orphans.incarnations == frozenset()
    assert world.row(late.id).state is S.FAILED


async def test_what_nobody_mends_does_not_cost_a_transaction_for_each_of_them(world: ManagerWorld) -> None:
    lost = [await world.given_paused() for _ in range(50)]
    for sandbox in lost:
        world.backend.files.discard(sandbox.id)
    before = world.units.begun

    orphans = await world.manager.recovery.inspect()

    assert len(orphans.missing) == 50
    assert world.units.begun - before <= 5


async def test_a_healthy_world_has_no_orphans(world: ManagerWorld) -> None:
    await world.given_active()
    await world.given_paused()
    frozen = await world.given_active()
    await world.manager.hibernate(frozen.id, timeout=SOON)
    ended = await world.given_active()
    await world.manager.terminate(a_request(), ended.id, timeout=SOON)
    failed = await world.given_active()
    world.units.rows.sandboxes[failed.id] = replace(failed, state=S.FAILED)
    world.backend.kill(failed.id, IncarnationId(str(failed.incarnation)))

    orphans = await world.manager.recovery.inspect()

    assert orphans.sandboxes | orphans.incarnations | orphans.missing == frozenset()


async def test_sizes_that_were_missed_while_the_world_was_away_are_made_good(world: ManagerWorld) -> None:
    frozen, awake = await world.given_active(), await world.given_active()
    await world.manager.hibernate(frozen.id, timeout=SOON)
    world.backend.shrunk.symmetric_difference_update({frozen.id, awake.id})

    await world.manager.recovery.inspect()

    assert world.backend.shrunk == {frozen.id}

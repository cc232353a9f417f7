"""Backups for which a running sandbox stands still: read twice, of one moment, and it always goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.manager.backing_up import BackingUp
from sandboxd.manager.core import ManagerCore
from sandboxd.model.backup import (
    BackupFreeze,
    BackupSet,
    BackupSetId,
    BackupSetStatus,
    BackupTrigger,
    Consistency,
    Volume,
)
from sandboxd.model.backup_errors import BackupStorageUnavailableError
from sandboxd.model.frozen_reason import frozen_for
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.eventually import eventually
from tests.manager_world import SOON, ManagerWorld, a_request
from tests.unit.test_announcements import listening

S = BackupSetStatus
REQUIRED, IF_POSSIBLE = BackupFreeze(required=True), BackupFreeze(required=False)


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld(backups=True)


def making(core: ManagerCore) -> BackingUp:
    assert core.backups is not None
    return core.backups.making


async def given(world: ManagerWorld) -> Sandbox:
    sandbox = await world.given_active()
    world.volumes.given(sandbox.id, home={b".bashrc": b"x"}, workspace={b"main.py": b"print()"})
    return sandbox


async def begun(world: ManagerWorld, sandbox: Sandbox, wish: BackupFreeze) -> BackupSet:
    """One whose sandbox stands still, until `frozen_gate` is set."""
    world.volumes.frozen_gate.clear()
    backup = await world.manager.backups.create(a_request(), sandbox.id, freeze=wish, wait=False, timeout=SOON)
    await eventually(lambda: f"{backup.id}/2" in world.volumes.working)
    return backup


async def ended(world: ManagerWorld, backup: BackupSet) -> BackupSet:
    return await making(world.core).wait(backup.id, timeout=SOON)


def is_frozen(world: ManagerWorld, sandbox: Sandbox) -> bool:
    (endpoint,) = world.backend.running[sandbox.id].values()
    return world.connector.agents[f"{endpoint.host}:{endpoint.port}"].frozen


def goes_on(world: ManagerWorld, sandbox: Sandbox) -> bool:
    row = world.row(sandbox.id)
    return (row.state, row.state_reason, is_frozen(world, sandbox)) == (SandboxState.ACTIVE, "", False)


async def test_a_running_sandbox_is_read_again_while_it_stands_still_and_goes_on_unused(world: ManagerWorld) -> None:
    sandbox = await given(world)
    used = world.row(sandbox.id).last_use_time
    world.clock.advance(60)
    backup = await begun(world, sandbox, REQUIRED)
    during = world.row(sandbox.id)
    world.volumes.volumes[sandbox.id][Volume.HOME][b"late"] = b"written after the first reading"
    assert is_frozen(world, sandbox)

    world.volumes.frozen_gate.set()

    made = await ended(world, backup)
    assert (made.status, made.consistency) == (S.COMPLETE, Consistency.QUIESCED)
    assert {one.volume: one.files for one in made.volumes} == {Volume.HOME: 2, Volume.WORKSPACE: 1}
    assert (during.state, during.state_reason) == (SandboxState.HIBERNATED, frozen_for(backup))
    assert goes_on(world, sandbox)
    assert world.row(sandbox.id).last_use_time == used
    assert not world.backend.shrunk


async def test_open_streams_hear_that_it_stands_still_and_that_it_goes_on(world: ManagerWorld) -> None:
    sandbox = await given(world)

    async with listening(world, sandbox) as heard:
        backup = await begun(world, sandbox, REQUIRED)
        await eventually(lambda: len(heard) == 1)
        world.volumes.frozen_gate.set()
        await ended(world, backup)
        await eventually(lambda: len(heard) == 2)

    assert [(notice.code, backup.id in notice.message) for notice in heard] == [
        ("STATE_REASON", True),
        ("THAWED", False),
    ]


async def test_what_rests_needs_no_freeze(world: ManagerWorld) -> None:
    sandbox = await given(world)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    made = await world.manager.backups.create(a_request(), sandbox.id, freeze=REQUIRED, timeout=SOON)

    assert (made.consistency, len(world.volumes.kept)) == (Consistency.QUIESCED, 2)


async def used_meanwhile(world: ManagerWorld, sandbox: Sandbox) -> None:
    await world.use.use(sandbox.id, timeout=SOON)
    world.volumes.frozen_gate.set()


async def nothing(world: ManagerWorld, sandbox: Sandbox) -> None:
    """The time for it is over by itself."""


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(("longest", "meanwhile"), [(60.0, used_meanwhile), (0.05, nothing)])
async def test_who_uses_it_comes_first_and_a_freeze_has_a_bound(
    world: ManagerWorld, required: bool, longest: float, meanwhile: Callable[..., object]
) -> None:
    sandbox = await given(world)
    backup = await begun(world, sandbox, BackupFreeze(required=required, longest=timedelta(seconds=longest)))

    await meanwhile(world, sandbox)  # type: ignore[misc]  # one of the two above

    made = await ended(world, backup)
    expected = (S.FAILED, "BACKUP_NOT_QUIESCED") if required else (S.COMPLETE, "")
    assert (made.status, made.failure) == expected
    if not required:
        assert made.consistency is Consistency.CRASH_CONSISTENT
        assert {world.volumes.kept[one.snapshot].reading for one in made.volumes} == {1}
    assert goes_on(world, sandbox)


@pytest.mark.parametrize("wish", [REQUIRED, IF_POSSIBLE])
async def test_in_a_turn_nothing_is_frozen(world: ManagerWorld, wish: BackupFreeze) -> None:
    sandbox = await given(world)
    frozen = making(world.core).frozen
    assert frozen is not None
    making(world.core).frozen = replace(frozen, turn_patience=timedelta(0))
    world.conversations.turns[sandbox.id] = 1

    backup = await world.manager.backups.create(a_request(), sandbox.id, freeze=wish, wait=False, timeout=SOON)

    made = await ended(world, backup)
    assert (made.status is S.FAILED, "turn" in made.failure_message) == (wish.required, wish.required)
    assert goes_on(world, sandbox)


async def test_a_turn_that_ends_in_time_is_waited_for(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.conversations.turns[sandbox.id] = 1
    backup = await world.manager.backups.create(a_request(), sandbox.id, freeze=REQUIRED, wait=False, timeout=SOON)
    await eventually(lambda: backup.id in world.volumes.ended)

    world.conversations.turns.clear()

    assert (await ended(world, backup)).consistency is Consistency.QUIESCED


async def test_a_cancelled_or_broken_one_leaves_nothing_frozen(world: ManagerWorld) -> None:
    sandbox = await given(world)
    backup = await begun(world, sandbox, REQUIRED)

    await world.manager.backups.cancel(a_request(), sandbox.id, backup.id, timeout=SOON)

    assert goes_on(world, sandbox)
    second = await begun(world, sandbox, REQUIRED)
    world.volumes.take_trouble = BackupStorageUnavailableError("Away.")
    world.volumes.frozen_gate.set()
    assert (await ended(world, second)).failure == "BACKUP_STORAGE_UNAVAILABLE"
    assert goes_on(world, sandbox)


async def test_what_a_crash_leaves_frozen_is_thawed_by_whoever_goes_on_with_the_set(world: ManagerWorld) -> None:
    sandbox = await given(world)
    backup = BackupSetId("bak-1")
    async with world.units.begin() as work:
        held = await making(world.core).insert(
            work, sandbox.id, name=backup, trigger=BackupTrigger.REQUEST, freeze=REQUIRED
        )
        await work.commit()
    frozen = making(world.core).frozen
    assert frozen is not None
    await frozen.stillness.freeze(sandbox.id, reason=frozen_for(held.backup), wait=SOON)
    assert is_frozen(world, sandbox)
    other, _ = world.replica("second")
    assert other.backups is not None
    world.crash()

    await other.backups.finish_left_over()

    made = await making(other).wait(backup, timeout=SOON)
    assert (made.status, made.attempts, made.consistency) == (S.COMPLETE, 2, Consistency.QUIESCED)
    assert goes_on(world, sandbox)


async def test_what_policy_froze_is_left_alone(world: ManagerWorld) -> None:
    sandbox = await given(world)
    frozen = making(world.core).frozen
    assert frozen is not None
    await world.manager.hibernate(sandbox.id, timeout=SOON)

    await frozen.stillness.thaw(sandbox.id, reason="It stands still for a backup.")

    assert (world.row(sandbox.id).state, world.row(sandbox.id).state_reason) == (SandboxState.HIBERNATED, "")

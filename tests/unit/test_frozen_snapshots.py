"""Snapshots of a running sandbox: it stands still until both are cut, not until they are ready, and always goes on."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sandboxd.model.backup import (
    BackupFreeze,
    BackupMethod,
    BackupSet,
    BackupSetStatus,
    Consistency,
    Volume,
)
from sandboxd.model.backup_errors import BackupStorageUnavailableError
from sandboxd.model.frozen_reason import frozen_for
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.eventually import eventually
from tests.manager_world import SOON, ManagerWorld, a_request
from tests.unit.test_frozen_backups import IF_POSSIBLE, REQUIRED, ended, given, goes_on, is_frozen, making

S = BackupSetStatus


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld(backups=True, backup_method=BackupMethod.SNAPSHOTS)


async def begun(world: ManagerWorld, sandbox: Sandbox, wish: BackupFreeze) -> BackupSet:
    return await world.manager.backups.create(a_request(), sandbox.id, freeze=wish, wait=False, timeout=SOON)


async def test_it_goes_on_when_both_are_cut_and_the_set_is_complete_when_they_are_ready(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.volumes.frozen_gate.clear()
    world.volumes.ready.clear()
    backup = await begun(world, sandbox, REQUIRED)
    await eventually(lambda: world.volumes.working == {f"{backup.id}/2"}, within=SOON.total_seconds())
    during = world.row(sandbox.id)
    assert is_frozen(world, sandbox)
    assert not world.volumes.kept, "nothing is taken of it while it runs"

    world.volumes.frozen_gate.set()
    await eventually(lambda: goes_on(world, sandbox))
    world.volumes.volumes[sandbox.id][Volume.HOME][b"late"] = b"written after the cut"
    await world.use.use(sandbox.id, timeout=SOON)
    row = await world.manager.backups.get(a_request().caller, sandbox.id, backup.id)
    assert row.status is S.CREATING

    world.volumes.ready.set()

    made = await ended(world, backup)
    assert (during.state, during.state_reason) == (SandboxState.HIBERNATED, frozen_for(backup))
    assert (made.status, made.consistency, made.method) == (S.COMPLETE, Consistency.QUIESCED, BackupMethod.SNAPSHOTS)
    assert {one.volume: one.files for one in made.volumes} == {Volume.HOME: 1, Volume.WORKSPACE: 1}


async def test_what_rested_until_the_cut_is_of_one_moment_whatever_it_does_later(world: ManagerWorld) -> None:
    sandbox = await given(world)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    world.volumes.ready.clear()
    backup = await begun(world, sandbox, REQUIRED)
    await eventually(lambda: len(world.volumes.kept) == 2)

    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    world.volumes.ready.set()

    assert (await ended(world, backup)).consistency is Consistency.QUIESCED


@pytest.mark.parametrize("wish", [REQUIRED, IF_POSSIBLE])
async def test_a_storage_that_does_not_cut_in_time_holds_nobody(world: ManagerWorld, wish: BackupFreeze) -> None:
    sandbox = await given(world)
    world.volumes.frozen_gate.clear()

    backup = await begun(world, sandbox, BackupFreeze(required=wish.required, longest=timedelta(seconds=0.05)))

    made = await ended(world, backup)
    assert goes_on(world, sandbox)
    if wish.required:
        assert (made.status, "Nothing was cut" in made.failure_message) == (S.FAILED, True)
    else:
        assert (made.status, made.consistency) == (S.COMPLETE, Consistency.CRASH_CONSISTENT)
        assert {world.volumes.kept[one.snapshot].reading for one in made.volumes} == {1}


async def test_a_cancelled_or_broken_one_leaves_nothing_frozen(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.volumes.frozen_gate.clear()
    backup = await begun(world, sandbox, REQUIRED)
    await eventually(lambda: is_frozen(world, sandbox))

    await world.manager.backups.cancel(a_request(), sandbox.id, backup.id, timeout=SOON)

    assert goes_on(world, sandbox)
    world.volumes.frozen_gate.set()
    world.volumes.take_trouble = BackupStorageUnavailableError("Away.")
    assert (await ended(world, await begun(world, sandbox, REQUIRED))).failure == "BACKUP_STORAGE_UNAVAILABLE"
    assert goes_on(world, sandbox)


async def test_after_a_crash_between_cut_and_ready_both_are_taken_anew_and_it_goes_on(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.volumes.ready.clear()
    backup = await begun(world, sandbox, REQUIRED)
    await eventually(lambda: len(world.volumes.kept) == 2)
    await eventually(lambda: goes_on(world, sandbox))
    world.volumes.volumes[sandbox.id][Volume.HOME][b"late"] = b"written before the second cut"
    other, _ = world.replica("second")
    assert other.backups is not None
    world.crash()
    world.volumes.ready.set()

    await other.backups.finish_left_over()

    made = await making(other).wait(backup.id, timeout=SOON)
    assert (made.status, made.attempts, made.consistency) == (S.COMPLETE, 2, Consistency.QUIESCED)
    assert {world.volumes.kept[one.snapshot].reading for one in made.volumes} == {4}
    assert goes_on(world, sandbox)

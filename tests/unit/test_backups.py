"""Backups of the manager: made, followed, cancelled, recovered and deleted, with volumes in memory."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from sandboxd.manager.backup_ports import BackupInProgressError, BackupSetNotFoundError
from sandboxd.manager.backups import BackupRoom
from sandboxd.model.backup import (
    BackupSet,
    BackupSetId,
    BackupSetLockedError,
    BackupSetStatus,
    BackupSetStatusError,
    BackupTrigger,
    Consistency,
    Volume,
)
from sandboxd.model.backup_errors import (
    BackupCancelledError,
    BackupEndedError,
    BackupRepositoryBusyError,
    BackupsOffError,
    BackupStorageFullError,
)
from sandboxd.model.backup_retention import BackupRetention
from sandboxd.model.errors import DeadlineError, RequestIdReusedError, SandboxNotFoundError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Sandbox
from tests.eventually import eventually
from tests.manager_world import NOW, SOON, ManagerWorld, a_caller, a_request

S = BackupSetStatus


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld(backups=True)


def room(world: ManagerWorld) -> BackupRoom:
    assert world.core.backups is not None
    return world.core.backups


def rows(world: ManagerWorld) -> dict[BackupSetId, BackupSet]:
    return world.units.rows.backup_sets


async def given(world: ManagerWorld, *, paused: bool = False) -> Sandbox:
    sandbox = await (world.given_paused() if paused else world.given_active())
    world.volumes.given(sandbox.id, home={b".bashrc": b"x"}, workspace={b"main.py": b"print()"})
    return sandbox


async def backed_up(world: ManagerWorld, sandbox: Sandbox) -> BackupSet:
    return await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)


async def begun(world: ManagerWorld, sandbox: Sandbox) -> BackupSet:
    """One whose volumes are being read until `volumes.gate` is set."""
    world.volumes.gate.clear()
    backup = await world.manager.backups.create(a_request(), sandbox.id, wait=False, timeout=SOON)
    await eventually(lambda: backup.id in world.volumes.working)
    return backup


async def test_a_set_has_all_that_a_sandbox_is_rebuilt_from(world: ManagerWorld) -> None:
    sandbox = await given(world, paused=True)

    backup = await backed_up(world, sandbox)

    assert (backup.status, backup.trigger, backup.consistency) == (
        S.COMPLETE,
        BackupTrigger.REQUEST,
        Consistency.QUIESCED,
    )
    assert {one.volume: one.files for one in backup.volumes} == {Volume.HOME: 1, Volume.WORKSPACE: 1}
    assert backup.spec["tier"] == "basic"
    assert backup.checksum == backup.sum()
    assert world.volumes.ended == [backup.id]
    assert backup == rows(world)[backup.id]


async def test_while_processes_run_a_set_is_crash_consistent(world: ManagerWorld) -> None:
    assert (await backed_up(world, await given(world))).consistency is Consistency.CRASH_CONSISTENT


async def test_a_sandbox_that_was_resumed_meanwhile_was_not_still(world: ManagerWorld) -> None:
    sandbox = await given(world, paused=True)
    backup = await begun(world, sandbox)
    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    world.volumes.gate.set()

    ended = await room(world).making.wait(backup.id, timeout=SOON)
    assert (ended.status, ended.consistency) == (S.COMPLETE, Consistency.CRASH_CONSISTENT)


async def test_a_repeated_request_is_answered_with_the_same_set(world: ManagerWorld) -> None:
    sandbox, request = await given(world), a_request(request_id="the-same-one")

    first = await world.manager.backups.create(request, sandbox.id, timeout=SOON)
    again = await world.manager.backups.create(request, sandbox.id, timeout=SOON)

    assert (first.id, len(rows(world))) == (again.id, 1)
    with pytest.raises(RequestIdReusedError):
        await world.manager.backups.create(a_request(request_id="the-same-one", body="other"), sandbox.id, timeout=SOON)


async def test_there_is_one_at_a_time_and_it_outlives_its_caller(world: ManagerWorld) -> None:
    sandbox = await given(world)
    backup = await begun(world, sandbox)

    with pytest.raises(BackupInProgressError):
        await backed_up(world, sandbox)
    with pytest.raises(DeadlineError):
        await room(world).making.wait(backup.id, timeout=NOW)
    world.volumes.gate.set()

    assert (await room(world).making.wait(backup.id, timeout=SOON)).status is S.COMPLETE


async def test_it_is_followed_to_its_end(world: ManagerWorld) -> None:
    sandbox = await given(world)
    backup = await begun(world, sandbox)
    seen = list[BackupSetStatus]()

    async def follow() -> None:
        async for one in world.manager.backups.watch(a_caller(), sandbox.id, backup.id):
            seen.append(one.status)

    following = asyncio.create_task(follow())
    await eventually(lambda: len(seen) == 1)
    world.volumes.gate.set()
    await asyncio.wait_for(following, 5)

    assert (seen[0], seen[-1]) == (S.CREATING, S.COMPLETE)


async def test_it_can_be_cancelled_and_then_nothing_of_it_runs(world: ManagerWorld) -> None:
    sandbox = await given(world)
    backup = await begun(world, sandbox)

    ended = await world.manager.backups.cancel(a_request(), sandbox.id, backup.id, timeout=SOON)

    assert (ended.status, ended.failure) == (S.FAILED, BackupCancelledError.reason)
    assert (world.volumes.working, world.volumes.ended) == (set(), [backup.id])
    with pytest.raises(BackupEndedError):
        await world.manager.backups.cancel(a_request(), sandbox.id, backup.id, timeout=SOON)


async def test_what_it_fails_with_is_answered_and_stays_to_be_read(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.volumes.take_trouble = BackupStorageFullError("There is no room.")

    with pytest.raises(BackupStorageFullError, match="no room"):
        await backed_up(world, sandbox)

    (failed,) = rows(world).values()
    assert (failed.status, failed.failure, failed.failure_message) == (
        S.FAILED,
        "BACKUP_STORAGE_FULL",
        "There is no room.",
    )


async def test_a_crash_is_recovered_by_another_replica_with_the_same_set(world: ManagerWorld) -> None:
    sandbox = await given(world)
    backup = await begun(world, sandbox)
    other, _ = world.replica("second")
    assert other.backups is not None

    await other.backups.finish_left_over()
    assert not other.backups.making.tasks.busy(SandboxId(backup.id))  # the first one lives
    world.crash()
    await other.backups.finish_left_over()
    world.volumes.gate.set()

    ended = await other.backups.making.wait(backup.id, timeout=SOON)
    assert (ended.status, ended.attempts) == (S.COMPLETE, 2)
    assert {one.backup for one in world.volumes.kept.values()} == {backup.id}


async def test_what_breaks_off_again_and_again_is_given_up(world: ManagerWorld) -> None:
    sandbox = await given(world)
    backup = await begun(world, sandbox)
    for number in range(2, 5):
        world.crash("first" if number == 2 else f"replica-{number - 1}")
        other, _ = world.replica(f"replica-{number}")
        assert other.backups is not None
        await other.backups.finish_left_over()

    await eventually(lambda: rows(world)[backup.id].status is S.FAILED)
    assert rows(world)[backup.id].failure == "BACKUP_ABANDONED"


async def test_a_deleted_set_has_its_proof_and_the_repository_none_of_it(world: ManagerWorld) -> None:
    sandbox = await given(world)
    gone, stays = await backed_up(world, sandbox), await backed_up(world, sandbox)
    request = a_request()

    deleted = await world.manager.backups.delete(request, sandbox.id, gone.id, timeout=SOON)
    again = await world.manager.backups.delete(request, sandbox.id, gone.id, timeout=SOON)

    assert deleted == again
    assert deleted.status is S.DELETED
    assert deleted.proof is not None
    assert set(deleted.proof.snapshots) == {one.snapshot for one in gone.volumes}
    assert deleted.proof.pruned_time is not None
    assert {one.backup for one in world.volumes.kept.values()} == {stays.id}
    page = await world.manager.backups.list(a_caller(), sandbox.id, deleted=False, page_size=0, page_token="")
    assert [one.id for one in page.items] == [stays.id]


async def test_a_deletion_that_finds_the_repository_busy_is_tried_again(world: ManagerWorld) -> None:
    sandbox = await given(world)
    backup = await backed_up(world, sandbox)
    world.volumes.trouble = BackupRepositoryBusyError("Somebody is at it.")

    with pytest.raises(DeadlineError):
        await world.manager.backups.delete(a_request(), sandbox.id, backup.id, timeout=NOW)
    await eventually(lambda: not room(world).deletions.tasks.count)
    assert rows(world)[backup.id].status is S.DELETING
    world.volumes.trouble = None
    world.clock.advance(300)
    await room(world).finish_left_over()

    await eventually(lambda: rows(world)[backup.id].status is S.DELETED)


async def test_nobody_deletes_in_the_window_of_immutability_nor_what_is_being_made() -> None:
    world = ManagerWorld(backups=True, retention=BackupRetention(immutable_for=timedelta(days=1)))
    sandbox = await given(world)
    locked = await backed_up(world, sandbox)

    with pytest.raises(BackupSetLockedError):
        await world.manager.backups.delete(a_request(), sandbox.id, locked.id, timeout=SOON)
    making = await begun(world, sandbox)
    with pytest.raises(BackupSetStatusError):
        await world.manager.backups.delete(a_request(), sandbox.id, making.id, timeout=SOON)
    world.volumes.gate.set()
    world.clock.advance(86_401)

    gone = await world.manager.backups.delete(a_request(), sandbox.id, locked.id, timeout=SOON)
    assert gone.status is S.DELETED


async def test_whose_sandbox_it_is_not_finds_nothing_of_it(world: ManagerWorld) -> None:
    sandbox, other = await given(world), await given(world)
    backup = await backed_up(world, sandbox)

    with pytest.raises(SandboxNotFoundError):
        await world.manager.backups.get(a_caller(client="other"), sandbox.id, backup.id)
    with pytest.raises(BackupSetNotFoundError):
        await world.manager.backups.get(a_caller(), other.id, backup.id)


async def test_where_no_backups_are_kept_that_is_said() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()

    with pytest.raises(BackupsOffError, match="SANDBOXD_BACKUPS_LOCATION"):
        await backed_up(world, sandbox)

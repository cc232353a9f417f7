"""Restores of the manager, with volumes in memory: what comes back, what is kept first, and what a failure leaves."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd.manager.backup_ports import BackupSetNotFoundError
from sandboxd.model.backup import BackupSet, BackupTrigger, Volume
from sandboxd.model.backup_errors import (
    BackupRepositoryBusyError,
    BackupSnapshotNotFoundError,
    BackupsOffError,
    BackupUnnamedError,
)
from sandboxd.model.errors import DeadlineError, InvalidRequestError, InvalidTransitionError, SandboxNotFoundError
from sandboxd.model.restore_view import RestoreNotRunningError, RestoreStep, RestoreView
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.volumes.ports import BackupProgress, VolumesProgress
from tests.eventually import eventually
from tests.manager_world import NOW, SOON, ManagerWorld, a_caller, a_request

S = SandboxState
HOME, WORK = {b".bashrc": b"alias", b".gemini/chat.json": b"{}"}, {b"src/main.py": b"print()", b"notes": b"one"}


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld(backups=True)


async def given(world: ManagerWorld) -> Sandbox:
    sandbox = await world.given_active()
    world.volumes.given(sandbox.id, home=HOME, workspace=WORK)
    world.clock.advance(1)
    return sandbox


async def terminated(world: ManagerWorld, sandbox: Sandbox) -> None:
    await world.manager.terminate(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(1)


async def paused(world: ManagerWorld, sandbox: Sandbox) -> None:
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(1)


async def backed_up(world: ManagerWorld, sandbox: Sandbox) -> BackupSet:
    made = await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(1)
    return made


async def restore(
    world: ManagerWorld, sandbox: Sandbox, backup: BackupSet | None = None, **paths: list[bytes]
) -> Sandbox:
    return await world.manager.restore(
        a_request(),
        sandbox.id,
        backup=None if backup is None else (backup.sandbox, backup.id),
        paths={Volume(name): those for name, those in paths.items()},
        timeout=SOON,
    )


async def committed(world: ManagerWorld, sandbox: Sandbox, root: str) -> None:
    world.builder.roots[sandbox.id] = root
    await world.manager.images.commit(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(1)


def sets(world: ManagerWorld) -> list[BackupSet]:
    return sorted(world.units.rows.backup_sets.values(), key=lambda one: one.id)


async def test_a_terminated_sandbox_comes_back_as_it_ended_also_without_its_volumes(world: ManagerWorld) -> None:
    sandbox = await given(world)
    await terminated(world, sandbox)
    await backed_up(world, sandbox)
    del world.volumes.volumes[sandbox.id]

    back = await restore(world, sandbox)

    assert (back.state, back.incarnations, back.terminate_time, back.restoring) == (S.ACTIVE, 2, None, None)
    assert world.volumes.volumes[sandbox.id] == {Volume.HOME: HOME, Volume.WORKSPACE: WORK}
    assert [one.trigger for one in sets(world)] == [BackupTrigger.REQUEST]
    assert [life.end_reason for life in world.lives(sandbox.id)] == ["TERMINATED", ""]


async def test_what_a_terminated_sandbox_has_and_no_set_has_is_backed_up_and_is_what_comes_back(
    world: ManagerWorld,
) -> None:
    sandbox = await given(world)
    await backed_up(world, sandbox)
    world.volumes.volumes[sandbox.id][Volume.WORKSPACE][b"notes"] = b"two"
    await terminated(world, sandbox)

    await restore(world, sandbox)

    assert world.volumes.volumes[sandbox.id][Volume.WORKSPACE][b"notes"] == b"two"
    assert [one.trigger for one in sets(world)] == [BackupTrigger.REQUEST, BackupTrigger.RESTORE]


async def test_a_paused_one_goes_back_to_a_named_set_and_what_it_had_is_kept(world: ManagerWorld) -> None:
    sandbox = await given(world)
    first = await backed_up(world, sandbox)
    world.volumes.volumes[sandbox.id][Volume.WORKSPACE][b"notes"] = b"two"
    await paused(world, sandbox)

    back = await restore(world, sandbox, first)

    assert back.state is S.ACTIVE
    assert world.volumes.volumes[sandbox.id][Volume.WORKSPACE] == WORK
    kept = sets(world)[-1].snapshot(Volume.WORKSPACE)
    assert kept is not None
    assert world.volumes.kept[kept].files[b"notes"] == b"two"


async def test_paths_come_back_alone(world: ManagerWorld) -> None:
    sandbox = await given(world)
    first = await backed_up(world, sandbox)
    world.volumes.given(sandbox.id, home={b"new": b"1"}, workspace={b"src/main.py": b"broken", b"notes": b"two"})
    await paused(world, sandbox)

    await restore(world, sandbox, first, workspace=[b"src"])

    assert world.volumes.volumes[sandbox.id] == {
        Volume.HOME: {b"new": b"1"},
        Volume.WORKSPACE: {b"src/main.py": WORK[b"src/main.py"], b"notes": b"two"},
    }


async def test_a_repeated_request_restores_once(world: ManagerWorld) -> None:
    sandbox = await given(world)
    await terminated(world, sandbox)
    request = a_request()

    first = await world.manager.restore(request, sandbox.id, timeout=SOON)
    again = await world.manager.restore(request, sandbox.id, timeout=SOON)

    assert (first.incarnation, first.incarnations) == (again.incarnation, 2)


async def test_what_runs_is_not_restored_over(world: ManagerWorld) -> None:
    sandbox = await given(world)
    backup = await backed_up(world, sandbox)

    with pytest.raises(InvalidTransitionError, match="Pause it first"):
        await restore(world, sandbox, backup)


async def test_what_cannot_be_meant_is_refused_and_changes_nothing(world: ManagerWorld) -> None:
    sandbox, other = await given(world), await given(world)
    theirs = await backed_up(world, other)
    await paused(world, sandbox)
    await paused(world, other)

    with pytest.raises(BackupUnnamedError, match="from which of its backups"):
        await restore(world, sandbox)
    with pytest.raises(BackupSetNotFoundError):
        await world.manager.restore(a_request(), sandbox.id, backup=(sandbox.id, theirs.id), timeout=SOON)
    with pytest.raises(SandboxNotFoundError):
        await world.manager.restore(a_request(a_caller(client="other")), sandbox.id, timeout=SOON)

    for path in (b"../etc", b"", b"a//b", b"nul\0", b".sandboxd-restore-x/y"):
        with pytest.raises(InvalidRequestError) as refused:
            await restore(world, other, theirs, home=[path])
        assert [one.field for one in refused.value.violations] == ["paths"]

    assert world.row(sandbox.id).state is S.PAUSED
    assert sets(world) == [theirs], "nothing is backed up for it"


async def test_where_nothing_can_be_read_the_sandbox_is_where_it_was(world: ManagerWorld) -> None:
    sandbox = await given(world)
    await terminated(world, sandbox)
    await backed_up(world, sandbox)
    world.volumes.restore_trouble = BackupRepositoryBusyError("Somebody is at it.")

    with pytest.raises(BackupRepositoryBusyError, match="TERMINATED as before"):
        await restore(world, sandbox)

    row = world.row(sandbox.id)
    assert (row.state, row.restoring) == (S.TERMINATED, None)
    assert "Somebody is at it" in row.state_reason
    world.volumes.restore_trouble = None
    assert (await restore(world, sandbox)).state is S.ACTIVE


async def test_a_restore_that_is_tried_again_backs_nothing_up_again(world: ManagerWorld) -> None:
    sandbox = await given(world)
    first = await backed_up(world, sandbox)
    await paused(world, sandbox)
    for _ in range(2):
        with pytest.raises(BackupSnapshotNotFoundError, match="PAUSED as before"):
            await restore(world, sandbox, first, workspace=[b"not-there"])
        world.clock.advance(1)

    await restore(world, sandbox, first)

    assert [one.trigger for one in sets(world)] == [BackupTrigger.REQUEST, BackupTrigger.RESTORE]


async def test_a_crash_in_the_middle_is_finished_by_another_replica(world: ManagerWorld) -> None:
    sandbox = await given(world)
    await terminated(world, sandbox)
    await backed_up(world, sandbox)
    world.volumes.gate.clear()
    with pytest.raises(DeadlineError):
        await world.manager.restore(a_request(), sandbox.id, timeout=NOW)
    await eventually(lambda: any(name.startswith("rst-") for name in world.volumes.working))
    _, other = world.replica("second")
    world.crash()

    await asyncio.wait_for(other.recovery.finish_left_over(), 5)  # which does not wait for what may take hours
    assert world.row(sandbox.id).state is S.RESTORING
    world.volumes.gate.set()

    await eventually(lambda: world.row(sandbox.id).state is S.ACTIVE)
    assert world.volumes.volumes[sandbox.id] == {Volume.HOME: HOME, Volume.WORKSPACE: WORK}


async def test_a_set_whose_row_was_changed_is_not_trusted(world: ManagerWorld) -> None:
    sandbox = await given(world)
    await terminated(world, sandbox)
    backup = await backed_up(world, sandbox)
    rows = world.units.rows.backup_sets
    object.__setattr__(rows[backup.id], "image", "registry.test/evil@sha256:" + "0" * 64)

    with pytest.raises(Exception, match="not what it was|cannot start from"):
        await restore(world, sandbox)

    assert world.row(sandbox.id).state is S.TERMINATED


async def test_where_no_backups_are_kept_that_is_said() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    await terminated(world, sandbox)

    with pytest.raises(BackupsOffError):
        await restore(world, sandbox)


async def test_the_image_of_the_set_comes_back_with_it() -> None:
    world = ManagerWorld(backups=True, keeps_root=False, commits=True)
    sandbox = await given(world)
    await committed(world, sandbox, "one")
    first = await backed_up(world, sandbox)
    await committed(world, sandbox, "two")
    assert first.image != world.backend.next_images[sandbox.id]
    await terminated(world, sandbox)

    back = await restore(world, sandbox, first)

    assert back.image is not None
    assert back.image.reference == first.image
    assert world.backend.next_images[sandbox.id] == first.image


async def test_who_follows_a_restore_sees_what_is_kept_first_what_comes_back_and_its_end(world: ManagerWorld) -> None:
    sandbox = await given(world)
    first = await backed_up(world, sandbox)
    world.volumes.volumes[sandbox.id][Volume.WORKSPACE][b"notes"] = b"two"
    await paused(world, sandbox)
    world.volumes.gate.clear()
    restoring = asyncio.create_task(restore(world, sandbox, first))
    await eventually(lambda: world.row(sandbox.id).state is S.RESTORING)
    seen = list[RestoreView]()

    async def follow() -> None:
        async for view in world.manager.backups.restores.watch(a_caller(), sandbox.id):
            seen.append(view)

    following = asyncio.create_task(follow())
    await eventually(lambda: bool(seen))
    world.volumes.gate.set()
    await restoring
    await asyncio.wait_for(following, 5)

    assert (seen[0].step, seen[0].progress, seen[-1].step) == (RestoreStep.PREPARING, None, RestoreStep.ENDED)
    with pytest.raises(RestoreNotRunningError):
        await anext(world.manager.backups.restores.watch(a_caller(), sandbox.id))
    with pytest.raises(SandboxNotFoundError):
        await anext(world.manager.backups.restores.watch(a_caller(client="other"), sandbox.id))


async def test_how_far_a_restore_is_is_on_record_and_whoever_takes_it_up_goes_on_from_there(
    world: ManagerWorld,
) -> None:
    sandbox = await given(world)
    await terminated(world, sandbox)
    await backed_up(world, sandbox)
    told, ended = world.volumes.restore_told, asyncio.Event()
    world.volumes.restore_held = ended
    told.append(progress(Volume.WORKSPACE, 7))
    with pytest.raises(DeadlineError):
        await world.manager.restore(a_request(), sandbox.id, timeout=NOW)
    await eventually(lambda: far(world, sandbox) == (Volume.WORKSPACE, 7))
    told[:] = [progress(Volume.HOME, 3), progress(Volume.WORKSPACE, 5)]  # what another one counts anew
    _, other = world.replica("second")
    world.crash()
    await other.recovery.finish_left_over()
    await eventually(lambda: not told)
    assert far(world, sandbox) == (Volume.WORKSPACE, 7)

    ended.set()

    await eventually(lambda: world.row(sandbox.id).state is S.ACTIVE)


def progress(volume: Volume, size: int) -> VolumesProgress:
    return VolumesProgress(volume=volume, trees=BackupProgress(files=1, total_files=1, bytes=size, total_bytes=9))


def far(world: ManagerWorld, sandbox: Sandbox) -> tuple[Volume, int] | None:
    restoring = world.row(sandbox.id).restoring
    if restoring is None or restoring.progress is None:
        return None
    return restoring.progress.volume, restoring.progress.bytes

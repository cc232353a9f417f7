"""A restore that is cancelled leaves the sandbox as it was, wherever it stood and whoever died."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from sandboxd.manager.creation import NewSandbox
from sandboxd.model.backup import BackupSet, Volume
from sandboxd.model.backup_errors import RestoreCancelledError, RestoreTooLateError
from sandboxd.model.errors import DeadlineError, RequestIdReusedError, SandboxNotFoundError
from sandboxd.model.failpoints import FailpointError, arming
from sandboxd.model.restore_view import RestoreNotRunningError
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.volumes.ports import BackupProgress, VolumesProgress
from tests.eventually import eventually
from tests.manager_world import NOW, SOON, ManagerWorld, a_caller, a_request

S = SandboxState
HOME, OLD, NEW = {b".bashrc": b"alias"}, {b"notes": b"one"}, {b"notes": b"two", b"more": b"three"}


@pytest.fixture
def world() -> Iterator[ManagerWorld]:
    with capture_logs():  # to print what breaks here with all its locals takes seconds
        yield ManagerWorld(backups=True)


async def given(world: ManagerWorld, *, state: SandboxState = S.PAUSED) -> tuple[Sandbox, BackupSet]:
    """A sandbox that has something else now than its backup."""
    sandbox = await world.given_active()
    world.volumes.given(sandbox.id, home=HOME, workspace=OLD)
    world.clock.advance(1)
    backup = await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(1)
    world.volumes.given(sandbox.id, home=HOME, workspace=NEW)
    if state is S.PAUSED:
        await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    else:
        await world.manager.terminate(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(1)
    return world.row(sandbox.id), backup


async def restore(world: ManagerWorld, sandbox: Sandbox, backup: BackupSet) -> Sandbox:
    return await world.manager.restore(a_request(), sandbox.id, backup=(backup.sandbox, backup.id), timeout=SOON)


def hold(world: ManagerWorld) -> asyncio.Event:
    """Let what comes back be fetched, and not come to its end."""
    none = BackupProgress(files=0, total_files=0, bytes=0, total_bytes=0)
    world.volumes.restore_told.append(VolumesProgress(volume=Volume.HOME, trees=none))
    world.volumes.restore_held = held = asyncio.Event()
    return held


async def fetching(world: ManagerWorld) -> None:
    await eventually(lambda: not world.volumes.restore_told)


def as_it_was(world: ManagerWorld, before: Sandbox) -> bool:
    row = world.row(before.id)
    assert world.volumes.volumes[before.id] == {Volume.HOME: HOME, Volume.WORKSPACE: NEW}
    assert (row.state, row.incarnation, row.incarnations) == (before.state, before.incarnation, before.incarnations)
    assert (row.image, row.restoring, row.terminate_time) == (before.image, None, before.terminate_time)
    assert world.volumes.staged == set()
    return True


@pytest.mark.parametrize("state", [S.PAUSED, S.TERMINATED])
async def test_it_is_cancelled_while_what_there_is_is_backed_up_or_what_comes_back_is_fetched(
    world: ManagerWorld, state: SandboxState
) -> None:
    before, backup = await given(world, state=state)
    cancels = world.manager.backups.restores
    world.volumes.gate.clear()
    for fetches in (False, True):
        restoring = asyncio.create_task(restore(world, before, backup))
        await (fetching(world) if fetches else eventually(lambda: bool(world.volumes.working)))
        request = a_request()

        ended = await cancels.cancel(request, before.id, timeout=SOON)
        again = await cancels.cancel(request, before.id, timeout=SOON)

        with pytest.raises(RestoreCancelledError, match=f"{state.value} as before"):
            await restoring
        assert ended == again == world.row(before.id)
        assert as_it_was(world, before)
        world.volumes.gate.set()
        await eventually(lambda: not world.volumes.working)
        hold(world)
    world.volumes.restore_held = None

    back = await (
        world.manager.resume(a_request(), before.id, timeout=SOON)
        if state is S.PAUSED
        else world.manager.restore(a_request(), before.id, timeout=SOON)
    )
    assert back.state is S.ACTIVE
    assert world.volumes.volumes[before.id][Volume.WORKSPACE] == NEW


@pytest.mark.parametrize("point", ["restore.before_volumes", "restore.after_stage", "restore.turning_back"])
async def test_whoever_comes_after_a_crash_ends_what_is_to_end(world: ManagerWorld, point: str) -> None:
    before, backup = await given(world)
    with arming(f"{point}=error"):
        if point == "restore.turning_back":
            world.volumes.gate.clear()
        restoring = asyncio.create_task(restore(world, before, backup))
        await eventually(lambda: restoring.done() or bool(world.volumes.working))
        if point == "restore.turning_back":
            with pytest.raises(DeadlineError):
                await world.manager.backups.restores.cancel(a_request(), before.id, timeout=NOW)
        with pytest.raises(FailpointError):
            await restoring
    world.volumes.gate.set()
    assert world.row(before.id).state is S.RESTORING
    _, other = world.replica("second")
    world.crash()

    cancelling = asyncio.create_task(other.backups.restores.cancel(a_request(), before.id, timeout=SOON))
    await eventually(lambda: (row := world.row(before.id).restoring) is None or row.cancelled)
    await other.recovery.finish_left_over()
    await cancelling

    assert as_it_was(world, before)
    assert (await other.resume(a_request(), before.id, timeout=SOON)).state is S.ACTIVE


@pytest.mark.parametrize("point", ["restore.placing", "restore.after_volumes", "restore.after_commit"])
async def test_one_that_takes_its_place_is_not_cancelled_and_goes_on(world: ManagerWorld, point: str) -> None:
    before, backup = await given(world)
    with arming(f"{point}=error"), pytest.raises(FailpointError):
        await restore(world, before, backup)

    with pytest.raises(RestoreTooLateError):
        await world.manager.backups.restores.cancel(a_request(), before.id, timeout=SOON)
    await world.manager.recovery.finish_left_over()

    await eventually(lambda: world.row(before.id).state is S.ACTIVE)
    assert world.volumes.volumes[before.id][Volume.WORKSPACE] == OLD


async def test_a_wish_that_comes_when_all_is_fetched_is_seen_before_anything_takes_its_place(
    world: ManagerWorld,
) -> None:
    before, backup = await given(world)
    held, room = hold(world), world.core.backups
    assert room is not None
    room.making.report_every = SOON  # nobody looks meanwhile
    restoring = asyncio.create_task(restore(world, before, backup))
    await fetching(world)
    cancelling = asyncio.create_task(world.manager.backups.restores.cancel(a_request(), before.id, timeout=SOON))
    await eventually(lambda: (row := world.row(before.id).restoring) is not None and row.cancelled)
    held.set()

    await cancelling

    with pytest.raises(RestoreCancelledError):
        await restoring
    assert as_it_was(world, before)


async def test_a_sandbox_that_is_only_made_ends_empty(world: ManagerWorld) -> None:
    before, backup = await given(world)
    world.volumes.gate.clear()
    wish = NewSandbox(from_backup=(before.id, backup.id))
    making = asyncio.create_task(world.manager.create(a_request(), wish, timeout=SOON))
    await eventually(lambda: any(one.startswith("rst-") for one in world.volumes.working))
    (new,) = set(world.units.rows.sandboxes) - {before.id}

    ended = await world.manager.backups.restores.cancel(a_request(), new, timeout=SOON)

    with pytest.raises(RestoreCancelledError, match="empty"):
        await making
    assert ended.state is S.TERMINATED
    assert new not in world.volumes.volumes


async def test_what_cannot_be_meant_is_refused(world: ManagerWorld) -> None:
    before, backup = await given(world)
    cancels = world.manager.backups.restores

    with pytest.raises(RestoreNotRunningError, match="PAUSED"):
        await cancels.cancel(a_request(), before.id, timeout=SOON)
    world.volumes.gate.clear()
    restoring = asyncio.create_task(restore(world, before, backup))
    await eventually(lambda: bool(world.volumes.working))
    with pytest.raises(SandboxNotFoundError):
        await cancels.cancel(a_request(a_caller(client="other")), before.id, timeout=SOON)
    request = a_request(request_id="request-of-cancel")
    await cancels.cancel(request, before.id, timeout=SOON)
    with pytest.raises(RequestIdReusedError):
        await cancels.cancel(a_request(request_id="request-of-cancel", body="another"), before.id, timeout=SOON)
    world.volumes.gate.set()
    with pytest.raises(RestoreCancelledError):
        await restoring

"""When the volumes of terminated sandboxes go, when they stay, and how they come back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.manager.volume_release import VolumeReleases
from sandboxd.model.backup import BackupOnlyCopyError, BackupSet, BackupSetStatus, Volume
from sandboxd.model.backup_errors import BackupDamagedError, BackupStorageFullError, BackupStorageUnavailableError
from sandboxd.model.backup_retention import BackupRetention
from sandboxd.model.errors import InvalidRequestError, UnavailableError
from sandboxd.model.image import GenerationStatus
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.eventually import eventually
from tests.manager_world import SOON, ManagerWorld, a_request

S = SandboxState
DAY = 86_400
HOME, WORK = {b".bashrc": b"alias"}, {b"src/main.py": b"print()"}


def a_world(*, retention: BackupRetention | None = None, commits: bool = False) -> ManagerWorld:
    return ManagerWorld(backups=True, release_after=timedelta(days=7), retention=retention, commits=commits)


@pytest.fixture
def world() -> ManagerWorld:
    return a_world()


def releases(world: ManagerWorld) -> VolumeReleases:
    assert world.core.backups is not None
    return world.core.backups.releases


async def looked(world: ManagerWorld) -> None:
    """Look once, and let what that began end."""
    await releases(world).look()
    await eventually(lambda: not releases(world).tasks.count)


async def kept(world: ManagerWorld) -> None:
    """Let policy pass over the backups once, and end what that began."""
    room = world.core.backups
    assert room is not None
    await room.keeping.keep()
    await eventually(lambda: not room.making.tasks.count)


async def terminated(world: ManagerWorld) -> Sandbox:
    sandbox = await world.given_active()
    world.volumes.given(sandbox.id, home=HOME, workspace=WORK)
    world.clock.advance(1)
    await world.manager.terminate(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(1)
    return sandbox


async def released(world: ManagerWorld) -> Sandbox:
    sandbox = await terminated(world)
    await kept(world)
    world.clock.advance(8 * DAY)
    await looked(world)
    assert sandbox.id not in world.volumes.volumes
    return world.row(sandbox.id)


async def restored(world: ManagerWorld, sandbox: Sandbox, **more: object) -> Sandbox:
    return await world.manager.restore(a_request(), sandbox.id, timeout=SOON, **more)  # type: ignore[arg-type]


def sets(world: ManagerWorld) -> list[BackupSet]:
    return sorted(world.units.rows.backup_sets.values(), key=lambda one: one.id)


async def test_volumes_go_a_while_after_the_end_once_every_byte_of_their_set_was_read(world: ManagerWorld) -> None:
    sandbox = await terminated(world)
    await kept(world)
    world.clock.advance(6 * DAY)
    await looked(world)
    assert sandbox.id in world.volumes.volumes

    world.clock.advance(2 * DAY)
    await looked(world)

    (only,) = sets(world)
    said = world.row(sandbox.id).volumes_released
    assert said is not None
    assert (said.backup, said.end_time is not None, only.pinned_time) == (only.id, True, said.begin_time)
    assert sandbox.id not in world.volumes.volumes
    assert world.volumes.proved == [one.snapshot for one in only.volumes]


async def test_what_was_released_comes_back_and_its_set_is_one_of_several_again(world: ManagerWorld) -> None:
    row = await released(world)

    back = await restored(world, row)

    assert (back.state, back.volumes_released, back.released) == (S.ACTIVE, None, None)
    assert world.volumes.volumes[row.id] == {Volume.HOME: HOME, Volume.WORKSPACE: WORK}
    assert [one.pinned_time for one in sets(world)] == [None]
    assert len(sets(world)) == 1, "nothing was backed up in between: there was nothing"


@pytest.mark.parametrize("trouble", [BackupDamagedError("Rot."), BackupStorageUnavailableError("Away.")])
async def test_volumes_stay_while_their_set_cannot_be_read(
    world: ManagerWorld, trouble: BackupDamagedError | BackupStorageUnavailableError
) -> None:
    sandbox = await terminated(world)
    await kept(world)
    world.clock.advance(8 * DAY)
    world.volumes.prove_trouble = trouble

    await looked(world)
    assert sandbox.id in world.volumes.volumes
    assert world.row(sandbox.id).released is None

    world.volumes.prove_trouble = None
    world.clock.advance(3600)
    await looked(world)
    assert sandbox.id not in world.volumes.volumes


async def test_volumes_stay_where_no_set_is_of_that_very_end_whatever_clocks_say(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.volumes.given(sandbox.id, home=HOME, workspace=WORK)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    await world.manager.terminate(a_request(), sandbox.id, timeout=SOON)
    (early,) = sets(world)
    # A clock that was wrong: the set of the life before says that it is younger than the end.
    world.units.rows.backup_sets[early.id] = replace(early, take_time=early.take_time + timedelta(days=1))
    world.clock.advance(30 * DAY)

    await looked(world)

    assert sandbox.id in world.volumes.volumes


async def test_a_set_whose_row_was_changed_or_that_failed_releases_nothing(world: ManagerWorld) -> None:
    sandbox = await terminated(world)
    await kept(world)
    world.clock.advance(8 * DAY)
    (only,) = sets(world)
    world.units.rows.backup_sets[only.id] = replace(only, spec={**only.spec, "tier": "premium"})

    await looked(world)

    assert sandbox.id in world.volumes.volumes


async def test_volumes_stay_where_the_image_of_their_set_is_kept_no_more() -> None:
    world = a_world(commits=True)
    sandbox = await world.given_active()
    world.volumes.given(sandbox.id, home=HOME, workspace=WORK)
    world.builder.roots[sandbox.id] = "tools"
    await world.manager.images.commit(a_request(), sandbox.id, timeout=SOON)
    await world.manager.terminate(a_request(), sandbox.id, timeout=SOON)
    await kept(world)
    world.clock.advance(8 * DAY)
    rows = world.units.rows.generations
    rows.update({name: replace(one, status=GenerationStatus.FAILED) for name, one in rows.items()})

    await looked(world)

    assert sandbox.id in world.volumes.volumes


async def test_a_volume_whose_content_would_stay_is_not_given_up(world: ManagerWorld) -> None:
    sandbox = await terminated(world)
    await kept(world)
    world.clock.advance(8 * DAY)
    world.kept.hindrance = "Its reclaim policy is Retain."

    await looked(world)

    assert world.row(sandbox.id).released is None
    assert world.volumes.proved == [], "nothing is read in vain"


async def test_a_restore_that_begins_while_the_set_is_read_wins(world: ManagerWorld) -> None:
    sandbox = await terminated(world)
    await kept(world)
    world.clock.advance(8 * DAY)
    world.volumes.proving.clear()
    await releases(world).look()

    back = await restored(world, sandbox)
    world.volumes.proving.set()
    await eventually(lambda: not releases(world).tasks.count)

    assert back.state is S.ACTIVE
    assert world.row(sandbox.id).released is None
    assert sandbox.id in world.volumes.volumes


async def test_a_restore_waits_for_volumes_that_are_going_and_gets_all_of_them_back(world: ManagerWorld) -> None:
    sandbox = await terminated(world)
    await kept(world)
    world.clock.advance(8 * DAY)
    world.kept.gate.clear()
    await releases(world).look()
    await eventually(lambda: world.row(sandbox.id).volumes_released is not None)

    restoring = asyncio.create_task(restored(world, sandbox))
    await asyncio.sleep(0)
    world.kept.gate.set()
    back = await restoring

    assert back.state is S.ACTIVE
    assert world.volumes.volumes[sandbox.id] == {Volume.HOME: HOME, Volume.WORKSPACE: WORK}


async def test_what_broke_off_after_the_row_is_finished_by_another_replica(world: ManagerWorld) -> None:
    sandbox = await terminated(world)
    await kept(world)
    world.clock.advance(8 * DAY)
    world.kept.gate.clear()
    await releases(world).look()
    await eventually(lambda: world.row(sandbox.id).volumes_released is not None)
    world.crash()
    world.clock.advance(60)
    world.kept.gate.set()
    other, _ = world.replica("second")
    room = other.backups
    assert room is not None

    await room.releases.look()
    await eventually(lambda: not room.releases.tasks.count)

    said = world.row(sandbox.id).volumes_released
    assert said is not None
    assert said.end_time is not None
    assert sandbox.id not in world.volumes.volumes


async def test_a_restore_after_a_release_that_broke_off_does_not_take_what_is_left_for_how_it_ended(
    world: ManagerWorld,
) -> None:
    sandbox = await terminated(world)
    await kept(world)
    world.clock.advance(8 * DAY)
    world.kept.trouble = UnavailableError("The storage hangs.")
    await looked(world)
    del world.volumes.volumes[sandbox.id][Volume.HOME][b".bashrc"]  # as if half were gone
    world.kept.trouble = None

    back = await restored(world, sandbox)

    assert back.state is S.ACTIVE
    assert world.volumes.volumes[sandbox.id] == {Volume.HOME: HOME, Volume.WORKSPACE: WORK}
    assert len(sets(world)) == 1


async def test_a_restore_that_fails_leaves_the_set_as_all_that_counts(world: ManagerWorld) -> None:
    row = await released(world)
    world.volumes.restore_trouble = BackupStorageFullError("There is no room.")
    with pytest.raises(BackupStorageFullError):
        await restored(world, row)
    world.volumes.given(row.id, home={b"half": b""}, workspace={})  # what such a restore may leave
    world.volumes.restore_trouble = None

    failed = world.row(row.id)
    assert (failed.state, failed.terminate_time, failed.state_time) == (
        S.TERMINATED,
        row.terminate_time,
        row.terminate_time,
    )
    await kept(world)
    assert len(sets(world)) == 1, "half a restore is not backed up as if it were the end"
    world.clock.advance(1)
    await looked(world)
    assert row.id not in world.volumes.volumes, "what came back halfway goes again"

    assert (await restored(world, row)).state is S.ACTIVE
    assert world.volumes.volumes[row.id] == {Volume.HOME: HOME, Volume.WORKSPACE: WORK}


async def test_paths_alone_do_not_come_back_where_there_is_nothing_beside_them(world: ManagerWorld) -> None:
    row = await released(world)
    (only,) = sets(world)

    with pytest.raises(InvalidRequestError, match="restore it whole first"):
        await restored(world, row, backup=(row.id, only.id), paths={Volume.HOME: [b".bashrc"]})


async def test_the_only_copy_goes_for_nobody_who_does_not_say_so(world: ManagerWorld) -> None:
    row = await released(world)
    (only,) = sets(world)

    with pytest.raises(BackupOnlyCopyError):
        await world.manager.backups.delete(a_request(), row.id, only.id, timeout=SOON)
    gone = await world.manager.backups.delete(a_request(), row.id, only.id, give_up=True, timeout=SOON)

    assert gone.status is BackupSetStatus.DELETED


async def test_policy_keeps_the_only_copy_until_the_end_that_is_set_for_it() -> None:
    world = a_world(
        retention=BackupRetention(keep_last=0, keep_daily=0, keep_weekly=0, released_for=timedelta(days=30))
    )
    row = await released(world)
    world.clock.advance(29 * DAY)
    await kept(world)
    assert [one.status for one in sets(world)] == [BackupSetStatus.COMPLETE]

    world.clock.advance(2 * DAY)
    await kept(world)
    await eventually(lambda: [one.status for one in sets(world)] == [BackupSetStatus.DELETED])

    assert world.row(row.id).state is S.TERMINATED


async def test_where_nothing_is_to_be_released_volumes_stay() -> None:
    world = ManagerWorld(backups=True)
    sandbox = await terminated(world)
    await kept(world)
    world.clock.advance(365 * DAY)

    await looked(world)

    assert sandbox.id in world.volumes.volumes


async def test_one_look_begins_no_more_than_a_replica_does_at_once(world: ManagerWorld) -> None:
    ended = [await terminated(world) for _ in range(3)]
    for _ in ended:
        await kept(world)
    world.clock.advance(8 * DAY)
    world.volumes.proving.clear()

    begun = await releases(world).look()
    world.volumes.proving.set()
    await eventually(lambda: not releases(world).tasks.count)

    assert begun == 2
    assert sum(one.id in world.volumes.volumes for one in ended) == 1

"""Restore drills with volumes in memory: what is tried and whose turn it is, what a verdict is, and what is left."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from sandboxd.manager.abandoned_rows import reason_of
from sandboxd.manager.backup_tools import BackupTools
from sandboxd.manager.backups import BackupRoom
from sandboxd.model.abandoned import AbandonedKind, AbandonedReason, Thing
from sandboxd.model.backup import BackupMethod, BackupSet, Volume
from sandboxd.model.backup_errors import (
    BackupDamagedError,
    BackupsOffError,
    BackupStorageUnavailableError,
    BackupUnreadError,
)
from sandboxd.model.caller import Caller, Role
from sandboxd.model.drill import (
    Drill,
    DrillInProgressError,
    DrillStatus,
    DrillTrigger,
    NothingToDrillError,
    drill_sandbox,
)
from sandboxd.model.errors import DeadlineError, UnavailableError
from sandboxd.model.ids import RequestId, SandboxId
from sandboxd.model.image_errors import ImageBrokenError
from sandboxd.model.sandbox import Sandbox
from tests.eventually import eventually
from tests.manager_world import SOON, ManagerWorld, a_caller, a_request

S = DrillStatus
HOME, WORK = {b".bashrc": b"alias"}, {b"src/main.py": b"print()", b"notes": b"one"}
PLATFORM = Caller(client=a_caller().client, subject="root", role=Role.PLATFORM)
DAY = timedelta(days=1)


class DrillWorld(ManagerWorld):
    every = DAY
    most = 1 << 30

    @override
    def backup_tools(self) -> BackupTools:
        tools = super().backup_tools()
        return BackupTools(volumes=tools.volumes, drill_every=self.every, drill_bytes=self.most)

    @property
    def room(self) -> BackupRoom:
        assert self.core.backups is not None
        self.core.backups.drilling.watch_seconds = 0.02
        return self.core.backups

    def drills(self) -> list[Drill]:
        return sorted(self.units.rows.drills.values(), key=lambda one: one.id)


@pytest.fixture
def world() -> DrillWorld:
    return DrillWorld(backups=True)


async def given(world: DrillWorld, *, client: str = "acme", files: dict[bytes, bytes] | None = None) -> BackupSet:
    sandbox = await world.given_active(a_caller(client=client))
    world.volumes.given(sandbox.id, home=HOME, workspace=files or WORK)
    return await backed_up(world, sandbox)


async def backed_up(world: DrillWorld, sandbox: Sandbox) -> BackupSet:
    world.clock.advance(1)
    caller = a_caller(client=sandbox.client)
    made = await world.manager.backups.create(a_request(caller), sandbox.id, timeout=SOON)
    world.clock.advance(1)
    return made


async def drilled(world: DrillWorld, backup: BackupSet | None = None, *, request_id: str = "a-request") -> Drill:
    named = None if backup is None else (backup.sandbox, backup.id)
    return await world.manager.backups.drills.run(RequestId(request_id), named, timeout=SOON)


def left_behind(world: DrillWorld) -> set[SandboxId]:
    """Sandboxes of the world that have no row."""
    running = {one for one, lives in world.backend.running.items() if lives}
    return {*running, *world.backend.files, *world.volumes.volumes} - set(world.units.rows.sandboxes)


async def test_a_set_is_restored_booted_compared_and_all_that_is_destroyed(world: DrillWorld) -> None:
    backup = await given(world)

    drill = await drilled(world, backup)

    assert (drill.status, drill.trigger, drill.backup, drill.failure) == (S.PASSED, DrillTrigger.REQUEST, backup.id, "")
    assert [(one.volume, one.difference_count) for one in drill.volumes] == [(Volume.HOME, 0), (Volume.WORKSPACE, 0)]
    assert all(one.expected == one.found for one in drill.volumes)
    assert set(drill.seconds) == {"restore", "boot", "compare", "clear"}
    assert world.backend.starts == 2, "it was booted"
    assert left_behind(world) == set()
    assert len(world.units.rows.sandboxes) == 1, "nobody has it"
    assert len(world.units.rows.incarnations) == 1, "nobody pays for it"


async def test_what_came_back_otherwise_is_told_and_nothing_is_left(world: DrillWorld) -> None:
    backup = await given(world)
    world.volumes.spoil = {b"notes": b"two"}

    drill = await drilled(world, backup)

    assert (drill.status, drill.failure) == (S.FAILED, "DRILL_DIFFERS")
    assert "notes differs" in drill.failure_message
    assert [one.difference_count for one in drill.volumes] == [0, 1]
    assert left_behind(world) == set()


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        (BackupDamagedError("A pack is missing."), S.FAILED),
        (BackupStorageUnavailableError("Nobody answers."), S.ABANDONED),
        (DeadlineError("Too slow."), S.ABANDONED),
    ],
)
async def test_what_keeps_a_set_from_coming_back_is_a_verdict_or_says_nothing(
    world: DrillWorld, trouble: Any, status: DrillStatus
) -> None:
    backup = await given(world)
    world.volumes.restore_trouble = trouble

    drill = await drilled(world, backup)

    assert (drill.status, drill.failure) == (status, trouble.reason)
    assert left_behind(world) == set()


@pytest.mark.parametrize(
    ("trouble", "status"),
    [(ImageBrokenError("It has no shell."), S.FAILED), (UnavailableError("The cluster is full."), S.ABANDONED)],
)
async def test_a_set_that_does_not_boot_has_failed_and_a_full_cluster_says_nothing(
    world: DrillWorld, trouble: Any, status: DrillStatus
) -> None:
    backup = await given(world)
    world.backend.start_error = trouble

    drill = await drilled(world, backup)

    assert (drill.status, drill.failure) == (status, trouble.reason)
    assert left_behind(world) == set()


async def test_a_set_that_is_deleted_meanwhile_has_not_failed(world: DrillWorld) -> None:
    first = await given(world)
    async with world.units.begin() as work:
        sandbox = await work.sandboxes.get(first.sandbox)
    await backed_up(world, sandbox)
    world.volumes.gate.clear()
    drills = world.manager.backups.drills
    await drills.run(RequestId("a-request"), (first.sandbox, first.id), wait=False, timeout=SOON)
    await eventually(lambda: any(name.startswith("rst") for name in world.volumes.working))

    await world.manager.backups.delete(a_request(), first.sandbox, first.id, timeout=SOON)
    world.volumes.gate.set()

    assert (await drills.run(RequestId("a-request"), timeout=SOON)).status is S.ABANDONED


async def test_what_a_drill_works_in_is_abandoned_only_when_it_has_ended(world: DrillWorld) -> None:
    await given(world)
    world.volumes.gate.clear()
    drill = await world.manager.backups.drills.run(RequestId("a-request"), wait=False, timeout=SOON)
    box = drill_sandbox(drill.id)
    things = [
        Thing(kind=AbandonedKind.VOLUME, name="ns/home", identity="1", sandbox=box),
        Thing(kind=AbandonedKind.LEFTOVER, name="left", identity="1", sandbox=box, said=AbandonedReason.EXPIRED),
    ]

    async def reasons() -> list[AbandonedReason | None]:
        async with world.units.begin() as work:
            return [await reason_of(work, one) for one in things]

    running = await reasons()
    world.volumes.gate.set()
    await drilled(world)

    assert running == [None, None]
    assert await reasons() == [AbandonedReason.NO_ROW, AbandonedReason.EXPIRED]


async def test_a_row_that_was_changed_is_found(world: DrillWorld) -> None:
    backup = await given(world)
    object.__setattr__(world.units.rows.backup_sets[backup.id], "image", "registry.test/evil@sha256:" + "0" * 64)

    drill = await drilled(world, backup)

    assert (drill.status, drill.failure) == (S.FAILED, "BACKUP_DAMAGED")


async def test_a_crash_in_the_middle_is_cleared_and_finished_by_another_replica(world: DrillWorld) -> None:
    backup = await given(world)
    world.volumes.gate.clear()
    begun = await world.manager.backups.drills.run(
        RequestId("a-request"), (backup.sandbox, backup.id), wait=False, timeout=SOON
    )
    await eventually(lambda: any(name.startswith("rst") for name in world.volumes.working))
    other, manager = world.replica("second")
    assert other.backups is not None
    world.crash()

    await other.backups.finish_left_over()
    world.volumes.gate.set()
    ended = await manager.backups.drills.run(RequestId("a-request"), timeout=SOON)

    assert (ended.id, ended.status, ended.attempts) == (begun.id, S.PASSED, 2)
    assert left_behind(world) == set()


async def test_one_at_a_time_and_a_repeated_request_is_the_same_drill(world: DrillWorld) -> None:
    backup = await given(world)
    world.volumes.gate.clear()
    drills = world.manager.backups.drills
    first = await drills.run(RequestId("first-one"), wait=False, timeout=SOON)

    with pytest.raises(DrillInProgressError):
        await drills.run(RequestId("second-one"), (backup.sandbox, backup.id), timeout=SOON)
    with pytest.raises(DeadlineError):
        await drills.run(RequestId("first-one"), timeout=timedelta(0))
    world.volumes.gate.set()

    assert (await drills.run(RequestId("first-one"), timeout=SOON)).id == first.id
    assert len(world.drills()) == 1


async def test_each_client_has_its_turn_and_of_each_the_sandbox_that_waits_longest(world: DrillWorld) -> None:
    first, second = await given(world), await given(world)
    other = await given(world, client="other")
    keeping = world.room.drill_keeping
    turns = []
    for _ in range(4):
        assert await keeping.keep()
        await eventually(lambda: all(one.status is S.PASSED for one in world.drills()))
        assert not await keeping.keep(), "its day is not over"
        turns.append(world.drills()[-1].backup)
        world.clock.advance(DAY.total_seconds() + 1)

    assert turns == [other.id, second.id, other.id, first.id]
    assert all(one.trigger is DrillTrigger.SCHEDULE for one in world.drills())


async def test_one_that_could_not_be_carried_out_is_tried_again_after_an_hour(world: DrillWorld) -> None:
    await given(world)
    world.volumes.restore_trouble = BackupStorageUnavailableError("Nobody answers.")
    keeping = world.room.drill_keeping
    assert await keeping.keep()
    await eventually(lambda: world.drills()[0].status is S.ABANDONED)
    world.volumes.restore_trouble = None

    assert not await keeping.keep()
    world.clock.advance(3601)
    assert await keeping.keep()
    await eventually(lambda: world.drills()[-1].status is S.PASSED)


async def test_what_is_too_large_has_no_turn_and_where_nothing_has_that_is_said(world: DrillWorld) -> None:
    with pytest.raises(NothingToDrillError):
        await drilled(world)
    await given(world, files={b"big": b"x" * 2000})
    world.most = 1000
    core, manager = world.replica("small")

    with pytest.raises(NothingToDrillError):
        await manager.backups.drills.run(RequestId("request-1"), timeout=SOON)
    assert core.backups is not None
    assert not await core.backups.drill_keeping.keep()
    with pytest.raises(BackupsOffError):
        await ManagerWorld().manager.backups.drills.run(RequestId("request-1"), timeout=SOON)


async def test_snapshots_of_the_volumes_own_storage_are_not_drilled_with(world: DrillWorld) -> None:
    backup = await given(world)
    object.__setattr__(world.units.rows.backup_sets[backup.id], "method", BackupMethod.SNAPSHOTS)

    with pytest.raises(BackupUnreadError):
        await drilled(world, backup)
    with pytest.raises(NothingToDrillError):
        await drilled(world)

    assert world.drills() == []


async def test_never_by_schedule_where_that_is_wished(world: DrillWorld) -> None:
    await given(world)
    world.every = timedelta(0)
    core, _ = world.replica("calm")
    assert core.backups is not None

    assert not await core.backups.drill_keeping.keep()


async def test_an_erasure_ends_a_drill_before_it_destroys_what_that_reads(world: DrillWorld) -> None:
    backup = await given(world)
    world.volumes.gate.clear()
    room = world.room
    await world.manager.backups.drills.run(RequestId("a-request"), wait=False, timeout=SOON)
    await eventually(lambda: any(name.startswith("rst") for name in world.volumes.working))

    with pytest.raises(DrillInProgressError):
        await room.erase(backup.client, None)
    await eventually(lambda: world.drills()[0].status is S.ABANDONED)
    world.volumes.gate.set()
    await room.erase(backup.client, None)

    assert world.volumes.destroyed == {backup.client}
    assert left_behind(world) == set()


async def test_what_a_drill_could_not_destroy_is_destroyed_by_the_next_pass(world: DrillWorld) -> None:
    backup = await given(world)
    drill = await drilled(world, backup)
    box = drill_sandbox(drill.id)
    world.backend.files.add(box)

    assert await world.room.drilling.sweep() == 1

    assert box not in world.backend.files


async def test_a_client_reads_of_its_own_and_the_platform_of_all(world: DrillWorld) -> None:
    mine, theirs = await given(world), await given(world, client="other")
    await drilled(world, mine, request_id="request-1")
    world.clock.advance(1)
    await drilled(world, theirs, request_id="request-2")
    drills = world.manager.backups.drills
    everybody = Caller(client=a_caller(client="").client, subject="root", role=Role.PLATFORM)

    own = await drills.list(a_caller(role=Role.CLIENT_ADMIN))
    first = await drills.list(everybody, page_size=1)
    second = await drills.list(everybody, page_size=1, page_token=first.next_token)

    assert [one.backup for one in own.items] == [mine.id]
    assert [one.backup for one in (*first.items, *second.items)] == [theirs.id, mine.id]

"""What policy does with backups by itself: what is backed up, when, what goes, and what an erasure takes with it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.manager.backup_keeping import BackupKeeping, KeepingReport
from sandboxd.manager.backup_ports import BackupInProgressError
from sandboxd.model.backup import (
    BackupSet,
    BackupSetInUseError,
    BackupSetLockedError,
    BackupSetStatus,
    BackupTrigger,
    Consistency,
)
from sandboxd.model.backup_errors import BackupStorageUnavailableError
from sandboxd.model.backup_retention import BackupRetention, Hold, RetentionOverrides
from sandboxd.model.errors import DeadlineError
from sandboxd.model.final_backup import FinalBackupState
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.eventually import eventually
from tests.manager_world import SOON, ManagerWorld, a_caller, a_request

S, T, F = BackupSetStatus, BackupTrigger, FinalBackupState
DAY = 86_400


def a_world(retention: BackupRetention | None = None) -> ManagerWorld:
    return ManagerWorld(backups=True, retention=retention)


@pytest.fixture
def world() -> ManagerWorld:
    return a_world()


def keeping(world: ManagerWorld) -> BackupKeeping:
    assert world.core.backups is not None
    return world.core.backups.keeping


async def passed(world: ManagerWorld) -> KeepingReport:
    """Pass once, and let what it began end."""
    report = await keeping(world).keep()
    await eventually(lambda: not keeping(world).making.tasks.count)
    return report


async def given(world: ManagerWorld, client: str = "acme") -> Sandbox:
    sandbox = await world.given_active(a_caller(client=client))
    world.volumes.given(sandbox.id, home={b"a": b"1"}, workspace={b"b": b"2"})
    return sandbox


async def used(world: ManagerWorld, sandbox: Sandbox) -> None:
    async with world.units.begin() as work:
        await work.sandboxes.touch(sandbox.id, at=world.clock.now())
        await work.commit()


def sets(world: ManagerWorld, *statuses: BackupSetStatus) -> list[BackupSet]:
    found = sorted(world.units.rows.backup_sets.values(), key=lambda one: one.id)
    return [one for one in found if not statuses or one.status in statuses]


async def test_who_is_used_is_backed_up_once_in_each_span_and_who_rests_is_not_again(world: ManagerWorld) -> None:
    sandbox = await given(world)

    begun = [(await passed(world)).begun]  # it is too young
    for use in (False, True, False, True):
        world.clock.advance(DAY + 1)
        if use:
            await used(world, sandbox)
        begun += [(await passed(world)).begun, (await passed(world)).begun]

    # The first is of its creation, which is a use; then only where it was used since.
    assert begun == [0, 1, 0, 1, 0, 0, 0, 1, 0]
    assert {one.trigger for one in sets(world)} == {T.SCHEDULE}


async def test_where_no_schedule_is_wished_none_is_kept(world: ManagerWorld) -> None:
    await given(world)
    object.__setattr__(keeping(world).making.tools, "every", timedelta(0))
    world.clock.advance(DAY + 1)

    assert (await passed(world)).begun == 0


async def test_what_a_terminated_sandbox_leaves_is_backed_up_once_and_is_quiesced(world: ManagerWorld) -> None:
    sandbox = await given(world)
    await world.manager.terminate(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(1)

    assert [(await passed(world)).begun for _ in range(2)] == [1, 0]

    (made,) = sets(world)
    assert (made.trigger, made.status, made.consistency) == (T.TERMINATE, S.COMPLETE, Consistency.QUIESCED)


async def test_of_a_terminated_sandbox_it_is_said_what_it_is_backed_up_as_and_of_another_nothing(
    world: ManagerWorld,
) -> None:
    sandbox = await given(world)
    seen = [await final(world, sandbox)]
    await world.manager.terminate(a_request(), sandbox.id, timeout=SOON)
    seen += [await final(world, sandbox)]
    world.clock.advance(1)
    world.volumes.take_trouble = BackupStorageUnavailableError("Away.")
    await passed(world)
    seen += [await final(world, sandbox)]
    world.volumes.take_trouble = None
    world.clock.advance(3601)
    world.volumes.gate.clear()
    await keeping(world).keep()
    seen += [await final(world, sandbox)]
    world.volumes.gate.set()
    await eventually(lambda: not keeping(world).making.tasks.count)
    seen += [await final(world, sandbox)]
    (made,) = sets(world, S.COMPLETE)
    await world.manager.backups.delete(a_request(), sandbox.id, made.id, timeout=SOON)
    seen += [await final(world, sandbox)]

    assert seen == [None, F.PENDING, F.FAILED, F.CREATING, F.COMPLETE, F.DELETED]
    object.__setattr__(keeping(world).making.tools, "after_terminate", False)
    other = await given(world)
    await world.manager.terminate(a_request(), other.id, timeout=SOON)
    assert await final(world, other) is F.OFF


async def final(world: ManagerWorld, sandbox: Sandbox) -> FinalBackupState | None:
    found = await world.manager.final_backup(await world.manager.get(a_caller(), sandbox.id))
    return None if found is None else found.state


async def test_one_that_failed_is_tried_again_after_an_hour_and_one_without_volumes_is_not(
    world: ManagerWorld,
) -> None:
    sandbox, empty = await given(world), await world.given_active()
    for one in (sandbox, empty):
        await world.manager.terminate(a_request(), one.id, timeout=SOON)
    world.clock.advance(1)
    world.volumes.take_trouble = BackupStorageUnavailableError("Away.")
    await passed(world)
    world.volumes.take_trouble = None
    world.clock.advance(60)
    assert (await passed(world)).begun == 0
    world.clock.advance(3600)

    await passed(world)
    await passed(world)
    world.clock.advance(3600)

    assert (await passed(world)).begun == 0
    assert {(one.sandbox, one.failure) for one in sets(world)} == {
        (sandbox.id, "BACKUP_STORAGE_UNAVAILABLE"),
        (sandbox.id, ""),
        (empty.id, "BACKUP_STORAGE_UNAVAILABLE"),
        (empty.id, "VOLUMES_NOT_FOUND"),
    }


async def test_a_replica_makes_a_few_at_once_and_the_rest_later(world: ManagerWorld) -> None:
    for _ in range(5):
        await given(world)
    world.clock.advance(DAY + 1)
    world.volumes.gate.clear()

    first, second = await keeping(world).keep(), await keeping(world).keep()
    world.volumes.gate.set()
    await eventually(lambda: not keeping(world).making.tasks.count)

    assert (first.begun, second.begun) == (2, 0)
    assert [(await passed(world)).begun for _ in range(3)] == [2, 1, 0]


async def test_the_retention_lets_old_sets_go_with_their_content_and_never_the_newest() -> None:
    world = a_world(BackupRetention(keep_last=1, keep_daily=0, keep_weekly=0))
    sandbox = await given(world)
    for _ in range(3):
        await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
        world.clock.advance(60)
    newest = sets(world)[-1]

    report = await passed(world)

    assert report.let_go == 2
    await eventually(lambda: len(sets(world, S.DELETED)) == 2)
    assert {one.backup for one in world.volumes.kept.values()} == {newest.id}
    assert (await passed(world)).let_go == 0
    assert all(one.proof is not None for one in sets(world, S.DELETED))


async def test_what_a_sandbox_is_being_restored_from_stays_until_it_is() -> None:
    world = a_world(BackupRetention(keep_last=1, keep_daily=0, keep_weekly=0))
    sandbox = await given(world)
    first = await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(60)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(60)
    await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)  # so that the restore makes none
    world.volumes.gate.clear()
    with pytest.raises(DeadlineError):
        await world.manager.restore(
            a_request(), sandbox.id, backup=(sandbox.id, first.id), timeout=timedelta(milliseconds=50)
        )

    with pytest.raises(BackupSetInUseError, match=f"{sandbox.id} is being restored"):
        await world.manager.backups.delete(a_request(), sandbox.id, first.id, timeout=SOON)
    assert (await passed(world)).let_go == 0

    world.volumes.gate.set()
    await eventually(lambda: world.row(sandbox.id).state is SandboxState.ACTIVE)
    assert (await passed(world)).let_go == 1


async def test_a_locked_set_stays_for_policy_too() -> None:
    world = a_world(BackupRetention(keep_last=1, keep_daily=0, keep_weekly=0, immutable_for=timedelta(days=7)))
    sandbox = await given(world)
    for _ in range(2):
        await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
        world.clock.advance(60)

    assert (await passed(world)).let_go == 0
    world.clock.advance(7 * DAY)
    await used(world, sandbox)
    assert (await passed(world)).let_go == 1


async def wished(world: ManagerWorld, retention: RetentionOverrides) -> None:
    async with world.units.begin() as work:
        client = await work.clients.get(ClientId("acme"), for_update=True)
        policy = replace(client.policy, backup_retention=retention)
        await work.clients.save(replace(client, policy=policy, version=client.version + 1))
        await work.commit()


async def test_a_clients_own_retention_holds_for_its_sandboxes_alone() -> None:
    world = a_world(BackupRetention(keep_last=3, keep_daily=0, keep_weekly=0))
    sandbox, other = await given(world), await given(world, client="other")
    await wished(world, RetentionOverrides(keep_last=1))
    for _ in range(3):
        for client, one in (("acme", sandbox), ("other", other)):
            await world.manager.backups.create(a_request(a_caller(client=client)), one.id, timeout=SOON)
        world.clock.advance(60)

    assert (await passed(world)).let_go == 2

    assert {one.sandbox for one in sets(world, S.DELETING, S.DELETED)} == {sandbox.id}


async def test_another_window_of_immutability_is_for_sets_to_come_and_shortens_none_that_there_is() -> None:
    world = a_world(BackupRetention(keep_last=0, keep_daily=0, keep_weekly=0))
    sandbox = await given(world)
    wishes = (timedelta(days=7), timedelta(days=1), None)
    for immutable_for in wishes:
        await wished(world, RetentionOverrides(immutable_for=immutable_for))
        await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
        world.clock.advance(60)
    first, second, newest = sorted(sets(world), key=lambda one: one.take_time)

    assert [one.locked_until and one.locked_until - one.update_time for one in (first, second, newest)] == [*wishes]
    assert (await passed(world)).let_go == 0
    with pytest.raises(BackupSetLockedError):
        await world.manager.backups.delete(a_request(), sandbox.id, first.id, timeout=SOON)
    said = await world.manager.backups.keeping(a_caller(), sandbox.id)
    assert said is not None
    assert said.expire_time(first) == first.locked_until
    assert said.holds[newest.id] == {Hold.NEWEST}
    for days, gone in ((1, second), (6, first)):
        world.clock.advance(days * DAY)
        await passed(world)
        assert {one.id for one in sets(world, S.DELETING, S.DELETED)} >= {gone.id}
        assert (first.id in {one.id for one in sets(world, S.COMPLETE)}) == (gone is second)


async def test_a_failed_set_can_be_read_for_a_day(world: ManagerWorld) -> None:
    sandbox = await given(world)
    world.volumes.take_trouble = BackupStorageUnavailableError("Away.")
    with pytest.raises(BackupStorageUnavailableError):
        await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
    object.__setattr__(keeping(world).making.tools, "every", timedelta(0))

    assert (await passed(world)).let_go == 0
    world.clock.advance(DAY + 1)
    assert (await passed(world)).let_go == 1


async def test_an_erasure_takes_a_freelancers_sets_or_a_clients_repository_and_waits_for_what_is_made(
    world: ManagerWorld,
) -> None:
    sandbox = await given(world)
    for _ in range(2):
        await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
    client, freelancer = ClientId("acme"), FreelancerId("ada")

    assert await keeping(world).erase(client, FreelancerId("bob")) == 0
    assert len(world.volumes.kept) == 4
    assert await keeping(world).erase(client, freelancer) == 2
    assert world.volumes.kept == {}
    assert world.volumes.destroyed == set()

    world.volumes.gate.clear()
    making = await world.manager.backups.create(a_request(), sandbox.id, wait=False, timeout=SOON)
    with pytest.raises(BackupInProgressError):
        await keeping(world).erase(client, None)
    await eventually(lambda: world.units.rows.backup_sets[making.id].status is S.FAILED)
    await keeping(world).erase(client, None)
    assert world.volumes.destroyed == {client}

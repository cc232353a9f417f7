"""What the rows of backup sets promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count

import pytest

from sandboxd.manager.backup_ports import BackupInProgressError, BackupSetNotFoundError
from sandboxd.model.backup import (
    BackupFreeze,
    BackupSet,
    BackupSetId,
    BackupSetProgress,
    BackupSetStatus,
    Consistency,
    DeletionProof,
    RestoreId,
    Restoring,
    SnapshotId,
    Volume,
    VolumeSnapshot,
)
from sandboxd.model.backup_errors import BackupStorageFullError
from sandboxd.model.client import AccountState
from sandboxd.model.erasure import ERASED_MARK
from sandboxd.model.errors import ConflictError, InvalidRequestError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId, is_id
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.volumes.volume_errors import VolumesNotFoundError
from tests.contract.units_world import NOON, UnitsWorld, an_id, given_sandbox

ACME, OTHER = ClientId("acme"), ClientId("other")
ADA = FreelancerId("ada")
S = BackupSetStatus
IMAGE = "registry.test/acme/gemini-cli-user-ada@sha256:" + "a" * 64
_numbers = count(1)


def minutes(number: int) -> datetime:
    return NOON + timedelta(minutes=number)


def a_set(sandbox: Sandbox, *, at: datetime = NOON, image: str = "") -> BackupSet:
    return BackupSet(
        id=BackupSetId(an_id("bak")),
        sandbox=sandbox.id,
        client=sandbox.client,
        freelancer=sandbox.freelancer,
        take_time=at,
        image=image,
        freeze=BackupFreeze(required=True, longest=timedelta(seconds=7.5)),
        create_time=at,
        update_time=at,
    )


def a_volume(volume: Volume) -> VolumeSnapshot:
    return VolumeSnapshot(
        volume=volume,
        snapshot=SnapshotId(f"{next(_numbers):064x}"),
        tree="t" * 64,
        files=3,
        bytes=1 << 40,
        added_bytes=1 << 33,
        vanished=2,
    )


async def begin(world: UnitsWorld, backup: BackupSet) -> BackupSet:
    async with world.units.begin() as work:
        await work.backup_sets.begin(backup)
        await work.commit()
    return backup


async def save(world: UnitsWorld, backup: BackupSet) -> BackupSet:
    async with world.units.begin() as work:
        await work.backup_sets.save(backup)
        await work.commit()
    return backup


async def get(world: UnitsWorld, backup: BackupSet) -> BackupSet:
    async with world.units.begin() as work:
        return await work.backup_sets.get(backup.id)


async def made(
    world: UnitsWorld, sandbox: Sandbox, status: BackupSetStatus, *, at: datetime = NOON, image: str = ""
) -> BackupSet:
    """One that came so far, in all its steps."""
    backup = await begin(world, a_set(sandbox, at=at, image=image))
    volumes = (a_volume(Volume.HOME), a_volume(Volume.WORKSPACE))
    if status is S.FAILED:
        return await save(world, backup.fail(BackupStorageFullError("There is no room."), at=at))
    if status is S.CREATING:
        return backup
    backup = await save(world, backup.complete(volumes, at=at))
    if status in {S.DELETING, S.DELETED}:
        backup = await save(world, backup.enter(S.DELETING, at=at))
    if status is S.DELETED:
        backup = await save(world, backup.delete(DeletionProof(forgotten_time=at), at=at))
    return backup


async def test_a_set_is_kept_word_for_word_through_all_its_life(world: UnitsWorld) -> None:
    sandbox = await given_sandbox(world)
    spec = {"template": "default", "tier": "pro", "odd": "\0\udcff\U0001f9f0"}
    backup = await begin(world, replace(a_set(sandbox, image=IMAGE), spec=spec, consistency=Consistency.QUIESCED))
    assert await get(world, backup) == backup
    assert is_id(backup.id, "bak")

    volumes = (a_volume(Volume.HOME), a_volume(Volume.WORKSPACE))
    backup = await save(world, backup.complete(volumes, at=minutes(1), locked_until=minutes(2)))
    assert await get(world, backup) == backup

    backup = await save(world, backup.enter(S.DELETING, at=minutes(3)))
    proof = DeletionProof(
        forgotten_time=minutes(4), pruned_time=minutes(5), snapshots=tuple(one.snapshot for one in volumes)
    )
    backup = await save(world, backup.delete(proof, at=minutes(5)))
    assert await get(world, backup) == backup


async def test_a_sandbox_has_one_set_in_the_making_also_when_two_begin_at_once(world: UnitsWorld) -> None:
    sandbox, other = await given_sandbox(world), await given_sandbox(world)

    results = await asyncio.gather(
        *(begin(world, a_set(sandbox)) for _ in range(3)), begin(world, a_set(other)), return_exceptions=True
    )

    refused = [one for one in results if isinstance(one, BackupInProgressError)]
    assert len(refused) == 2
    first = next(one for one in results if isinstance(one, BackupSet))
    await save(world, first.fail(BackupStorageFullError("X"), at=NOON))
    await begin(world, a_set(sandbox))


async def test_a_set_that_somebody_else_changed_is_not_written_over(world: UnitsWorld) -> None:
    backup = await made(world, await given_sandbox(world), S.COMPLETE)
    await save(world, backup.enter(S.DELETING, at=minutes(1)))

    with pytest.raises(ConflictError):
        await save(world, replace(backup, failure="late", version=backup.version + 1))

    assert (await get(world, backup)).failure == ""


async def test_a_set_that_is_not_there_is_said_not_to_be(world: UnitsWorld) -> None:
    async with world.units.begin() as work:
        for for_update in (False, True):
            with pytest.raises(BackupSetNotFoundError):
                await work.backup_sets.get(BackupSetId("bak-nothing"), for_update=for_update)
        assert await work.backup_sets.newest(SandboxId("sbx-nothing")) is None


async def test_a_client_sees_its_own_page_by_page_the_newest_first(world: UnitsWorld) -> None:
    sandbox, second = await given_sandbox(world), await given_sandbox(world)
    theirs = await given_sandbox(world, client=OTHER)
    backups = [await made(world, sandbox, S.COMPLETE, at=minutes(number)) for number in range(3)]
    gone = await made(world, sandbox, S.DELETED, at=minutes(5))
    failed = await made(world, second, S.FAILED, at=minutes(1))
    await made(world, theirs, S.COMPLETE)

    async def pages(size: int, *, of: Sandbox | None = None, deleted: bool = False) -> list[BackupSetId]:
        found, token = [], ""
        async with world.units.begin() as work:
            while True:
                page = await work.backup_sets.list(
                    ACME, sandbox=of.id if of else None, deleted=deleted, page_size=size, page_token=token
                )
                assert len(page.items) <= size
                found += [one.id for one in page.items]
                token = page.next_token
                if not token:
                    return found

    assert await pages(1, of=sandbox) == [one.id for one in reversed(backups)]
    assert await pages(2, of=sandbox, deleted=True) == [gone.id, *(one.id for one in reversed(backups))]
    assert await pages(2) == [backups[2].id, failed.id, backups[1].id, backups[0].id]
    async with world.units.begin() as work:
        page = await work.backup_sets.list(ACME, deleted=True, page_size=1, page_token="")
        with pytest.raises(InvalidRequestError):
            await work.backup_sets.list(ACME, deleted=False, page_size=1, page_token=page.next_token)


async def test_retention_is_told_of_all_but_the_deleted_and_a_restore_of_the_newest_complete_one(
    world: UnitsWorld,
) -> None:
    sandbox = await given_sandbox(world)
    old, new = [await made(world, sandbox, S.COMPLETE, at=minutes(number)) for number in (1, 2)]
    failed = await made(world, sandbox, S.FAILED, at=minutes(3))
    leaving = await made(world, sandbox, S.DELETING, at=minutes(4))
    await made(world, sandbox, S.DELETED, at=minutes(5))
    coming = await made(world, sandbox, S.CREATING, at=minutes(6))
    await made(world, await given_sandbox(world), S.COMPLETE, at=minutes(7))

    async with world.units.begin() as work:
        assert await work.backup_sets.of_sandbox(sandbox.id, limit=9) == [coming, leaving, failed, new, old]
        assert await work.backup_sets.of_sandbox(sandbox.id, limit=2) == [coming, leaving]
        assert await work.backup_sets.newest(sandbox.id) == new


async def test_what_is_unfinished_is_found_in_pieces(world: UnitsWorld) -> None:
    sandbox = await given_sandbox(world)
    for status in (S.COMPLETE, S.FAILED, S.DELETED):
        await made(world, sandbox, status)
    waiting = [await made(world, sandbox, S.DELETING), await made(world, sandbox, S.CREATING)]

    async with world.units.begin() as work:
        assert await work.backup_sets.unfinished(limit=10) == waiting
        assert await work.backup_sets.unfinished(limit=1) == waiting[:1]
        assert await work.backup_sets.unfinished(limit=10, after=waiting[0].id) == waiting[1:]


async def test_an_image_is_pinned_by_sets_that_need_it_and_told_of_once_in_pieces(world: UnitsWorld) -> None:
    pinning = {}
    for status in (S.COMPLETE, S.CREATING, S.FAILED, S.DELETING, S.DELETED):
        pinning[status] = await made(world, await given_sandbox(world), status, image=f"image-of-{status.value}")
    again = await made(world, await given_sandbox(world), S.COMPLETE, image="image-of-complete")
    odd = await made(world, await given_sandbox(world), S.COMPLETE, image="Image")
    await made(world, await given_sandbox(world), S.COMPLETE)
    wanted = [
        ("Image", odd.id),
        ("image-of-complete", min(pinning[S.COMPLETE].id, again.id)),
        ("image-of-creating", pinning[S.CREATING].id),
    ]

    async with world.units.begin() as work:
        assert await work.backup_sets.pinned(limit=10) == wanted
        assert await work.backup_sets.pinned(limit=1) == wanted[:1]
        assert await work.backup_sets.pinned(limit=1, after="Image") == wanted[1:2]
        assert await work.backup_sets.pinned(limit=10, after="image-of-complete") == wanted[2:]


async def test_only_rows_of_what_is_long_deleted_are_forgotten(world: UnitsWorld) -> None:
    sandbox = await given_sandbox(world)
    old = [await made(world, sandbox, S.DELETED, at=minutes(number)) for number in (1, 2)]
    kept = [
        await made(world, sandbox, S.DELETED, at=minutes(5)),
        *[await made(world, sandbox, status) for status in (S.COMPLETE, S.FAILED, S.DELETING, S.CREATING)],
    ]

    async with world.units.begin() as work:
        forgotten = [await work.backup_sets.forget(before=minutes(5), limit=1) for _ in range(3)]
        await work.commit()

    assert forgotten == [1, 1, 0]
    for one in old:
        with pytest.raises(BackupSetNotFoundError):
            await get(world, one)
    assert [await get(world, one) for one in kept] == kept


async def test_progress_and_a_wish_for_the_end_are_written_apart_and_only_while_it_is_made(world: UnitsWorld) -> None:
    backup = await begin(world, a_set(await given_sandbox(world)))
    progress = BackupSetProgress(volume=Volume.HOME, files=1, total_files=2, bytes=3, total_bytes=1 << 40)

    async def note() -> None:
        async with world.units.begin() as work:
            await work.backup_sets.note_progress(backup.id, progress, at=minutes(1))
            await work.backup_sets.cancel(backup.id)
            await work.commit()

    await note()
    noted = await get(world, backup)
    assert (noted.progress, noted.cancelled, noted.version) == (progress, True, backup.version)

    ended = await save(world, backup.fail(BackupStorageFullError("No room."), at=minutes(2)))
    await note()
    found = await get(world, ended)
    assert (found.progress, found.cancelled, found.update_time) == (None, True, minutes(2))
    assert (found.failure_kind, found.failure_message) == (BackupStorageFullError.kind, "No room.")


async def test_what_is_being_deleted_and_whose_sets_there_are_is_found_by_their_owner(world: UnitsWorld) -> None:
    ours, bobs = await given_sandbox(world), await given_sandbox(world, freelancer=FreelancerId("bob"))
    theirs = await given_sandbox(world, client=OTHER)
    deleting = [await made(world, one, S.DELETING) for one in (ours, bobs, theirs)]
    complete = await made(world, ours, S.COMPLETE)
    await made(world, ours, S.DELETED)

    async with world.units.begin() as work:
        sets = work.backup_sets
        assert await sets.deleting(ACME, limit=10) == sorted(deleting[:2], key=lambda one: one.id)
        assert len(await sets.deleting(ACME, limit=1)) == 1
        everybody = await sets.of_owner(ACME, None, limit=10)
        assert {one.id for one in everybody} == {deleting[0].id, deleting[1].id, complete.id}
        assert [one.id for one in await sets.of_owner(ACME, FreelancerId("bob"), limit=10)] == [deleting[1].id]
        assert await sets.of_owner(ACME, None, limit=10, after=everybody[1].id) == [everybody[2]]
        assert await sets.sandboxes(limit=10) == [ours.id]
        assert await sets.sandboxes(limit=10, after=ours.id) == []


async def in_state(
    world: UnitsWorld, state: SandboxState, *, used: datetime = NOON, ended: datetime | None = None, reason: str = ""
) -> Sandbox:
    sandbox = await given_sandbox(world)
    changed = replace(
        sandbox, state=state, last_use_time=used, terminate_time=ended, state_reason=reason, version=sandbox.version + 1
    )
    async with world.units.begin() as work:
        await work.sandboxes.save(changed)
        await work.commit()
    return changed


async def test_who_is_due_was_used_since_its_newest_set_and_that_is_old(world: UnitsWorld) -> None:
    now = minutes(1000)
    never = await in_state(world, SandboxState.ACTIVE)
    again = await in_state(world, SandboxState.PAUSED, used=minutes(20))
    await made(world, again, S.COMPLETE, at=minutes(10))
    idle = await in_state(world, SandboxState.STOPPED, used=minutes(5))
    await made(world, idle, S.COMPLETE, at=minutes(10))
    fresh = await in_state(world, SandboxState.ACTIVE, used=minutes(999))
    await made(world, fresh, S.COMPLETE, at=minutes(950))
    making = await in_state(world, SandboxState.HIBERNATED)
    await made(world, making, S.CREATING)
    failed = await in_state(world, SandboxState.ACTIVE)
    await made(world, failed, S.FAILED, at=minutes(990))
    await in_state(world, SandboxState.TERMINATED, ended=minutes(1))

    async def due(
        *,
        after: SandboxId | None = None,
        limit: int = 10,
        retry: int = 980,
        every: timedelta = timedelta(minutes=100),
    ) -> Sequence[SandboxId]:
        async with world.units.begin() as work:
            return await work.backup_sets.due(
                at=now, every=every, retry_before=minutes(retry), limit=limit, after=after
            )

    assert await due() == [never.id, again.id]
    assert await due(limit=1) == [never.id]
    assert await due(after=never.id) == [again.id]
    assert await due(retry=995) == [never.id, again.id, failed.id]
    assert await due(every=timedelta(0)) == []

    async def wished(every: timedelta | None) -> None:
        async with world.units.begin() as work:
            client = await work.clients.get(ACME, for_update=True)
            policy = replace(client.policy, backup_every=every)
            await work.clients.save(replace(client, policy=policy, version=client.version + 1))
            await work.commit()

    await wished(timedelta(minutes=30))
    assert await due(every=timedelta(0)) == [never.id, again.id, fresh.id]
    await wished(timedelta(0))
    assert await due() == []


async def test_what_ended_and_nobody_has_begun_a_set_of_is_found_until_somebody_has(world: UnitsWorld) -> None:
    fresh = await in_state(world, SandboxState.TERMINATED, ended=minutes(10))
    before = await in_state(world, SandboxState.TERMINATED, ended=minutes(10))
    await made(world, before, S.COMPLETE, at=minutes(9))
    for status in (S.COMPLETE, S.CREATING, S.DELETED):
        done = await in_state(world, SandboxState.TERMINATED, ended=minutes(10))
        await made(world, done, status, at=minutes(11))
    failed = await in_state(world, SandboxState.TERMINATED, ended=minutes(10))
    await made(world, failed, S.FAILED, at=minutes(11))
    empty = await in_state(world, SandboxState.TERMINATED, ended=minutes(10))
    nothing = await begin(world, a_set(empty, at=minutes(11)))
    await save(world, nothing.fail(VolumesNotFoundError(empty.id), at=minutes(11)))
    await in_state(world, SandboxState.TERMINATED, ended=minutes(10), reason=ERASED_MARK)
    await in_state(world, SandboxState.ACTIVE)

    async def ended(retry: int) -> Sequence[SandboxId]:
        async with world.units.begin() as work:
            return await work.backup_sets.ended(retry_before=minutes(retry), limit=10)

    assert await ended(11) == [fresh.id, before.id]
    assert await ended(12) == [fresh.id, before.id, failed.id]


async def test_those_of_clients_that_are_being_deleted_are_left_to_the_erasure(world: UnitsWorld) -> None:
    await in_state(world, SandboxState.TERMINATED, ended=minutes(10))
    await in_state(world, SandboxState.ACTIVE)
    async with world.units.begin() as work:
        client = await work.clients.get(ACME, for_update=True)
        await work.clients.save(client.enter(AccountState.DELETING, at=minutes(20)))
        await work.commit()

    async with world.units.begin() as work:
        assert await work.backup_sets.ended(retry_before=minutes(99), limit=10) == []
        assert (
            await work.backup_sets.due(at=minutes(99), every=timedelta(minutes=1), retry_before=minutes(99), limit=10)
            == []
        )


async def test_what_a_sandbox_gets_back_is_kept_word_for_word_while_it_does(world: UnitsWorld) -> None:
    sandbox = await in_state(world, SandboxState.TERMINATED, ended=minutes(10))
    backup = BackupSetId(an_id("bak"))
    restoring = Restoring(
        id=RestoreId(an_id("rst")),
        backup=backup,
        paths={Volume.HOME: (b"a\xff\0b", b"c")},
        volumes=(Volume.WORKSPACE,),
        came_from="TERMINATED",
        still_since=minutes(10),
    )
    entered = replace(sandbox.enter(SandboxState.RESTORING, at=minutes(11)), restoring=restoring)

    async with world.units.begin() as work:
        await work.sandboxes.save(entered)
        await work.commit()
    async with world.units.begin() as work:
        found = await work.sandboxes.get(sandbox.id)

        of_it, of_another = [await work.backup_sets.restoring(one) for one in (backup, BackupSetId("bak-0"))]

    assert (found.state, found.restoring) == (SandboxState.RESTORING, restoring)
    assert (of_it, of_another) == (sandbox.id, None)
    progress = BackupSetProgress(volume=Volume.HOME, files=1, total_files=2, bytes=3, total_bytes=1 << 40)
    async with world.units.begin() as work:
        await work.backup_sets.note_restore(sandbox.id, restoring.id, progress)
        await work.backup_sets.note_restore(sandbox.id, RestoreId("rst-another"), replace(progress, bytes=9))
        await work.commit()
    async with world.units.begin() as work:
        noted = await work.sandboxes.get(sandbox.id)
    assert noted == replace(found, restoring=replace(restoring, progress=progress))
    assert found.enter(SandboxState.ACTIVE, at=minutes(12)).restoring is None


async def test_a_set_whose_content_is_back_is_not_restored_from_any_more(world: UnitsWorld) -> None:
    sandbox, backup = await in_state(world, SandboxState.TERMINATED, ended=minutes(10)), BackupSetId(an_id("bak"))
    restoring = Restoring(id=RestoreId(an_id("rst")), backup=backup, came_from="TERMINATED", restored=True)

    async with world.units.begin() as work:
        await work.sandboxes.save(replace(sandbox.enter(SandboxState.RESTORING, at=minutes(11)), restoring=restoring))
        await work.commit()
    async with world.units.begin() as work:
        assert await work.backup_sets.restoring(backup) is None

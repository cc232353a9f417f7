from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.model.backup import (
    STATUS_TRANSITIONS,
    BackupSet,
    BackupSetId,
    BackupSetLockedError,
    BackupSetStatus,
    BackupSetStatusError,
    DeletionProof,
    SnapshotId,
    Volume,
    VolumeSnapshot,
)
from sandboxd.model.backup_errors import BackupStorageFullError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
S = BackupSetStatus


def a_volume(volume: Volume, *, size: int = 5) -> VolumeSnapshot:
    return VolumeSnapshot(
        volume=volume, snapshot=SnapshotId("1" * 64), tree="2" * 64, files=1, bytes=size, added_bytes=1
    )


BOTH = (a_volume(Volume.HOME), a_volume(Volume.WORKSPACE, size=7))


def a_set(status: BackupSetStatus = S.CREATING) -> BackupSet:
    return BackupSet(
        id=BackupSetId("bak-1"),
        sandbox=SandboxId("sbx-1"),
        client=ClientId("acme"),
        freelancer=FreelancerId("ada"),
        take_time=NOON,
        create_time=NOON,
        update_time=NOON,
        volumes=BOTH,
        status=status,
    )


@pytest.mark.parametrize("before", S)
@pytest.mark.parametrize("after", S)
def test_a_set_enters_what_the_table_says_and_nothing_else(before: BackupSetStatus, after: BackupSetStatus) -> None:
    later = NOON + timedelta(minutes=1)
    if after in STATUS_TRANSITIONS[before]:
        entered = a_set(before).enter(after, at=later)
        assert (entered.status, entered.update_time, entered.version) == (after, later, 2)
    else:
        with pytest.raises(BackupSetStatusError):
            a_set(before).enter(after, at=later)


def test_every_life_ends_deleted_and_a_deleted_set_stays_so() -> None:
    assert STATUS_TRANSITIONS.keys() == set(S)
    assert [status for status, after in STATUS_TRANSITIONS.items() if not after] == [S.DELETED]


@pytest.mark.parametrize("volumes", [(), BOTH[:1], BOTH[1:]])
def test_a_set_is_not_complete_without_both_volumes(volumes: tuple[VolumeSnapshot, ...]) -> None:
    with pytest.raises(BackupSetStatusError):
        a_set().complete(volumes, at=NOON)


def test_a_complete_set_knows_its_size_and_is_locked_until_its_window_ends() -> None:
    end = NOON + timedelta(days=7)
    made = a_set().complete(BOTH, at=NOON, locked_until=end)

    assert (made.status, made.bytes, made.locked_until) == (S.COMPLETE, 12, end)
    with pytest.raises(BackupSetLockedError):
        made.enter(S.DELETING, at=end - timedelta(microseconds=1))
    assert made.enter(S.DELETING, at=end).status is S.DELETING


def test_a_failed_set_says_why_and_a_deleted_one_how_it_is_known() -> None:
    proof = DeletionProof(forgotten_time=NOON, snapshots=(SnapshotId("1" * 64),))

    failed = a_set().fail(BackupStorageFullError("There is no room."), at=NOON)
    deleted = failed.enter(S.DELETING, at=NOON).delete(proof, at=NOON)

    assert failed.failure == "BACKUP_STORAGE_FULL"
    assert (deleted.status, deleted.proof) == (S.DELETED, proof)
    with pytest.raises(BackupSetStatusError):
        replace(failed, status=S.COMPLETE).delete(proof, at=NOON)

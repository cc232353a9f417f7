"""Backups between the model and the contract."""

from __future__ import annotations

from typing import Final

from sandboxd.api.grpc.codec_backup_policy import HOLDS
from sandboxd.api.grpc.names import sandbox_id, timestamp
from sandboxd.model.backup import (
    BackupFreeze,
    BackupMethod,
    BackupSet,
    BackupSetId,
    BackupSetProgress,
    BackupSetStatus,
    BackupTrigger,
    Consistency,
    DeletionProof,
    Volume,
    VolumeSnapshot,
)
from sandboxd.model.backup_retention import Hold, Keeping
from sandboxd.model.final_backup import FinalBackup, FinalBackupState
from sandboxd.model.ids import SandboxId
from sandboxd.model.legible import legible
from sandboxd.model.restore_view import RestoreStep, RestoreView
from sandboxd.v1 import backup_pb2 as pb

STATUSES: Final = {
    BackupSetStatus.CREATING: pb.BACKUP_STATUS_CREATING,
    BackupSetStatus.COMPLETE: pb.BACKUP_STATUS_COMPLETE,
    BackupSetStatus.FAILED: pb.BACKUP_STATUS_FAILED,
    BackupSetStatus.DELETING: pb.BACKUP_STATUS_DELETING,
    BackupSetStatus.DELETED: pb.BACKUP_STATUS_DELETED,
}
TRIGGERS: Final = {
    BackupTrigger.REQUEST: pb.BACKUP_TRIGGER_REQUEST,
    BackupTrigger.SCHEDULE: pb.BACKUP_TRIGGER_SCHEDULE,
    BackupTrigger.TERMINATE: pb.BACKUP_TRIGGER_TERMINATE,
    BackupTrigger.RESTORE: pb.BACKUP_TRIGGER_RESTORE,
}
CONSISTENCIES: Final = {
    Consistency.QUIESCED: pb.BACKUP_CONSISTENCY_QUIESCED,
    Consistency.CRASH_CONSISTENT: pb.BACKUP_CONSISTENCY_CRASH_CONSISTENT,
}
FINALS: Final = {
    FinalBackupState.PENDING: pb.FINAL_BACKUP_STATE_PENDING,
    FinalBackupState.CREATING: pb.FINAL_BACKUP_STATE_CREATING,
    FinalBackupState.COMPLETE: pb.FINAL_BACKUP_STATE_COMPLETE,
    FinalBackupState.FAILED: pb.FINAL_BACKUP_STATE_FAILED,
    FinalBackupState.EMPTY: pb.FINAL_BACKUP_STATE_EMPTY,
    FinalBackupState.DELETED: pb.FINAL_BACKUP_STATE_DELETED,
    FinalBackupState.OFF: pb.FINAL_BACKUP_STATE_OFF,
}
METHODS: Final = {
    BackupMethod.FILES: pb.BACKUP_METHOD_FILES,
    BackupMethod.SNAPSHOTS: pb.BACKUP_METHOD_SNAPSHOTS,
}
STEPS: Final = {
    RestoreStep.PREPARING: pb.RESTORE_STEP_PREPARING,
    RestoreStep.VOLUMES: pb.RESTORE_STEP_VOLUMES,
    RestoreStep.STARTING: pb.RESTORE_STEP_STARTING,
    RestoreStep.ENDED: pb.RESTORE_STEP_ENDED,
}
VOLUMES: Final = {
    Volume.HOME: pb.BACKUP_VOLUME_KIND_HOME,
    Volume.WORKSPACE: pb.BACKUP_VOLUME_KIND_WORKSPACE,
}

KINDS: Final = {kind: volume for volume, kind in VOLUMES.items()}


def backup_name(backup: BackupSet) -> str:
    """Name a backup."""
    return f"sandboxes/{backup.sandbox}/backups/{backup.id}"


def backup_id(name: str) -> BackupSetId:
    """Return the id that a backup's name holds."""
    return BackupSetId(name.split("/")[3])


def backup_of(name: str) -> tuple[SandboxId, BackupSetId] | None:
    """Return the sandbox and the set that a backup's name holds; of an empty name None."""
    return (sandbox_id(name), backup_id(name)) if name else None


def encode_backup(backup: BackupSet, keeping: Keeping | None = None) -> pb.Backup:
    """Encode a backup, and why it is kept where that is known."""
    made = backup.status is not BackupSetStatus.CREATING and bool(backup.volumes)
    unsaved = backup.spec.get("unsaved_since", "")
    warnings = [f"What was installed since {unsaved} was in no image: it is not part of this backup."]
    kept = frozenset[Hold]() if keeping is None else keeping.holds.get(backup.id, frozenset())
    return pb.Backup(
        name=backup_name(backup),
        status=STATUSES[backup.status],
        trigger=TRIGGERS[backup.trigger],
        method=METHODS[backup.method],
        consistency=CONSISTENCIES[backup.consistency] if made else pb.BACKUP_CONSISTENCY_UNSPECIFIED,
        image=backup.image,
        volumes=[_volume(one) for one in backup.volumes],
        checksum=backup.checksum,
        progress=_progress(backup.progress) if backup.status is BackupSetStatus.CREATING else None,
        failure=_failure(backup),
        deletion=None if backup.proof is None else _deletion(backup.proof),
        warnings=warnings if unsaved else [],
        lock_time=timestamp(backup.locked_until),
        take_time=timestamp(backup.take_time),
        create_time=timestamp(backup.create_time),
        update_time=timestamp(backup.update_time),
        holds=sorted(HOLDS[hold] for hold in kept),
        expire_time=None if keeping is None else timestamp(keeping.expire_time(backup)),
        only_copy_time=timestamp(backup.pinned_time),
    )


def decode_freeze(message: pb.CreateBackupRequest) -> BackupFreeze | None:
    """Decode whether, and for how long, the sandbox is to stand still."""
    if message.freeze == pb.BACKUP_FREEZE_UNSPECIFIED:
        return None
    required = message.freeze == pb.BACKUP_FREEZE_REQUIRED
    if not message.HasField("freeze_at_most"):
        return BackupFreeze(required=required)
    return BackupFreeze(required=required, longest=message.freeze_at_most.ToTimedelta())


def encode_final_backup(final: FinalBackup) -> pb.FinalBackup:
    """Encode what a terminated sandbox is backed up as."""
    found = final.backup
    if found is None:
        return pb.FinalBackup(state=FINALS[final.state])
    return pb.FinalBackup(
        state=FINALS[final.state],
        backup=backup_name(found),
        take_time=timestamp(found.take_time),
        failure=_failure(found) if final.state is FinalBackupState.FAILED else None,
    )


def _volume(one: VolumeSnapshot) -> pb.BackupVolume:
    return pb.BackupVolume(
        kind=VOLUMES[one.volume],
        files=one.files,
        bytes=one.bytes,
        stored_bytes=one.added_bytes,
        vanished=one.vanished,
        tree=one.tree,
    )


def encode_restore_view(view: RestoreView) -> pb.WatchRestoreResponse:
    """Encode how far a restore is."""
    return pb.WatchRestoreResponse(step=STEPS[view.step], progress=_progress(view.progress))


def _progress(said: BackupSetProgress | None) -> pb.BackupProgress | None:
    if said is None:
        return None
    return pb.BackupProgress(
        kind=VOLUMES[said.volume],
        files=said.files,
        total_files=said.total_files,
        bytes=said.bytes,
        total_bytes=said.total_bytes,
    )


def _failure(backup: BackupSet) -> pb.BackupFailure | None:
    if not backup.failure:
        return None
    return pb.BackupFailure(reason=backup.failure, message=legible(backup.failure_message, limit=2000))


def _deletion(proof: DeletionProof) -> pb.BackupDeletion:
    return pb.BackupDeletion(
        forget_time=timestamp(proof.forgotten_time),
        prune_time=timestamp(proof.pruned_time),
        snapshots=proof.snapshots,
    )

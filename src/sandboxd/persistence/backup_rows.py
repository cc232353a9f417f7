"""Backup sets: from what the database holds to the model, and back. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sandboxd.model.backup import (
    BackupFreeze,
    BackupMethod,
    BackupSet,
    BackupSetId,
    BackupSetStatus,
    BackupTrigger,
    Consistency,
    DeletionProof,
    SnapshotId,
    Volume,
    VolumeSnapshot,
)
from sandboxd.model.errors import ErrorKind
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.persistence.progress_rows import progress_json, read_progress
from sandboxd.persistence.sandbox_rows import Row, Values


def backup_values(backup: BackupSet) -> Values:
    """A set by columns."""
    return {
        "id": backup.id,
        "sandbox": backup.sandbox,
        "client": backup.client,
        "freelancer": backup.freelancer,
        "method": backup.method.value,
        "take_time": backup.take_time,
        "image": backup.image,
        "volumes": [_volume_json(one) for one in backup.volumes],
        "spec": dict(backup.spec),
        "spec_version": backup.spec_version,
        "consistency": backup.consistency.value,
        "status": backup.status.value,
        "locked_until": backup.locked_until,
        "trigger": backup.trigger.value,
        "pinned_time": backup.pinned_time,
        "checksum": backup.checksum,
        "freeze": None if backup.freeze is None else _freeze_json(backup.freeze),
        "cancelled": backup.cancelled,
        "attempts": backup.attempts,
        "progress": None if backup.progress is None else progress_json(backup.progress),
        "failure": backup.failure,
        "failure_message": backup.failure_message,
        "failure_kind": None if backup.failure_kind is None else backup.failure_kind.value,
        "proof": None if backup.proof is None else _proof_json(backup.proof),
        "create_time": backup.create_time,
        "update_time": backup.update_time,
        "version": backup.version,
    }


def _volume_json(one: VolumeSnapshot) -> Values:
    return {
        "volume": one.volume.value,
        "snapshot": one.snapshot,
        "tree": one.tree,
        "files": one.files,
        "bytes": one.bytes,
        "added_bytes": one.added_bytes,
        "vanished": one.vanished,
        "driver": one.driver,
        "handle": one.handle,
    }


def _freeze_json(freeze: BackupFreeze) -> Values:
    return {"required": freeze.required, "longest_seconds": freeze.longest.total_seconds()}


def _read_freeze(said: Mapping[str, Any]) -> BackupFreeze:  # Any: JSON
    return BackupFreeze(required=said["required"], longest=timedelta(seconds=said["longest_seconds"]))


def _proof_json(proof: DeletionProof) -> Values:
    return {
        "forgotten_time": proof.forgotten_time.isoformat(),
        "pruned_time": None if proof.pruned_time is None else proof.pruned_time.isoformat(),
        "snapshots": list(proof.snapshots),
    }


def read_backup(row: Row) -> BackupSet:
    """A set from its columns."""
    return BackupSet(
        id=BackupSetId(row["id"]),
        sandbox=SandboxId(row["sandbox"]),
        client=ClientId(row["client"]),
        freelancer=FreelancerId(row["freelancer"]),
        method=BackupMethod(row["method"]),
        take_time=row["take_time"],
        image=row["image"],
        volumes=tuple(_read_volume(one) for one in row["volumes"]),
        spec=row["spec"],
        spec_version=row["spec_version"],
        consistency=Consistency(row["consistency"]),
        status=BackupSetStatus(row["status"]),
        locked_until=row["locked_until"],
        trigger=BackupTrigger(row["trigger"]),
        pinned_time=row["pinned_time"],
        checksum=row["checksum"],
        freeze=None if row["freeze"] is None else _read_freeze(row["freeze"]),
        cancelled=row["cancelled"],
        attempts=row["attempts"],
        progress=None if row["progress"] is None else read_progress(row["progress"]),
        failure=row["failure"],
        failure_message=row["failure_message"],
        failure_kind=None if row["failure_kind"] is None else ErrorKind(row["failure_kind"]),
        proof=None if row["proof"] is None else _read_proof(row["proof"]),
        create_time=row["create_time"],
        update_time=row["update_time"],
        version=row["version"],
    )


def _read_volume(said: Mapping[str, Any]) -> VolumeSnapshot:  # Any: JSON
    return VolumeSnapshot(
        volume=Volume(said["volume"]),
        snapshot=SnapshotId(said["snapshot"]),
        tree=said["tree"],
        files=said["files"],
        bytes=said["bytes"],
        added_bytes=said["added_bytes"],
        vanished=said["vanished"],
        driver=said.get("driver", ""),
        handle=said.get("handle", ""),
    )


def _read_proof(said: Mapping[str, Any]) -> DeletionProof:  # Any: JSON
    pruned = said["pruned_time"]
    return DeletionProof(
        forgotten_time=datetime.fromisoformat(said["forgotten_time"]),
        pruned_time=None if pruned is None else datetime.fromisoformat(pruned),
        snapshots=tuple(SnapshotId(one) for one in said["snapshots"]),
    )

"""VolumeSnapshots of backups, and the claims that come back of them. Pure.

Names are made of the set's id and the volume, so that whoever asks again finds what was made. What a snapshot has to
know of its volume (its class, when it was asked for) is on its annotations: the volume may be gone when it is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sandboxd.model.backup import BackupSetId, SnapshotId, Volume, VolumeSnapshot
from sandboxd.model.cluster import GROUP, INSTANCE_LABEL, KEPT_LABEL, OPERATOR_MANAGER, SANDBOX_LABEL, claims_of
from sandboxd.model.cluster_backup import RESTORE_LABEL, PlacedBackup
from sandboxd.model.quantity import parse_quantity
from sandboxd.operator.builders import MANAGED_BY, Json, claim_spec, labels_of
from sandboxd.operator.template import Template

SNAPSHOT_API: Final = "snapshot.storage.k8s.io/v1"
SET_LABEL: Final = f"{GROUP}/backup-set"
"""On VolumeSnapshots and their contents: of which set they are."""
VOLUME_LABEL: Final = f"{GROUP}/volume"
TAKE_TIME: Final = f"{GROUP}/take-time"
"""On a VolumeSnapshot: just before it was asked for, with its fractions of a second."""
CLASS: Final = f"{GROUP}/storage-class"
"""On a VolumeSnapshot: the class of the volume; another one's driver could not restore it."""
HANDLE: Final = f"{GROUP}/handle"
"""On a VolumeSnapshot that a set relies on: driver and handle. Another snapshot of the same name has another one."""
RESTORE: Final = RESTORE_LABEL
"""Annotation of a claim that came back of a snapshot, and label of a volume that gave way to it: by which work."""
LEFT_OVER: Final = f"{GROUP}/left-over"
"""Label of a volume that could not be put back, as somebody else's claim has its name: of which sandbox it was."""
RECLAIM: Final = f"{GROUP}/reclaim-policy"
"""On a volume that waits for the end of a restore: its own policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotState:
    """What a VolumeSnapshot says of itself."""

    ready: bool
    error: str
    """What the storage, or who asks it, said last."""
    seen: bool
    """Somebody has written a status: a snapshot controller runs."""
    cut: datetime | None
    """When the storage cut it: what is written later does not come into it, ready or not."""
    content: str
    """The VolumeSnapshotContent; empty where it has none yet."""
    size: int
    """What a volume restored from it must have; 0 is not known."""


def snapshot_name(backup: BackupSetId, volume: Volume, *, reading: int = 1) -> SnapshotId:
    """Name of the VolumeSnapshot of a volume, taken the how manieth time for its set."""
    return SnapshotId(f"{backup}-{volume.value}" + (f"-{reading}" if reading != 1 else ""))


def volume_snapshot(
    work: PlacedBackup,
    volume: Volume,
    claim: Json,
    *,
    namespace: str,
    instance: str,
    snapshot_class: str,
    now: datetime,
) -> Json:
    """The VolumeSnapshot of a volume as its claim is now."""
    spec: Json = {"source": {"persistentVolumeClaimName": claim["metadata"]["name"]}}
    if snapshot_class:
        spec["volumeSnapshotClassName"] = snapshot_class
    return {
        "apiVersion": SNAPSHOT_API,
        "kind": "VolumeSnapshot",
        "metadata": {
            "name": snapshot_name(work.backup, volume, reading=work.reading),
            "namespace": namespace,
            "labels": {
                INSTANCE_LABEL: instance,
                MANAGED_BY: OPERATOR_MANAGER,
                SANDBOX_LABEL: work.sandbox,
                SET_LABEL: work.backup,
                VOLUME_LABEL: volume.value,
            },
            "annotations": {TAKE_TIME: now.isoformat(), CLASS: claim["spec"].get("storageClassName") or ""},
        },
        "spec": spec,
    }


def read_state(snapshot: Json) -> SnapshotState:
    """Read a VolumeSnapshot's status."""
    status = snapshot.get("status") or {}
    error = (status.get("error") or {}).get("message", "")
    return SnapshotState(
        ready=status.get("readyToUse") is True,
        error=str(error),
        seen=bool(status),
        cut=datetime.fromisoformat(status["creationTime"]) if status.get("creationTime") else None,
        content=str(status.get("boundVolumeSnapshotContentName") or ""),
        size=int(parse_quantity(str(status.get("restoreSize") or "0"))),
    )


def handle_of(content: Json) -> str:
    """Driver and handle of a snapshot; empty where the storage has not said it."""
    handle = (content.get("status") or {}).get("snapshotHandle") or content["spec"].get("source", {}).get(
        "snapshotHandle", ""
    )
    return f"{content['spec'].get('driver', '')}/{handle}" if handle else ""


def handle_noted(snapshot: Json) -> str:
    """Driver and handle as a set relies on them; empty of one whose set is not whole."""
    return str(annotation(snapshot, HANDLE))


def taken_volume(volume: Volume, snapshot: Json, content: Json) -> VolumeSnapshot:
    """What a set has of one."""
    driver, _, handle = handle_of(content).partition("/")
    return VolumeSnapshot(
        volume=volume,
        snapshot=SnapshotId(snapshot["metadata"]["name"]),
        tree=hashlib.sha256(f"{driver}/{handle}".encode()).hexdigest(),
        files=0,
        bytes=read_state(snapshot).size,
        added_bytes=0,
        driver=driver,
        handle=handle,
    )


def restored_claim(
    work: PlacedBackup,
    volume: Volume,
    snapshot: Json,
    template: Template,
    *,
    name: str,
    namespace: str,
    instance: str,
    kept: bool,
) -> Json:
    """The claim of a volume that is made of a snapshot; `name` is the work's."""
    wanted = work.sizes.get(volume, "0")
    size = read_state(snapshot).size
    spec = claim_spec(wanted if parse_quantity(wanted) >= size else str(size), template)
    if storage_class := annotation(snapshot, CLASS):
        spec["storageClassName"] = storage_class
    spec["dataSource"] = {
        "apiGroup": SNAPSHOT_API.partition("/")[0],
        "kind": "VolumeSnapshot",
        "name": snapshot["metadata"]["name"],
    }
    return _claim(work, volume, spec, namespace=namespace, instance=instance, kept=kept, annotations={RESTORE: name})


def former_claim(work: PlacedBackup, volume: Volume, found: Json, *, namespace: str, instance: str, kept: bool) -> Json:
    """The claim of a volume that was taken out of the way by a restore and comes back."""
    spec = {
        "accessModes": found["spec"]["accessModes"],
        "resources": {"requests": {"storage": found["spec"]["capacity"]["storage"]}},
        "storageClassName": found["spec"].get("storageClassName", ""),
        "volumeName": found["metadata"]["name"],
    }
    return _claim(work, volume, spec, namespace=namespace, instance=instance, kept=kept, annotations={})


def out_of_the_way(found: Json, *, work: str) -> Json:
    """What makes a volume outlive its claim until a restore is over."""
    policy = annotation(found, RECLAIM) or found["spec"].get("persistentVolumeReclaimPolicy", "Retain")
    return {
        "metadata": {"labels": {RESTORE: work}, "annotations": {RECLAIM: policy}},
        "spec": {"persistentVolumeReclaimPolicy": "Retain"},
    }


def as_before(found: Json) -> Json:
    """What gives such a volume its own policy again: without a claim it goes, where that is its policy."""
    return {
        "metadata": {"labels": {RESTORE: None, LEFT_OVER: None}, "annotations": {RECLAIM: None}},
        "spec": {"persistentVolumeReclaimPolicy": annotation(found, RECLAIM) or "Retain"},
    }


def left_over(found: Json, *, sandbox: str, uid: str) -> Json:
    """What keeps such a volume where its claim's name is taken: without a claim, and found as such.

    One that was reserved for the name again would be "Available", and go to whoever has it next: a uid that is no
    claim's makes it "Released".
    """
    claim = found["spec"]["claimRef"]
    return {
        "metadata": {"labels": {RESTORE: None, LEFT_OVER: sandbox}},
        "spec": {"claimRef": {"uid": claim.get("uid") or uid}},
    }


def is_out_of_the_way(found: Json, *, work: str) -> bool:
    """Tell whether a volume outlives its claim already."""
    labels = found["metadata"].get("labels") or {}
    return labels.get(RESTORE) == work and found["spec"].get("persistentVolumeReclaimPolicy") == "Retain"


def annotation(obj: Json, name: str) -> str:
    """Read an annotation; empty where there is none."""
    found: str = (obj["metadata"].get("annotations") or {}).get(name, "")
    return found


def _claim(
    work: PlacedBackup,
    volume: Volume,
    spec: Json,
    *,
    namespace: str,
    instance: str,
    kept: bool,
    annotations: Mapping[str, str],
) -> dict[str, Any]:  # Any: JSON
    labels = labels_of(work.sandbox, instance=instance) | ({KEPT_LABEL: "true"} if kept else {})
    name = claims_of(work.sandbox)[volume.value]
    metadata = {"name": name, "namespace": namespace, "labels": labels, "annotations": dict(annotations)}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}

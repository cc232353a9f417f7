"""The pod of a `SandboxBackup`, and the Secret and the claims that it needs. Pure.

It runs where the volumes are, in a user namespace like the sandboxes', so that owners are the same numbers for both. It
has the repository's keys, a token of nobody, and a label by which a policy lets it reach the storage and nothing else.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from sandboxd.model.backup import BackupMethod, Volume
from sandboxd.model.cluster import (
    API_VERSION,
    INSTANCE_LABEL,
    KEPT_LABEL,
    OPERATOR_MANAGER,
    claims_of,
)
from sandboxd.model.cluster_backup import (
    BACKUP_CONTAINER,
    BACKUP_LABEL,
    BACKUP_SECRET_TYPE,
    NEEDS_VOLUMES,
    BackupAction,
    PlacedBackup,
)
from sandboxd.operator.builders import MANAGED_BY, Json, claim_spec, labels_of
from sandboxd.operator.pod_shape import pod_basis
from sandboxd.operator.template import Template

CONFIG_DIRECTORY: Final = "/etc/sandboxd/backup"
"""Where the Secret is mounted: `order.json`, `password`, `s3-credentials`."""
VOLUMES_DIRECTORY: Final = "/volumes"
"""Each volume is mounted here under its name."""
WORK_DIRECTORY: Final = "/work"
"""Cache of the repository's indexes, and temporary files."""
CAPABILITIES: Final = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP")
"""Of root in its user namespace: read everybody's files, and give owners, set-id bits and capabilities back. All are
within what Pod Security's `baseline` allows."""
DISK: Final = "4G"
WORK_SIZE: Final = "3G"
GRACE_SECONDS: Final = 20
"""More than an interrupted restic takes to remove its lock (10 s at most, `backends/restic/child.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupMeans:
    """What the operator has to back up with."""

    image: str
    """By digest: `sandboxd` and restic."""
    location: str
    """`s3:http(s)://host/bucket/prefix`; each client's repository is below it."""
    credentials: Callable[[], bytes] = field(repr=False)
    """The storage's keys in the form of `~/.aws/credentials`; read anew for each piece of work."""
    upload_kibibytes: int = 0
    """A second, at most, of each piece of work; 0: no bound."""
    download_kibibytes: int = 0
    cpu: str = "1"
    """Limit of each pod, a quantity."""
    memory: str = "1G"
    """Limit: restic holds the index of its repository in memory, which grows with the content."""
    cpu_request: str = "50m"
    memory_request: str = "128M"

    @property
    def resources(self) -> Mapping[str, Mapping[str, str]]:
        """Of the pod's container."""
        return {
            "limits": {"cpu": self.cpu, "memory": self.memory, "ephemeral-storage": DISK},
            "requests": {"cpu": self.cpu_request, "memory": self.memory_request, "ephemeral-storage": "100M"},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotMeans:
    """What the operator has to snapshot with."""

    image: str
    """By digest: `sandboxd`. Pods flush a volume before its snapshot, and have a restored one made and looked at."""
    snapshot_class: str = ""
    """VolumeSnapshotClass; empty: the default one of the volumes' driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupAccess:
    """What one piece of work is given of it."""

    location: str
    """Of the client's repository."""
    password: bytes = field(repr=False)
    credentials: bytes = field(repr=False)


def backup_secret(
    name: str, work: PlacedBackup, access: BackupAccess, means: BackupMeans, *, namespace: str, uid: str, instance: str
) -> Json:
    """The Secret of a piece of work: what is to be done, and what opens the repository."""
    order = {
        "name": name,
        "work": work.as_mapping(),
        "location": access.location,
        "uploadKibibytes": means.upload_kibibytes,
        "downloadKibibytes": means.download_kibibytes,
    }
    content = {
        "order.json": json.dumps(order, sort_keys=True).encode(),
        "password": access.password,
        "s3-credentials": access.credentials,
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": BACKUP_SECRET_TYPE,
        "metadata": _metadata(name, name, namespace=namespace, uid=uid, instance=instance),
        "data": {part: base64.b64encode(value).decode() for part, value in content.items()},
    }


def backup_claim(
    work: PlacedBackup, volume: Volume, template: Template, *, namespace: str, instance: str, kept: bool
) -> Json:
    """The claim of a volume that a restore needs and that is not there, as the sandbox's StatefulSet would make it."""
    labels = labels_of(work.sandbox, instance=instance) | ({KEPT_LABEL: "true"} if kept else {})
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claims_of(work.sandbox)[volume.value], "namespace": namespace, "labels": labels},
        "spec": claim_spec(work.sizes[volume], template),
    }


def backup_pod(
    name: str,
    attempt: int,
    work: PlacedBackup,
    template: Template,
    means: BackupMeans,
    *,
    namespace: str,
    uid: str,
    instance: str,
    node: str,
    last_node: str,
    left: timedelta,
) -> Json:
    """One attempt.

    Args:
        name: Of the `SandboxBackup`.
        attempt: From 1 on.
        work: What is to be done.
        template: Where pods may run.
        means: Image and bounds.
        namespace: The client's.
        uid: Of the `SandboxBackup`.
        instance: Ours in the cluster.
        node: Where the sandbox's pod has the volumes now, which most storage lets no other node have; or empty.
        last_node: Where they were last.
        left: Of the work's time.
    """
    seconds = max(1, round(left.total_seconds()))
    spec: dict[str, Any] = {
        **pod_basis(template, own_image=False, last_node=last_node),
        # One name for all attempts, and for no other work: restic removes the locks of dead processes of its own host.
        "hostname": name,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": seconds,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [_container(attempt, work, means, seconds=seconds)],
        "volumes": [*_volumes(name, work)],
    }
    spec.pop("initContainers", None)  # the agent's copy
    spec.pop("topologySpreadConstraints", None)
    if node:
        spec["affinity"] = _pinned(spec.get("affinity", {}), node)
    metadata = _metadata(pod_name(name, attempt), name, namespace=namespace, uid=uid, instance=instance)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def pod_name(name: str, attempt: int) -> str:
    """Name of the pod of an attempt."""
    return f"{name}-{attempt}"


def _metadata(name: str, work: str, *, namespace: str, uid: str, instance: str) -> Json:
    owner = {"apiVersion": API_VERSION, "kind": "SandboxBackup", "name": work, "uid": uid}
    return {
        "name": name,
        "namespace": namespace,
        "labels": {INSTANCE_LABEL: instance, BACKUP_LABEL: work, MANAGED_BY: OPERATOR_MANAGER},
        "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": False}],
    }


def _container(attempt: int, work: PlacedBackup, means: BackupMeans, *, seconds: int) -> Json:
    reads_alone = work.action is not BackupAction.RESTORE or work.method is BackupMethod.SNAPSHOTS
    volumes = [
        {"name": one.value, "mountPath": f"{VOLUMES_DIRECTORY}/{one.value}", "readOnly": reads_alone}
        for one in _used(work)
    ]
    return {
        "name": BACKUP_CONTAINER,
        "image": means.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["backup-worker", "--attempt", str(attempt), "--seconds", str(seconds)],
        "workingDir": "/",
        "env": [{"name": "TMPDIR", "value": WORK_DIRECTORY}],
        "resources": {part: dict(values) for part, values in means.resources.items()},
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": [*CAPABILITIES]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            *volumes,
            {"name": "order", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
            {"name": "work", "mountPath": WORK_DIRECTORY},
        ],
    }


def _volumes(name: str, work: PlacedBackup) -> Sequence[Json]:
    claims = claims_of(work.sandbox)
    return [
        *({"name": one.value, "persistentVolumeClaim": {"claimName": claims[one.value]}} for one in _used(work)),
        {"name": "order", "secret": {"secretName": name, "defaultMode": 0o400}},
        {"name": "work", "emptyDir": {"sizeLimit": WORK_SIZE}},
    ]


def _used(work: PlacedBackup) -> Sequence[Volume]:
    return tuple(Volume) if work.action in NEEDS_VOLUMES else ()


def _pinned(affinity: Json, node: str) -> Json:
    itself = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [itself]}}
    return {**affinity, "nodeAffinity": {**affinity.get("nodeAffinity", {}), **required}}

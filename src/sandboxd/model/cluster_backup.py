"""A `SandboxBackup` as `serve` and the operator agree on it: one piece of work on a client's backups.

`serve` writes the spec once, the operator makes pods of it, one after the other until one comes to an end, or
VolumeSnapshots, and writes the status. The repository's keys are in neither: the operator alone has them.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sandboxd.model.backup import BackupMethod, BackupSetId, BackupSetProgress, SnapshotId, Volume
from sandboxd.model.cluster import API_VERSION, GROUP, INSTANCE_LABEL
from sandboxd.model.ids import SandboxId

BACKUPS: Final = "sandboxbackups"
"""Plural of `SandboxBackup`, namespaced."""
BACKUP_LABEL: Final = f"{GROUP}/backup"
"""On the pods of a `SandboxBackup`, with its name. Such a pod is no sandbox: it reaches the backups' storage alone."""
RESTORE_LABEL: Final = f"{GROUP}/restore"
"""On a volume that gave way to a restore by snapshots, with the work's name; and annotation of the claim that came."""
BACKUP_FINALIZER: Final = f"{GROUP}/volumes"
"""On a `SandboxBackup` that puts claims in the place of others: it stays until they are whole, these or those."""
BACKUP_PREFIX: Final = "backup-"
"""Begins the name of every one; its pods have the same, with a number."""
BACKUP_SECRET_TYPE: Final = "sandboxd.dev/backup"  # noqa: S105  a type of Secrets
BACKUP_CONTAINER: Final = "backup"
VERDICT_STATUS: Final = 10
"""Exit status of a worker whose message says why the work cannot be done; any other but 0 says nothing."""
SETS_NAMED: Final = 1000
"""Of sets that one piece of work names."""
ATTEMPTS: Final = 5
"""Pods that are made of one piece of work, where each was lost."""
KEPT: Final = timedelta(hours=1)
"""How long one whose deadline is over stays, for whoever asks for its result and is late."""
MESSAGE_BYTES: Final = 4096
"""Of what a worker says at its end: a kubelet passes on no more."""
PROGRESS_EVENT: Final = "backup.progress"
"""Of the lines of a worker's log that say how far it is; the pairs beside it are those of `progress_as_mapping`."""
COUNT_MOST: Final = 1 << 62
"""Of what a worker counts: more is no count."""
_NO_SANDBOX: Final = SandboxId("")
_NO_SET: Final = BackupSetId("")


class BackupAction(enum.Enum):
    """What is to be done."""

    TAKE = "Take"
    RESTORE = "Restore"
    COMPARE = "Compare"
    FORGET = "Forget"
    VERIFY = "Verify"
    DESTROY = "Destroy"
    SURVEY = "Survey"


class RestorePart(enum.Enum):
    """What of a restore is done."""

    ALL = "All"
    STAGE = "Stage"
    """What comes back is put beside what is there."""
    DISCARD = "Discard"
    """It is taken away from there."""


PARTS: Final[Mapping[RestorePart, str]] = {
    RestorePart.ALL: "",
    RestorePart.STAGE: "-stage",
    RestorePart.DISCARD: "-discard",
}
"""Behind the name of a restore's resource: each part is a piece of work of its own."""
NEEDS_VOLUMES: Final = frozenset({BackupAction.TAKE, BackupAction.RESTORE, BackupAction.COMPARE})


class BackupState(enum.Enum):
    """How far the work is."""

    WAITING = "Waiting"
    """No pod of it runs; the reason says what it waits for."""
    RUNNING = "Running"
    DONE = "Done"
    """The result is there: the end."""
    FAILED = "Failed"
    """The reason says why: the end."""


ENDS: Final = frozenset({BackupState.DONE, BackupState.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedBackup:
    """The spec of a `SandboxBackup`. It never changes."""

    action: BackupAction
    deadline: timedelta
    """From its creation on, for all attempts; whole seconds."""
    template: str
    """`SandboxTemplate` that says where pods may run."""
    method: BackupMethod = BackupMethod.FILES
    """How the sets are kept that it is about."""
    sandbox: SandboxId = _NO_SANDBOX
    """Of `TAKE`, `RESTORE` and `COMPARE`: whose volumes."""
    backup: BackupSetId = _NO_SET
    """Of `TAKE`: the set."""
    reading: int = 1
    """Of `TAKE`: the how manieth of this set."""
    snapshots: Mapping[Volume, SnapshotId] = field(default_factory=dict)
    """Of `RESTORE` and `COMPARE`; of `VERIFY` these alone are read, with all their content."""
    paths: Mapping[Volume, Sequence[bytes]] = field(default_factory=dict)
    """Of `RESTORE`."""
    part: RestorePart = RestorePart.ALL
    """Of `RESTORE`."""
    sizes: Mapping[Volume, str] = field(default_factory=dict)
    """Of `RESTORE`: quantities of volumes that are made where they are not there."""
    sets: Sequence[BackupSetId] = ()
    """Of `FORGET`; of `SURVEY` those that are known, at most `SETS_NAMED`: of them nothing is said."""
    prune: bool = False
    """Of `FORGET`."""
    content: bool = False
    """Of `VERIFY`."""

    def as_mapping(self) -> dict[str, Any]:  # Any: JSON
        """Return it as the resource has it."""
        made: dict[str, Any] = {
            "action": self.action.value,
            "deadlineSeconds": max(1, round(self.deadline.total_seconds())),
            "template": self.template,
        }
        if self.method is not BackupMethod.FILES:
            made["method"] = self.method.value.capitalize()
        match self.action:
            case BackupAction.TAKE:
                made |= {"sandbox": self.sandbox, "backup": self.backup}
                if self.reading != 1:
                    made["reading"] = self.reading
            case BackupAction.RESTORE:
                made |= {
                    "sandbox": self.sandbox,
                    "snapshots": {volume.value: one for volume, one in self.snapshots.items()},
                    "sizes": {volume.value: size for volume, size in self.sizes.items()},
                }
                if self.part is not RestorePart.ALL:
                    made["part"] = self.part.value
                if self.paths:
                    made["paths"] = {
                        volume.value: [base64.b64encode(path).decode() for path in paths]
                        for volume, paths in self.paths.items()
                    }
            case BackupAction.COMPARE:
                made |= {
                    "sandbox": self.sandbox,
                    "snapshots": {volume.value: one for volume, one in self.snapshots.items()},
                }
            case BackupAction.FORGET:
                made |= {"sets": [*self.sets], "prune": self.prune}
            case BackupAction.SURVEY:
                made |= {"sets": [*self.sets]}
            case BackupAction.VERIFY:
                made |= {"content": self.content}
                if self.snapshots:
                    made["snapshots"] = {volume.value: one for volume, one in self.snapshots.items()}
            case BackupAction.DESTROY:
                pass
        return made

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> PlacedBackup:
        """Read it from a resource.

        Raises:
            KeyError, ValueError: It is not what the resource's schema promises.
        """
        return cls(
            action=BackupAction(given["action"]),
            deadline=timedelta(seconds=int(given["deadlineSeconds"])),
            template=str(given["template"]),
            method=BackupMethod(str(given.get("method", "Files")).lower()),
            sandbox=SandboxId(given.get("sandbox", "")),
            backup=BackupSetId(given.get("backup", "")),
            reading=int(given.get("reading", 1)),
            snapshots={Volume(name): SnapshotId(one) for name, one in given.get("snapshots", {}).items()},
            paths={
                Volume(name): tuple(base64.b64decode(path, validate=True) for path in paths)
                for name, paths in given.get("paths", {}).items()
            },
            part=RestorePart(given.get("part", RestorePart.ALL.value)),
            sizes={Volume(name): str(size) for name, size in given.get("sizes", {}).items()},
            sets=tuple(BackupSetId(one) for one in given.get("sets", ())),
            prune=bool(given.get("prune", False)),
            content=bool(given.get("content", False)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupWorkStatus:
    """The status of a `SandboxBackup`."""

    state: BackupState = BackupState.WAITING
    reason: str = ""
    """A word of the closed set that the reasons of a `Sandbox` are from, or of a failure the constant word of the
    worker's error."""
    message: str = ""
    attempts: int = 0
    """Pods that were made of it."""
    pod_uid: str = ""
    """The last of them."""
    result: str = ""
    """What came of one that is DONE, JSON; of work on snapshots before its end what the operator has to remember."""
    progress: BackupSetProgress | None = None
    """How far it was when the operator looked last; None: nothing was told."""
    cut_time: datetime | None = None
    """Of `TAKE` by snapshots: when the storage had cut both; what is written later does not come into them."""

    def as_mapping(self) -> dict[str, Any]:  # Any: JSON
        """Return it as the resource has it."""
        told: dict[str, Any] = {} if self.progress is None else {"progress": progress_as_mapping(self.progress)}
        if self.cut_time is not None:
            told["cutTime"] = f"{self.cut_time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        return {
            "state": self.state.value,
            "reason": self.reason,
            "message": self.message,
            "attempts": self.attempts,
            "podUID": self.pod_uid,
            "result": self.result,
            **told,
        }

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> BackupWorkStatus:
        """Read it from a resource; an empty mapping is the status before the operator's first."""
        return cls(
            state=BackupState(given.get("state", BackupState.WAITING.value)),
            reason=str(given.get("reason", "")),
            message=str(given.get("message", "")),
            attempts=int(given.get("attempts", 0)),
            pod_uid=str(given.get("podUID", "")),
            result=str(given.get("result", "")),
            progress=progress_from_mapping(given["progress"]) if given.get("progress") else None,
            cut_time=datetime.fromisoformat(given["cutTime"]) if given.get("cutTime") else None,
        )


def password_secret(namespace: str) -> str:
    """Name of the Secret with the password of the repository of a namespace's client."""
    return f"backup-password-{namespace}"


def progress_as_mapping(progress: BackupSetProgress) -> dict[str, Any]:  # Any: JSON
    """Say how far it is, as a status and a line of a worker's log have it."""
    return {
        "volume": progress.volume.value,
        "files": progress.files,
        "totalFiles": progress.total_files,
        "bytes": progress.bytes,
        "totalBytes": progress.total_bytes,
    }


def progress_from_mapping(given: Mapping[str, Any]) -> BackupSetProgress:
    """Read it.

    Raises:
        KeyError, TypeError, ValueError: It is none.
    """
    counts = [int(given[name]) for name in ("files", "totalFiles", "bytes", "totalBytes")]
    if not all(0 <= count <= COUNT_MOST for count in counts):
        raise ValueError("what is counted is not negative")
    files, total_files, size, total_size = counts
    return BackupSetProgress(
        volume=Volume(given["volume"]), files=files, total_files=total_files, bytes=size, total_bytes=total_size
    )


def backup_resource(name: str, work: PlacedBackup, *, namespace: str, instance: str) -> dict[str, Any]:
    """Return the `SandboxBackup` that `serve` writes. Any: JSON.

    It has no owner: a sandbox that is terminated has its last backup, or gets its volumes back, without a resource.
    """
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": {INSTANCE_LABEL: instance}}
    if work.method is BackupMethod.SNAPSHOTS and work.action is BackupAction.RESTORE:
        metadata["finalizers"] = [BACKUP_FINALIZER]
    return {
        "apiVersion": API_VERSION,
        "kind": "SandboxBackup",
        "metadata": metadata,
        "spec": work.as_mapping(),
    }

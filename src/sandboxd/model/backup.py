"""Backup sets: what a sandbox is rebuilt from, its image and its two volumes as they were at one moment.

A set pins what it names: the image against the reaper, the snapshots against every prune.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, NewType

from sandboxd.model.errors import ConflictError, ErrorKind, SandboxdError, WrongStateError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId

BackupSetId = NewType("BackupSetId", str)
RestoreId = NewType("RestoreId", str)
"""One restore of volumes: asked for by it again, a worker goes on with it."""
SnapshotId = NewType("SnapshotId", str)
"""What one volume at one moment is called: by a repository of backups in 64 hexadecimal digits, and by a cluster as the
name of a VolumeSnapshot."""


class Volume(enum.Enum):
    """What of a sandbox is kept on volumes."""

    HOME = "home"
    WORKSPACE = "workspace"


class BackupMethod(enum.Enum):
    """How a set's volumes are kept. It is the set's for good: an installation may have changed to another one."""

    FILES = "files"
    """As trees of files in the client's repository: by content, encrypted, elsewhere than the volumes."""
    SNAPSHOTS = "snapshots"
    """As snapshots that the volumes' own storage makes: at once, and lost with that storage."""


class Consistency(enum.Enum):
    """What the files of a set have in common."""

    QUIESCED = "quiesced"
    """No process of the sandbox ran meanwhile: both volumes are of one moment."""
    CRASH_CONSISTENT = "crash_consistent"
    """Processes went on writing: as after a loss of power, and file by file at slightly different moments."""


class BackupTrigger(enum.Enum):
    """Why there is a set."""

    REQUEST = "request"
    """Somebody called CreateBackup."""
    SCHEDULE = "schedule"
    """Its client's policy wants one from time to time."""
    TERMINATE = "terminate"
    """The sandbox was terminated: of its kept volumes."""
    RESTORE = "restore"
    """Something was to be restored over what was there."""


class BackupSetStatus(enum.Enum):
    """Where a set is in its life."""

    CREATING = "creating"
    """Its snapshots are being taken; nothing can be restored from it."""
    COMPLETE = "complete"
    FAILED = "failed"
    """It came to nothing; snapshots that it names are to be forgotten."""
    DELETING = "deleting"
    """Its snapshots are being forgotten."""
    DELETED = "deleted"
    """The repository has none of it any more; `proof` says how that is known."""


_S = BackupSetStatus
STATUS_TRANSITIONS: Final[Mapping[BackupSetStatus, frozenset[BackupSetStatus]]] = {
    _S.CREATING: frozenset({_S.COMPLETE, _S.FAILED}),
    _S.COMPLETE: frozenset({_S.DELETING}),
    _S.FAILED: frozenset({_S.DELETING}),
    _S.DELETING: frozenset({_S.DELETED}),
    _S.DELETED: frozenset(),
}
"""From each status, those that may follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSnapshot:
    """One volume of a set."""

    volume: Volume
    snapshot: SnapshotId
    tree: str
    """SHA-256 of the tree as the repository keeps it, its names, owners, times and contents: 64 hexadecimal digits. Of
    a storage's snapshot that of its driver and handle: nobody has read its files."""
    files: int
    """0 of a storage's snapshot."""
    bytes: int
    """Of the files as read, holes among them; of a storage's snapshot what a volume restored from it needs at least."""
    added_bytes: int
    """What the repository had to store for it, compressed; the rest was there."""
    vanished: int = 0
    """Files that were removed while they were read: 0 of a quiesced one."""
    driver: str = ""
    """Of a storage's snapshot: the CSI driver that has it."""
    handle: str = ""
    """Of a storage's snapshot: what the driver calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSetProgress:
    """How far a set that is CREATING is, or a restore."""

    volume: Volume
    files: int
    total_files: int
    """As far as it is known."""
    bytes: int
    total_bytes: int

    def after(self, before: BackupSetProgress | None) -> BackupSetProgress:
        """Return how far it is where this is told after that: it never goes back, and no part exceeds its whole.

        Who takes up what another one began counts from nothing, and is not told of before it is further.
        """
        order = tuple(Volume)
        if before is not None and order.index(self.volume) < order.index(before.volume):
            return before
        known = before if before is not None and before.volume is self.volume else replace(self, files=0, bytes=0)
        files, size = max(self.files, known.files), max(self.bytes, known.bytes)
        return replace(
            self,
            files=files,
            total_files=max(files, self.total_files, known.total_files),
            bytes=size,
            total_bytes=max(size, self.total_bytes, known.total_bytes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionProof:
    """How it is known that a set's snapshots are gone."""

    forgotten_time: datetime
    """When the repository listed none of them any more."""
    pruned_time: datetime | None = None
    """When what nothing else needs of their content was removed; None while that is to come."""
    snapshots: Sequence[SnapshotId] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFreeze:
    """A wish that a running sandbox stands still while it is read."""

    required: bool
    """What cannot be of one moment fails; else it is read as it runs."""
    longest: timedelta = timedelta(seconds=60)
    """It stands still so long at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSet:
    """What one sandbox was at one moment."""

    id: BackupSetId
    sandbox: SandboxId
    client: ClientId
    freelancer: FreelancerId
    method: BackupMethod = BackupMethod.FILES
    take_time: datetime
    """The moment that it is of: when the first volume began to be read."""
    image: str = ""
    """What its root file system is started from, `registry/repository@sha256:…`; empty: the template's image."""
    volumes: Sequence[VolumeSnapshot] = ()
    spec: Mapping[str, str] = field(default_factory=dict)
    """What it was made from, as `template` and `tier`."""
    spec_version: int = 1
    """Of the form of `spec`."""
    consistency: Consistency = Consistency.CRASH_CONSISTENT
    status: BackupSetStatus = BackupSetStatus.CREATING
    locked_until: datetime | None = None
    """Before that nothing deletes it, whoever asks."""
    trigger: BackupTrigger = BackupTrigger.REQUEST
    pinned_time: datetime | None = None
    """Since then its sandbox's volumes are released: it is all that is left of how that ended."""
    checksum: str = ""
    """SHA-256 of all that a restore takes from it: image, trees and spec; of a COMPLETE one."""
    freeze: BackupFreeze | None = None
    """None: nobody is interrupted."""
    cancelled: bool = False
    """Somebody wishes that it ends. Written apart from the rest, as is the progress; the version does not grow."""
    attempts: int = 1
    """How often it was begun."""
    progress: BackupSetProgress | None = None
    failure: str = ""
    """Why it is FAILED: the constant word of the error."""
    failure_message: str = ""
    """The same for people."""
    failure_kind: ErrorKind | None = None
    proof: DeletionProof | None = None
    create_time: datetime
    update_time: datetime
    version: int = 1
    """Grows with every write."""

    @property
    def in_flight(self) -> bool:
        """True while it is being made."""
        return self.status is _S.CREATING

    @property
    def bytes(self) -> int:
        """Of its volumes' files."""
        return sum(one.bytes for one in self.volumes)

    def begun_again(self) -> BackupSet:
        """Return it begun once more."""
        return replace(self, attempts=self.attempts + 1, version=self.version + 1)

    def enter(self, status: BackupSetStatus, *, at: datetime) -> BackupSet:
        """Return this set in its next status.

        Raises:
            BackupSetStatusError: The table does not allow it, or a COMPLETE one would lack a volume.
            BackupSetLockedError: It would be deleted, and its window of immutability has not ended.
        """
        whole = {one.volume for one in self.volumes} == set(Volume)
        if status not in STATUS_TRANSITIONS[self.status] or (status is _S.COMPLETE and not whole):
            raise BackupSetStatusError(self, wanted=status)
        if status is _S.DELETING and self.locked_until is not None and at < self.locked_until:
            raise BackupSetLockedError(self, until=self.locked_until)
        return replace(self, status=status, update_time=at, version=self.version + 1)

    def complete(
        self, volumes: Sequence[VolumeSnapshot], *, at: datetime, locked_until: datetime | None = None
    ) -> BackupSet:
        """Return it COMPLETE with these volumes. Raises as `enter`."""
        whole = replace(self, volumes=tuple(volumes), locked_until=locked_until)
        return replace(whole, checksum=whole.sum()).enter(_S.COMPLETE, at=at)

    def fail(self, error: SandboxdError, *, at: datetime) -> BackupSet:
        """Return it FAILED with an error. Raises as `enter`."""
        failed = self.enter(_S.FAILED, at=at)
        return replace(failed, failure=error.reason, failure_message=error.message, failure_kind=error.kind)

    def sum(self) -> str:
        """Return what `checksum` must be: of the row as it is."""
        said = {
            "sandbox": self.sandbox,
            "image": self.image,
            "volumes": sorted((one.volume.value, one.snapshot, one.tree) for one in self.volumes),
            "spec": dict(self.spec),
            "spec_version": self.spec_version,
        }
        if self.method is not BackupMethod.FILES:  # sets from before there was another one have their sums
            said["method"] = self.method.value
        return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def pin(self, *, at: datetime | None) -> BackupSet:
        """Return it as all that is left of its sandbox since a moment; None: as one of several things again."""
        return replace(self, pinned_time=at, update_time=at or self.update_time, version=self.version + 1)

    def snapshot(self, volume: Volume) -> SnapshotId | None:
        """Return the snapshot of a volume; None where it has none."""
        return next((one.snapshot for one in self.volumes if one.volume is volume), None)

    def delete(self, proof: DeletionProof, *, at: datetime) -> BackupSet:
        """Return it DELETED with the proof. Raises as `enter`."""
        return replace(self.enter(_S.DELETED, at=at), proof=proof)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedVolumes:
    """A terminated sandbox's volumes were given back, as a set has all that was in them."""

    backup: BackupSetId
    """The set."""
    incarnation: IncarnationId
    """The last life before: of a later one this says nothing."""
    begin_time: datetime
    """Since then the set is what counts, whatever of the volumes is still there."""
    end_time: datetime | None = None
    """When nothing of them was there any more; None while that is to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoring:
    """What a sandbox that is being restored gets back; durable, so that whoever comes next can go on."""

    id: RestoreId
    backup: BackupSetId | None = None
    """From which set; None: the newest, which may be one of its kept volumes that is taken first."""
    paths: Mapping[Volume, Sequence[bytes]] = field(default_factory=dict)
    """Some paths of some volumes alone; empty: `volumes`, whole."""
    volumes: Sequence[Volume] = tuple(Volume)
    """Those that come back; the image comes with both."""
    came_from: str
    """The state before, where it goes back to when nothing could be restored."""
    still_since: datetime | None = None
    """When it came into that state; None where its processes may have run until now."""
    restored: bool = False
    """The volumes are as they are to be; what is left is the start."""
    placing: bool = False
    """What comes back is beside what is there, and takes its place now: it is not cancelled any more."""
    cancelled: bool = False
    """Somebody wishes that it ends, and that all is as it was."""
    progress: BackupSetProgress | None = None
    """How far the volumes are. Written apart from the rest; the version does not grow."""

    @property
    def whole(self) -> bool:
        """True when everything comes back, the image too."""
        return not self.paths and set(self.volumes) == set(Volume)

    def wants(self, volume: Volume) -> bool:
        """Tell whether anything of a volume comes back."""
        return bool(self.paths.get(volume)) if self.paths else volume in self.volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeComparison:
    """How a tree on a disk compares with a snapshot, entry by entry."""

    entries: int
    """Of the snapshot, all of which were looked for."""
    bytes: int
    """Of contents that were read from both and compared."""
    expected: str
    """SHA-256 over all that is compared, as the snapshot has it: 64 hexadecimal digits."""
    found: str
    """The same as the tree has it: `expected` where nothing differs."""
    differences: Sequence[str] = ()
    """Some of what differs, for people: a path, and what of it."""
    difference_count: int = 0


class BackupSetStatusError(WrongStateError):
    """A backup set's status does not allow what was wanted."""

    reason = "BACKUP_STATUS_INVALID"

    def __init__(self, backup: BackupSet, *, wanted: BackupSetStatus) -> None:
        super().__init__(
            f"Backup {backup.id} of sandbox {backup.sandbox} is {backup.status.value} "
            f"with {len(backup.volumes)} volumes and cannot become {wanted.value}.",
            sandbox=backup.sandbox,
            backup=backup.id,
            status=backup.status.value,
            wanted=wanted.value,
        )


class BackupOnlyCopyError(WrongStateError):
    """The sandbox's volumes were released: the set is all that is left of it, and goes only if somebody says so."""

    reason = "BACKUP_ONLY_COPY"

    def __init__(self, backup: BackupSet) -> None:
        super().__init__(
            f"Backup {backup.id} is all that is left of sandbox {backup.sandbox}: its volumes were released. Say "
            "`give_up` (sandboxctl: --give-up) to give its files up for good.",
            sandbox=backup.sandbox,
            backup=backup.id,
        )


class BackupSetLockedError(WrongStateError):
    """The backup set cannot be deleted yet: that is what its client's policy promises."""

    reason = "BACKUP_LOCKED"

    def __init__(self, backup: BackupSet, *, until: datetime) -> None:
        super().__init__(
            f"Backup {backup.id} of sandbox {backup.sandbox} is kept until {until.isoformat()}, whoever asks.",
            sandbox=backup.sandbox,
            backup=backup.id,
            until=until.isoformat(),
        )


class BackupSetInUseError(ConflictError):
    """A sandbox is being restored from the backup set: it cannot be deleted before that has ended."""

    reason = "BACKUP_IN_USE"

    def __init__(self, backup: BackupSet, *, by: SandboxId) -> None:
        super().__init__(
            f"Sandbox {by} is being restored from backup {backup.id}. Delete it when that has ended.",
            sandbox=by,
            backup=backup.id,
            retry_after=timedelta(seconds=30),
        )

"""What backing up volumes needs of the world: places that keep and bring back a sandbox's volumes, and a repository.

`VolumeBackups` is what the manager asks; whoever implements it puts trees into a `BackupRepository` where the volumes
are. Contract suites: `tests/contract/test_volume_backups.py`, `tests/contract/test_backup_repository.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from sandboxd.model.backup import BackupSetId, RestoreId, SnapshotId, TreeComparison, Volume, VolumeSnapshot
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.sandbox import Resources, Tier

STAGING: Final = ".sandboxd-restore-"
"""In a volume's root, with the restore's id behind: where what comes back is put together. One that broke off is not
backed up, and removed by the next restore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupProgress:
    """How far a snapshot or a restore is."""

    files: int
    total_files: int
    """As far as it is known; grows while the tree is looked through."""
    bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSnapshot:
    """A tree in the repository."""

    id: SnapshotId
    source: str
    """What it is a tree of: the snapshot before it of the same source is what it is compared with."""
    take_time: datetime
    """When it began to be read."""
    tree: str
    """SHA-256 of the tree as the repository keeps it: 64 hexadecimal digits."""
    files: int
    bytes: int
    """Of the files as they are read, holes among them."""
    added_bytes: int
    """What was new in it, as it is stored: compressed and encrypted."""
    tags: Mapping[str, str] = field(default_factory=dict)
    vanished: Sequence[str] = ()
    """Some of the paths that were removed while the tree was read; known to who took the snapshot alone."""
    vanished_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredTree:
    """What came back."""

    entries: int
    """Files, directories, links and pipes."""
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenSnapshots:
    """Says that a fresh listing of the repository has none of these any more."""

    snapshots: Sequence[SnapshotId]
    left: int
    """Snapshots that the listing has."""


class BackupRepository(Protocol):
    """Keeps trees of files: by content, each piece once, encrypted.

    What is kept of a tree, its root among it: files, directories, symbolic links, pipes; modes, owners, extended
    attributes, modification times in nanoseconds, hard links, holes, names of any bytes. Not sockets, nothing of other
    file systems mounted in it, and nothing in its root whose name begins with `STAGING`.

    Several snapshots and restores may run at once; `forget`, `verify` and `prune` are refused while others run.
    Everything is safe to repeat. Who is killed in the middle leaves a repository that works, with what was stored.

    Every method raises:
        BackupStorageUnavailableError: The storage does not answer, or there is no repository on it.
        BackupStorageFullError: There is no room.
        BackupPasswordWrongError: The password does not open it.
        BackupDamagedError: Content is missing, or is other content.
        BackupRepositoryBusyError: A living process keeps it from being done now.
        BackupToolError: The program behind it fails.
        DeadlineError: `timeout` is over.
    """

    async def prepare(self, *, timeout: timedelta) -> None:
        """Make the repository if it is not there, and prove that the password opens it."""
        ...

    async def snapshot(
        self,
        tree: Path,
        *,
        source: str,
        tags: Mapping[str, str],
        timeout: timedelta,
        progress: Callable[[BackupProgress], None],
    ) -> TreeSnapshot:
        """Keep a tree as it is now; what was there in the source's last snapshot is neither read nor stored again.

        Args:
            tree: A directory, no link to one. Processes may go on writing in it.
            source: What it is of, as `sbx-…/home`: 1 to 200 of `a-z A-Z 0-9 - _ . / @`.
            tags: To find it by: names and values of the same letters.
            timeout: For all of it.
            progress: Told about once a second.

        Raises:
            InvalidRequestError: The tree is no directory, or source or tags have another form.
            BackupIncompleteError: Files could not be read. There is no snapshot.
        """
        ...

    async def list(
        self, *, source: str | None = None, tags: Mapping[str, str] | None = None, timeout: timedelta
    ) -> Sequence[TreeSnapshot]:
        """Those of this source with all of these tags, the oldest first."""
        ...

    async def restore(
        self,
        snapshot: SnapshotId,
        into: Path,
        *,
        paths: Sequence[bytes] = (),
        timeout: timedelta,
        progress: Callable[[BackupProgress], None],
    ) -> RestoredTree:
        """Bring back a tree, or some paths of it with all below them, into an empty directory.

        What is there after a failure is no tree: remove it, or try again into another directory. Owners and some
        attributes need root.

        Args:
            snapshot: Which.
            into: Empty, or not there. It becomes the tree's root, with its mode, owner and attributes.
            paths: Relative to the root, without `.` and `..`; each must be in the snapshot. Directories above them
                come back with their modes and owners.
            timeout: For all of it.
            progress: Told about once a second.

        Raises:
            BackupSnapshotNotFoundError: There is no such snapshot, or none of one of these paths in it.
            InvalidRequestError: The directory is not empty, or a path has another form.
            BackupIncompleteError: Something could not be written as it was.
        """
        ...

    async def compare(
        self, snapshot: SnapshotId, tree: Path, *, timeout: timedelta, progress: Callable[[BackupProgress], None]
    ) -> TreeComparison:
        """Read a whole snapshot again and compare it with a tree, which nobody writes in meanwhile.

        Compared are, of the root and of everything below it: that it is there and nothing else is; kind, mode with
        set-id and sticky bits, owner and group, size, modification time in nanoseconds (where a name is no UTF-8: in
        seconds); the bytes of files, the targets of links, extended attributes. Not: which hard links are the same
        file, where holes are, other times. Progress is told about once a second, on the loop of who asks.

        Raises:
            BackupSnapshotNotFoundError, InvalidRequestError: There is no such snapshot; the tree is no directory.
        """
        ...

    async def verify(self, *, content: bool, timeout: timedelta) -> None:
        """Check that everything which the snapshots need is there; with `content` read and decrypt all of it.

        Raises:
            BackupDamagedError: It is not.
        """
        ...

    async def read(self, snapshot: SnapshotId, *, timeout: timedelta) -> TreeSnapshot:
        """Read all content of a snapshot, and keep nothing of it: what comes to its end can be restored.

        Raises:
            BackupSnapshotNotFoundError: There is no such snapshot.
            BackupDamagedError: Some of it is missing, or is other content.
        """
        ...

    async def forget(self, snapshots: Sequence[SnapshotId], *, timeout: timedelta) -> ForgottenSnapshots:
        """Remove snapshots, and look that they are gone; ones that are not there are gone already.

        Their content goes with the next `prune`.
        """
        ...

    async def prune(self, *, timeout: timedelta) -> None:
        """Remove every piece of content that no snapshot needs; at its end the storage has none of them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumesOf:
    """Whose volumes, and what they are made like where they are not there."""

    sandbox: SandboxId
    client: ClientId
    """Its repository is the one that is used."""
    freelancer: FreelancerId
    tier: Tier
    resources: Resources
    """Of the tier; `storage_bytes` is what a restore makes volumes for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumesProgress:
    """How far a backup or a restore of volumes is."""

    volume: Volume
    """The one that is worked on."""
    trees: BackupProgress
    cut: bool = False
    """Says nothing but this: what is written from now on does not come into the set, which is not whole yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenVolumes:
    """Both volumes of a sandbox in its client's repository."""

    take_time: datetime
    """When the first of them began to be read."""
    volumes: Sequence[VolumeSnapshot]
    """One of each `Volume`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOrder:
    """What is brought back, and into what."""

    id: RestoreId
    """Of this restore: the work is asked for by it again."""
    into: VolumesOf
    """May be another sandbox of the same client than the one that it was taken of."""
    snapshots: Mapping[Volume, SnapshotId]
    """What of; volumes that are not named are left as they are, and made empty where they are not there."""
    paths: Mapping[Volume, Sequence[bytes]] = field(default_factory=dict)
    """Some paths of a volume alone, relative to its root as in `BackupRepository.restore`; a volume of `snapshots`
    without any is brought back whole."""


class VolumeBackups(Protocol):
    """Keeps sandboxes' volumes in a repository for each client, and brings them back.

    The repository and what opens it are made with the client's first backup, out of every sandbox's reach. The work
    may run detached, in a Job of a cluster, or in a child of this very process.

    **Everything is asked for by name and can be asked for again.** A caller that died, or a second replica, calls with
    the same id: work that runs is followed, work that has ended answers what it came to, work that broke off is begun
    again. Nobody calls the same id twice at the same moment. A caller that is cancelled leaves open whether the work
    goes on; `end` makes sure of it.

    Every method raises what the methods of `BackupRepository` raise, and:
        BackupPasswordLostError: The client's repository is there, and what opens it is gone. No other takes its place.
        UnavailableError: Where the work runs cannot be reached now; the message says what to look at.
        DeadlineError: It has not ended within `timeout`; it may go on until `end`.
    """

    async def take(
        self,
        backup: BackupSetId,
        of: VolumesOf,
        *,
        timeout: timedelta,
        progress: Callable[[VolumesProgress], None],
        reading: int = 1,
    ) -> TakenVolumes:
        """Keep both volumes of a sandbox as they are, whether it runs, is stopped, or its files are kept.

        Each snapshot has the source `<sandbox>/<volume>` and the tags `set`, `volume` and `reading`: what is in the
        repository answers a repeated call. A set is of one moment: one of both alone is taken anew with the other. What
        other readings took goes with the set. Where a storage cuts at once and is ready later, progress says when.

        Args:
            backup: Of the set.
            of: Whose volumes.
            timeout: For all of it.
            progress: Told from time to time, at least once where anything was read.
            reading: The how manieth of this set. Before another one than the last is asked for, `end` is called.

        Raises:
            VolumesNotFoundError: There are none.
        """
        ...

    async def restore(
        self, order: RestoreOrder, *, timeout: timedelta, progress: Callable[[VolumesProgress], None]
    ) -> RestoredTree:
        """Bring volumes back, or paths of them; answers what was written, both together.

        A volume that is not there is made, one that is kept of a removed sandbox is used. A volume that is brought back
        whole has then exactly the entries of the snapshot; what was there before stays in its place until the new
        content is whole on the same volume, and is destroyed then. Of paths each takes the place of what is there
        at that path, directories above it are made where they are not there, and everything else stays. Links in
        a volume lead nothing out of it.

        After a failure each volume is either as it was or as it is to be, or repeating the same order makes it so.

        Raises:
            VolumesInUseError: Compute of the sandbox runs.
            BackupSnapshotNotFoundError: A snapshot is not there, or has not one of the paths.
            InvalidRequestError: A path has another form.
            BackupStorageFullError: There is no room for what comes back beside what is there.
        """
        ...

    async def stage(
        self, order: RestoreOrder, *, timeout: timedelta, progress: Callable[[VolumesProgress], None]
    ) -> None:
        """Put what `restore` of this order needs beside what is there, whole, and change nothing else but times.

        `restore` takes it from there then. What works with snapshots of a storage has nothing to fetch, and does
        nothing. Raises as `restore`; after a failure, and after `end`, `discard` says that nothing of it is there.
        """
        ...

    async def discard(self, order: RestoreOrder, *, timeout: timedelta) -> None:
        """Remove what `stage` has put beside what is there. Absent is success, also of the volumes themselves.

        Only before `restore` of this order was asked for, and after `end`.

        Raises:
            VolumesInUseError: Compute of the sandbox runs.
        """
        ...

    async def compare(
        self,
        name: RestoreId,
        of: VolumesOf,
        snapshots: Mapping[Volume, SnapshotId],
        *,
        timeout: timedelta,
        progress: Callable[[VolumesProgress], None],
    ) -> Mapping[Volume, TreeComparison]:
        """Compare volumes with snapshots, as `BackupRepository.compare`; the name is this work's, and no restore's.

        Raises:
            VolumesNotFoundError: There are none.
            VolumesInUseError: Compute of the sandbox runs.
            BackupSnapshotNotFoundError: A snapshot is not there.
        """
        ...

    async def forget(
        self, client: ClientId, backups: Sequence[BackupSetId], *, prune: bool, timeout: timedelta
    ) -> ForgottenSnapshots:
        """Remove every snapshot that has the tag of one of these sets, and look that they are gone.

        Answers which were removed or were given by a listing before; sets without any are gone already.

        Args:
            client: Whose.
            backups: Sets that are COMPLETE no more, 1 to 1000.
            prune: Also remove all content that no snapshot needs, as `BackupRepository.prune`.
            timeout: For all of it.
        """
        ...

    async def verify(self, client: ClientId, *, content: bool, timeout: timedelta) -> None:
        """Check a client's repository as `BackupRepository.verify`; a client without one has nothing to check."""
        ...

    async def prove(self, client: ClientId, volumes: Sequence[VolumeSnapshot], *, timeout: timedelta) -> None:
        """Read every byte of a set's snapshots: at its return each is there, is the tree that it was, and can be read.

        Raises:
            BackupSnapshotNotFoundError: One is not there, or the client never had a repository.
            BackupDamagedError: Content is missing or is other content, or the tree is not the one that was taken.
        """
        ...

    async def end(self, name: BackupSetId | RestoreId, *, timeout: timedelta) -> None:
        """Stop the work on a set or on a restore wherever it runs, and forget what is kept of it there (a Job).

        At its return nothing of it runs. Absent is success. What is in the repository stays.
        """
        ...

    async def destroy(self, client: ClientId, *, timeout: timedelta) -> None:
        """Destroy a client's repository with everything that opens it, for good: the client is erased.

        Absent is success. Nothing of the client's is asked for meanwhile or later.
        """
        ...

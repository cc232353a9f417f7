"""What backing up volumes needs of the world: a repository that keeps trees of files.

Contract suite: `tests/contract/test_backup_repository.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from sandboxd.model.backup import SnapshotId


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
    attributes, modification times in nanoseconds, hard links, holes, names of any bytes. Not sockets, and nothing of
    other file systems mounted in it.

    Several snapshots and restores may run at once; `forget`, `verify` and `prune` want to be alone, and are refused
    while others run. Everything is safe to repeat. Whoever is cancelled or killed in the middle leaves a repository
    that works; the next snapshot takes up what was stored by then.

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

    async def verify(self, *, content: bool, timeout: timedelta) -> None:
        """Check that everything which the snapshots need is there; with `content` read and decrypt all of it.

        Raises:
            BackupDamagedError: It is not.
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

"""The mark in a volume that says that what a restore has put beside what is there is whole, and on the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from sandboxd.model.backup_errors import BackupIncompleteError, BackupStorageFullError
from sandboxd.volumes.mounted import flush_trees
from sandboxd.volumes.placing import keeping_times
from sandboxd.volumes.ports import STAGING, RestoredTree, RestoreOrder

MARK: Final = f"{STAGING}whole"
"""In the root of each volume that something comes back into; it goes with what it speaks of (`clear_staging`)."""
_LONGEST: Final = 4096
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def staged_as(order: RestoreOrder) -> str:
    """Say what an order brings back: SHA-256 of its id, its snapshots and its paths."""
    said = [
        order.id,
        sorted((volume.value, snapshot) for volume, snapshot in order.snapshots.items()),
        sorted((volume.value, sorted(path.hex() for path in paths)) for volume, paths in order.paths.items() if paths),
    ]
    return hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).hexdigest()


def find_staged(roots: Sequence[Path], wanted: str) -> RestoredTree | None:
    """Say what is staged of an order; None where that is not whole in every volume."""
    found = [_read(root) for root in roots]
    if not found or any(one is None or one[0] != wanted for one in found):
        return None
    _, entries, size = found[0] or ("", 0, 0)
    return RestoredTree(entries=entries, bytes=size)


def mark_staged(roots: Sequence[Path], wanted: str, staged: RestoredTree) -> None:
    """Have all of it on the disk, and say so then.

    Raises:
        BackupStorageFullError, BackupIncompleteError: It could not be written.
    """
    flush_trees(roots)
    try:
        for root in roots:
            with keeping_times(root), os.fdopen(os.open(root / MARK, _NEW, 0o600), "w") as file:
                json.dump([wanted, staged.entries, staged.bytes], file)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise BackupStorageFullError("There is no room where the backup is to be restored.") from error
        raise BackupIncompleteError(f"What comes back could not be kept until its time: {error.strerror}.") from error
    flush_trees(roots)


def unmark_staged(roots: Iterable[Path]) -> None:
    """Say it no more, durably: it begins to be moved.

    Raises:
        BackupIncompleteError: It could not be written.
    """
    there = [root for root in roots if os.path.lexists(root / MARK)]
    try:
        for root in there:
            with keeping_times(root):
                (root / MARK).unlink()
    except OSError as error:
        raise BackupIncompleteError(f"What was restored could not be put into its place: {error.strerror}.") from error
    flush_trees(there)


def _read(root: Path) -> tuple[str, int, int] | None:
    """Read the mark of a volume. A freelancer may have made one, who cannot know of which order it must be."""
    try:
        descriptor = os.open(root / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            wanted, entries, size = json.loads(file.read(_LONGEST))
            return str(wanted), int(entries), int(size)
    except (OSError, ValueError, TypeError):
        return None

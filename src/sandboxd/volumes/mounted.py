"""What is done with mounted volumes whose storage makes snapshots: written out before, looked through after."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandboxd.model.backup_errors import BackupIncompleteError
from sandboxd.volumes.ports import RestoredTree


def flush_trees(trees: Sequence[Path]) -> None:
    """Have everything on the storage that processes wrote to these trees' file systems, whoever they are.

    Raises:
        BackupIncompleteError: It could not be written.
    """
    syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    for tree in trees:
        descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if syncfs(descriptor) != 0:
                problem = os.strerror(ctypes.get_errno())
                raise BackupIncompleteError(f"{tree.name} could not be written to its storage: {problem}.")
        finally:
            os.close(descriptor)


def count_trees(trees: Sequence[Path]) -> RestoredTree:
    """Look through trees, so that every directory and every entry was read once; contents are not.

    Raises:
        BackupIncompleteError: Something could not be read.
    """
    entries = size = 0
    try:
        for tree in trees:
            for found in _entries(tree):
                entries += 1
                size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    except OSError as error:
        raise BackupIncompleteError(f"What came back cannot be read: {error.strerror}.") from error
    return RestoredTree(entries=entries, bytes=size)


def _entries(tree: Path) -> Iterator[os.stat_result]:
    """All below a tree, links not followed; `lost+found` is the file system's own."""
    places = [tree]
    while places:
        with os.scandir(places.pop()) as found:
            for one in found:
                if one.path == str(tree / "lost+found"):
                    continue
                yield one.stat(follow_symlinks=False)
                if one.is_dir(follow_symlinks=False):
                    places.append(Path(one.path))

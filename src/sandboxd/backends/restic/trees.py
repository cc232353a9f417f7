"""The trees on disk that are kept and brought back: what may be one, and the dress of a tree's own directory."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Final

from sandboxd.backends.restic.answers import Root
from sandboxd.model.backup_errors import BackupIncompleteError, BackupStorageFullError
from sandboxd.model.errors import InvalidRequestError

SHOWN: Final = 10
"""Paths that an error names."""
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
"""Of a tree's own directory; below it names are any bytes."""


def checked_tree(tree: Path) -> Path:
    """Return where a tree is. Raises InvalidRequestError where there is none, or a link to one."""
    if tree.is_symlink() or not tree.is_dir():
        raise InvalidRequestError(f"{tree.name!r} is no directory.")
    found = tree.resolve()
    if _NAME.fullmatch(found.name) is None:
        raise InvalidRequestError(f"The name {found.name!r} of the directory must be of a-z A-Z 0-9 _ . - alone.")
    return found


def make_empty(into: Path) -> None:
    """Make a directory that a tree can come back into.

    Raises:
        InvalidRequestError: There is something.
        BackupStorageFullError: There is no room.
    """
    try:
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty = not into.is_symlink() and next(into.iterdir(), None) is None
    except FileExistsError:
        empty = False
    except OSError as error:
        raise BackupStorageFullError("There is no room where the backup is to be restored.") from error
    if not empty:
        raise InvalidRequestError(f"{into.name!r} is no empty directory, and nothing is restored over what is there.")


def is_there(root: Path, path: bytes) -> bool:
    """Tell whether a path is there, through directories alone."""
    place = os.fsencode(root)
    *above, last = path.split(b"/")
    with contextlib.suppress(OSError):
        for part in above:
            place += b"/" + part
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                return False
        os.lstat(place + b"/" + last)
        return True
    return False


def dress(into: Path, root: Root) -> None:
    """Give a tree's own directory its owner, attributes, mode and time.

    Raises:
        BackupIncompleteError: The file system refuses one of them.
    """
    try:
        if os.geteuid() == 0 or (root.uid, root.gid) == (os.geteuid(), os.getegid()):
            os.chown(into, root.uid, root.gid)
        for name, value in root.xattrs.items():
            os.setxattr(into, name, value)
        into.chmod(root.mode)
        os.utime(into, ns=(root.mtime_ns, root.mtime_ns))
    except OSError as error:
        raise BackupIncompleteError("The restored directory itself cannot be made what it was.") from error

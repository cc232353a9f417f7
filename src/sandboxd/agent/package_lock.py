"""The locks of dpkg, held while a root file system is captured: an installation halfway belongs to no moment.

Locks of the open file, not of the process (F_OFD_SETLK): the walk opens and closes the same files, and a process's
lock is gone with the first descriptor that it closes. dpkg's own locks and these exclude each other (fcntl(2)), though
these are for reading only: an overlay copies a file up that is opened for writing, which would be a change of its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

from sandboxd.agent.rootfs_reading import OPEN_FILE
from sandboxd.model.image_errors import PackageManagerBusyError, PackagesInterruptedError

LOCKS: Final = ("var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock")
"""In the order in which apt takes them, so that neither of us holds one and waits for the other."""
UPDATES: Final = "var/lib/dpkg/updates"
"""What dpkg has noted of a run and not yet put into its database: empty between runs."""
_WHOLE_FILE: Final = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)


@contextlib.contextmanager
def quiet_packages(root: int) -> Iterator[None]:
    """Hold the locks for the length of a block; where there is no dpkg, nothing is held.

    Args:
        root: Descriptor of the root directory.

    Raises:
        PackageManagerBusyError: An installation runs.
        PackagesInterruptedError: One was killed.
    """
    with contextlib.ExitStack() as stack:
        for lock in LOCKS:
            with contextlib.suppress(FileNotFoundError):
                _hold(root, lock, stack)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if _has_updates(root):
                raise PackagesInterruptedError(
                    "An installation in this sandbox was killed halfway. Run `sudo dpkg --configure -a` in it, then "
                    "commit."
                )
        yield


def _hold(root: int, lock: str, stack: contextlib.ExitStack) -> None:
    try:
        file = os.open(lock, OPEN_FILE, dir_fd=root)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR}:
            raise FileNotFoundError from error  # somebody's own thing in its place: no dpkg works there
        raise
    stack.callback(os.close, file)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except (BlockingIOError, PermissionError) as error:
        raise PackageManagerBusyError(
            "A package is being installed in this sandbox. Commit when that has ended.", lock=f"/{lock}"
        ) from error


def _has_updates(root: int) -> bool:
    directory = os.open(UPDATES, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        return any(name.isdecimal() for name in os.listdir(directory))  # noqa: PTH208 - by descriptor
    finally:
        os.close(directory)

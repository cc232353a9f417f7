"""Removes trees of freelancers: of any depth, whoever closed their directories, and nothing outside of them.

`shutil.rmtree` calls itself once for each level, and ends at a thousand of them; anybody can make more.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: bytes | str, *, directory: int | None = None) -> None:
    """Remove whatever is there, if anything is. No link is followed. Nobody may move directories in it meanwhile.

    Args:
        path: A file of any kind, or a directory.
        directory: What a relative path begins at, open.

    Raises:
        OSError: Something of it cannot be removed, and `filename` says what; the rest may be gone.
    """
    try:
        status = os.stat(path, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path, dir_fd=directory)
        return
    _empty(path, directory)
    os.rmdir(path, dir_fd=directory)


def _empty(path: bytes | str, directory: int | None) -> None:
    """Empty a directory, with one open at a time: down by name, and up by `..`."""
    here = _enter(path, directory)
    inside = [_remove_files(here)]  # of each level from the top to here: the directories that are left
    names = list[bytes]()
    try:
        while inside[-1] or names:
            if inside[-1]:
                name = inside[-1].pop()
                names.append(name)
                below = _enter(name, here)
                os.close(here)
                here = below
                inside.append(_remove_files(here))
            else:
                inside.pop()
                above = os.open("..", _OPEN, dir_fd=here)
                os.close(here)
                here = above
                os.rmdir(names.pop(), dir_fd=here)
    except OSError as error:
        error.filename = b"/".join([*names, *([os.fsencode(error.filename)] if error.filename else [])])
        raise
    finally:
        os.close(here)


def _enter(name: bytes | str, directory: int | None) -> int:
    try:
        opened = os.open(name, _OPEN, dir_fd=directory)
    except PermissionError:  # closed to its owner, who we are
        os.chmod(name, 0o700, dir_fd=directory)
        opened = os.open(name, _OPEN, dir_fd=directory)
    try:
        if os.geteuid() != 0:
            os.fchmod(opened, 0o700)
    except OSError:
        os.close(opened)
        raise
    return opened


def _remove_files(directory: int) -> list[bytes]:
    """Remove all but directories; answers these."""
    left = list[bytes]()
    for each in os.listdir(directory):
        name = os.fsencode(each)
        try:
            os.unlink(name, dir_fd=directory)
        except (IsADirectoryError, PermissionError) as error:
            # POSIX lets unlink say EPERM of a directory; Linux says EISDIR, and EPERM of what is immutable.
            if error.errno != errno.EISDIR and not _is_directory(name, directory):
                raise
            left.append(name)
    return left


def _is_directory(name: bytes, directory: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)

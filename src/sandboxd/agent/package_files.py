"""Reading the files of package databases, which belong to the freelancer: bounded, never waiting, no devices.

What cannot be read as expected is an error of its own, so that nobody takes half a database for a whole one.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sandboxd.model.packages import MAX_PACKAGES

MAX_ENTRIES: Final = MAX_PACKAGES
"""Most entries of one directory that are looked at."""

Stamp = tuple[str, int, int, int]
"""Path, inode, size and modification time: a database with the same stamp is the same."""


class IncompleteDatabaseError(Exception):
    """The database is being written, damaged or larger than anything real: what it says now counts for nothing."""


def read_bounded(path: Path, limit: int, *, head: bool = False) -> bytes | None:
    """Read a regular file; None where there is none.

    Args:
        path: The file. A link is followed: `npm link` makes them.
        limit: Most bytes.
        head: Take the first `limit` bytes of a larger file, where it is enough.

    Raises:
        IncompleteDatabaseError: It is too large, no regular file, or cannot be read.
    """
    with opened(path) as descriptor:
        data = None if descriptor < 0 else b"".join(_pieces(descriptor, limit if head else limit + 1))
    if data is not None and len(data) > limit:
        raise IncompleteDatabaseError(f"{path} has more than {limit} bytes")
    return data


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a regular file for the length of a block; -1 where there is none.

    Raises:
        IncompleteDatabaseError: It is no regular file, or the block could not read it.
    """
    try:
        # Not blocking: somebody may have put a pipe there.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        yield -1
        return
    except OSError as error:
        raise IncompleteDatabaseError(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IncompleteDatabaseError(f"{path} is no file")
        yield descriptor
    except OSError as error:
        raise IncompleteDatabaseError(f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def entries(directory: Path) -> list[os.DirEntry[str]]:
    """List a directory by name; nothing where there is none.

    Raises:
        IncompleteDatabaseError: It has too many entries, or cannot be read.
    """
    found: list[os.DirEntry[str]] = []
    try:
        with os.scandir(directory) as listed:
            for entry in listed:
                found.append(entry)
                if len(found) > MAX_ENTRIES:
                    raise IncompleteDatabaseError(f"{directory} has more than {MAX_ENTRIES} entries")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise IncompleteDatabaseError(f"{directory}: {error.strerror}") from error
    return sorted(found, key=lambda entry: entry.name)


def subdirectories(directory: Path, prefix: str = "") -> list[Path]:
    """List the directories in a directory whose names begin so; what cannot be read has none."""
    with contextlib.suppress(IncompleteDatabaseError, OSError):
        return [Path(one.path) for one in entries(directory) if one.name.startswith(prefix) and one.is_dir()]
    return []


def stamp(path: Path) -> Stamp:
    """Tell how a file or directory stands; all zero where there is none."""
    try:
        found = path.stat()
    except OSError:
        return (str(path), 0, 0, 0)
    return (str(path), found.st_ino, found.st_size, found.st_mtime_ns)


def _pieces(descriptor: int, limit: int) -> Iterator[bytes]:
    left = limit
    while left > 0 and (piece := os.read(descriptor, min(left, 1 << 20))):
        left -= len(piece)
        yield piece

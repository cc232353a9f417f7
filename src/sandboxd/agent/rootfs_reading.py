"""Reads one file of a root file system that others write to: the same before and after, or said to be torn.

A file that fits into memory is read again until it held still for the length of a reading; a larger one is read once,
as nobody could keep it back. Never more is read than the file had when it was opened, so one that grows has an end.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from typing import Final

from sandboxd.model.rootfs import ChangedEntry, EntryKind, FileData, FileEnd, SkippedPath
from sandboxd.model.rootfs_rules import holds_token, may_hold_token

PIECE_BYTES: Final = 1 << 18
HELD_BYTES: Final = 4 << 20
"""Files up to this size are read into memory before anything of them is sent."""
PAUSES: Final = (0.0, 0.005, 0.05)
"""Seconds before each new reading of a file that has changed meanwhile."""
TICK_NS: Final = 10_000_000
"""Kernels before 6.13 stamp changes by ticks of up to this: a file that young may change once more and not show it."""
OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
UNREADABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETXTBSY, errno.EUCLEAN})

Frame = ChangedEntry | FileData | FileEnd | SkippedPath


class ChangedKindError(Exception):
    """It is no regular file any more; whoever found one looks again."""


def read_file(directory: int, name: bytes, path: bytes) -> Iterator[Frame]:
    """Yield the file's entry, content and end; or one `SkippedPath`.

    Args:
        directory: Descriptor of the directory it is in.
        name: Its name there.
        path: Its path.

    Raises:
        ChangedKindError: It is no regular file, or not there, before anything was yielded.
    """
    for pause in PAUSES:
        time.sleep(pause)
        try:
            file = _open(directory, name)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise ChangedKindError from error
            yield SkippedPath(path=path, reason="unreadable")
            return
        try:
            before = os.fstat(file)
            if not stat.S_ISREG(before.st_mode):
                raise ChangedKindError
            if before.st_size > HELD_BYTES:
                yield from _stream(file, path, before)
                return
            frames = _hold(file, path, before, last=pause == PAUSES[-1])
        finally:
            os.close(file)
        if frames is not None:
            yield from frames
            return


def attributes_of(file: int) -> dict[bytes, bytes]:
    """Return the extended attributes of an open file or directory."""
    found = {}
    with contextlib.suppress(OSError):  # a file system without them, or gone meanwhile
        for name in os.listxattr(file):
            with contextlib.suppress(OSError):
                found[os.fsencode(name)] = os.getxattr(file, name)
    return found


def entry_of(
    path: bytes, kind: EntryKind, status: os.stat_result, *, link: bytes = b"", attributes: dict[bytes, bytes]
) -> ChangedEntry:
    """Describe what was found."""
    return ChangedEntry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind is EntryKind.FILE else 0,
        mtime=int(status[stat.ST_MTIME]),
        link=link,
        xattrs=attributes,
        names=status.st_nlink if kind is EntryKind.FILE else 0,
    )


def _open(directory: int, name: bytes) -> int:
    return os.open(name, OPEN_FILE, dir_fd=directory)


def _hold(file: int, path: bytes, before: os.stat_result, *, last: bool) -> list[Frame] | None:
    """Read all of it; None when it has to be read again."""
    attributes = attributes_of(file)
    try:
        data = b"".join(_pieces(file, before.st_size))
    except OSError:
        return [SkippedPath(path=path, reason="unreadable")]
    torn = len(data) != before.st_size or not _same(before, os.fstat(file))
    if not last and (torn or 0 <= time.time_ns() - before.st_ctime_ns < TICK_NS):
        return None
    if may_hold_token(path) and holds_token(data):
        return [SkippedPath(path=path, reason="secret")]
    entry = entry_of(path, EntryKind.FILE, before, attributes=attributes)
    pieces = (FileData(data[begin : begin + PIECE_BYTES]) for begin in range(0, len(data), PIECE_BYTES))
    return [entry, *pieces, FileEnd(size=len(data), sha256=hashlib.sha256(data).digest(), torn=torn)]


def _stream(file: int, path: bytes, before: os.stat_result) -> Iterator[Frame]:
    digest, size, broken = hashlib.sha256(), 0, False
    yield entry_of(path, EntryKind.FILE, before, attributes=attributes_of(file))
    try:
        for piece in _pieces(file, before.st_size):
            digest.update(piece)
            size += len(piece)
            yield FileData(piece)
    except OSError:
        broken = True
    torn = broken or size != before.st_size or not _same(before, os.fstat(file))
    yield FileEnd(size=size, sha256=digest.digest(), torn=torn)
    if broken:
        yield SkippedPath(path=path, reason="unreadable")


def _pieces(file: int, size: int) -> Iterator[bytes]:
    left = size
    while left > 0 and (piece := os.read(file, min(PIECE_BYTES, left))):
        left -= len(piece)
        yield piece


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether nothing was written, and nothing else about it changed either."""
    return (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )

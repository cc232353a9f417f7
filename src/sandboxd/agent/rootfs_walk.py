"""Walks a root file system and merges it with its base: yields what is new, what differs and what is gone.

Every directory is opened relative to the one before it and never through a link, so nobody who renames and links
meanwhile leads the walk out of the root. Memory holds the names of the directories on the way down, one entry of the
base, and the inodes of sent files that have several names. Blocks; run it in a thread.

Nearly all entries are unchanged, and each costs a call of the kernel and a comparison: what stands in that loop is
written for speed (docs/benchmarks.md, "What a capture costs").
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final

from sandboxd.agent.rootfs_mounts import mounted_below
from sandboxd.agent.rootfs_reading import UNREADABLE, ChangedKindError, attributes_of, entry_of, read_file
from sandboxd.model.rootfs import (
    CaptureEnd,
    CaptureFrame,
    CaptureProgress,
    ChangedEntry,
    DeletedPath,
    EntryKind,
    FileData,
    FileEnd,
    SkippedPath,
    order_key,
)
from sandboxd.model.rootfs_rules import EXCLUDED, is_secret, keeps_directories_only

Expected = tuple[bytes, int, int, int, int, int, bytes, bool]
"""What the base has at a path: path, `st_mode`, uid, gid, size, mtime in seconds, link, and whether it is always sent.

The size of a symbolic link is the length of its target, as `lstat` has it. A mode of 0 is no entry of the base: it only
asks that what is there is sent.
"""
_Level = tuple[int, bytes, list[bytes]]
"""A directory on the way down: its descriptor, its path with a slash, and the names that are left, the last first."""
WHITEOUT: Final = b".wh."
"""Names that mean a deletion in a layer; a file cannot be kept by such a name."""
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_DEPTH: Final = 128
MAX_PATH_BYTES: Final = 3840
"""What the layer's writer keeps (`images/layer_rules.py`): nodes put a path of their own before it."""
ATTEMPTS: Final = 3
"""How often something is looked at that is another thing each time."""
PROGRESS_SECONDS: Final = 0.5
LOOKS_BETWEEN_CLOCKS: Final = 1024
"""Entries between two looks at the clock: some ten milliseconds."""


class Walk:
    """One walk. Iterate `frames` once."""

    def __init__(
        self,
        root: int,
        expected: Iterator[Expected],
        *,
        marker_ns: int,
        left_out: dict[bytes, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what is needed.

        Args:
            root: Descriptor of the root directory; stays the caller's.
            expected: The base in the order of `walk_key`.
            marker_ns: Change times from here on are changes.
            left_out: Paths that are skipped with all below, with the reason.
            clock: Seconds, for progress.
        """
        self._root = root
        self._expected = expected
        self._marker = marker_ns
        self._left_out = left_out
        self._clock = clock
        self._cursor: Expected | None = None
        self._covered: bytes | None = None
        """Entries of the base below this prefix are explained already: gone with their parent, or out of sight."""
        self._inodes: dict[tuple[int, int, int], tuple[bytes, int]] = {}
        """Sent files that have more names: the path of the first, and how many names are left."""
        self.looked, self.changed, self.deleted, self.content_bytes = 0, 0, 0, 0

    def frames(self) -> Iterator[CaptureFrame]:
        """Yield all frames, the `CaptureEnd` last."""
        due = self._clock() + PROGRESS_SECONDS
        for frame in self._walk():
            match frame:
                case ChangedEntry():
                    self.changed += 1
                case DeletedPath():
                    self.deleted += 1
                case FileData(data=data):
                    self.content_bytes += len(data)
                case CaptureProgress() if self._clock() < due:
                    continue
                case _:
                    pass
            due = self._clock() + PROGRESS_SECONDS if isinstance(frame, CaptureProgress) else due
            yield frame
        yield CaptureEnd(entries=self.looked, changed=self.changed, deleted=self.deleted, bytes=self.content_bytes)

    def _walk(self) -> Iterator[CaptureFrame]:
        self._cursor = next(self._expected, None)
        if self._cursor is not None and self._cursor[0] == b"":  # the root itself belongs to nobody's change
            self._cursor = next(self._expected, None)
        stack = [(os.dup(self._root), b"", _names(self._root))]
        try:
            while stack:
                directory, prefix, names = stack[-1]
                deeper = yield from self._level(directory, prefix, names)
                if deeper is not None:
                    stack.append(deeper)
                else:
                    os.close(stack.pop()[0])
            yield from self._pass(None)
        finally:
            for directory, _, _ in stack:
                os.close(directory)

    def _level(self, directory: int, prefix: bytes, names: list[bytes]) -> Generator[CaptureFrame, None, _Level | None]:
        """Go through the rest of one directory; return the next one below it, or None at its end."""
        look, expected, marker = os.stat, self._expected, self._marker
        while names:
            name = names.pop()
            path = prefix + name
            try:
                status = look(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:  # since it was listed: then it is absent
                continue
            except OSError:
                yield from self._find(path)  # it is there
                yield self._skip(path, "unreadable")
                continue
            self.looked += 1
            if not self.looked % LOOKS_BETWEEN_CLOCKS:
                yield CaptureProgress(entries=self.looked, bytes=self.content_bytes)
            base = self._cursor
            if base is not None and base[0] == path:
                self._cursor = next(expected, None)
            else:
                base = yield from self._find(path)
            mode = status.st_mode
            if (
                base is not None
                and mode == base[1]
                and status.st_ctime_ns < marker
                and status.st_uid == base[2]
                and status.st_gid == base[3]
                and status.st_size == base[4]
                and status[stat.ST_MTIME] == base[5]
                and not base[7]
            ):
                continue  # a directory has a size, and never gets here
            deeper = yield from self._entry(directory, name, path, status, base)
            if deeper is not None:
                return deeper
        return None

    def _entry(
        self, directory: int, name: bytes, path: bytes, status: os.stat_result, base: Expected | None
    ) -> Generator[CaptureFrame, None, _Level | None]:
        for attempt in range(ATTEMPTS):
            if attempt:
                try:
                    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                except FileNotFoundError:
                    if base is not None:
                        yield from self._absent(base)
                    return None
            try:
                if stat.S_ISDIR(status.st_mode):
                    return (yield from self._enter(directory, name, path, status, base))
                yield from self._send(directory, name, path, status, base)
            except ChangedKindError:
                continue
            return None
        yield self._skip(path, "vanished")
        return None

    def _enter(
        self, directory: int, name: bytes, path: bytes, status: os.stat_result, base: Expected | None
    ) -> Generator[CaptureFrame, None, _Level | None]:
        """Open a directory, and send it when it was changed itself."""
        reason = self._reason(path, name)
        if reason is not None:
            yield self._skip(path, reason)
            return None
        try:
            opened = os.open(name, OPEN_DIRECTORY, dir_fd=directory)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise ChangedKindError from error
            yield self._skip(path, "unreadable")
            return None
        try:
            # Not by its time: the runtime makes mount points in directories of the image at each start.
            if base is None or base[7] or status.st_ctime_ns >= self._marker or _owned(status) != base[1:4]:
                yield entry_of(path, EntryKind.DIRECTORY, os.fstat(opened), attributes=attributes_of(opened))
            names = _names(opened)
        except OSError:
            os.close(opened)
            yield self._skip(path, "unreadable")
            return None
        except BaseException:
            os.close(opened)
            raise
        return opened, path + b"/", names

    def _send(
        self, directory: int, name: bytes, path: bytes, status: os.stat_result, base: Expected | None
    ) -> Iterator[CaptureFrame]:
        """Send what is no directory, or say why not."""
        self._covered = path + b"/"  # where the base has a directory, what was in it went with it
        reason = self._reason(path, name) or ("excluded" if keeps_directories_only(path) else None)
        if reason is not None:
            yield SkippedPath(path=path, reason=reason)
        elif stat.S_ISREG(status.st_mode):
            yield from self._send_file(directory, name, path, status)
        elif stat.S_ISLNK(status.st_mode):
            try:
                link = os.readlink(name, dir_fd=directory)
            except OSError as error:
                raise ChangedKindError from error
            if base is None or base[7] or status.st_ctime_ns >= self._marker or not _same_link(status, link, base):
                yield entry_of(path, EntryKind.SYMLINK, status, link=link, attributes={})
        elif stat.S_ISFIFO(status.st_mode):
            yield entry_of(path, EntryKind.FIFO, status, attributes={})
        else:
            yield SkippedPath(path=path, reason="socket" if stat.S_ISSOCK(status.st_mode) else "device")
            if base is not None and base[1]:  # what the base has there is gone, and this cannot be kept
                yield DeletedPath(path)

    def _send_file(self, directory: int, name: bytes, path: bytes, status: os.stat_result) -> Iterator[CaptureFrame]:
        # With its change time: all names of a file have the same, and a number that was given anew has another.
        inode = (status.st_dev, status.st_ino, status.st_ctime_ns)
        known = self._inodes.get(inode) if status.st_nlink > 1 else None
        if known is not None:
            first, left = known
            if left > 1:
                self._inodes[inode] = (first, left - 1)
            else:
                del self._inodes[inode]
            yield entry_of(path, EntryKind.HARDLINK, status, link=first, attributes={})
            return
        whole, names = False, 0
        for frame in read_file(directory, name, path):
            if isinstance(frame, ChangedEntry):
                names = frame.names  # who reads this counts on it, not on what was seen before
            whole = whole or isinstance(frame, FileEnd)
            yield frame
        if whole and names > 1:
            self._inodes[inode] = (path, names - 1)

    def _find(self, path: bytes) -> Generator[CaptureFrame, None, Expected | None]:
        """Pass all of the base that comes before a path, and return what the base has there."""
        yield from self._pass(order_key(path))
        if self._cursor is not None and self._cursor[0] == path:
            found = self._cursor
            self._cursor = next(self._expected, None)
            return found
        return None

    def _pass(self, key: bytes | None) -> Iterator[CaptureFrame]:
        while self._cursor is not None and (key is None or order_key(self._cursor[0]) < key):
            absent = self._cursor
            self._cursor = next(self._expected, None)
            yield from self._absent(absent)

    def _absent(self, base: Expected) -> Iterator[CaptureFrame]:
        path, mode = base[0], base[1]
        if not mode or (self._covered is not None and path.startswith(self._covered)):
            return
        self._covered = path + b"/"
        if path in self._left_out or is_secret(path) or (keeps_directories_only(path) and not stat.S_ISDIR(mode)):
            return
        yield DeletedPath(path)

    def _skip(self, path: bytes, reason: str) -> SkippedPath:
        self._covered = path + b"/"
        return SkippedPath(path=path, reason=reason)

    def _reason(self, path: bytes, name: bytes) -> str | None:
        """Why a path is left out with all below; None where it is not."""
        reason = self._left_out.get(path)
        if reason is not None:
            return reason
        if name.startswith(WHITEOUT):
            return "whiteout_name"
        if is_secret(path):
            return "secret"
        if len(path) > MAX_PATH_BYTES or path.count(b"/") >= MAX_DEPTH:
            return "too_deep"
        return None


def left_out_paths(root: bytes, exclude: Sequence[bytes]) -> dict[bytes, str]:
    """Return what is left out below a root with all that is in it, with the reason: mounts, rules, and given paths."""
    return dict.fromkeys((*EXCLUDED, *exclude), "excluded") | dict.fromkeys(mounted_below(root), "mount")


def _names(directory: int) -> list[bytes]:
    """The names in a directory, the last first."""
    names = list(map(os.fsencode, os.listdir(directory)))
    names.sort(reverse=True)
    return names


def _owned(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid


def _same_link(status: os.stat_result, link: bytes, base: Expected) -> bool:
    return stat.S_ISLNK(base[1]) and (status.st_uid, status.st_gid, link) == (base[2], base[3], base[6])

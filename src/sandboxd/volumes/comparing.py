"""Compares a tree on a disk with what a snapshot says of it: once entry by entry, and once content by content.

Both passes are streams, so a tree of any size takes the same memory. What is in a tree is the freelancer's: no link of
it is followed, and nothing but plain files is opened.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

from sandboxd.model.backup import TreeComparison
from sandboxd.model.backup_errors import BackupToolError
from sandboxd.model.errors import InvalidRequestError
from sandboxd.volumes.access_lists import ARCHIVED, access_list_text
from sandboxd.volumes.ports import STAGING, BackupProgress

SHOWN: Final = 10
"""Differences that are told of."""
LONGEST: Final = 200
"""Characters of one."""
TOLD_EVERY: Final = 1.0
"""Seconds between two reports of progress."""
XATTR: Final = "SCHILY.xattr."
_PIECE: Final = 1 << 20
_KINDS: Final = {
    stat.S_IFDIR: "dir",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFBLK: "dev",
    stat.S_IFCHR: "chardev",
}
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class TreeComparing:
    """One comparison. Its methods are called one after the other, never two at once, in whatever thread."""

    def __init__(self, tree: Path, *, progress: Callable[[BackupProgress], object]) -> None:
        if tree.is_symlink() or not tree.is_dir():
            raise InvalidRequestError(f"{tree.name!r} is no directory.")
        self._root = os.fsencode(tree)
        self._progress = progress
        self._expected, self._found = hashlib.sha256(), hashlib.sha256()
        self._differences: list[str] = []
        self._count = 0
        self._entries = self._there = self._bytes = self._total = self._files = 0
        self._told = -TOLD_EVERY

    def entry(
        self, path: bytes, *, kind: str, mode: int, owner: tuple[int, int], size: int, mtime_ns: int | None
    ) -> None:
        """Compare what is said of one entry; the root's path is empty.

        Args:
            path: Relative to the root.
            kind: `dir`, `file`, `symlink`, `fifo`, `dev` or `chardev`.
            mode: Twelve bits.
            owner: User and group.
            size: Of a file.
            mtime_ns: None where the path itself is not told as it is: then only its number counts.
        """
        self._entries += 1
        self._total += size
        if mtime_ns is None:
            self._there += 1  # the second pass knows its name
            return
        status = self._status(path)
        if status is None:
            self._differ(path, "is not there")
            self._hash("entry", path, (kind, mode, owner, size, mtime_ns), None)
            return
        self._there += 1
        real = stat.S_IMODE(status.st_mode)
        found = (
            _KINDS.get(stat.S_IFMT(status.st_mode), "other"),
            mode if kind == "symlink" else real,
            (status.st_uid, status.st_gid),
            status.st_size if stat.S_ISREG(status.st_mode) else 0,
            status.st_mtime_ns,
        )
        expected = (kind, mode, owner, size if kind == "file" else 0, mtime_ns)
        names = ("kind", "mode", "owner", "size", "modification time")
        for name, wanted, has in zip(names, expected, found, strict=True):
            if wanted != has:
                self._differ(path, f"{name} is {has}, and was {wanted}")
        self._hash("entry", path, expected, found)

    def archive(self, stream: IO[bytes]) -> None:
        """Compare contents, targets and attributes with a tar archive of the snapshot, whose first entry is the root.

        Raises:
            BackupToolError: It is none, or broke off.
        """
        try:
            with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
                for member in archive:
                    self._member(archive, member)
        except (tarfile.TarError, EOFError) as error:
            raise BackupToolError("The repository's archive of a snapshot broke off, or is none.") from error

    def result(self) -> TreeComparison:
        """Answer what it came to, once nothing else is to be compared: what is there beside counts, too."""
        more = self._walked() - self._there
        if more > 0:
            self._differ(b"", f"has {more} entries that the backup has not")
            self._found.update(f"and {more} more".encode())
        return TreeComparison(
            entries=self._entries,
            bytes=self._bytes,
            expected=self._expected.hexdigest(),
            found=self._found.hexdigest(),
            differences=tuple(self._differences),
            difference_count=self._count,
        )

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        _, _, below = member.name.rstrip("/").partition("/")
        path = os.fsencode(below)
        wanted = {
            name: _as_text(name, value.encode("utf-8", "surrogateescape"))
            for key, value in member.pax_headers.items()
            if (name := ARCHIVED.get(key, key.removeprefix(XATTR))) != key
        }
        link = os.fsencode(member.linkname) if member.issym() else b""
        content = archive.extractfile(member) if member.isreg() else None
        digest, same = self._content(path, content)
        status = self._status(path)
        if status is None:
            self._differ(path, "is not there")
            self._hash("content", path, (digest, link, sorted(wanted.items())), None)
            return
        target = self._link(path) if member.issym() else b""
        has = self._attributes(path)
        if not same:
            self._differ(path, "has other content")
        if target != link:
            self._differ(path, "leads elsewhere")
        if has != wanted:
            odd = sorted(name for name in {*has, *wanted} if has.get(name) != wanted.get(name))
            self._differ(path, f"has another attribute {odd[0]}")
        if abs(int(member.mtime) * 10**9 - status.st_mtime_ns) > 10**9:  # which is rounded, up as well as down
            self._differ(path, "has another modification time")
        found = (digest if same else b"", target, sorted(has.items()))
        self._hash("content", path, (digest, link, sorted(wanted.items())), found)

    def _content(self, path: bytes, content: IO[bytes] | None) -> tuple[bytes, bool]:
        """Read a file of the snapshot, and the one on the disk; answers its SHA-256, and whether they are alike."""
        if content is None:
            return b"", True
        digest = hashlib.sha256()
        place = self._open(path)
        same = place is not None
        try:
            while piece := content.read(_PIECE):
                digest.update(piece)
                if same and place is not None:
                    same = _read(place, len(piece)) == piece
                    self._bytes += len(piece)
            if same and place is not None:
                same = not os.read(place, 1)
        finally:
            if place is not None:
                os.close(place)
        self._files += 1
        self._tell()
        return digest.digest(), same

    def _tell(self) -> None:
        if (now := time.monotonic()) >= self._told + TOLD_EVERY:
            self._told = now
            self._progress(
                BackupProgress(
                    files=self._files,
                    total_files=self._entries,
                    bytes=self._bytes,
                    total_bytes=max(self._total, self._bytes),
                )
            )

    def _open(self, path: bytes) -> int | None:
        try:
            place = os.open(self._place(path), _OPEN)
        except OSError:
            return None
        if stat.S_ISREG(os.fstat(place).st_mode):
            return place
        os.close(place)
        return None

    def _link(self, path: bytes) -> bytes:
        try:
            return os.readlink(self._place(path))  # noqa: PTH115 - bytes
        except OSError:
            return b""

    def _attributes(self, path: bytes) -> Mapping[str, bytes]:
        place = self._place(path)
        try:
            names = os.listxattr(place, follow_symlinks=False)
            return {name: _as_text(name, os.getxattr(place, name, follow_symlinks=False)) for name in names}
        except OSError as error:
            if error.errno in {errno.ENOTSUP, errno.EPERM, errno.ENOENT}:
                return {}
            raise

    def _status(self, path: bytes) -> os.stat_result | None:
        try:
            return os.lstat(self._place(path))
        except OSError:
            return None

    def _place(self, path: bytes) -> bytes:
        return self._root + b"/" + path if path else self._root

    def _walked(self) -> int:
        """Entries of the tree, its root among them, but sockets and what other file systems show."""
        device, number, waiting = os.lstat(self._root).st_dev, 1, [self._root]
        while waiting:
            with os.scandir(waiting.pop()) as found:
                for one in found:
                    status = one.stat(follow_symlinks=False)
                    if stat.S_ISSOCK(status.st_mode) or one.name.startswith(os.fsencode(STAGING)):
                        continue
                    number += 1
                    if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                        waiting.append(one.path)
        return number

    def _hash(self, what: str, path: bytes, expected: object, found: object) -> None:
        self._expected.update(repr((what, path, expected)).encode())
        self._found.update(repr((what, path, found)).encode())

    def _differ(self, path: bytes, what: str) -> None:
        self._count += 1
        if len(self._differences) < SHOWN:
            shown = path.decode("utf-8", "backslashreplace") or "."
            self._differences.append(f"{shown} {what}"[-LONGEST:])


def _as_text(name: str, value: bytes) -> bytes:
    """Put access lists in words, as some archives have them; all else is as it is."""
    return (access_list_text(value) if name in ARCHIVED.values() else None) or value


def _read(place: int, size: int) -> bytes:
    kept = b""
    while len(kept) < size and (piece := os.read(place, size - len(kept))):
        kept += piece
    return kept

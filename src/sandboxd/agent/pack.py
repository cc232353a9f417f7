"""Packing a file or tree into a tar stream. Links are stored, never followed. Blocks; run it in a thread."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from sandboxd.model.processes import CopyResult
from sandboxd.stream.agent_port import CopyLimitError, PathEscapesError, PathNotFoundError


class _Padded:
    """A file of exactly the announced length: a tar header cannot be taken back when the file shrinks meanwhile."""

    def __init__(self, source: IO[bytes], size: int) -> None:
        self._source = source
        self._left = size

    def read(self, size: int) -> bytes:
        """Return the next bytes; zeros where the file has ended early."""
        size = min(size, self._left)
        data = self._source.read(size)
        self._left -= size
        return data if len(data) == size else data + bytes(size - len(data))


class _Packing:
    def __init__(self, archive: tarfile.TarFile, *, max_bytes: int) -> None:
        self._archive = archive
        self._max_bytes = max_bytes
        self._links: dict[tuple[int, int], str] = {}
        self.entries = 0
        self.content_bytes = 0
        self.skipped = 0

    def add(self, parent: int, name: str, inside: str) -> None:
        """Add one entry and, for a directory, all below it.

        Args:
            parent: Descriptor of its directory.
            name: Its name there.
            inside: Its path in the archive; empty for the tree's own top.
        """
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                self._add_directory(parent, name, inside, status)
            elif stat.S_ISREG(status.st_mode):
                self._add_file(parent, name, inside, status)
            elif stat.S_ISLNK(status.st_mode):
                info = _info(inside, status, tarfile.SYMTYPE)
                info.linkname = os.readlink(name, dir_fd=parent)
                self._add_header(info)
            else:
                self.skipped += 1
        except (FileNotFoundError, PermissionError):  # it went away, or cannot be read
            self.skipped += 1
        except OSError as error:
            if error.errno not in {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}:  # it became something else meanwhile
                raise
            self.skipped += 1

    def _add_directory(self, parent: int, name: str, inside: str, status: os.stat_result) -> None:
        directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if inside:
                self._add_header(_info(inside, status, tarfile.DIRTYPE))
            for child in sorted(os.listdir(directory)):  # noqa: PTH208 - by descriptor, not by path
                self.add(directory, child, f"{inside}/{child}" if inside else child)
        finally:
            os.close(directory)

    def _add_file(self, parent: int, name: str, inside: str, status: os.stat_result) -> None:
        first = self._links.get((status.st_dev, status.st_ino))
        if first is not None:
            info = _info(inside, status, tarfile.LNKTYPE)
            info.linkname = first
            self._add_header(info)
            return
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, dir_fd=parent), "rb") as source:
            status = os.fstat(source.fileno())
            self.content_bytes += status.st_size
            if self._max_bytes and self.content_bytes > self._max_bytes:
                raise CopyLimitError(
                    f"The tree holds more than {self._max_bytes} bytes.", max_bytes=str(self._max_bytes)
                )
            info = _info(inside, status, tarfile.REGTYPE)
            info.size = status.st_size
            self._archive.addfile(info, _Padded(source, status.st_size))  # type: ignore[arg-type]  # only read is used
        if status.st_nlink > 1:
            self._links[status.st_dev, status.st_ino] = inside
        self._count()

    def _add_header(self, info: tarfile.TarInfo) -> None:
        self._archive.addfile(info)
        self._count()

    def _count(self) -> None:
        self.entries += 1
        self._archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member it has written: memory without bound


def pack(target: IO[bytes], *, root: Path, path: str, max_bytes: int) -> CopyResult:
    """Pack what lies at a path.

    Args:
        target: Where the archive goes.
        root: A directory nobody may leave.
        path: File or directory below it, relative; empty for the directory itself, whose content is packed then.
        max_bytes: Most bytes of file content; 0 for no limit.

    Raises:
        PathNotFoundError: Nothing is there.
        PathEscapesError: The path leads out.
        CopyLimitError: The tree holds more than it may.
    """
    place = locate(root, path)
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 16) as archive:
        packing = _Packing(archive, max_bytes=max_bytes)
        parent = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            packing.add(parent, place.name, "" if place.is_dir() else place.name)
        finally:
            os.close(parent)
    return CopyResult(entries=packing.entries, content_bytes=packing.content_bytes, skipped_entries=packing.skipped)


def locate(root: Path, path: str) -> Path:
    """Find the real path below a root.

    Raises:
        PathNotFoundError: Nothing is there.
        PathEscapesError: It leads out.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise PathEscapesError(f"{path!r} leads out of its root.", path=path)
    top = Path(os.path.realpath(root))
    try:
        real = Path(os.path.realpath(top / pure, strict=True))
    except OSError as error:
        raise PathNotFoundError(f"Nothing is at {path!r}.", path=path) from error
    if real != top and top not in real.parents:
        raise PathEscapesError(f"{path!r} leads out of its root.", path=path)
    return real


def _info(inside: str, status: os.stat_result, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(inside)
    info.type = kind
    info.mode = stat.S_IMODE(status.st_mode)
    info.mtime = status.st_mtime
    info.uid, info.gid = status.st_uid, status.st_gid
    return info

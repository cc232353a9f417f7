"""Unpacking a tar stream below a directory, safe against everything an archive can hold.

Every component of a member's path is opened with O_NOFOLLOW relative to the directory before it, so no link, whether it
comes from the archive, was there before, or appears while we work, leads out. Links themselves are made as they are and
never followed. Devices are refused, ownership and set-id bits are not taken over. Blocks; run it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Self

from typing_extensions import override

from sandboxd.model.processes import CopyResult
from sandboxd.stream.agent_port import ArchiveInvalidError, CopyLimitError, DiskFullError, PathEscapesError

COPY_BYTES = 1 << 16
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def unpack(stream: IO[bytes], *, root: Path, path: str, max_bytes: int, max_entries: int) -> CopyResult:
    """Unpack a tar stream (not compressed, or gzip, bzip2, xz).

    Args:
        stream: The archive.
        root: A directory nobody may leave.
        path: Destination below it, relative; made where it does not exist.
        max_bytes: Most bytes of file content.
        max_entries: Most members.

    Raises:
        PathEscapesError: The destination or a member leads out, or a member is a device.
        ArchiveInvalidError: The stream is not a whole tar archive.
        CopyLimitError: It holds more than it may.
        DiskFullError: The disk is full.
    """
    try:
        with contextlib.ExitStack() as stack:
            destination = _open_below(_open_root(root), _parts(path), make=True)
            stack.callback(os.close, destination)
            archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictInfo))
            return _Unpacking(destination, max_bytes=max_bytes, max_entries=max_entries).run(archive)
    except (tarfile.TarError, EOFError) as error:
        raise ArchiveInvalidError(f"The bytes are not a whole tar archive: {error}.") from error
    except OSError as error:
        raise _translate(error) from error


class _StrictInfo(tarfile.TarInfo):
    """A header that must be whole. The standard library takes a broken one in the middle for the archive's end."""

    @classmethod
    @override
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if bytes(buf) == bytes(tarfile.BLOCKSIZE):  # the regular end
                raise
            raise tarfile.ReadError(str(error)) from error


def _open_root(root: Path) -> int:
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class _Unpacking:
    def __init__(self, destination: int, *, max_bytes: int, max_entries: int) -> None:
        self._destination = destination
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._entries = 0
        self._bytes = 0
        self._late: list[tuple[tuple[str, ...], int, float]] = []

    def run(self, archive: tarfile.TarFile) -> CopyResult:
        for member in archive:
            self._entries += 1
            if self._entries > self._max_entries:
                raise CopyLimitError(
                    f"The archive holds more than {self._max_entries} entries.", max_entries=str(self._max_entries)
                )
            self._bytes += member.size if member.isreg() else 0
            if self._bytes > self._max_bytes:
                raise CopyLimitError(
                    f"The archive holds more than {self._max_bytes} bytes.", max_bytes=str(self._max_bytes)
                )
            self._unpack_one(archive, member)
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member it has seen: memory without bound
        for parts, mode, modified in reversed(self._late):  # a directory without write permission is closed at the end
            with contextlib.suppress(OSError), self._parent((*parts, ".")) as directory:
                os.fchmod(directory, mode)
                os.utime(directory, (modified, modified))
        return CopyResult(entries=self._entries, content_bytes=self._bytes)

    def _unpack_one(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = _parts(member.name)
        if not parts:
            return
        if member.isdir():
            os.close(_open_below(os.dup(self._destination), parts, make=True))
            self._late.append((parts, _mode(member) | stat.S_IRWXU, member.mtime))
            return
        with self._parent(parts) as parent:
            name = parts[-1]
            if member.isreg():
                self._write_file(archive, member, parent, name)
            elif member.issym():
                _clear(parent, name)
                os.symlink(member.linkname, name, dir_fd=parent)
            elif member.islnk():
                source = _parts(member.linkname)
                with self._parent(source) as other:
                    _clear(parent, name)
                    os.link(source[-1], name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
            elif member.isfifo():
                _clear(parent, name)
                os.mkfifo(name, _mode(member), dir_fd=parent)
            else:
                raise PathEscapesError(f"{member.name} is a device or of an unknown kind.", member=member.name)

    def _write_file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
        _clear(parent, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        source = archive.extractfile(member)
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=parent), "wb", buffering=0) as target:
            left = member.size
            while source is not None and left > 0:
                data = source.read(min(COPY_BYTES, left))
                if not data:
                    raise ArchiveInvalidError("The archive is cut: its last file is not whole.")
                view = memoryview(data)
                while view:
                    view = view[target.write(view) :]
                left -= len(data)
            os.fchmod(target.fileno(), _mode(member))
            os.utime(target.fileno(), (member.mtime, member.mtime))

    @contextlib.contextmanager
    def _parent(self, parts: tuple[str, ...]) -> Iterator[int]:
        if not parts:
            raise PathEscapesError("A link of the archive names its own destination directory.")
        directory = _open_below(os.dup(self._destination), parts[:-1], make=True)
        try:
            yield directory
        finally:
            os.close(directory)


def _parts(path: str) -> tuple[str, ...]:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise PathEscapesError(f"{path!r} leads out of its destination.", path=path)
    return tuple(part for part in pure.parts if part != ".")


def _open_below(directory: int, parts: tuple[str, ...], *, make: bool) -> int:
    """Open a directory below another, following no link. Takes over, and closes, the given descriptor."""
    for part in parts:
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=directory)
            deeper = os.open(part, DIRECTORY, dir_fd=directory)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                raise PathEscapesError(
                    f"{part!r} on the way is a link or a file, not a directory.", path="/".join(parts)
                ) from error
            raise
        finally:
            os.close(directory)
        directory = deeper
    return directory


def _clear(parent: int, name: str) -> None:
    """Make way for a new file. A directory in its place stays, and is an error."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError) as error:
        raise PathEscapesError(
            f"{name!r} is a directory there, and something else in the archive.", path=name
        ) from error


def _mode(member: tarfile.TarInfo) -> int:
    return stat.S_IMODE(member.mode) & 0o777 | 0o600


def _translate(error: OSError) -> Exception:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return DiskFullError("The sandbox's disk is full. Free some room and repeat the copy.")
        case errno.ENAMETOOLONG | errno.EINVAL:
            return ArchiveInvalidError("The archive holds a name that this file system cannot keep.")
        case _:
            return ArchiveInvalidError(f"A member could not be unpacked: {error.strerror}.")

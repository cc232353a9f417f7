"""Applies a layer to the root file system that it runs in: the RUN step of an image that kaniko builds.

It is copied into the build as a file and run there by the agent's interpreter, so it imports the standard library and
nothing of this package. The layer is one that our writer has made (canonical, every path below directories that are
there); its contents are whatever a freelancer has written. Nothing of it is run, and no link is followed.
Usage: applying.py LAYER ROOT
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import stat
import sys
import tarfile
from pathlib import Path
from typing import Final, Self

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
CAPABILITY: Final = "security.capability"
"""The one attribute that is set: kaniko takes no other one into an image."""
_XATTR: Final = "SCHILY.xattr."
_WHITEOUT: Final = b".wh."
_OWN: Final = b"kaniko"
"""What lies below it belongs to the build: its program, authorities and account."""
_BLOCK: Final = 1 << 20


class LayerError(Exception):
    """The layer is not what our writer makes."""


class Applying:
    """One layer and one root. Use it as a context."""

    def __init__(self, root: Path) -> None:
        """Open the root, a directory."""
        self._root = os.open(root, DIRECTORY)
        self._parent, self._parent_of = self._root, b""
        self._directories: list[tuple[bytes, int]] = []
        self.entries = 0

    def __enter__(self) -> Self:
        """Use it for a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it."""
        self._leave()
        os.close(self._root)

    def run(self, layer: Path) -> int:
        """Apply a layer, compressed by gzip; return how many entries it has.

        Raises:
            LayerError: It has what no layer of ours has.
            OSError: The file system does not take it.
        """
        try:
            with (
                gzip.open(layer, "rb") as stream,
                tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as archive,
            ):
                for member in archive:
                    self._apply(archive, member)
                    self.entries += 1
                while stream.read(_BLOCK):  # and so its checksum is seen
                    pass
        except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
            raise LayerError(f"the layer is damaged: {error}") from error
        self._set_times()
        return self.entries

    def _apply(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = _path(member.name)
        parent = self._enter(path.rpartition(b"/")[0])
        name = path.rpartition(b"/")[2]
        if name.startswith(_WHITEOUT):
            _remove(parent, name.removeprefix(_WHITEOUT))
            return
        if member.isdir():
            self._directory(parent, name, member)
            self._directories.append((path, int(member.mtime)))
            return
        _remove(parent, name)
        if member.isreg():
            _file(parent, name, archive, member)
            return
        if member.islnk():
            self._link(parent, name, _path(member.linkname))
            return
        if member.issym():
            os.symlink(_bytes(member.linkname), name, dir_fd=parent)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
        else:
            raise LayerError(f"an entry of the type {member.type!r}")
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if member.isfifo():
            os.chmod(name, stat.S_IMODE(member.mode), dir_fd=parent)
        _touch(parent, name, int(member.mtime))

    def _directory(self, parent: int, name: bytes, member: tarfile.TarInfo) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                _remove(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        opened = os.open(name, DIRECTORY, dir_fd=parent)
        try:
            _own(opened, member)
        finally:
            os.close(opened)

    def _link(self, parent: int, name: bytes, target: bytes) -> None:
        source = self._walk(target.rpartition(b"/")[0])
        try:
            os.link(target.rpartition(b"/")[2], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _enter(self, path: bytes) -> int:
        """Open the directory of an entry; the one before it is mostly the same."""
        if path != self._parent_of:
            self._leave()
            self._parent, self._parent_of = self._walk(path), path
        return self._parent

    def _leave(self) -> None:
        if self._parent != self._root:
            os.close(self._parent)
        self._parent, self._parent_of = self._root, b""

    def _walk(self, path: bytes) -> int:
        """Open a directory from the root on, each part by itself, so that no link leads elsewhere."""
        opened = os.dup(self._root)
        for part in path.split(b"/") if path else ():
            above = opened
            try:
                opened = os.open(part, DIRECTORY, dir_fd=above)
            finally:
                os.close(above)
        return opened

    def _set_times(self) -> None:
        """Set directories' times when nothing is written into them any more."""
        self._leave()
        for path, mtime in reversed(self._directories):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                opened = self._walk(path)
                try:
                    os.utime(opened, ns=(mtime * 10**9, mtime * 10**9))
                finally:
                    os.close(opened)
        os.utime(self._root, ns=(0, 0))  # or the same layer would be another one at each build


def _file(parent: int, name: bytes, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    content = archive.extractfile(member)
    if content is None:
        raise LayerError("a file without content")
    opened = os.open(name, flags, 0o600, dir_fd=parent)
    with os.fdopen(opened, "wb") as file:
        shutil.copyfileobj(content, file, _BLOCK)
        file.flush()
        if os.fstat(opened).st_size != member.size:
            raise LayerError("a file is cut")
        _own(opened, member)
        os.utime(opened, ns=(int(member.mtime) * 10**9, int(member.mtime) * 10**9))


def _own(opened: int, member: tarfile.TarInfo) -> None:
    """Owner, mode, capability, in this order: a change of owner takes the others away."""
    os.fchown(opened, member.uid, member.gid)
    os.fchmod(opened, stat.S_IMODE(member.mode))
    capability = member.pax_headers.get(_XATTR + CAPABILITY)
    if capability is not None:
        os.setxattr(opened, CAPABILITY, _bytes(capability))


def _remove(parent: int, name: bytes) -> None:
    """Remove what is there, with all below."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(os.fsdecode(name), dir_fd=parent)
    else:
        os.unlink(name, dir_fd=parent)


def _touch(parent: int, name: bytes, mtime: int) -> None:
    os.utime(name, ns=(mtime * 10**9, mtime * 10**9), dir_fd=parent, follow_symlinks=False)


def _path(name: str) -> bytes:
    path = _bytes(name).rstrip(b"/")
    parts = path.split(b"/")
    if {b"", b".", b".."} & set(parts) or parts[0].removeprefix(_WHITEOUT) == _OWN:
        raise LayerError(f"the path {name!r}")
    return path


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def main() -> int:
    """Apply the layer that is named; tell what is wrong in one line."""
    layer, root = map(Path, sys.argv[1:])
    try:
        with Applying(root) as applying:
            entries = applying.run(layer)
    except (LayerError, OSError) as error:
        sys.stderr.write(f"applying: {error}\n")
        return 1
    sys.stdout.write(f"applying: {entries} entries\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

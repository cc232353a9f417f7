"""Writes the entries of a layer and counts them against its limits, before any byte of them is written. No I/O.

The archive comes in two parts: *head* has the whiteouts, *body* all else. Head, body and `tar_entries.END` are the tar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from sandboxd.images.layer_report import Largest, LeftOuts, too_large
from sandboxd.images.layer_rules import bounded_time, kept_attributes, lost_attributes
from sandboxd.images.layer_way import Directory
from sandboxd.images.ports import ImageLimits
from sandboxd.images.tar_entries import BLOCK, END, entry_header, padding, whiteout_header
from sandboxd.model.image_errors import ImageTooLargeError
from sandboxd.model.rootfs import ChangedEntry, EntryKind

Out = Callable[[bytes], None]
_SYMLINK_MODE: Final = 0o777
"""Linux has no other one."""


class LayerTar:
    """Both parts of the archive. After an error it is good for nothing."""

    def __init__(self, *, limits: ImageLimits, head: Out, body: Out) -> None:
        """Take what is needed.

        Args:
            limits: Of which `compressed_bytes` is the caller's to enforce: see `refuse`.
            head: Takes the bytes of the first part.
            body: Takes those of the second.
        """
        self._limits = limits
        self._head, self._body = head, body
        self.raw_bytes, self.entries = len(END), 0
        self.largest, self.left_out = Largest(), LeftOuts()
        self._refused = 0

    def write_directories(self, way: Iterable[Directory]) -> None:
        """Write those that are not written."""
        for directory in way:
            if not directory.written:
                directory.written = True
                header = entry_header(
                    directory.path,
                    EntryKind.DIRECTORY,
                    mode=directory.mode,
                    uid=directory.uid,
                    gid=directory.gid,
                    mtime=directory.mtime,
                    xattrs=directory.xattrs,
                )
                self._write(header)

    def write_file(self, entry: ChangedEntry, size: int, content: Iterator[bytes]) -> None:
        """Write a file with all of its content, of which there are `size` bytes."""
        self.note_attributes(entry)
        header = entry_header(
            entry.path,
            EntryKind.FILE,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime=bounded_time(entry.mtime),
            size=size,
            xattrs=kept_attributes(entry.xattrs),
        )
        self.largest.add(entry.path, size)
        self._count(len(header) + size + -size % BLOCK)
        self._body(header)
        for piece in content:
            self._body(piece)
        self._body(padding(size))

    def write_name(self, path: bytes, file: ChangedEntry) -> None:
        """Write another name of a file that was written: all but the name is the file's."""
        header = entry_header(
            path,
            EntryKind.HARDLINK,
            mode=file.mode,
            uid=file.uid,
            gid=file.gid,
            mtime=bounded_time(file.mtime),
            link=file.path,
        )
        self._write(header)

    def write_other(self, entry: ChangedEntry) -> None:
        """Write what has no content: a symbolic link or a pipe."""
        header = entry_header(
            entry.path,
            entry.kind,
            mode=_SYMLINK_MODE if entry.kind is EntryKind.SYMLINK else entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime=bounded_time(entry.mtime),
            link=entry.link,
        )
        self._write(header)

    def write_whiteout(self, path: bytes) -> None:
        """Write that what the base has at a path is gone with all below."""
        header = whiteout_header(path)
        self._count(len(header))
        self._head(header)

    def leave_out(self, path: bytes, reason: str) -> None:
        """Note an entry that was sent and is not written.

        Raises:
            ImageTooLargeError: There are more of them than a layer may have entries: nothing else bounds them.
        """
        self.left_out.add(path, reason)
        self._refused += 1
        if self._refused > self._limits.entries:
            raise self.refuse("entries")

    def note_attributes(self, entry: ChangedEntry) -> None:
        """Note an entry that is written without an attribute that somebody may miss."""
        if entry.xattrs and lost_attributes(entry.xattrs, kept_attributes(entry.xattrs)):
            self.left_out.add(entry.path, "attribute")

    def exceeded(self, size: int) -> str | None:
        """Return the limit that a file of this size would exceed, were it written now; None where it fits."""
        if size > self._limits.file_bytes:
            return "file_bytes"
        least = self.raw_bytes + BLOCK + size + -size % BLOCK
        return "raw_bytes" if least > self._limits.raw_bytes else None

    def refuse(self, limit: str) -> ImageTooLargeError:
        """Return the error for a limit of `ImageLimits` that is exceeded."""
        most: int = getattr(self._limits, limit)
        return too_large(limit, most, self.largest)

    def refuse_file(self, path: bytes, size: int, limit: str) -> ImageTooLargeError:
        """The same, because of a file that is not written and so not among the largest."""
        self.largest.add(path, size)
        return self.refuse(limit)

    def _write(self, header: bytes) -> None:
        self._count(len(header))
        self._body(header)

    def _count(self, size: int) -> None:
        """Count an entry with all its bytes."""
        self.raw_bytes += size
        self.entries += 1
        if self.raw_bytes > self._limits.raw_bytes:
            raise self.refuse("raw_bytes")
        if self.entries > self._limits.entries:
            raise self.refuse("entries")

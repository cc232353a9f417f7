"""Makes one layer of a captured difference: frames in, the bytes of a tar out. Believes none of it, and does no I/O.

What comes out is canonical: the same root file system against the same base gives the same bytes, whatever else was
sent along. What is as in the base is dropped; where nothing is left, there is no entry. The order is that of the walk,
each directory before what is in it; only a file that is written for the sake of a new name of it comes with that name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, assert_never

from sandboxd.images.layer_content import Contents, Kept, Spool
from sandboxd.images.layer_report import invalid, path_text
from sandboxd.images.layer_rules import (
    belongs_to_a_program,
    bounded_time,
    check_entry,
    check_name,
    kept_attributes,
    reason_to_leave_out,
    same_metadata,
)
from sandboxd.images.layer_tar import LayerTar, Out
from sandboxd.images.layer_way import Directory, Way, unchanged
from sandboxd.images.ports import ImageLimits, LeftOut, SecretPolicy
from sandboxd.images.secret_scan import SCANNED_BYTES, find_secret, is_scanned
from sandboxd.model.image_errors import FileTornError, ImageTooLargeError, SecretsFoundError
from sandboxd.model.rootfs import (
    BaselineRecord,
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
from sandboxd.model.rootfs_rules import keeps_directories_only

NO_TIME: Final = 0
"""Of a new directory where only directories are kept: each log that is written to it would change its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCounts:
    """What became of a capture."""

    raw_bytes: int
    """Of head, body and end."""
    entries: int
    largest: list[tuple[str, int]]
    left_out: list[LeftOut]
    scanned: int


@dataclass(slots=True, kw_only=True)
class _Receiving:
    """The file whose content comes."""

    entry: ChangedEntry
    base: BaselineRecord | None
    """What the base has, where all but the content is the same; else None."""
    reason: str | None
    """Why it is left out, by its path; then its content is counted and dropped."""
    way: tuple[Directory, ...]
    hash: hashlib._Hash = field(default_factory=hashlib.sha256)
    size: int = 0
    oversize: str | None = None
    """The limit that it exceeds, unless it turns out to be the base's."""


@dataclass(slots=True, kw_only=True)
class _Named:
    """A complete file of which more names may come."""

    entry: ChangedEntry
    size: int
    sha256: bytes
    reason: str | None = None
    """Why it was left out, and with it all its names."""
    written: bool = False
    held: Kept | None = None
    """Its content, where it is as in the base and so is neither written nor left out; None where it is too large."""
    way: tuple[Directory, ...] = ()
    """The directories that it needs, should it be written."""
    names: list[tuple[bytes, tuple[Directory, ...]]] = field(default_factory=list)
    """Further names that are as in the base, too."""


class Layer:
    """One layer in the making. Give it all frames, then call `finish`; after an error it is good for nothing."""

    def __init__(
        self,
        baseline: Iterator[BaselineRecord],
        *,
        limits: ImageLimits,
        secrets: SecretPolicy,
        spool: Spool,
        head: Out,
        body: Out,
    ) -> None:
        """Take what is needed.

        Args:
            baseline: What the base has, in the order of `walk_key`.
            limits: Of which `compressed_bytes` is the caller's: see `refuse`.
            secrets: What happens with keys and tokens that are found.
            spool: Empty; for contents that are larger than some memory, or held back.
            head: Takes the bytes of the tar's first part.
            body: Takes those of the second; `tar_entries.END` is the caller's.
        """
        self._way = Way(baseline)
        self._limits = limits
        self._secrets = secrets
        self._contents = Contents(spool)
        self._tar = LayerTar(limits=limits, head=head, body=body)
        self._last_key = b""
        self._file: _Receiving | None = None
        self._named: dict[bytes, _Named] = {}
        self._changed, self._deleted, self._bytes = 0, 0, 0
        self._end: CaptureEnd | None = None

    def take(self, frame: CaptureFrame) -> None:
        """Take the next frame.

        Raises:
            CaptureInvalidError: It cannot follow what came before, or be at all.
            ImageTooLargeError: A limit is exceeded with it.
            FileTornError: A program's file is half of one moment and half of another.
            SecretsFoundError: All has come, and there are secrets that the policy refuses.
        """
        if self._end is not None:
            raise invalid("it goes on after its end")
        match frame:
            case FileData(data=data):
                self._take_data(data)
            case FileEnd():
                self._take_file_end(frame)
            case CaptureProgress():
                pass
            case _ if self._file is not None:
                raise invalid("a file has no end", self._file.entry.path)
            case ChangedEntry():
                self._take_changed(frame)
            case DeletedPath(path=path):
                self._take_deleted(path)
            case SkippedPath():
                self._tar.left_out.add(frame.path, frame.reason)
            case CaptureEnd():
                self._take_end(frame)
            case _:
                assert_never(frame)

    def finish(self) -> LayerCounts:
        """Return what there is, after the last frame.

        Raises:
            CaptureInvalidError: The capture has not ended.
        """
        if self._end is None:
            raise invalid("it has no end")
        return LayerCounts(
            raw_bytes=self._tar.raw_bytes,
            entries=self._tar.entries,
            largest=self._tar.largest.listed(),
            left_out=self._tar.left_out.listed(),
            scanned=self._end.entries,
        )

    def refuse(self, limit: str) -> ImageTooLargeError:
        """Return the error for a limit of `ImageLimits` that is exceeded."""
        return self._tar.refuse(limit)

    def _take_changed(self, entry: ChangedEntry) -> None:
        self._changed += 1
        check_entry(entry)
        base, reason = self._look(entry.path, directory=entry.kind is EntryKind.DIRECTORY)
        if entry.kind is EntryKind.FILE:
            same = base if same_metadata(entry, base) else None
            self._file = _Receiving(entry=entry, base=same, reason=reason, way=self._way.unwritten())
        elif reason is not None:
            self._tar.leave_out(entry.path, reason)
            if entry.kind is EntryKind.DIRECTORY:
                self._way.enter(Directory(path=entry.path, reason=reason))
        elif entry.kind is EntryKind.DIRECTORY:
            self._take_directory(entry, base)
        elif entry.kind is EntryKind.HARDLINK:
            self._take_name(entry, base)
        elif not same_metadata(entry, base):
            self._tar.write_directories(self._way.unwritten())
            self._tar.write_other(entry)

    def _look(self, path: bytes, *, directory: bool) -> tuple[BaselineRecord | None, str | None]:
        """Go to a path; return what the base has there, and why it is left out."""
        key = order_key(path)
        if key <= self._last_key:
            raise invalid("a path comes twice or out of order", path)
        self._last_key = key
        check_name(path)
        base = self._way.seek(path, key)
        parent = self._way.parent
        if path[: max(path.rfind(b"/"), 0)] != parent.path:
            raise invalid("a path in no directory", path)
        return base, parent.reason or reason_to_leave_out(path, directory=directory)

    def _take_directory(self, entry: ChangedEntry, base: BaselineRecord | None) -> None:
        # The time is the base's where that has this directory: the live one tells when a log was written to it, or that
        # the runtime made a mount point, and so would change with each start.
        old = None if base is None or base.entry.kind is not EntryKind.DIRECTORY else unchanged(base)
        if old is not None and same_metadata(entry, base):
            self._way.enter(old)
            return
        mtime = NO_TIME if keeps_directories_only(entry.path) else bounded_time(entry.mtime)
        directory = Directory(
            path=entry.path,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime=mtime if old is None else old.mtime,
            xattrs=kept_attributes(entry.xattrs),
        )
        self._tar.note_attributes(entry)
        self._tar.write_directories((*self._way.unwritten(), directory))
        self._way.enter(directory)

    def _take_data(self, data: bytes) -> None:
        file = self._file
        if file is None:
            raise invalid("content of no file")
        file.hash.update(data)
        file.size += len(data)
        self._bytes += len(data)
        if file.reason is not None:
            return
        file.oversize = file.oversize or self._tar.exceeded(file.size)
        if file.oversize is None:
            self._contents.add(data)
            return
        self._contents.drop()  # it may still be the base's, as long as it is not longer; then nothing of it is kept
        if file.base is None or file.size > file.base.entry.size:
            raise self._tar.refuse_file(file.entry.path, file.size, file.oversize)

    def _take_file_end(self, end: FileEnd) -> None:
        file, self._file = self._file, None
        if file is None:
            raise invalid("the end of no file")
        entry, base = file.entry, file.base
        named = _Named(entry=entry, size=file.size, sha256=file.hash.digest(), reason=file.reason, way=file.way)
        if (end.size, end.sha256) != (named.size, named.sha256):
            raise invalid("content that is not what it is said to be", entry.path)
        if named.reason is None and _is_base(named, base):
            if entry.names != 1 and file.oversize is None and self._has_room_for(file.size):
                named.held = self._contents.keep()
        elif named.reason is None:
            named.reason = self._keep_file(file, torn=end.torn)
            named.written = named.reason is None
        self._contents.drop()
        if named.reason is not None:
            self._tar.leave_out(entry.path, named.reason)
        if entry.names != 1:
            self._named[entry.path] = named

    def _has_room_for(self, size: int) -> bool:
        """Whether content may be held back: what is more than a layer may have could not be written anyway."""
        return self._contents.kept_bytes + size <= self._limits.raw_bytes

    def _keep_file(self, file: _Receiving, *, torn: bool) -> str | None:
        """Write a file that differs from the base, or return why it is left out."""
        entry = file.entry
        if file.oversize is not None:
            raise self._tar.refuse_file(entry.path, file.size, file.oversize)
        if torn and belongs_to_a_program(entry.path, entry.mode):
            shown = path_text(entry.path)
            raise FileTornError(
                f"{shown} was written to all the time while it was read. Commit again when what writes it has ended.",
                path=shown,
            )
        if torn:
            return "torn"
        found = None
        if file.size <= SCANNED_BYTES and is_scanned(entry.path):
            found = find_secret(entry.path, self._contents.small())
        if found == "token" and self._secrets is not SecretPolicy.STRIP:
            self._tar.left_out.add(entry.path, "secret_kept")
        elif found is not None:
            return found
        self._tar.write_directories(file.way)
        self._tar.write_file(entry, file.size, self._contents.take())
        return None

    def _take_name(self, entry: ChangedEntry, base: BaselineRecord | None) -> None:
        """Write another name of a file, or see that it is as in the base: then it waits for a name that is not."""
        named = self._named.get(entry.link)
        if named is None:
            raise invalid("a link to what is no earlier file with several names", entry.path)
        if named.reason is not None:
            self._tar.leave_out(entry.path, named.reason)
        elif not named.written and _is_base(named, base):
            named.names.append((entry.path, self._way.unwritten()))
        else:
            self._write_held(named)
            self._tar.write_directories(self._way.unwritten())
            self._tar.write_name(entry.path, named.entry)

    def _write_held(self, named: _Named) -> None:
        """Write a file that is as in the base, with those names that are, too: another one is new, and all are one."""
        if named.written:
            return
        if named.held is None:
            raise self._tar.refuse_file(named.entry.path, named.size, "raw_bytes")
        self._tar.write_directories(named.way)
        self._tar.write_file(named.entry, named.size, self._contents.kept(named.held))
        for path, way in named.names:
            self._tar.write_directories(way)
            self._tar.write_name(path, named.entry)
        named.written, named.held, named.names = True, None, []

    def _take_deleted(self, path: bytes) -> None:
        self._deleted += 1
        base, reason = self._look(path, directory=True)
        if base is None:
            raise invalid("what the base has not is said to be gone", path)
        if reason is not None or (base.entry.kind is not EntryKind.DIRECTORY and keeps_directories_only(path)):
            return
        self._tar.write_directories(self._way.unwritten())
        self._tar.write_whiteout(path)

    def _take_end(self, end: CaptureEnd) -> None:
        told = (end.changed, end.deleted, end.bytes)
        if told != (self._changed, self._deleted, self._bytes) or end.entries < 0:
            raise invalid("its end counts otherwise")
        self._way.finish()
        count = self._tar.left_out.count("secret_kept")
        if count and self._secrets is SecretPolicy.REFUSE:
            paths = ", ".join(self._tar.left_out.paths("secret_kept"))
            raise SecretsFoundError(
                f"There are keys or tokens in {count} file(s), among them {paths}. Remove them, or move them to the "
                "home volume; then commit.",
                count=str(count),
                paths=paths,
            )
        self._end = end


def _is_base(named: _Named, base: BaselineRecord | None) -> bool:
    """Whether the base has this very file at a path."""
    return (
        base is not None
        and (base.entry.size, base.sha256) == (named.size, named.sha256)
        and same_metadata(named.entry, base)
    )

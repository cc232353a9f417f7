"""A root file system's entries and its difference from a base, as the agent tells it and the layer's writer reads it.

Paths are raw bytes, relative to the root, without a leading or trailing slash; the root itself is `b""`. The order of
everything is the order of a walk: a directory before what is in it, names in one directory by their bytes. That is
the order of `walk_key`, and it lets a baseline of any length be merged with a walk in constant memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class EntryKind(StrEnum):
    """What is at a path."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    """Another name of a file that came earlier in the same difference; never in a baseline, which holds it as FILE.

    A link to a file of the base comes as this, too: making it changed that file's change time, so the file comes first.
    """
    FIFO = "fifo"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineEntry:
    """What the base image has at a path: enough to tell whether it was changed, no content."""

    path: bytes
    kind: EntryKind
    mode: int
    """Permission bits with setuid, setgid and sticky: 0 to 0o7777."""
    uid: int
    gid: int
    size: int = 0
    """Bytes of a FILE; 0 of all others."""
    mtime: int = 0
    """Seconds since the epoch: layers carry whole seconds."""
    link: bytes = b""
    """Target of a SYMLINK."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRecord:
    """A base image's entry with what tells whether content is the same; stays with the service."""

    entry: BaselineEntry
    sha256: bytes = b""
    """Of a FILE's content, 32 bytes."""
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedEntry:
    """Frame: something that is new or differs. A FILE's content follows in `FileData` and ends with `FileEnd`."""

    path: bytes
    kind: EntryKind
    mode: int
    uid: int
    gid: int
    size: int = 0
    """Bytes of a FILE when it was opened; what counts is what comes until its `FileEnd`."""
    mtime: int = 0
    """Seconds since the epoch."""
    link: bytes = b""
    """Target of a SYMLINK; of a HARDLINK the path of the earlier FILE."""
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    names: int = 0
    """How many names a FILE had; a HARDLINK to it comes only where there were several. 0 where that is not known."""


@dataclass(frozen=True, slots=True)
class FileData:
    """Frame: the next bytes of the file that the last `ChangedEntry` began."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEnd:
    """Frame: the file is complete."""

    size: int
    sha256: bytes
    torn: bool = False
    """It changed while it was read, so often that the reader gave up: the content mixes moments."""


@dataclass(frozen=True, slots=True)
class DeletedPath:
    """Frame: the base has it, the root file system has not. Only the topmost path of what is gone together."""

    path: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedPath:
    """Frame: something was left out on purpose or because it could not be read."""

    path: bytes
    reason: str
    """`socket`, `device`, `excluded`, `secret`, `mount`, `unreadable`, `vanished`, `too_deep` or `whiteout_name`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureProgress:
    """Frame: how far the walk is; comes at least every second."""

    entries: int
    """Paths looked at."""
    bytes: int
    """Of file content sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureEnd:
    """Frame, the last one: everything was sent. A stream that ends without it has failed."""

    entries: int
    """Paths looked at."""
    changed: int
    deleted: int
    bytes: int
    """Of file content."""


CaptureFrame = ChangedEntry | FileData | FileEnd | DeletedPath | SkippedPath | CaptureProgress | CaptureEnd


def walk_key(path: bytes) -> tuple[bytes, ...]:
    """The key by which paths sort as a walk meets them."""
    return tuple(path.split(b"/")) if path else ()


def order_key(path: bytes) -> bytes:
    """Sorts as `walk_key` does, at a fraction of its price: no name holds a zero."""
    return path.replace(b"/", b"\0")

"""Between frames of a capture and messages of `Capture`: batches in both directions, for agent and service. Pure."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import Final

from sandboxd.agent.rootfs_walk import Expected
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.model.errors import InternalError, InvalidRequestError
from sandboxd.model.rootfs import (
    BaselineEntry,
    CaptureEnd,
    CaptureFrame,
    CaptureProgress,
    ChangedEntry,
    DeletedPath,
    EntryKind,
    FileData,
    FileEnd,
    SkippedPath,
)

BATCH_BYTES: Final = 1 << 16
BATCH_ENTRIES: Final = 1000
"""Entries of the base in one message: some 80 KiB, and some milliseconds of the loops at both ends."""
FRAME_BYTES: Final = 64
"""What a frame costs beside its paths and content, about."""

KINDS: Final = {
    EntryKind.FILE: pb.ENTRY_KIND_FILE,
    EntryKind.DIRECTORY: pb.ENTRY_KIND_DIRECTORY,
    EntryKind.SYMLINK: pb.ENTRY_KIND_SYMLINK,
    EntryKind.HARDLINK: pb.ENTRY_KIND_HARDLINK,
    EntryKind.FIFO: pb.ENTRY_KIND_FIFO,
}
_KINDS_FROM: Final = {theirs: ours for ours, theirs in KINDS.items()}
_TYPES: Final = {
    EntryKind.FILE: stat.S_IFREG,
    EntryKind.DIRECTORY: stat.S_IFDIR,
    EntryKind.SYMLINK: stat.S_IFLNK,
    EntryKind.FIFO: stat.S_IFIFO,
}


def expected_from_entry(entry: BaselineEntry, *, always: bool) -> Expected:
    """Read an entry of the base as the walk compares it."""
    mode = _TYPES[entry.kind] | entry.mode
    size = len(entry.link) if entry.kind is EntryKind.SYMLINK else entry.size
    return entry.path, mode, entry.uid, entry.gid, size, entry.mtime, entry.link, always


def only_always(path: bytes) -> Expected:
    """A path of which the base has nothing, and that is sent whenever something is there."""
    return path, 0, 0, 0, 0, 0, b"", True


def batch_to(entries: Iterable[Expected]) -> pb.BaselineBatch:
    """Write entries by columns."""
    paths, modes, uids, gids, sizes, times, links, always = zip(*entries, strict=True)
    return pb.BaselineBatch(
        paths=paths,
        modes=modes,
        user_ids=uids,
        group_ids=gids,
        sizes=sizes,
        modify_times=times,
        links=links,
        always=always,
    )


def batch_from(batch: pb.BaselineBatch) -> Iterator[Expected]:
    """Read entries.

    Raises:
        InvalidRequestError: The columns are not of one length.
    """
    columns = (
        list(batch.paths),
        list(batch.modes),
        list(batch.user_ids),
        list(batch.group_ids),
        list(batch.sizes),
        list(batch.modify_times),
        list(batch.links),
        list(batch.always),
    )
    if len({len(column) for column in columns}) != 1:
        raise InvalidRequestError("The columns of a batch must be of one length.")
    return zip(*columns, strict=True)


def frame_to(frame: CaptureFrame) -> pb.CaptureFrame:
    """Write a frame."""
    match frame:
        case ChangedEntry():
            return pb.CaptureFrame(changed=_changed_to(frame))
        case FileData(data=data):
            return pb.CaptureFrame(data=data)
        case FileEnd():
            return pb.CaptureFrame(file_end=pb.FileEnd(size=frame.size, sha256=frame.sha256, torn=frame.torn))
        case DeletedPath(path=path):
            return pb.CaptureFrame(deleted=path)
        case SkippedPath():
            return pb.CaptureFrame(skipped=pb.SkippedPath(path=frame.path, reason=frame.reason))
        case CaptureProgress():
            return pb.CaptureFrame(progress=pb.CaptureProgress(entries=frame.entries, bytes=frame.bytes))
        case CaptureEnd():
            end = pb.CaptureEnd(entries=frame.entries, changed=frame.changed, deleted=frame.deleted, bytes=frame.bytes)
            return pb.CaptureFrame(end=end)


def frame_from(message: pb.CaptureFrame) -> CaptureFrame | None:
    """Read a frame; None of a kind that a newer agent knows.

    Raises:
        InternalError: An entry is of a kind that this version does not know: leaving it out would lose it.
    """
    match message.WhichOneof("frame"):
        case "changed":
            return _changed_from(message.changed)
        case "data":
            return FileData(message.data)
        case "file_end":
            end = message.file_end
            return FileEnd(size=end.size, sha256=end.sha256, torn=end.torn)
        case "deleted":
            return DeletedPath(message.deleted)
        case "skipped":
            return SkippedPath(path=message.skipped.path, reason=message.skipped.reason)
        case "progress":
            return CaptureProgress(entries=message.progress.entries, bytes=message.progress.bytes)
        case "end":
            last = message.end
            return CaptureEnd(entries=last.entries, changed=last.changed, deleted=last.deleted, bytes=last.bytes)
        case _:
            return None


def messages(frames: Iterable[CaptureFrame]) -> Iterator[pb.CaptureResponse]:
    """Put frames together until they are worth a message; progress and the end are sent at once."""
    batch: list[pb.CaptureFrame] = []
    size = 0
    for frame in frames:
        batch.append(frame_to(frame))
        size += _weight(frame)
        if size >= BATCH_BYTES or isinstance(frame, CaptureProgress | CaptureEnd):
            yield pb.CaptureResponse(frames=batch)
            batch, size = [], 0


def _weight(frame: CaptureFrame) -> int:
    match frame:
        case FileData(data=data):
            return FRAME_BYTES + len(data)
        case ChangedEntry():
            attributes = sum(len(name) + len(value) for name, value in frame.xattrs.items())
            return FRAME_BYTES + len(frame.path) + len(frame.link) + attributes
        case DeletedPath(path=path) | SkippedPath(path=path):
            return FRAME_BYTES + len(path)
        case _:
            return FRAME_BYTES


def _changed_to(entry: ChangedEntry) -> pb.ChangedEntry:
    return pb.ChangedEntry(
        path=entry.path,
        kind=KINDS[entry.kind],
        mode=entry.mode,
        user_id=entry.uid,
        group_id=entry.gid,
        size=entry.size,
        modify_time=entry.mtime,
        link=entry.link,
        attributes=[pb.ExtendedAttribute(name=name, value=value) for name, value in sorted(entry.xattrs.items())],
        names=entry.names,
    )


def _changed_from(message: pb.ChangedEntry) -> ChangedEntry:
    kind = _KINDS_FROM.get(message.kind)
    if kind is None:
        raise InternalError("The agent sends a kind of entry that this version does not know.")
    return ChangedEntry(
        path=message.path,
        kind=kind,
        mode=message.mode,
        uid=message.user_id,
        gid=message.group_id,
        size=message.size,
        mtime=message.modify_time,
        link=message.link,
        xattrs={one.name: one.value for one in message.attributes},
        names=message.names,
    )

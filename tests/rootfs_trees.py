"""Real trees for tests of captures: a base as it was at a start, what a walk says of it, and what follows from that."""

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandboxd.agent.rootfs_walk import OPEN_DIRECTORY, Expected, Walk, left_out_paths
from sandboxd.agent.rootfs_wire import expected_from_entry, only_always
from sandboxd.model.rootfs import (
    BaselineEntry,
    BaselineRecord,
    CaptureEnd,
    CaptureFrame,
    ChangedEntry,
    DeletedPath,
    EntryKind,
    FileData,
    FileEnd,
    SkippedPath,
    order_key,
    walk_key,
)

_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFIFO: EntryKind.FIFO,
}


def all_paths(root: Path) -> Iterator[bytes]:
    """Every path below a root, in any order."""
    top = os.fsencode(root)
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            yield os.path.relpath(os.path.join(directory, name), top)  # noqa: PTH118 - bytes


def baseline_of(root: Path) -> list[BaselineEntry]:
    """What a registry would say of an image with this tree."""
    entries = [entry_at(root, path) for path in sorted(all_paths(root), key=walk_key)]
    return [entry for entry in entries if entry is not None]


def records_of(root: Path) -> list[BaselineRecord]:
    """The same with contents' hashes and attributes, as the service keeps it."""
    return [_record(root, entry) for entry in baseline_of(root)]


def _record(root: Path, entry: BaselineEntry) -> BaselineRecord:
    place = os.fsencode(root) + b"/" + entry.path
    sha256, xattrs = b"", {}
    if entry.kind is EntryKind.FILE:
        with open(place, "rb") as file:  # noqa: PTH123 - bytes
            sha256 = hashlib.file_digest(file, "sha256").digest()
    if entry.kind in {EntryKind.FILE, EntryKind.DIRECTORY}:
        xattrs = {os.fsencode(name): os.getxattr(place, name) for name in os.listxattr(place)}
    return BaselineRecord(entry=entry, sha256=sha256, xattrs=xattrs)


def entry_at(root: Path, path: bytes) -> BaselineEntry | None:
    """What is at a path, if it is a kind that an image holds."""
    place = os.fsencode(root) + b"/" + path
    status = os.lstat(place)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    return BaselineEntry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind is EntryKind.FILE else 0,
        mtime=int(status.st_mtime // 1),
        link=os.readlink(place)  # noqa: PTH115 - bytes
        if kind is EntryKind.SYMLINK
        else b"",
    )


def marker_now(directory: Path) -> int:
    """A change time that is later than all that was done before, and not later than all that is done afterwards.

    The kernel stamps by ticks of a few milliseconds, so this waits for the next one.
    """
    probe = directory / "probe"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while True:
        probe.chmod(0o600)
        now = probe.stat().st_ctime_ns
        if now > before:
            probe.unlink()
            return now
        time.sleep(0.001)


@dataclass(slots=True, kw_only=True)
class Difference:
    """What the frames of a walk say."""

    entries: dict[bytes, ChangedEntry] = field(default_factory=dict)
    contents: dict[bytes, bytes] = field(default_factory=dict)
    torn: set[bytes] = field(default_factory=set)
    deleted: list[bytes] = field(default_factory=list)
    skipped: dict[bytes, str] = field(default_factory=dict)
    end: CaptureEnd | None = None

    @property
    def kinds(self) -> dict[bytes, EntryKind]:
        return {path: entry.kind for path, entry in self.entries.items()}


def read(frames: Iterable[CaptureFrame]) -> Difference:
    """Collect frames, and hold them to what is promised of their order."""
    found, open_file, data = Difference(), b"", b""
    last: tuple[bytes, ...] | None = None
    for frame in frames:
        assert found.end is None, "the end is the last frame"
        match frame:
            case ChangedEntry():
                key = walk_key(frame.path)
                assert last is None or key > last, f"{frame.path!r} is out of order"
                last, open_file, data = key, frame.path, b""
                found.entries[frame.path] = frame
            case FileData():
                data += frame.data
            case FileEnd():
                assert frame.size == len(data)
                found.contents[open_file] = data
                if frame.torn:
                    found.torn.add(open_file)
            case DeletedPath(path=path):
                found.deleted.append(path)
            case SkippedPath():
                found.skipped[frame.path] = frame.reason
            case CaptureEnd():
                found.end = frame
            case _:
                pass
    assert found.end is not None
    assert found.end.changed == len(found.entries)
    assert found.end.deleted == len(found.deleted)
    assert found.end.bytes == sum(map(len, found.contents.values()))
    return found


@dataclass(slots=True, kw_only=True)
class Tree:
    """A tree with the base that it was at the moment of the marker."""

    root: Path
    baseline: list[BaselineEntry]
    marker_ns: int

    def walk(
        self, *, previous: Sequence[bytes] = (), exclude: Sequence[bytes] = (), left_out: dict[bytes, str] | None = None
    ) -> Difference:
        return read(self.frames(previous=previous, exclude=exclude, left_out=left_out))

    def frames(
        self, *, previous: Sequence[bytes] = (), exclude: Sequence[bytes] = (), left_out: dict[bytes, str] | None = None
    ) -> Iterator[CaptureFrame]:
        known = {entry.path for entry in self.baseline}
        expected: list[Expected] = [
            expected_from_entry(entry, always=entry.path in previous) for entry in self.baseline
        ] + [only_always(path) for path in previous if path not in known]
        expected.sort(key=lambda one: order_key(one[0]))
        root = os.open(self.root, OPEN_DIRECTORY)
        try:
            skips = left_out_paths(os.fsencode(self.root), exclude) if left_out is None else left_out
            yield from Walk(root, iter(expected), marker_ns=self.marker_ns, left_out=skips).frames()
        finally:
            os.close(root)


def start(root: Path) -> Tree:
    """Take what is there for the image, and this moment for the agent's start."""
    return Tree(root=root, baseline=baseline_of(root), marker_ns=marker_now(root.parent))

"""Layers in tests: frames by hand, a writer of them in memory, and what a layer says to those who did not write it."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zstandard
from typing_extensions import override

from sandboxd.images.layer import Layer, LayerCounts
from sandboxd.images.layer_content import Spool
from sandboxd.images.ports import ImageLimits, SecretPolicy
from sandboxd.images.tar_entries import END
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
    order_key,
)

AMPLE = ImageLimits(raw_bytes=1 << 30, compressed_bytes=1 << 30)
MTIME = 1_700_000_000


class MemorySpool(Spool):
    """A spool in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    @override
    def append(self, data: bytes) -> None:
        self.data += data

    @override
    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    @override
    def truncate(self, size: int) -> None:
        del self.data[size:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """One entry of a base image by hand."""

    path: bytes
    content: bytes | None = None
    """None: a directory, or a link."""
    link: bytes = b""
    mode: int = 0o644
    uid: int = 0
    mtime: int = MTIME
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def base(*entries: Base) -> list[BaselineRecord]:
    """A baseline of these; parents are made."""
    by_path = {entry.path: entry for entry in entries}
    for entry in entries:
        parts = entry.path.split(b"/")
        for depth in range(1, len(parts)):
            by_path.setdefault(b"/".join(parts[:depth]), Base(path=b"/".join(parts[:depth]), mode=0o755))
    return [_record(by_path[path]) for path in sorted(by_path, key=order_key)]


def _record(one: Base) -> BaselineRecord:
    kind = EntryKind.SYMLINK if one.link else EntryKind.DIRECTORY if one.content is None else EntryKind.FILE
    size, sha256 = 0, b""
    if one.content is not None:
        size, sha256 = len(one.content), hashlib.sha256(one.content).digest()
    return BaselineRecord(
        entry=BaselineEntry(
            path=one.path, kind=kind, mode=one.mode, uid=one.uid, gid=0, size=size, mtime=one.mtime, link=one.link
        ),
        sha256=sha256,
        xattrs=one.xattrs,
    )


def a_file(
    path: bytes,
    content: bytes = b"new",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = MTIME,
    xattrs: Mapping[bytes, bytes] | None = None,
    names: int = 1,
    torn: bool = False,
    pieces: int = 1 << 18,
) -> list[CaptureFrame]:
    """A file's frames."""
    entry = ChangedEntry(
        path=path,
        kind=EntryKind.FILE,
        mode=mode,
        uid=uid,
        gid=gid,
        size=len(content),
        mtime=mtime,
        xattrs=xattrs or {},
        names=names,
    )
    data = [FileData(content[at : at + pieces]) for at in range(0, len(content), pieces)]
    return [entry, *data, FileEnd(size=len(content), sha256=hashlib.sha256(content).digest(), torn=torn)]


def an_entry(
    path: bytes,
    kind: EntryKind = EntryKind.DIRECTORY,
    *,
    mode: int = 0o755,
    uid: int = 0,
    mtime: int = MTIME,
    link: bytes = b"",
    xattrs: Mapping[bytes, bytes] | None = None,
) -> list[CaptureFrame]:
    """Anything but a file."""
    return [ChangedEntry(path=path, kind=kind, mode=mode, uid=uid, gid=0, mtime=mtime, link=link, xattrs=xattrs or {})]


def a_link(path: bytes, target: bytes) -> list[CaptureFrame]:
    """Another name of a file."""
    return an_entry(path, EntryKind.HARDLINK, mode=0o644, link=target)


def ended(frames: Iterable[CaptureFrame]) -> list[CaptureFrame]:
    """The frames with the end that belongs to them."""
    listed = list(frames)
    changed = sum(isinstance(frame, ChangedEntry) for frame in listed)
    deleted = sum(isinstance(frame, DeletedPath) for frame in listed)
    size = sum(len(frame.data) for frame in listed if isinstance(frame, FileData))
    return [*listed, CaptureEnd(entries=changed, changed=changed, deleted=deleted, bytes=size)]


@dataclass(frozen=True, slots=True)
class Made:
    """A layer in memory."""

    tar: bytes
    counts: LayerCounts
    spooled: int
    """Bytes in the spool at the end."""

    @property
    def names(self) -> list[str]:
        return [member.name for member in members(self.tar)]

    def __getitem__(self, name: str) -> tarfile.TarInfo:
        return next(member for member in members(self.tar) if member.name == name)

    def content(self, name: str) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(self.tar)) as archive:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

    @property
    def left_out(self) -> dict[str, Sequence[str]]:
        return {one.reason: list(one.paths) for one in self.counts.left_out}


def make(
    baseline: Iterable[BaselineRecord],
    frames: Iterable[CaptureFrame],
    *,
    limits: ImageLimits = AMPLE,
    secrets: SecretPolicy = SecretPolicy.STRIP,
) -> Made:
    """Write a layer of frames in memory."""
    head, body, spool = bytearray(), bytearray(), MemorySpool()
    layer = Layer(iter(baseline), limits=limits, secrets=secrets, spool=spool, head=head.extend, body=body.extend)
    for frame in frames:
        layer.take(frame)
    counts = layer.finish()
    tar = bytes(head + body + END)
    assert len(tar) == counts.raw_bytes
    return Made(tar, counts, len(spool.data))


def members(tar: bytes) -> list[tarfile.TarInfo]:
    """The entries of a tar, as Python reads it."""
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
        return archive.getmembers()


def expanded(layer: Path) -> bytes:
    """The tar in a layer's file, of either compression and any number of frames."""
    data = layer.read_bytes()
    if data.startswith(zstandard.FRAME_HEADER):
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            return reader.read()
    return gzip.decompress(data)

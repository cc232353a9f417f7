"""Reads one layer as a stream: decompressed, hashed, entry by entry, with every content's hash. Blocks.

Memory holds one block and one entry, whatever a layer has: names and attributes are bounded before they are read, and
content is never kept.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import zstandard
from typing_extensions import override

from sandboxd.model.image_errors import ImageInvalidError

Source = Callable[[int], bytes]
"""Gives up to so many bytes of what a layer's blob has left; none at its end."""

META_BYTES: Final = 1 << 20
"""Longest header of a name or of attributes; Linux lists 64 KiB of attributes for a file."""
PATH_BYTES: Final = 4096
"""Longest path, `PATH_MAX`."""
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE: Final = b"\x2a\x4d\x18"  # after one byte from 0x50 to 0x5f: frames that zstd:chunked adds
_ZSTD_WINDOW: Final = 1 << 27
"""Largest window, which is held in memory: what `zstd` itself reads without being asked."""
_BLOCK: Final = 256 << 10
_RECORD: Final = 512
_XATTR: Final = "SCHILY.xattr."


class TarKind(StrEnum):
    """What an entry of a layer is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    FIFO = "fifo"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEntry:
    """One entry as the layer has it; names that mean deletions are not interpreted."""

    path: bytes
    """Relative, without `.` and empty names; the root is `b""`."""
    kind: TarKind
    mode: int
    uid: int
    gid: int
    size: int = 0
    mtime: int = 0
    """Whole seconds since the epoch; earlier ones are the epoch, as runtimes have it."""
    link: bytes = b""
    """Target of a SYMLINK; path of a HARDLINK's target, like `path`."""
    sha256: bytes = b""
    """Of a FILE's content."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class LayerStream:
    """A layer's tar: what `tarfile` reads headers from, forwards only."""

    def __init__(self, source: Source, *, limit: int) -> None:
        """Begin.

        Args:
            source: Of the blob: gzip, zstd or plain, told by its first bytes.
            limit: Most bytes of the tar.
        """
        self._blocks = _decompressed(source)
        self._limit = limit
        self._block = b""
        self._at = 0
        self._position = 0
        self._hash = hashlib.sha256()
        self.last = b""
        """What was read last."""

    @property
    def diff_id(self) -> str:
        """`sha256:…` of what was read of the tar; of all of it after `drain`."""
        return f"sha256:{self._hash.hexdigest()}"

    def tell(self) -> int:
        """How many bytes of the tar were passed."""
        return self._position

    def seek(self, offset: int) -> int:
        """Pass all bytes before an offset.

        Raises:
            ImageInvalidError: It lies behind.
        """
        if offset < self._position:
            raise ImageInvalidError("A layer cannot be read: an entry's content lies before it.")
        while self._position < offset and self._take(offset - self._position):
            pass
        return self._position

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer only at the end.

        Raises:
            ImageInvalidError: More than what a name or attributes may have.
        """
        if not 0 <= size <= META_BYTES + _RECORD:
            raise ImageInvalidError(f"A layer cannot be read: a name or attributes with {size} bytes.")
        found = self._take(size)
        while len(found) < size and (more := self._take(size - len(found))):
            found += more
        self.last = found
        return found

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the next bytes, so many altogether.

        Raises:
            ImageInvalidError: There are fewer.
        """
        while size:
            piece = self._take(size)
            if not piece:
                raise ImageInvalidError("A layer cannot be read: it ends within a file.")
            size -= len(piece)
            yield piece

    def drain(self) -> None:
        """Read to the end of the blob, and let go of it."""
        while self._take(_BLOCK):
            pass

    def _take(self, size: int) -> bytes:
        """Return at most so many bytes of the present block; none at the end."""
        while self._at == len(self._block):
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._block, self._at = block, 0
            self._hash.update(block)
            self._limit -= len(block)
            if self._limit < 0:
                raise ImageInvalidError("The image is too large to be taken for a base: its layers exceed the limit.")
        piece = self._block[self._at : self._at + size]
        self._at += len(piece)
        self._position += len(piece)
        return piece


class _Tar(tarfile.TarFile):
    """Keeps no list of what it has read."""

    @override
    def next(self) -> tarfile.TarInfo | None:
        found = super().next()
        self.members: list[tarfile.TarInfo] = []
        return found


def entries_in(stream: LayerStream) -> Iterator[LayerEntry]:
    """Yield the entries of a layer in its order; the stream is then at its end.

    Raises:
        ImageInvalidError: It is no tar, is cut or damaged, or has what no layer may have.
    """
    try:
        with _Tar(fileobj=stream, mode="r", encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[arg-type]  # read, tell and seek are all it takes
            while (member := archive.next()) is not None:
                yield _entry_of(archive, member, stream)
        if stream.last.strip(b"\0"):  # `tarfile` ends at whatever is no header
            raise ImageInvalidError("A layer cannot be read: a header is damaged.")
        stream.drain()
    except (tarfile.TarError, zlib.error, zstandard.ZstdError, ValueError, RecursionError) as error:
        raise ImageInvalidError(f"A layer cannot be read: {error}.") from error


def _entry_of(archive: tarfile.TarFile, member: tarfile.TarInfo, stream: LayerStream) -> LayerEntry:
    kind = _kind_of(member)
    path = _clean(member.name)
    link = b""
    if kind is TarKind.HARDLINK:
        link = _clean(member.linkname)
    elif kind is TarKind.SYMLINK:
        link = _encoded(member.linkname)
        if not link:
            raise ImageInvalidError(f"A layer cannot be read: a link without a target, {path!r}.")
    sha256 = b""
    if kind is TarKind.FILE:
        sha256 = _content_hash(archive, member, stream)
    return LayerEntry(
        path=path,
        kind=kind,
        mode=member.mode & 0o7777,
        uid=_number(member.uid),
        gid=_number(member.gid),
        size=member.size if kind is TarKind.FILE else 0,
        mtime=_mtime(member),
        link=link,
        sha256=sha256,
        xattrs={
            _encoded(name.removeprefix(_XATTR)): _encoded(value, limit=META_BYTES)
            for name, value in member.pax_headers.items()
            if name.startswith(_XATTR)
        },
    )


def _kind_of(member: tarfile.TarInfo) -> TarKind:
    if member.isreg():
        if member.type not in tarfile.SUPPORTED_TYPES:
            raise ImageInvalidError(f"A layer cannot be read: an entry of the unknown type {member.type!r}.")
        return TarKind.FILE
    kinds = {
        tarfile.DIRTYPE: TarKind.DIRECTORY,
        tarfile.SYMTYPE: TarKind.SYMLINK,
        tarfile.LNKTYPE: TarKind.HARDLINK,
        tarfile.FIFOTYPE: TarKind.FIFO,
        tarfile.CHRTYPE: TarKind.DEVICE,
        tarfile.BLKTYPE: TarKind.DEVICE,
    }
    if member.type not in kinds:
        raise ImageInvalidError(f"A layer cannot be read: an entry of the unknown type {member.type!r}.")
    return kinds[member.type]


def _content_hash(archive: tarfile.TarFile, member: tarfile.TarInfo, stream: LayerStream) -> bytes:
    hashed = hashlib.sha256()
    if member.issparse():
        content = archive.extractfile(member)
        while content is not None and (piece := content.read(_BLOCK)):
            hashed.update(piece)
    else:
        stream.seek(member.offset_data)
        for piece in stream.pieces(member.size):
            hashed.update(piece)
    return hashed.digest()


def _clean(name: str) -> bytes:
    parts = [part for part in _encoded(name).split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise ImageInvalidError(f"A layer cannot be read: the path {name!r} leads out of where it is.")
    path = b"/".join(parts)
    if len(path) > PATH_BYTES:
        raise ImageInvalidError(f"A layer cannot be read: a path with {len(path)} bytes.")
    return path


def _encoded(text: str, *, limit: int = PATH_BYTES) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > limit:
        raise ImageInvalidError(f"A layer cannot be read: a name with {len(data)} bytes.")
    if limit == PATH_BYTES and b"\0" in data:
        raise ImageInvalidError("A layer cannot be read: a name with a zero in it.")
    return data


def _number(given: int) -> int:
    if not 0 <= given < 2**32:
        raise ImageInvalidError(f"A layer cannot be read: an owner {given}.")
    return given


def _mtime(member: tarfile.TarInfo) -> int:
    """Whole seconds, not by a floating number: that rounds up what is close below a second."""
    text = member.pax_headers.get("mtime")
    if text is None:
        return min(max(int(member.mtime), 0), 2**62)
    return min(max(int(text.partition(".")[0] or 0), 0), 2**62)


def _decompressed(source: Source) -> Iterator[bytes]:
    first = source(_BLOCK)
    while 0 < len(first) < len(_ZSTD) and (more := source(_BLOCK)):
        first += more
    if first.startswith(_GZIP):
        return _gunzipped(first, source)
    if first.startswith(_ZSTD) or (first[1:4] == _SKIPPABLE and first[:1] and 0x50 <= first[0] <= 0x5F):
        return _unzstd(first, source)
    return _plain(first, source)


def _plain(data: bytes, source: Source) -> Iterator[bytes]:
    while data:
        yield data
        data = source(_BLOCK)


def _gunzipped(data: bytes, source: Source) -> Iterator[bytes]:
    """Several members after each other are one stream, as pigz and stargz write them."""
    while data or (data := source(_BLOCK)):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            block = member.decompress(data, _BLOCK)
            data = member.unconsumed_tail
            if block:
                yield block
            elif not data and not member.eof:
                data = source(_BLOCK)
                if not data:
                    raise ImageInvalidError("A layer cannot be read: its gzip stream is cut.")
        data = member.unused_data


def _unzstd(data: bytes, source: Source) -> Iterator[bytes]:
    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
        _Rest(data, source),  # type: ignore[arg-type]  # it only reads
        read_size=_BLOCK,
        read_across_frames=True,
    )
    while block := reader.read(_BLOCK):
        yield block


class _Rest:
    """A source with what was read of it already."""

    def __init__(self, data: bytes, source: Source) -> None:
        self._data = data
        self._source = source

    def read(self, size: int = -1) -> bytes:
        if self._data:
            data, self._data = self._data, b""
            return data
        return self._source(size if size > 0 else _BLOCK)

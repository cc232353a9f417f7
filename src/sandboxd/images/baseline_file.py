"""A base image's entries in a file: written once, read from its beginning to its end, in constant memory.

The file is `MAGIC`, the version of the form, one zstd frame with the records, their count, and the
SHA-256 of everything before it. So whoever reads it to its end knows that it is whole; what is cut, damaged or of
another version is an error and never a shorter base.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from sandboxd.model.errors import InternalError
from sandboxd.model.image_errors import BaselineDamagedError
from sandboxd.model.rootfs import BaselineEntry, BaselineRecord, EntryKind, order_key

VERSION: Final = 1
"""Of the form of a record and of what it says; a file of another version is made anew."""
MAGIC: Final = b"sandboxd baseline\n"
RECORD_BYTES: Final = 1 << 20
"""Longest record: two paths of 4 KiB at most, and extended attributes, of which Linux lists 64 KiB for a file."""
_KINDS: Final = (EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.SYMLINK, EntryKind.FIFO)
_NUMBERS: Final = {kind: number for number, kind in enumerate(_KINDS)}
_HEADER: Final = struct.Struct(f"<{len(MAGIC)}sH")
_LENGTH: Final = struct.Struct("<I")
_RECORD: Final = struct.Struct("<BHIIQqHHBH")
"""Kind, mode, uid, gid, size, mtime; lengths of path, link and hash; number of attributes."""
_ATTRIBUTE: Final = struct.Struct("<HI")
_COUNT: Final = struct.Struct("<Q")
_DIGEST_BYTES: Final = 32
_BLOCK: Final = 1 << 16
_LEVEL: Final = 3


def write_records(path: Path, records: Iterable[BaselineRecord]) -> int:
    """Write all records to a new file and return how many; nothing is left where that fails.

    Args:
        path: Replaced where it is there. Whoever shares it writes beside it and renames.
        records: In the order of `walk_key`.

    Raises:
        InternalError: A record is out of order, or longer than `RECORD_BYTES`.
    """
    try:
        with path.open("wb") as file:
            hashed = _Hashed(file)
            hashed.write(_HEADER.pack(MAGIC, VERSION))
            count = _write_frame(hashed, records)
            hashed.write(_COUNT.pack(count))
            file.write(hashed.hash.digest())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return count


def read_records(path: Path) -> Iterator[BaselineRecord]:
    """Yield all records. Believe them at the end alone: damage may be found only there.

    Raises:
        BaselineDamagedError: The file is absent, cut or damaged, or of another version.
    """
    try:
        with path.open("rb") as file:
            count, digest, length = _frame_of(path, file)
            hashed = _Hashed(file, length)
            _check_header(path, hashed.read(_HEADER.size))
            found = 0
            for body in _bodies(path, hashed):
                yield _record_from(path, body)
                found += 1
            if found != count or not hashed.is_whole(count, digest):
                raise _damaged(path)
    except (OSError, zstandard.ZstdError) as error:
        raise _damaged(path) from error


def check_file(path: Path) -> int:
    """Return how many records a file has, without reading them: its hash says that it is whole.

    Raises:
        BaselineDamagedError: As `read_records`.
    """
    try:
        with path.open("rb") as file:
            count, digest, length = _frame_of(path, file)
            hashed = _Hashed(file, length)
            _check_header(path, hashed.read(_HEADER.size))
            while hashed.read(_BLOCK):
                pass
    except OSError as error:
        raise _damaged(path) from error
    if not hashed.is_whole(count, digest):
        raise _damaged(path)
    return count


class _Hashed:
    """A file whose bytes are hashed as they pass; of one that is read, its first `length` bytes."""

    def __init__(self, file: BinaryIO, length: int = 0) -> None:
        self._file = file
        self.left = length
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self._file.write(data)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        self.hash.update(data)
        return data

    def is_whole(self, count: int, digest: bytes) -> bool:
        """Whether all was read, and with the count has this hash."""
        self.hash.update(_COUNT.pack(count))
        return not self.left and self.hash.digest() == digest


def _write_frame(file: _Hashed, records: Iterable[BaselineRecord]) -> int:
    count, last = 0, None
    compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    for record in records:
        key = order_key(record.entry.path)
        if last is not None and key <= last:
            raise InternalError(f"The base is not in order at {record.entry.path!r}.")
        last = key
        body = _record_to(record)
        file.write(compressor.compress(_LENGTH.pack(len(body)) + body))
        count += 1
    file.write(compressor.flush())
    return count


def _frame_of(path: Path, file: BinaryIO) -> tuple[int, bytes, int]:
    """Return count and hash from the file's end, and how many bytes are before them."""
    length = os.fstat(file.fileno()).st_size - _COUNT.size - _DIGEST_BYTES
    if length < _HEADER.size:
        raise _damaged(path)
    file.seek(length)
    (count,) = _COUNT.unpack(file.read(_COUNT.size))
    digest = file.read(_DIGEST_BYTES)
    file.seek(0)
    return count, digest, length


def _check_header(path: Path, header: bytes) -> None:
    if header != _HEADER.pack(MAGIC, VERSION):
        raise _damaged(path)


def _bodies(path: Path, file: _Hashed) -> Iterator[bytes]:
    held, at = b"", 0
    with zstandard.ZstdDecompressor().stream_reader(file, read_size=_BLOCK, closefd=False) as frame:  # type: ignore[arg-type]  # it only reads
        while more := frame.read(_BLOCK):
            held, at = held[at:] + more, 0
            while len(held) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(held, at)
                if length > RECORD_BYTES:
                    raise _damaged(path)
                if len(held) - at - _LENGTH.size < length:
                    break
                at += _LENGTH.size
                yield held[at : at + length]
                at += length
    if at != len(held):
        raise _damaged(path)


def _record_to(record: BaselineRecord) -> bytes:
    entry, sha256 = record.entry, record.sha256
    pieces = [
        _RECORD.pack(
            _NUMBERS[entry.kind],
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            entry.mtime,
            len(entry.path),
            len(entry.link),
            len(sha256),
            len(record.xattrs),
        ),
        entry.path,
        entry.link,
        sha256,
    ]
    for name, value in sorted(record.xattrs.items()):
        pieces += [_ATTRIBUTE.pack(len(name), len(value)), name, value]
    body = b"".join(pieces)
    if len(body) > RECORD_BYTES:
        raise InternalError(f"What the base has at {entry.path!r} is longer than {RECORD_BYTES} bytes.")
    return body


def _record_from(path: Path, body: bytes) -> BaselineRecord:
    try:
        number, mode, uid, gid, size, mtime, path_length, link_length, hash_length, attributes = _RECORD.unpack_from(
            body
        )
        at = _RECORD.size
        link_at = at + path_length
        hash_at = link_at + link_length
        end = hash_at + hash_length
        entry = BaselineEntry(
            path=body[at:link_at],
            kind=_KINDS[number],
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            mtime=mtime,
            link=body[link_at:hash_at],
        )
        xattrs: dict[bytes, bytes] = {}
        for _ in range(attributes):
            name_length, value_length = _ATTRIBUTE.unpack_from(body, end)
            value_at = end + _ATTRIBUTE.size + name_length
            xattrs[body[end + _ATTRIBUTE.size : value_at]] = body[value_at : value_at + value_length]
            end = value_at + value_length
    except (struct.error, IndexError) as error:
        raise _damaged(path) from error
    if end != len(body):
        raise _damaged(path)
    return BaselineRecord(entry=entry, sha256=body[hash_at : hash_at + hash_length], xattrs=xattrs)


def _damaged(path: Path) -> BaselineDamagedError:
    return BaselineDamagedError(
        f"The kept entries of a base image, {path.name}, are cut, damaged or of another version. Try again.",
        file=path.name,
    )

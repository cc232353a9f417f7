"""How frames go to a layer's worker, and how its answer comes back: bytes with lengths, and a line of JSON. Pure.

A frame is one byte that says what it is, four with the length of the rest, and the rest. Numbers have eight bytes: what
a sandbox says of itself may be too large for what it means, and that is the worker's to refuse.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, assert_never

from sandboxd.images.layer_report import invalid
from sandboxd.images.ports import Baseline, ImageLimits, LayerOrder, LeftOut, SecretPolicy, WrittenLayer
from sandboxd.model.rootfs import (
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

FRAME_BYTES: Final = 1 << 20
"""Longest frame: the longest path, link and attributes fit in half of it; content is cut to pieces."""
PIECE_BYTES: Final = 1 << 19
HEADER: Final = struct.Struct("<BI")
_CHANGED: Final = struct.Struct("<B6qIIH")
"""Kind, mode, uid, gid, size, mtime, names; lengths of path and link; number of attributes."""
_ATTRIBUTE: Final = struct.Struct("<II")
_FILE_END: Final = struct.Struct("<q?")
_PROGRESS: Final = struct.Struct("<2q")
_END: Final = struct.Struct("<4q")
_KINDS: Final = tuple(EntryKind)
_NUMBERS: Final = {kind: number for number, kind in enumerate(_KINDS)}
_REASON_LETTERS: Final = 64
_DATA, _ENTRY, _FILE, _DELETED, _SKIPPED, _SEEN, _LAST = range(1, 8)

Read = Callable[[int], bytes]


def encode(frame: CaptureFrame) -> bytes:
    """Write a frame.

    Raises:
        CaptureInvalidError: It is longer than any that can be right, or a number in it has more than eight bytes.
    """
    try:
        number, body = _body_of(frame)
    except struct.error as error:
        raise invalid("a number that is none") from error
    if number == _DATA and len(body) > PIECE_BYTES:
        pieces = (body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES))
        return b"".join(HEADER.pack(_DATA, len(piece)) + piece for piece in pieces)
    if len(body) > FRAME_BYTES:
        raise invalid("a frame that is too long")
    return HEADER.pack(number, len(body)) + body


def frames(read: Read) -> Iterator[CaptureFrame]:
    """Yield frames until the bytes end.

    Args:
        read: Returns as many bytes as it is asked for, fewer only at the end.

    Raises:
        CaptureInvalidError: The bytes are no frames, or end within one.
    """
    while header := read(HEADER.size):
        if len(header) < HEADER.size:
            raise invalid("it ends within a frame")
        number, length = HEADER.unpack(header)
        if length > FRAME_BYTES:
            raise invalid("a frame that is too long")
        body = read(length) if length else b""
        if len(body) < length:
            raise invalid("it ends within a frame")
        try:
            yield _frame_from(number, body)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise invalid("a frame that is none") from error


def encode_order(order: LayerOrder, *, cpu_seconds: int) -> bytes:
    """Write what the worker begins with: a line.

    Args:
        order: What and where.
        cpu_seconds: Of processor time, after which it is to be ended.
    """
    told = {
        "baseline": str(order.baseline.file),
        "entries": order.baseline.entries,
        "directory": str(order.directory),
        "limits": asdict(order.limits),
        "zstd": order.zstd,
        "secrets": order.secrets.value,
        "cpu_seconds": cpu_seconds,
    }
    return json.dumps(told).encode() + b"\n"


def decode_order(line: bytes) -> tuple[LayerOrder, int]:
    """Read it; also the seconds."""
    told = json.loads(line)
    order = LayerOrder(
        baseline=Baseline(file=Path(told["baseline"]), entries=told["entries"]),
        directory=Path(told["directory"]),
        limits=ImageLimits(**told["limits"]),
        zstd=told["zstd"],
        secrets=SecretPolicy(told["secrets"]),
    )
    return order, told["cpu_seconds"]


def encode_layer(layer: WrittenLayer) -> bytes:
    """Write the worker's answer: a line."""
    told = asdict(layer) | {"file": str(layer.file)}
    return json.dumps({"written": told}).encode() + b"\n"


def encode_failure(name: str, message: str, metadata: Mapping[str, str]) -> bytes:
    """Write that there is no layer: a line.

    Args:
        name: Of the error's class, or a word of the worker's.
        message: For people.
        metadata: Of the error.
    """
    return json.dumps({"failed": name, "message": message, "metadata": dict(metadata)}).encode() + b"\n"


def decode_answer(line: bytes) -> WrittenLayer | tuple[str, str, dict[str, str]]:
    """Read an answer: the layer; or why there is none, as name, message and metadata.

    Raises:
        ValueError: It is neither.
    """
    told: dict[str, Any] = json.loads(line)  # Any: it is JSON
    try:
        if "failed" in told:
            return told["failed"], told["message"], told["metadata"]
        written = told["written"]
        return WrittenLayer(
            file=Path(written.pop("file")),
            largest=[(path, size) for path, size in written.pop("largest")],
            left_out=[LeftOut(**one | {"paths": tuple(one["paths"])}) for one in written.pop("left_out")],
            **written,
        )
    except (KeyError, TypeError) as error:
        raise ValueError("no answer of a worker") from error


def _body_of(frame: CaptureFrame) -> tuple[int, bytes]:
    match frame:
        case FileData(data=data):
            return _DATA, data
        case ChangedEntry():
            return _ENTRY, _entry_to(frame)
        case FileEnd():
            return _FILE, _FILE_END.pack(frame.size, frame.torn) + frame.sha256
        case DeletedPath(path=path):
            return _DELETED, path
        case SkippedPath():
            reason = frame.reason[:_REASON_LETTERS].encode("ascii", "replace")
            return _SKIPPED, bytes([len(reason)]) + reason + frame.path
        case CaptureProgress():
            return _SEEN, _PROGRESS.pack(frame.entries, frame.bytes)
        case CaptureEnd():
            return _LAST, _END.pack(frame.entries, frame.changed, frame.deleted, frame.bytes)
        case _:
            assert_never(frame)


def _frame_from(number: int, body: bytes) -> CaptureFrame:
    match number:
        case 1:  # _DATA and so on: a name alone in a pattern would match anything
            return FileData(body)
        case 2:
            return _entry_from(body)
        case 3:
            size, torn = _FILE_END.unpack_from(body)
            return FileEnd(size=size, torn=torn, sha256=body[_FILE_END.size :])
        case 4:
            return DeletedPath(body)
        case 5:
            length = body[0]
            return SkippedPath(path=body[1 + length :], reason=body[1 : 1 + length].decode("ascii"))
        case 6:
            entries, size = _PROGRESS.unpack(body)
            return CaptureProgress(entries=entries, bytes=size)
        case 7:
            entries, changed, deleted, size = _END.unpack(body)
            return CaptureEnd(entries=entries, changed=changed, deleted=deleted, bytes=size)
        case _:
            raise invalid("a frame that is none")


def _entry_to(entry: ChangedEntry) -> bytes:
    pieces = [
        _CHANGED.pack(
            _NUMBERS[entry.kind],
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            entry.mtime,
            entry.names,
            len(entry.path),
            len(entry.link),
            len(entry.xattrs),
        ),
        entry.path,
        entry.link,
    ]
    for name, value in entry.xattrs.items():
        pieces += [_ATTRIBUTE.pack(len(name), len(value)), name, value]
    return b"".join(pieces)


def _entry_from(body: bytes) -> ChangedEntry:
    kind, mode, uid, gid, size, mtime, names, path_length, link_length, attributes = _CHANGED.unpack_from(body)
    link_at = _CHANGED.size + path_length
    at = link_at + link_length
    xattrs: dict[bytes, bytes] = {}
    for _ in range(attributes):
        name_length, value_length = _ATTRIBUTE.unpack_from(body, at)
        value_at = at + _ATTRIBUTE.size + name_length
        xattrs[body[at + _ATTRIBUTE.size : value_at]] = body[value_at : value_at + value_length]
        at = value_at + value_length
    if at != len(body):
        raise IndexError
    return ChangedEntry(
        path=body[_CHANGED.size : link_at],
        kind=_KINDS[kind],
        mode=mode,
        uid=uid,
        gid=gid,
        size=size,
        mtime=mtime,
        link=body[link_at : link_at + link_length],
        xattrs=xattrs,
        names=names,
    )

"""Bytes to lines: incremental, any cut, linear time, bounded memory. Knows nothing of what a line means.

A line longer than `MAX_LINE_BYTES` is discarded as it comes: its head, its size and its digest remain. `consumed` is a
line boundary, or a place inside a line that is being discarded; what a line that is still incomplete has brought so
far is not consumed, and comes again after a restart.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxd.stream.limits import HEAD_BYTES, MAX_LINE_BYTES
from sandboxd.stream.reading import number, text


@dataclass(frozen=True, slots=True)
class LongLine:
    """What is left of a line that was too long."""

    head: bytes
    size: int
    sha256: str
    """Digest of the whole line without its line feed; empty where a restart fell into the line."""


class Framer:
    """Cuts output into lines."""

    def __init__(self, *, consumed: int = 0, discarding: _Discarding | None = None) -> None:
        self._consumed = consumed
        self._partial = bytearray()
        self._long = discarding

    @property
    def consumed(self) -> int:
        """Absolute offset that a restart can continue from."""
        return self._consumed

    def feed(self, data: bytes) -> Iterator[bytes | LongLine]:
        """Yield the lines that these bytes complete, without their line feeds; the caller must exhaust it."""
        view = memoryview(data)
        at = 0
        while at < len(data):
            end = data.find(b"\n", at)
            piece = view[at:] if end < 0 else view[at:end]
            self._append(piece)
            at = len(data) if end < 0 else end + 1
            if end >= 0:
                yield self._complete(feed=1)

    def end(self) -> bytes | LongLine | None:
        """The output has ended: what was incomplete is the last line. None where nothing was."""
        if self._long is None and not self._partial:
            return None
        return self._complete(feed=0)

    def snapshot(self) -> dict[str, Any]:
        """State as JSON."""
        if self._long is None:
            return {"consumed": self._consumed}
        head = base64.b64encode(self._long.head).decode()
        return {"consumed": self._consumed, "head": head, "size": self._long.size}

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any]) -> Framer:
        """Rebuild from a snapshot."""
        discarding = None
        if "head" in snapshot:
            discarding = _Discarding(base64.b64decode(text(snapshot, "head")), number(snapshot, "size"), digest=False)
        return cls(consumed=number(snapshot, "consumed"), discarding=discarding)

    def _append(self, piece: memoryview) -> None:
        if self._long is None:
            if len(self._partial) + len(piece) <= MAX_LINE_BYTES:
                self._partial += piece
                return
            self._long = _Discarding(b"", 0, digest=True)
            self._long.add(memoryview(bytes(self._partial)))
            self._consumed += len(self._partial)
            self._partial = bytearray()
        self._long.add(piece)
        self._consumed += len(piece)

    def _complete(self, *, feed: int) -> bytes | LongLine:
        if self._long is not None:
            line: bytes | LongLine = LongLine(self._long.head, self._long.size, self._long.hexdigest())
            self._long = None
            self._consumed += feed
            return line
        line = bytes(self._partial)
        self._partial.clear()
        self._consumed += len(line) + feed
        return line


class _Discarding:
    """A line that is too long, while it comes."""

    __slots__ = ("_digest", "head", "size")

    def __init__(self, head: bytes, size: int, *, digest: bool) -> None:
        self.head = head
        self.size = size
        # The state of a digest cannot be stored, so a restart inside such a line loses the digest, and only that.
        self._digest = hashlib.sha256() if digest else None

    def add(self, piece: memoryview) -> None:
        if len(self.head) < HEAD_BYTES:
            self.head += piece[: HEAD_BYTES - len(self.head)]
        self.size += len(piece)
        if self._digest is not None:
            self._digest.update(piece)

    def hexdigest(self) -> str:
        return "" if self._digest is None else self._digest.hexdigest()

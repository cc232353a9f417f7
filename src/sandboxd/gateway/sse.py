"""Server-sent events, read as they pass: bytes in, the data of each whole event out. Any cut gives the same events.

Bounded: an event longer than the limit is skipped and counted, its bytes are passed on by the caller all the same.
Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

MAX_EVENT: Final = 32 << 20
"""Longest event that is looked into: an answer with an image is a few megabytes."""


class SseReader:
    """Finds the data of events in a stream of bytes."""

    def __init__(self, *, max_event: int = MAX_EVENT) -> None:
        self._max_event = max_event
        self._line = bytearray()
        self._after_cr = False
        self._data: list[bytes] = []
        self._size = 0
        self._oversized = False
        self.skipped = 0
        """Events that were too long to look into."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take the next bytes and give the data of the events that they complete."""
        if not chunk:
            return
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        for piece in chunk.splitlines(keepends=True):  # bytes are split at \n, \r and \r\n, as the format wants
            if not piece.endswith((b"\n", b"\r")):
                self._take(piece)
                continue
            self._take(piece.rstrip(b"\r\n"))
            if (data := self._end_of_line()) is not None:
                yield data

    def end(self) -> bytes | None:
        """Give the data of an event that the stream ended in: the format drops it, but its usage is real."""
        if self._line:
            self._end_of_line()
        return self._dispatch()

    def _take(self, piece: bytes) -> None:
        if not piece:
            return
        self._size += len(piece)
        if self._size > self._max_event:
            self._oversized = True
            self._data.clear()
        if self._oversized:
            self._line[:] = b":"  # a mark that the line is not empty: only an empty line ends an event
        else:
            self._line += piece

    def _end_of_line(self) -> bytes | None:
        line = bytes(self._line)
        self._line.clear()
        if not line:
            return self._dispatch()
        if line.startswith(b"data:") and not self._oversized:
            self._data.append(line[5:].removeprefix(b" "))
        return None

    def _dispatch(self) -> bytes | None:
        data, oversized = self._data, self._oversized
        self._data, self._size, self._oversized = [], 0, False
        if oversized:
            self.skipped += 1
            return None
        return b"\n".join(data) if data else None

"""A spool: the newest bytes of one output stream in a bounded file, addressed by absolute offsets.

The file is circular: byte `n` lies at `n % capacity`. It has no name (it is unlinked as soon as it is open), so nothing
is left behind when the agent dies; the agent's death ends the incarnation, and its output with it. When everything was
acknowledged the file is cut to nothing, so an idle stream holds no disk.

It does not wait and does not know processes: who writes asks `room` first.
"""

from __future__ import annotations

import os
from pathlib import Path

from sandboxd.model.processes import SpoolPolicy

TRUNCATE_BYTES = 1 << 20
"""How much must have been written since the last cut before an empty spool's file is cut again."""


class Spool:
    """Bytes of one stream between `start` and `end`."""

    __slots__ = ("_capacity", "_cut_at", "_directory", "_file", "acknowledged", "end", "policy", "start")

    def __init__(self, *, directory: Path, capacity: int, policy: SpoolPolicy) -> None:
        """Make an empty spool; the file comes with the first byte.

        Args:
            directory: Where the file is made.
            capacity: Most bytes kept.
            policy: What happens beyond.
        """
        self._directory = directory
        self._capacity = capacity
        self._file = -1
        self._cut_at = 0
        self.policy = policy
        self.start = 0
        """Offset of the oldest byte that is kept."""
        self.end = 0
        """Offset after the newest byte."""
        self.acknowledged = 0
        """Highest offset acknowledged."""

    @property
    def room(self) -> int:
        """How many bytes may be appended now."""
        match self.policy:
            case SpoolPolicy.BLOCK:
                return self._capacity - (self.end - self.start)
            case SpoolPolicy.DROP_OLDEST:
                return self._capacity

    def append(self, data: bytes) -> None:
        """Append bytes, at most `room` of them.

        Raises:
            OSError: The disk is full or broken; nothing was appended.
        """
        if self._file < 0:
            self._file = _nameless_file(self._directory)
        at = self.end % self._capacity
        first = min(len(data), self._capacity - at)
        _write_all(self._file, memoryview(data)[:first], at)
        if first < len(data):
            _write_all(self._file, memoryview(data)[first:], 0)
        self.end += len(data)
        self.start = max(self.start, self.end - self._capacity)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from an offset between `start` and `end`."""
        size = min(size, self.end - offset)
        if size <= 0:
            return b""
        at = offset % self._capacity
        first = min(size, self._capacity - at)
        data = os.pread(self._file, first, at)
        return data if first == size else data + os.pread(self._file, size - first, 0)

    def acknowledge(self, offset: int) -> None:
        """Forget bytes before an offset, which is at most `end`. Lower ones than before change nothing."""
        self.acknowledged = max(self.acknowledged, offset)
        self.start = max(self.start, offset)
        if self.start == self.end and self.end - self._cut_at >= TRUNCATE_BYTES:
            os.ftruncate(self._file, 0)
            self._cut_at = self.end

    def close(self) -> None:
        """Give the file back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self.start = self.end


def _nameless_file(directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # not every file system has files without a name
        return _unlinked_file(directory)


def _unlinked_file(directory: Path) -> int:
    import tempfile  # with all that it brings, only where it is needed

    number, name = tempfile.mkstemp(prefix="spool-", dir=directory)
    os.unlink(name)  # noqa: PTH108 - the name comes from the line above as text
    return number


def _write_all(file: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written

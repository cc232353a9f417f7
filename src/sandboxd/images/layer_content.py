"""The content of the file that is being received, until it is known what becomes of it; and of files held back.

A tar has a file's size before its content, and a sandbox says it afterwards: so each file is received whole, small ones
in memory, larger ones in a place that the caller has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

MEMORY_BYTES: Final = 1 << 20
"""Of one file; most are far smaller."""
PIECES: Final = 4096
"""Of one file in memory: what comes byte by byte would take fifty times its size."""
READ_BYTES: Final = 1 << 18


class Spool(Protocol):
    """A place for bytes that grows and shrinks at its end, as a file does."""

    def append(self, data: bytes) -> None:
        """Put bytes at the end."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return that many bytes from a place."""
        ...

    def truncate(self, size: int) -> None:
        """Forget all from there on."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """Content that stays in the spool."""

    offset: int
    size: int


class Contents:
    """One file's content at a time; and before it, in the same spool, what was kept of earlier ones."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._begin = 0
        """Where the present file begins; before it lies what is kept."""
        self._spooled = 0
        self._pieces: list[bytes] = []
        self._in_memory = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes of the present file."""
        self._pieces.append(data)
        self._in_memory += len(data)
        if self._in_memory > MEMORY_BYTES or len(self._pieces) > PIECES:
            self._spill()

    def small(self) -> bytes:
        """Return all of it; of a file that is known to be small."""
        return b"".join((*self._read(self._begin, self._spooled), *self._pieces))

    def take(self) -> Iterator[bytes]:
        """Yield all of it; afterwards it is gone."""
        yield from self._read(self._begin, self._spooled)
        yield from self._pieces
        self.drop()

    def drop(self) -> None:
        """Forget it."""
        if self._spooled:
            self._spool.truncate(self._begin)
        self._pieces, self._in_memory, self._spooled = [], 0, 0

    def keep(self) -> Kept:
        """Let it stay in the spool, and return where."""
        self._spill()
        kept = Kept(self._begin, self._spooled)
        self._begin += self._spooled
        self._spooled = 0
        return kept

    def kept(self, what: Kept) -> Iterator[bytes]:
        """Yield what was kept."""
        return self._read(what.offset, what.size)

    @property
    def kept_bytes(self) -> int:
        """How much is kept."""
        return self._begin

    def _spill(self) -> None:
        for piece in self._pieces:
            self._spool.append(piece)
        self._spooled += self._in_memory
        self._pieces, self._in_memory = [], 0

    def _read(self, offset: int, size: int) -> Iterator[bytes]:
        end = offset + size
        while offset < end:
            piece = self._spool.read(offset, min(READ_BYTES, end - offset))
            if not piece:
                raise OSError("The spool is shorter than what was written to it.")
            offset += len(piece)
            yield piece

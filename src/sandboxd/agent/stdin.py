"""Standard input of a process: bytes are accepted exactly once, by their absolute offset, into a bounded buffer.

Repeating a write is harmless: what lies below the accepted length is skipped. Several writes may be under way for the
same bytes (a repeated call while the first still waits): they advance one common length.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import datetime

from sandboxd.agent.broadcast import Broadcast
from sandboxd.agent.clock import now
from sandboxd.model.errors import InvalidRequestError
from sandboxd.stream.agent_port import ProcessExitedError, StdinClosedError, StdinGapError

BUFFER_BYTES = 1 << 20
"""Most bytes that wait for one process."""
END_OF_FILE = b"\x04"
"""What a terminal takes for the end of input (VEOF of a fresh terminal)."""


class Stdin:
    """Standard input of one process."""

    def __init__(self, *, descriptor: int, terminal: bool) -> None:
        """Take over a descriptor.

        Args:
            descriptor: The pipe's or terminal's end; not blocking; closed by this object unless `terminal`.
            terminal: It is a terminal's controlling side, whose owner closes it.
        """
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._terminal = terminal
        self._buffer = bytearray()
        self._writing = False
        self._exited = False
        self._closing = False
        self._end_of_file_at = -1
        self._changed = Broadcast()
        self.length = 0
        """Bytes accepted, ever."""
        self.last_time: datetime | None = None
        """When bytes were last accepted."""

    @property
    def pending(self) -> int:
        """Accepted bytes that the process has not taken yet."""
        return len(self._buffer)

    @property
    def closed(self) -> bool:
        """True when no further byte will be accepted."""
        return self._closing or self._descriptor < 0

    async def write(self, offset: int, data: bytes, *, close: bool, fence: Callable[[], None]) -> int:
        """Accept bytes, waiting for room, and return the accepted length.

        Args:
            offset: Absolute offset of the first byte.
            data: The bytes.
            close: Close after them; for a terminal: send its end-of-file character.
            fence: Raises when the writer may not write any more; asked after every wait.

        Raises:
            StdinGapError: The offset lies above the accepted length.
            StdinClosedError: Standard input is closed and there are new bytes.
            ProcessExitedError: The process has exited and there are new bytes.
        """
        if offset > self.length:
            raise StdinGapError(
                f"The write begins at {offset}, but only {self.length} bytes were accepted. Write from there.",
                stdin_length=self.length,
            )
        end = offset + len(data)
        while self.length < end:
            self._require_open()
            room = BUFFER_BYTES - len(self._buffer)
            if room <= 0:
                await self._changed.wait()
                fence()
                continue
            begin = self.length - offset
            piece = data[begin : begin + room]
            self._buffer += piece
            self.length += len(piece)
            self.last_time = now()
            self._flush()
        if close:
            self._close_at(end)
        return self.length

    def wake(self) -> None:
        """Let waiting writers ask their fence again."""
        self._changed.notify()

    def process_exited(self) -> None:
        """The process is gone: accept nothing more."""
        self._exited = True
        self.close()

    def close(self) -> None:
        """Give everything back."""
        self._buffer.clear()
        self._stop_writing()
        if self._descriptor >= 0 and not self._terminal:
            os.close(self._descriptor)
        self._descriptor = -1
        self._changed.notify()

    def _require_open(self) -> None:
        if self._exited:
            raise ProcessExitedError("The process has exited and takes no more input.")
        if self.closed:
            raise StdinClosedError("The process's standard input is closed and takes no more bytes.")

    def _close_at(self, end: int) -> None:
        if self._terminal:
            if self._end_of_file_at != end and not self.closed:
                self._end_of_file_at = end
                self._buffer += END_OF_FILE
                self._flush()
            return
        if self.closed:
            return
        if end != self.length:
            raise InvalidRequestError(
                f"Standard input cannot be closed at {end}: {self.length} bytes were accepted already.",
                stdin_length=str(self.length),
            )
        self._closing = True
        self._flush()

    def _flush(self) -> None:
        while self._buffer and self._descriptor >= 0:
            try:
                written = os.write(self._descriptor, memoryview(self._buffer)[: 1 << 16])
            except (BlockingIOError, InterruptedError):
                if not self._writing:
                    self._loop.add_writer(self._descriptor, self._flush)
                    self._writing = True
                return
            except OSError:  # the process closed its end, or the terminal hung up
                self.close()
                return
            del self._buffer[:written]
            self._changed.notify()
        self._stop_writing()
        if self._closing:
            self.close()

    def _stop_writing(self) -> None:
        if self._writing:
            self._loop.remove_writer(self._descriptor)
            self._writing = False

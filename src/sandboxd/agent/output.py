"""One output stream of a process: reads its pipe or terminal into the spool, and lets readers wait for more.

Under BLOCK a full spool stops the reading, the kernel's pipe fills, and the process blocks. Under DROP_OLDEST reading
goes on. When the process itself has exited, what is in the pipe at that moment is read; then the stream is complete,
and what descendants write later is read and thrown away, so that they neither block nor die of SIGPIPE.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import logging
import os
import termios
from datetime import datetime

from sandboxd.agent.broadcast import Broadcast
from sandboxd.agent.clock import now
from sandboxd.agent.spool import Spool
from sandboxd.model.processes import OutputState, OutputStream

READ_BYTES = 1 << 16
"""Most bytes read at once: what a pipe holds."""
HANGUP_SECONDS = 1.0
"""How long a terminal is given to hang up after its process has exited. The kernel hands a terminal's last bytes over
in the background, so "nothing there" does not yet mean the end; the hang-up does."""
RETRY_SECONDS = 1.0
"""How long to wait after the spool's disk refused a write."""

log = logging.getLogger(__name__)


class Output:
    """One output stream."""

    def __init__(
        self, *, stream: OutputStream, descriptor: int, spool: Spool, terminal: bool, changed: Broadcast
    ) -> None:
        """Take over a descriptor and begin to read.

        Args:
            stream: Which one it is.
            descriptor: The pipe's or terminal's end; not blocking; closed by this object unless `terminal`.
            spool: Where bytes go.
            terminal: It is a terminal's controlling side, whose owner closes it.
            changed: Notified when there is more to read, or the end.
        """
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._terminal = terminal
        self._changed = changed
        self._reading = False
        self._held = b""
        self._left: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.stream = stream
        self.spool = spool
        self.complete = False
        """True when no further byte will be kept."""
        self.last_time: datetime | None = None
        """When the process last wrote."""
        self._resume()

    @property
    def state(self) -> OutputState:
        """What the outside may know."""
        return OutputState(
            start_offset=self.spool.start,
            end_offset=self.spool.end,
            acknowledged_offset=self.spool.acknowledged,
            complete=self.complete,
            blocked=not self.complete and self.spool.room == 0,
        )

    def acknowledge(self, offset: int) -> None:
        """Free the spool before an offset, and read on if it was full."""
        self.spool.acknowledge(offset)
        self._resume()

    def process_exited(self) -> None:
        """The process has exited: read what is left, then complete."""
        if self.complete:
            return
        if self._terminal:
            self._timer = self._loop.call_later(HANGUP_SECONDS, self._hangup_missing)
            return
        self._left = _readable_bytes(self._descriptor) + len(self._held)
        self._finish_at_end()
        self._resume()

    def close(self) -> None:
        """Stop reading and give everything back."""
        self._held = b""
        self._detach()
        self._finish()
        self.spool.close()

    def _resume(self) -> None:
        room = self.complete or self.spool.room > 0
        if room and not self._reading and not self._held and self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._on_readable)
            self._reading = True

    def _pause(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._descriptor)
            self._reading = False

    def _detach(self) -> None:
        self._pause()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._descriptor >= 0 and not self._terminal:
            os.close(self._descriptor)
        self._descriptor = -1

    def _finish(self) -> None:
        if not self.complete:
            self.complete = True
            self._changed.notify()

    def _finish_at_end(self) -> None:
        if self._left is not None and self._left <= 0:
            self._finish()

    def _hangup_missing(self) -> None:
        self._timer = None
        if self._held or self.spool.room == 0:
            self._timer = self._loop.call_later(HANGUP_SECONDS, self._hangup_missing)
        else:
            self._finish()

    def _on_readable(self) -> None:
        wanted = READ_BYTES
        if not self.complete:
            wanted = min(wanted, self.spool.room)
            if self._left is not None:
                wanted = min(wanted, self._left)
        if wanted <= 0:
            self._pause()
            return
        try:
            data = os.read(self._descriptor, wanted)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno != errno.EIO:  # EIO is how a terminal hangs up
                log.warning("output.read_failed", extra={"fields": {"errno": error.errno}})
            data = b""
        if not data:
            self._detach()
            self._finish()
        elif not self.complete:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        try:
            self.spool.append(data)
        except OSError as error:
            # The disk is full. These bytes are already out of the pipe, so hold them and block the process until the
            # disk takes them: nothing is dropped in silence.
            log.warning("output.spool_refused", extra={"fields": {"errno": error.errno}})
            self._held = data
            self._pause()
            self._loop.call_later(RETRY_SECONDS, self._keep_held)
            return
        self.last_time = now()
        if self._left is not None:
            self._left -= len(data)
        self._finish_at_end()
        self._changed.notify()

    def _keep_held(self) -> None:
        data, self._held = self._held, b""
        if data:
            self._keep(data)
            self._resume()


def _readable_bytes(descriptor: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]

"""One started process: its streams, who may use them, and how it ended.

The *epoch* decides who may: whoever shows a higher one than was ever seen takes over, and everybody below it is refused
from then on, those in the middle of a call included.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from pathlib import Path

from sandboxd.agent.broadcast import Broadcast
from sandboxd.agent.clock import now
from sandboxd.agent.launch import Launched, set_terminal_size
from sandboxd.agent.output import Output
from sandboxd.agent.spool import Spool
from sandboxd.agent.stdin import Stdin
from sandboxd.model.errors import InvalidRequestError
from sandboxd.model.processes import Output as OutputEvent
from sandboxd.model.processes import (
    OutputChunk,
    OutputExited,
    OutputGap,
    OutputState,
    OutputStream,
    Process,
    ProcessExit,
    ProcessId,
    ProcessSpec,
    SpoolPolicy,
    TerminalSize,
)
from sandboxd.model.processes import Spool as SpoolSpec
from sandboxd.stream.agent_port import NoTerminalError, OutputBeyondEndError, ProcessExitedError, StaleEpochError

CHUNK_BYTES = 1 << 16
"""Most bytes in one chunk."""


class ManagedProcess:
    """One started process."""

    def __init__(
        self, *, process_id: ProcessId, asked: ProcessSpec, spec: ProcessSpec, launched: Launched, spools: Path
    ) -> None:
        """Take over a process that was just launched.

        Args:
            process_id: The caller's id.
            asked: What the caller asked for, to recognise a repeated call.
            spec: The same with its defaults filled in.
            launched: The running process.
            spools: Directory for its output.
        """
        self._popen: subprocess.Popen[bytes] = launched.popen
        self._terminal = launched.terminal
        self._epoch = 0
        self._epoch_changed = Broadcast()
        self._changed = Broadcast()
        self.process_id = process_id
        self.asked = asked
        self.spec = spec
        self.pid = launched.popen.pid
        self.start_time = now()
        self.last_input_time: datetime | None = None
        self.exit: ProcessExit | None = None
        terminal = launched.terminal >= 0
        self.stdin = Stdin(descriptor=launched.stdin, terminal=terminal)
        self.outputs = {
            OutputStream.STDOUT: self._output(OutputStream.STDOUT, launched.stdout, spec.stdout_spool, spools)
        }
        if launched.stderr >= 0:
            stderr = self._output(OutputStream.STDERR, launched.stderr, spec.stderr_spool, spools)
            self.outputs[OutputStream.STDERR] = stderr

    @property
    def terminal(self) -> int:
        """The terminal's controlling side, or -1."""
        return self._terminal

    @property
    def last_output_time(self) -> datetime | None:
        """When it last wrote anything."""
        return max((o.last_time for o in self.outputs.values() if o.last_time is not None), default=None)

    def describe(self) -> Process:
        """Tell its state."""
        stderr = self.outputs.get(OutputStream.STDERR)
        return Process(
            process_id=self.process_id,
            spec=self.spec,
            pid=self.pid,
            start_time=self.start_time,
            exit=self.exit,
            stdout=self.outputs[OutputStream.STDOUT].state,
            stderr=stderr.state if stderr is not None else None,
            stdin_length=self.stdin.length,
            stdin_pending_bytes=self.stdin.pending,
            stdin_closed=self.stdin.closed,
            highest_epoch=self._epoch,
        )

    def take_epoch(self, epoch: int) -> None:
        """Accept a caller's epoch, and end everybody below it.

        Raises:
            StaleEpochError: A higher one was seen.
        """
        if epoch < 1:
            raise InvalidRequestError("The epoch must be 1 or more.", epoch=str(epoch))
        self.require_epoch(epoch)
        if epoch > self._epoch:
            self._epoch = epoch
            self._epoch_changed.notify()
            self._changed.notify()
            self.stdin.wake()

    def require_epoch(self, epoch: int) -> None:
        """Check that an epoch is still the highest.

        Raises:
            StaleEpochError: It is not.
        """
        if epoch < self._epoch:
            raise StaleEpochError(
                f"Epoch {epoch} is over: {self._epoch} was seen for process {self.process_id}.",
                highest_epoch=self._epoch,
            )

    async def superseded(self, epoch: int) -> None:
        """Wait until a higher epoch comes, and raise.

        Raises:
            StaleEpochError: Always, at that moment.
        """
        while True:
            self.require_epoch(epoch)
            await self._epoch_changed.wait()

    def check_positions(self, positions: Mapping[OutputStream, int]) -> None:
        """Check that these offsets exist.

        Raises:
            InvalidRequestError: A stream does not exist, or none is named.
            OutputBeyondEndError: An offset lies above the end.
        """
        if not positions:
            raise InvalidRequestError("Name at least one output stream to attach to.")
        for stream, offset in positions.items():
            self._check_offset(stream, offset)

    async def read(self, positions: Mapping[OutputStream, int]) -> AsyncGenerator[OutputEvent, None]:
        """Yield output from these offsets on, and `OutputExited` last. Reads only when asked for the next item."""
        offsets = dict(positions)
        while True:
            progress = False
            for stream, offset in list(offsets.items()):
                spool = self.outputs[stream].spool
                at = offset
                if at < spool.start:
                    gap = OutputGap(stream=stream, from_offset=at, to_offset=spool.start)
                    offsets[stream] = at = gap.to_offset
                    progress = True
                    yield gap
                # Others may have acknowledged or written while the gap was under way: look again.
                if at >= spool.start and (data := spool.read(at, CHUNK_BYTES)):
                    offsets[stream] = at + len(data)
                    progress = True
                    yield OutputChunk(stream=stream, offset=at, data=data)
            if progress:
                continue
            if self.exit is not None and all(self._at_end(stream, offsets[stream]) for stream in offsets):
                yield self._exited(self.exit)
                return
            await self._changed.wait()

    def acknowledge(self, stream: OutputStream, offset: int) -> OutputState:
        """Free output before an offset.

        Raises:
            OutputBeyondEndError: It lies above the end.
        """
        self._check_offset(stream, offset)
        output = self.outputs[stream]
        output.acknowledge(offset)
        return output.state

    async def write(self, epoch: int, offset: int, data: bytes, *, close: bool) -> int:
        """Write to standard input; see `Stdin.write`."""
        before = self.stdin.length
        try:
            return await self.stdin.write(offset, data, close=close, fence=lambda: self.require_epoch(epoch))
        finally:
            if self.stdin.length > before:
                self.last_input_time = now()

    def resize(self, size: TerminalSize) -> None:
        """Set the terminal's size.

        Raises:
            NoTerminalError: It has none.
            ProcessExitedError: It has exited.
        """
        if self.spec.terminal is None:
            raise NoTerminalError(f"Process {self.process_id} has no terminal.", process=self.process_id)
        if self._terminal < 0 or self.exit is not None:
            raise ProcessExitedError(f"Process {self.process_id} has exited.", process=self.process_id)
        set_terminal_size(self._terminal, size)
        self.last_input_time = now()

    async def wait(self) -> None:
        """Wait until it has exited."""
        while self.exit is None:
            await self._changed.wait()

    def exited(self, status: int) -> None:
        """Take its wait status; called by the reaper."""
        code = os.waitstatus_to_exitcode(status)
        self._popen.returncode = code  # or the object would wait for a number that may be somebody else's by now
        self.exit = ProcessExit(exit_code=max(code, 0), signal=max(-code, 0), exit_time=now())
        self.stdin.process_exited()
        for output in self.outputs.values():
            output.process_exited()
        self._changed.notify()

    def close(self) -> None:
        """Give everything back; the output is gone."""
        self.stdin.close()
        for output in self.outputs.values():
            output.close()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1
        self._changed.notify()

    def _output(self, stream: OutputStream, descriptor: int, spec: SpoolSpec, directory: Path) -> Output:
        spool = Spool(directory=directory, capacity=spec.max_bytes, policy=spec.policy or SpoolPolicy.BLOCK)
        return Output(
            stream=stream, descriptor=descriptor, spool=spool, terminal=self._terminal >= 0, changed=self._changed
        )

    def _check_offset(self, stream: OutputStream, offset: int) -> None:
        output = self.outputs.get(stream)
        if output is None:
            raise InvalidRequestError(
                f"Process {self.process_id} keeps no {stream.value} of its own.", stream=stream.value
            )
        if offset < 0:
            raise InvalidRequestError("An offset is never negative.", offset=str(offset))
        if offset > output.spool.end:
            raise OutputBeyondEndError(
                f"Offset {offset} of {stream.value} lies above its end {output.spool.end}.", end_offset=output.spool.end
            )

    def _at_end(self, stream: OutputStream, offset: int) -> bool:
        output = self.outputs[stream]
        return output.complete and offset >= output.spool.end

    def _exited(self, end: ProcessExit) -> OutputExited:
        stderr = self.outputs.get(OutputStream.STDERR)
        return OutputExited(
            exit=end,
            stdout_end_offset=self.outputs[OutputStream.STDOUT].spool.end,
            stderr_end_offset=stderr.spool.end if stderr is not None else 0,
        )

"""The CLI's process at the agent: prepared, started, read, written and ended, for one owner with one epoch.

It moves bytes and knows nothing of what they mean. Output is read from an absolute offset and handed on in order; stdin
records are written at their absolute offsets, so that a record written twice arrives once. Everything is repeated while
the agent is away, until the sandbox's life is known to be over.
"""

from __future__ import annotations

import asyncio
import signal as signals
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.model.errors import (
    DatabaseUnavailableError,
    DeadlineError,
    NotFoundError,
    SandboxdError,
    UnavailableError,
)
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.processes import (
    OutputChunk,
    OutputExited,
    OutputGap,
    OutputStream,
    ProcessId,
    ProcessSpec,
    SignalScope,
)
from sandboxd.stream.agent_port import (
    Agent,
    OutputBeyondEndError,
    ProcessExitedError,
    ProcessNotFoundError,
    StaleEpochError,
    StdinClosedError,
)
from sandboxd.stream.ports import Journal, Sandboxes, StdinRecord
from sandboxd.stream.reports import Exited, Lost, Output, Report

log = structlog.get_logger(__name__)

ACK_BYTES: Final = 256 << 10
ACK_AFTER: Final = timedelta(seconds=10)
"""Committed output is acknowledged to the agent at this distance, or after this time: its spool is much larger. Only
disk hangs on it; a call for every few chunks was a fifth of the service's time and a quarter of the agent's."""
STDERR_TAIL_BYTES: Final = 8 << 10
FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 2.0
PREPARE_TIMEOUT: Final = timedelta(seconds=10)


class CliProcess:
    """One process of the CLI, seen by the owner of its conversation."""

    def __init__(
        self,
        agent: Agent,
        *,
        sandbox: SandboxId,
        incarnation: IncarnationId,
        process: str,
        epoch: int,
        consumed: int,
        journal: Journal,
        sandboxes: Sandboxes,
        put: Callable[[Report], Awaitable[None]],
        ack_after: timedelta = ACK_AFTER,
    ) -> None:
        self.process = ProcessId(process)
        self._agent = agent
        self._sandbox = sandbox
        self._incarnation = incarnation
        self._epoch = epoch
        self._position = consumed
        self._stderr_position = 0
        self._stderr = b""
        self._journal = journal
        self._sandboxes = sandboxes
        self._put = put
        self._records: deque[StdinRecord] = deque()
        self._close_stdin = False
        self._work = asyncio.Event()
        self._committed = consumed
        self._acknowledged = consumed
        self._ack_after = ack_after
        self._ack_due = asyncio.Event()
        self._ack_urgent = asyncio.Event()

    # ------------------------------------------------------------------ for the owner

    async def run(self) -> None:
        """Read, write and acknowledge until the process has ended; owned by the conversation's task group."""
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(self._write(), name=f"cli-stdin-{self._sandbox}")
            acker = group.create_task(self._acknowledge(), name=f"cli-ack-{self._sandbox}")
            await self._read()
            writer.cancel()
            acker.cancel()

    def write(self, records: Sequence[StdinRecord], *, close_stdin: bool = False) -> None:
        """Hand over records that are durable; they are written in order. Closed means: these are the last ones."""
        self._records.extend(records)
        self._close_stdin = self._close_stdin or close_stdin
        self._work.set()

    def committed(self, offset: int) -> None:
        """Output before this offset is in the journal."""
        self._committed = offset
        if offset > self._acknowledged:
            self._ack_due.set()
        if offset - self._acknowledged >= ACK_BYTES:
            self._ack_urgent.set()

    async def signal(self, number: int) -> None:
        """Signal the CLI and what it runs. A process that has ended already is success."""
        try:
            await self._agent.signal_process(self.process, number, scope=SignalScope.TREE)
        except (ProcessNotFoundError, ProcessExitedError):
            return

    async def end(self, *, grace: timedelta) -> None:
        """Ask the CLI to end, and make it after the grace. The exit itself arrives as an input."""
        try:
            await self.signal(signals.SIGTERM)
            await self._agent.wait_process(self.process, timeout=grace)
        except ProcessNotFoundError:
            return
        except (UnavailableError, DeadlineError):
            pass
        try:
            await self.signal(signals.SIGKILL)
        except (UnavailableError, DeadlineError) as error:
            log.info("cli.kill_unanswered", sandbox=self._sandbox, error=str(error))

    # ------------------------------------------------------------------ output

    async def _read(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                if await self._read_once():
                    return
                delay = FIRST_RETRY_SECONDS
            except StaleEpochError:
                await self._put(Lost())
                return
            except (ProcessNotFoundError, OutputBeyondEndError) as error:
                # Another agent answers at this address: the process and its output are gone with the old one.
                log.warning("cli.process_gone", sandbox=self._sandbox, error=str(error))
                await self._gone()
                return
            except (UnavailableError, DeadlineError) as error:
                log.info("cli.agent_away", sandbox=self._sandbox, error=str(error))
                if await self._life_is_over():
                    await self._gone()
                    return
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    async def _read_once(self) -> bool:
        """Follow the output; True when the process has ended."""
        positions = {OutputStream.STDOUT: self._position, OutputStream.STDERR: self._stderr_position}
        async with aclosing(self._agent.attach(self.process, epoch=self._epoch, positions=positions)) as outputs:
            async for output in outputs:
                match output:
                    case OutputChunk(stream=OutputStream.STDOUT):
                        await self._take(output)
                    case OutputChunk():
                        self._stderr = (self._stderr + output.data)[-STDERR_TAIL_BYTES:]
                        self._stderr_position = output.offset + len(output.data)
                    case OutputGap(stream=OutputStream.STDOUT):
                        # Only acknowledged bytes can be missing, and we acknowledge what is committed: never ours.
                        raise ProcessNotFoundError(f"Output before {output.to_offset} of {self.process} is gone.")
                    case OutputGap():
                        self._stderr_position = output.to_offset
                    case OutputExited():
                        await self._put(
                            Exited(
                                process=self.process,
                                exit_code=output.exit.exit_code if not output.exit.signal else None,
                                signal=output.exit.signal or None,
                                stderr_tail=self._stderr_text(),
                            )
                        )
                        return True
        return False

    async def _take(self, chunk: OutputChunk) -> None:
        skip = self._position - chunk.offset
        data = chunk.data[skip:] if skip > 0 else chunk.data
        if data:
            await self._put(Output(process=self.process, data=data, received=time.monotonic()))
            self._position = chunk.offset + len(chunk.data)

    async def _life_is_over(self) -> bool:
        try:
            return await self._sandboxes.incarnation_lost(self._sandbox, self._incarnation)
        except (UnavailableError, DeadlineError, NotFoundError) as error:
            log.info("cli.life_unknown", sandbox=self._sandbox, error=str(error))
            return False

    async def _gone(self) -> None:
        await self._put(Exited(process=self.process, exit_code=None, signal=None, stderr_tail=self._stderr_text()))

    def _stderr_text(self) -> str:
        return self._stderr.decode("utf-8", "replace")

    # ------------------------------------------------------------------ input

    async def _write(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            while not self._records:
                self._work.clear()
                await self._work.wait()
            record = self._records[0]
            try:
                accepted = await self._agent.write(
                    self.process,
                    epoch=self._epoch,
                    offset=record.offset,
                    data=record.data,
                    close_stdin=self._close_stdin and len(self._records) == 1,
                )
            except (ProcessExitedError, StdinClosedError, ProcessNotFoundError, StaleEpochError) as error:
                log.info("cli.stdin_gone", sandbox=self._sandbox, error=str(error))
                self._records.clear()  # the reader tells how it ended
                continue
            except (UnavailableError, DeadlineError) as error:
                log.info("cli.write_retried", sandbox=self._sandbox, error=str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_RETRY_SECONDS)
                continue
            except SandboxdError:
                log.exception("cli.write_refused", sandbox=self._sandbox, offset=record.offset)
                await self.signal(signals.SIGKILL)
                self._records.clear()
                continue
            self._records.popleft()
            delay = FIRST_RETRY_SECONDS
            if not self._records:
                await self._forget(accepted)

    async def _forget(self, before: int) -> None:
        with suppress(DatabaseUnavailableError):  # the next one forgets this one, too
            await self._journal.forget_stdin(self._sandbox, before=before)

    async def _acknowledge(self) -> None:
        """Free the agent's spool now and then; sleeps while nothing is committed."""
        while True:
            await self._ack_due.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ack_after.total_seconds()):
                    await self._ack_urgent.wait()
            self._ack_due.clear()
            self._ack_urgent.clear()
            target = self._committed
            try:
                await self._agent.ack_output(self.process, epoch=self._epoch, stream=OutputStream.STDOUT, offset=target)
                self._acknowledged = target
            except SandboxdError as error:
                log.debug("cli.ack_unanswered", sandbox=self._sandbox, error=str(error))
                self._ack_due.set()


async def run_script(agent: Agent, *, name: str, spec: ProcessSpec) -> None:
    """Run a short program in the sandbox and wait for it.

    Raises:
        UnavailableError: It failed; the message has its exit code.
    """
    process = ProcessId(name)
    await agent.start_process(process, spec)
    ended = await agent.wait_process(process, timeout=PREPARE_TIMEOUT)
    await agent.remove_process(process)
    if ended.exit is None or ended.exit.exit_code or ended.exit.signal:
        raise UnavailableError("The sandbox could not be prepared for the CLI.", process=name, exit=str(ended.exit))

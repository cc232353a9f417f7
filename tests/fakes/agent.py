"""An agent in memory: programs are coroutines, everything else keeps the port's promises.

A program is found by the first word of the argv: `agent.programs["gemini"] = my_program`. It gets a `FakeIo` to read
its standard input and write its output, and returns its exit code. `agent.die()` is the agent's death, `agent.cut()` a
broken connection.
"""

import asyncio
import contextlib
import io
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from typing_extensions import override

from sandboxd.agent.broadcast import Broadcast
from sandboxd.model.errors import AgentUnavailableError, DeadlineError, InvalidRequestError
from sandboxd.model.processes import (
    AgentActivity,
    AgentDescription,
    AgentStats,
    CopyResult,
    FreezeResult,
    ModelEndpointState,
    Output,
    OutputChunk,
    OutputExited,
    OutputGap,
    OutputState,
    OutputStream,
    Process,
    ProcessActivity,
    ProcessExit,
    ProcessId,
    ProcessSpec,
    Root,
    ShutdownResult,
    SignalScope,
    Spool,
    SpoolPolicy,
    TerminalSize,
)
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.stream.agent_port import (
    Agent,
    AgentConnector,
    AgentFrozenError,
    NoTerminalError,
    OutputBeyondEndError,
    PathNotFoundError,
    ProcessExitedError,
    ProcessNotFoundError,
    ProcessRunningError,
    ProcessSpecDiffersError,
    ProcessStartError,
    StaleEpochError,
    StdinClosedError,
    StdinGapError,
)

CHUNK_BYTES = 1 << 16
STDIN_BYTES = 1 << 20


@dataclass(slots=True)
class _Stream:
    capacity: int
    policy: SpoolPolicy
    kept: bytearray = field(default_factory=bytearray)
    start: int = 0
    acknowledged: int = 0
    complete: bool = False
    last_time: datetime | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.kept)

    @property
    def room(self) -> int:
        return self.capacity - len(self.kept) if self.policy is SpoolPolicy.BLOCK else self.capacity

    def append(self, data: bytes) -> None:
        self.kept += data
        self.last_time = datetime.now(UTC)
        self.forget(self.end - self.capacity)

    def forget(self, offset: int) -> None:
        if offset > self.start:
            del self.kept[: offset - self.start]
            self.start = offset

    @property
    def state(self) -> OutputState:
        return OutputState(
            start_offset=self.start,
            end_offset=self.end,
            acknowledged_offset=self.acknowledged,
            complete=self.complete,
            blocked=not self.complete and self.room <= 0,
        )


class FakeProcess:
    """One process of a `FakeAgent`."""

    def __init__(self, agent: "FakeAgent", process_id: ProcessId, asked: ProcessSpec, spec: ProcessSpec) -> None:
        self.agent = agent
        self.process_id = process_id
        self.asked = asked
        self.spec = spec
        self.changed = Broadcast()
        self.epoch = 0
        self.stdin_length = 0
        self.stdin = bytearray()
        self.written = bytearray()
        """Everything ever accepted, for tests to look at."""
        self.stdin_closed = False
        self.last_input_time: datetime | None = None
        self.exit: ProcessExit | None = None
        self.signals: list[int] = []
        self.start_time = datetime.now(UTC)
        self.pid = 1000 + len(agent.processes)
        self.streams = {OutputStream.STDOUT: _stream(spec.stdout_spool)}
        if not spec.merge_stderr:
            self.streams[OutputStream.STDERR] = _stream(spec.stderr_spool)
        self.task: asyncio.Task[None] | None = None

    def describe(self) -> Process:
        stderr = self.streams.get(OutputStream.STDERR)
        return Process(
            process_id=self.process_id,
            spec=self.spec,
            pid=self.pid,
            start_time=self.start_time,
            exit=self.exit,
            stdout=self.streams[OutputStream.STDOUT].state,
            stderr=stderr.state if stderr is not None else None,
            stdin_length=self.stdin_length,
            stdin_pending_bytes=len(self.stdin),
            stdin_closed=self.stdin_closed,
            highest_epoch=self.epoch,
        )

    def take_epoch(self, epoch: int) -> None:
        if epoch < 1:
            raise InvalidRequestError("The epoch must be 1 or more.")
        self.require_epoch(epoch)
        if epoch > self.epoch:
            self.epoch = epoch
            self.changed.notify()

    def require_epoch(self, epoch: int) -> None:
        if epoch < self.epoch:
            raise StaleEpochError(f"Epoch {epoch} is over.", highest_epoch=self.epoch)

    def end(self, *, code: int = 0, signal: int = 0) -> None:
        if self.exit is None:
            self.exit = ProcessExit(exit_code=code, signal=signal, exit_time=datetime.now(UTC))
            self.stdin.clear()
            self.stdin_closed = True
            for stream in self.streams.values():
                stream.complete = True
            self.changed.notify()

    def kill(self, signal: int) -> None:
        if self.task is not None:
            self.task.cancel()
        self.end(signal=signal)


class FakeIo:
    """What a program sees."""

    def __init__(self, process: FakeProcess) -> None:
        self._process = process
        self.spec = process.spec

    async def read(self, size: int = CHUNK_BYTES) -> bytes:
        """Return the next bytes of standard input; none at its end."""
        process = self._process
        while process.agent.frozen or (not process.stdin and not process.stdin_closed):
            await process.changed.wait()
        data = bytes(process.stdin[:size])
        del process.stdin[:size]
        process.changed.notify()
        return data

    async def read_line(self) -> bytes:
        """Return the next line with its end; what is left, or nothing, at the end of the input."""
        process = self._process
        while process.agent.frozen or (b"\n" not in process.stdin and not process.stdin_closed):
            await process.changed.wait()
        end = process.stdin.find(b"\n") + 1 or len(process.stdin)
        return await self.read(end)

    async def write(self, data: bytes, stream: OutputStream = OutputStream.STDOUT) -> None:
        """Put out bytes; waits while the spool is full."""
        process = self._process
        kept = process.streams.get(stream, process.streams[OutputStream.STDOUT])
        while data:
            while process.agent.frozen or kept.room <= 0:
                await process.changed.wait()
            piece, data = data[: kept.room], data[kept.room :]
            kept.append(piece)
            process.changed.notify()


Program = Callable[[FakeIo], Awaitable[int]]


class FakeAgent(Agent):
    """An agent in memory."""

    def __init__(self, *, sandbox: str = "sbx-test", incarnation: str = "inc-test") -> None:
        self.sandbox = sandbox
        self.incarnation = incarnation
        self.programs: dict[str, Program] = {}
        self.processes: dict[ProcessId, FakeProcess] = {}
        self.frozen = False
        self.dead = False
        self.model_endpoint: dict[str, object] = {}
        self.trees: dict[tuple[Root, str], bytes] = {}
        self.max_processes = 256
        self.cpu_time = timedelta()
        """What everything that runs is said to have spent."""
        self.typed: datetime | None = None
        """When somebody is said to have typed last, beside what processes say."""
        self.model_requests = 0
        self.asked = 0
        """How often it was asked what is used."""
        self._cuts = 0
        self._start_time = datetime.now(UTC)

    # What a test does to it.

    def die(self) -> None:
        """End the agent and all its processes, as a SIGKILL would."""
        self.dead = True
        for process in self.processes.values():
            process.kill(9)
        self.cut()

    def cut(self) -> None:
        """Break every attach, as a lost connection would."""
        self._cuts += 1
        for process in self.processes.values():
            process.changed.notify()

    # The port.

    @override
    async def describe(self, *, timeout: timedelta | None = None) -> AgentDescription:
        self._answer()
        return AgentDescription(
            version="fake",
            api_level=1,
            sandbox=self.sandbox,
            incarnation=self.incarnation,
            start_time=self._start_time,
            pid=999,
            model_port=1,
            home="/home/gemini",
            workspace="/workspace",
            frozen=self.frozen,
            stopping=False,
            max_write_bytes=1 << 20,
            stdin_buffer_bytes=STDIN_BYTES,
        )

    @override
    async def start_process(
        self, process_id: ProcessId, spec: ProcessSpec, *, timeout: timedelta | None = None
    ) -> Process:
        self._answer()
        if not process_id or not spec.argv:
            raise InvalidRequestError("A process needs an id and a program.")
        asked = replace(spec, argv=tuple(spec.argv), environment=dict(spec.environment))
        present = self.processes.get(process_id)
        if present is not None:
            if present.asked != asked:
                raise ProcessSpecDiffersError(f"Process {process_id} exists with another specification.")
            return present.describe()
        if self.frozen:
            raise AgentFrozenError("The sandbox is frozen.")
        program = self.programs.get(asked.argv[0])
        if program is None:
            raise ProcessStartError(f"The program {asked.argv[0]} does not exist.")
        process = FakeProcess(self, process_id, asked, _complete(asked))
        self.processes[process_id] = process
        process.task = asyncio.create_task(_run(process, program), name=f"fake-process-{process_id}")
        return process.describe()

    @override
    async def get_process(self, process_id: ProcessId, *, timeout: timedelta | None = None) -> Process:
        return self._find(process_id).describe()

    @override
    async def list_processes(self, *, timeout: timedelta | None = None) -> Sequence[Process]:
        self._answer()
        return tuple(process.describe() for process in self.processes.values())

    @override
    async def wait_process(self, process_id: ProcessId, *, timeout: timedelta) -> Process:
        process = self._find(process_id)
        async with _deadline(timeout):
            while process.exit is None:
                await process.changed.wait()
        return process.describe()

    @override
    async def remove_process(self, process_id: ProcessId, *, timeout: timedelta | None = None) -> None:
        self._answer()
        process = self.processes.get(process_id)
        if process is not None and process.exit is None:
            raise ProcessRunningError(f"Process {process_id} still runs.")
        self.processes.pop(process_id, None)

    @override
    async def attach(
        self, process_id: ProcessId, *, epoch: int, positions: Mapping[OutputStream, int]
    ) -> AsyncGenerator[Output, None]:
        process = self._find(process_id)
        process.take_epoch(epoch)
        if not positions:
            raise InvalidRequestError("Name at least one output stream.")
        for stream, offset in positions.items():
            _check_offset(process, stream, offset)
        cuts, offsets = self._cuts, dict(positions)
        while True:
            progress = False
            for stream, offset in list(offsets.items()):
                if self._cuts != cuts or self.dead:
                    raise AgentUnavailableError("The agent does not answer.")
                process.require_epoch(epoch)
                event = _next_output(process.streams[stream], stream, offset)
                if event is not None:
                    offsets[stream] = event.to_offset if isinstance(event, OutputGap) else offset + len(event.data)
                    progress = True
                    yield event
            if progress:
                continue
            if process.exit is not None:
                stderr = process.streams.get(OutputStream.STDERR)
                yield OutputExited(
                    exit=process.exit,
                    stdout_end_offset=process.streams[OutputStream.STDOUT].end,
                    stderr_end_offset=stderr.end if stderr is not None else 0,
                )
                return
            await process.changed.wait()

    @override
    async def ack_output(
        self,
        process_id: ProcessId,
        *,
        epoch: int,
        stream: OutputStream,
        offset: int,
        timeout: timedelta | None = None,
    ) -> OutputState:
        process = self._find(process_id)
        process.take_epoch(epoch)
        _check_offset(process, stream, offset)
        kept = process.streams[stream]
        kept.acknowledged = max(kept.acknowledged, offset)
        kept.forget(offset)
        process.changed.notify()
        return kept.state

    @override
    async def write(
        self,
        process_id: ProcessId,
        *,
        epoch: int,
        offset: int,
        data: bytes,
        close_stdin: bool = False,
        timeout: timedelta | None = None,
    ) -> int:
        process = self._find(process_id)
        process.take_epoch(epoch)
        if offset > process.stdin_length:
            raise StdinGapError("The write begins above what was accepted.", stdin_length=process.stdin_length)
        end = offset + len(data)
        async with _deadline(timeout or timedelta(seconds=10)):
            while process.stdin_length < end:
                process.require_epoch(epoch)
                if process.exit is not None:
                    raise ProcessExitedError("The process has exited and takes no more input.")
                if process.stdin_closed:
                    raise StdinClosedError("The process's standard input is closed.")
                room = STDIN_BYTES - len(process.stdin)
                if room <= 0:
                    await process.changed.wait()
                    continue
                piece = data[process.stdin_length - offset :][:room]
                process.stdin += piece
                process.written += piece
                process.stdin_length += len(piece)
                process.last_input_time = datetime.now(UTC)
                process.changed.notify()
        if close_stdin and not process.stdin_closed:
            if end != process.stdin_length:
                raise InvalidRequestError("Standard input cannot be closed there.")
            process.stdin_closed = True
            process.changed.notify()
        return process.stdin_length

    @override
    async def resize_process(
        self, process_id: ProcessId, size: TerminalSize, *, timeout: timedelta | None = None
    ) -> None:
        process = self._find(process_id)
        if process.spec.terminal is None:
            raise NoTerminalError(f"Process {process_id} has no terminal.")
        if process.exit is not None:
            raise ProcessExitedError(f"Process {process_id} has exited.")

    @override
    async def signal_process(
        self,
        process_id: ProcessId,
        signal: int,
        *,
        scope: SignalScope = SignalScope.GROUP,
        timeout: timedelta | None = None,
    ) -> int:
        process = self._find(process_id)
        if not 1 <= signal <= 64:
            raise InvalidRequestError(f"There is no signal {signal}.")
        if process.exit is not None:
            if scope is SignalScope.TREE:
                return 0
            raise ProcessExitedError(f"Process {process_id} has exited.")
        if scope is SignalScope.FOREGROUND and process.spec.terminal is None:
            raise NoTerminalError(f"Process {process_id} has no terminal.")
        process.signals.append(signal)
        if signal in {1, 2, 9, 15}:
            process.kill(signal)
        return 1

    @override
    async def freeze(self, *, timeout: timedelta | None = None) -> FreezeResult:
        self._answer()
        self.frozen = True
        return FreezeResult(frozen_processes=len(self._running()), already_stopped_processes=0)

    @override
    async def thaw(self, *, timeout: timedelta | None = None) -> int:
        self._answer()
        thawed = len(self._running()) if self.frozen else 0
        self.frozen = False
        for process in self.processes.values():
            process.changed.notify()
        return thawed

    @override
    async def get_activity(self, *, timeout: timedelta | None = None) -> AgentActivity:
        self._answer()
        self.asked += 1
        everything = list(self.processes.values())
        inputs = [self.typed] if self.typed is not None else []
        inputs += [process.last_input_time for process in everything if process.last_input_time is not None]
        inputs += [process.start_time for process in everything]
        outputs = [s.last_time for process in everything for s in process.streams.values() if s.last_time is not None]
        return AgentActivity(
            report_time=datetime.now(UTC),
            processes=[
                ProcessActivity(
                    process_id=process.process_id,
                    running=True,
                    cpu_time=timedelta(),
                    last_input_time=process.last_input_time,
                    last_output_time=max(
                        (s.last_time for s in process.streams.values() if s.last_time is not None), default=None
                    ),
                    live_processes=1,
                    foreground_command=process.spec.argv[0],
                    foreground_busy=False,
                    foreground_cpu_time=timedelta(),
                )
                for process in self._running()
            ],
            last_input_time=max(inputs, default=None),
            last_output_time=max(outputs, default=None),
            open_model_requests=self.model_requests,
            last_model_request_time=None,
            cpu_time=self.cpu_time,
            frozen=self.frozen,
        )

    @override
    async def get_stats(self, *, measure_trees: bool = False, timeout: timedelta | None = None) -> AgentStats:
        self._answer()
        return AgentStats(
            memory_bytes=0,
            agent_memory_bytes=0,
            cpu_time=timedelta(),
            agent_cpu_time=timedelta(),
            live_processes=len(self._running()),
            roots=(),
        )

    @override
    async def copy_in(
        self,
        root: Root,
        path: str,
        archive: AsyncIterator[bytes],
        *,
        max_bytes: int = 0,
        max_entries: int = 0,
        timeout: timedelta,
    ) -> CopyResult:
        self._answer()
        data = b"".join([piece async for piece in archive])
        result = _count(data)
        self.trees[root, path] = data
        return result

    @override
    async def copy_out(
        self, root: Root, path: str, *, max_bytes: int = 0, timeout: timedelta
    ) -> AsyncGenerator[bytes | CopyResult, None]:
        self._answer()
        if (root, path) not in self.trees:
            raise PathNotFoundError(f"Nothing is at {path!r}.")
        data = self.trees[root, path]
        yield data
        yield _count(data)

    @override
    async def set_model_endpoint(
        self,
        *,
        base_url: str,
        token: str,
        expire_time: datetime | None = None,
        ca_pem: bytes = b"",
        timeout: timedelta | None = None,
    ) -> int:
        self._answer()
        self.model_endpoint = {"base_url": base_url, "token": token, "expire_time": expire_time, "ca_pem": ca_pem}
        return 1

    @override
    async def get_model_endpoint(self, *, timeout: timedelta | None = None) -> ModelEndpointState:
        self._answer()
        expire_time = self.model_endpoint.get("expire_time")
        return ModelEndpointState(
            model_port=1,
            base_url=str(self.model_endpoint.get("base_url", "")),
            has_token=bool(self.model_endpoint),
            expire_time=expire_time if isinstance(expire_time, datetime) else None,
            open_requests=0,
            requests=0,
            failed_requests=0,
            last_request_time=None,
        )

    @override
    async def shutdown(self, *, grace: timedelta, timeout: timedelta | None = None) -> ShutdownResult:
        self._answer()
        running = self._running()
        for process in running:
            process.kill(15)
        self.die()
        return ShutdownResult(terminated_processes=len(running), killed_processes=0)

    @override
    async def close(self) -> None:
        return

    def _answer(self) -> None:
        if self.dead:
            raise AgentUnavailableError("The agent does not answer.")

    def _find(self, process_id: ProcessId) -> FakeProcess:
        self._answer()
        if process_id not in self.processes:
            raise ProcessNotFoundError(f"Process {process_id} does not exist.")
        return self.processes[process_id]

    def _running(self) -> list[FakeProcess]:
        return [process for process in self.processes.values() if process.exit is None]


class FakeAgentConnector(AgentConnector):
    """Finds fake agents by `host:port`."""

    def __init__(self, agents: dict[str, FakeAgent] | None = None) -> None:
        self.agents = agents if agents is not None else {}

    @override
    async def connect(self, endpoint: AgentEndpoint) -> Agent:
        return self.agents.setdefault(f"{endpoint.host}:{endpoint.port}", FakeAgent())


async def _run(process: FakeProcess, program: Program) -> None:
    code = 70  # a program that raises ends like one that crashed
    try:
        code = await program(FakeIo(process))
    finally:
        process.end(code=code)


def _stream(spool: Spool) -> _Stream:
    return _Stream(capacity=spool.max_bytes, policy=spool.policy or SpoolPolicy.BLOCK)


def _complete(asked: ProcessSpec) -> ProcessSpec:
    terminal = asked.terminal is not None
    out, err = asked.stdout_spool, asked.stderr_spool
    policy = SpoolPolicy.DROP_OLDEST if terminal else SpoolPolicy.BLOCK
    return replace(
        asked,
        working_directory=asked.working_directory or "/workspace",
        merge_stderr=asked.merge_stderr or terminal,
        stdout_spool=Spool(max_bytes=out.max_bytes or (1 if terminal else 64) << 20, policy=out.policy or policy),
        stderr_spool=Spool(max_bytes=err.max_bytes or 1 << 20, policy=err.policy or SpoolPolicy.DROP_OLDEST),
    )


def _check_offset(process: FakeProcess, stream: OutputStream, offset: int) -> None:
    kept = process.streams.get(stream)
    if kept is None or offset < 0:
        raise InvalidRequestError(f"There is no offset {offset} of {stream.value}.")
    if offset > kept.end:
        raise OutputBeyondEndError(f"Offset {offset} lies above the end.", end_offset=kept.end)


def _next_output(kept: _Stream, stream: OutputStream, offset: int) -> OutputChunk | OutputGap | None:
    if offset < kept.start:
        return OutputGap(stream=stream, from_offset=offset, to_offset=kept.start)
    data = bytes(kept.kept[offset - kept.start :][:CHUNK_BYTES])
    return OutputChunk(stream=stream, offset=offset, data=data) if data else None


def _count(data: bytes) -> CopyResult:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    return CopyResult(entries=len(members), content_bytes=sum(member.size for member in members if member.isreg()))


@contextlib.asynccontextmanager
async def _deadline(timeout: timedelta) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            yield
    except TimeoutError as error:
        raise DeadlineError("The agent did not answer in time.") from error

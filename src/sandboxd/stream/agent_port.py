"""The agent as the middle sees it: a port to the process supervisor inside a sandbox, without gRPC.

The methods are those of `proto/sandboxd/agent/v1`, where each is described in full; this page says what a caller in
this program must know. Every method may raise `AgentUnavailableError` (it does not answer) and `DeadlineError`
(`timeout` has passed; the effect may have happened, and every method is safe to repeat).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from sandboxd.model.errors import (
    AlreadyExistsError,
    DeadlineError,
    ExhaustedError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    OutOfRangeError,
    StaleOwnerError,
    UnavailableError,
    WrongStateError,
)
from sandboxd.model.processes import (
    AgentActivity,
    AgentDescription,
    AgentStats,
    CopyResult,
    FreezeResult,
    ModelEndpointState,
    Output,
    OutputState,
    OutputStream,
    Process,
    ProcessId,
    ProcessSpec,
    Root,
    ShutdownResult,
    SignalScope,
    TerminalSize,
)

if TYPE_CHECKING:  # or the agent, which has these errors from here, would load the model's sandboxes
    from sandboxd.model.sandbox import AgentEndpoint


class ProcessNotFoundError(NotFoundError):
    """The agent has no process of this id."""

    reason = "PROCESS_NOT_FOUND"


class ProcessSpecDiffersError(AlreadyExistsError):
    """A process of this id exists with another specification."""

    reason = "PROCESS_SPEC_DIFFERS"


class ProcessStartError(WrongStateError):
    """The program could not be started: it is absent, not executable, or its directory is absent."""

    reason = "PROCESS_START_FAILED"


class ProcessExitedError(WrongStateError):
    """The process has exited already."""

    reason = "PROCESS_EXITED"


class StdinClosedError(WrongStateError):
    """Standard input was closed, by a write or by the process."""

    reason = "STDIN_CLOSED"


class ProcessRunningError(WrongStateError):
    """The process still runs; end it first."""

    reason = "PROCESS_RUNNING"


class NoTerminalError(WrongStateError):
    """The process has pipes, not a terminal."""

    reason = "PROCESS_HAS_NO_TERMINAL"


class TooManyProcessesError(ExhaustedError):
    """The agent keeps as many processes as it may; remove exited ones."""

    reason = "TOO_MANY_PROCESSES"


class FreezeIncompleteError(DeadlineError):
    """Some processes could not be stopped in time."""

    reason = "FREEZE_INCOMPLETE"


class PathNotFoundError(NotFoundError):
    """Nothing is at this path of the sandbox."""

    reason = "PATH_NOT_FOUND"


class PathEscapesError(InvalidRequestError):
    """The path, or a member of the archive, leads out of where it may."""

    reason = "PATH_ESCAPES"


class ArchiveInvalidError(InvalidRequestError):
    """The bytes are not a tar archive, or it is cut."""

    reason = "ARCHIVE_INVALID"


class CopyLimitError(ExhaustedError):
    """The copy is larger than it may be."""

    reason = "COPY_LIMIT_EXCEEDED"


class DiskFullError(ExhaustedError):
    """The sandbox's disk is full."""

    reason = "DISK_FULL"


class PeerRefusedError(ForbiddenError):
    """The caller's certificate is valid, but not that of the service."""

    reason = "PEER_REFUSED"


class AgentFrozenError(WrongStateError):
    """The sandbox is frozen; thaw it first."""

    reason = "AGENT_FROZEN"


class AgentStoppingError(UnavailableError):
    """The agent is ending: its incarnation is over."""

    reason = "AGENT_STOPPING"


class StaleEpochError(StaleOwnerError):
    """A higher epoch was seen for this process: somebody else owns its conversation now."""

    reason = "STALE_EPOCH"

    def __init__(self, message: str, /, *, highest_epoch: int) -> None:
        super().__init__(message, highest_epoch=str(highest_epoch))
        self.highest_epoch = highest_epoch


class StdinGapError(OutOfRangeError):
    """The write begins above what the process has been given."""

    reason = "STDIN_GAP"

    def __init__(self, message: str, /, *, stdin_length: int) -> None:
        super().__init__(message, stdin_length=str(stdin_length))
        self.stdin_length = stdin_length


class OutputBeyondEndError(OutOfRangeError):
    """The offset lies above what the process has put out."""

    reason = "OUTPUT_BEYOND_END"

    def __init__(self, message: str, /, *, end_offset: int) -> None:
        super().__init__(message, end_offset=str(end_offset))
        self.end_offset = end_offset


class Agent(Protocol):
    """A connection to one agent. Methods may run at the same time; `timeout` None takes the adapter's default."""

    async def describe(self, *, timeout: timedelta | None = None) -> AgentDescription:
        """Tell who answers; also the readiness probe."""
        ...

    async def start_process(
        self, process_id: ProcessId, spec: ProcessSpec, *, timeout: timedelta | None = None
    ) -> Process:
        """Start a process, or return the one of the same id and specification.

        Raises:
            ProcessSpecDiffersError: The id is taken by another specification.
            ProcessStartError: The program could not be started.
            AgentFrozenError: The sandbox is frozen.
        """
        ...

    async def get_process(self, process_id: ProcessId, *, timeout: timedelta | None = None) -> Process:
        """Return one process.

        Raises:
            ProcessNotFoundError: There is none of this id.
        """
        ...

    async def list_processes(self, *, timeout: timedelta | None = None) -> Sequence[Process]:
        """Return every process that was started and not removed, oldest first."""
        ...

    async def wait_process(self, process_id: ProcessId, *, timeout: timedelta) -> Process:
        """Wait until the process has exited. Its output may not be complete yet."""
        ...

    async def remove_process(self, process_id: ProcessId, *, timeout: timedelta | None = None) -> None:
        """Forget an exited process and its output; absent is success."""
        ...

    def attach(
        self, process_id: ProcessId, *, epoch: int, positions: Mapping[OutputStream, int]
    ) -> AsyncGenerator[Output, None]:
        """Stream output from absolute offsets; the last item is `OutputExited`.

        There is no deadline: liveness is the connection's keepalive. Close the iterator (`aclosing`) to detach. A slow
        reader slows the agent; nothing queues up in between.

        Raises:
            StaleEpochError: A higher epoch was seen, before or while this stream ran.
            OutputBeyondEndError: An offset lies above the stream's end.
            AgentUnavailableError: The agent was lost; attach again from the last offset taken.
        """
        ...

    async def ack_output(
        self,
        process_id: ProcessId,
        *,
        epoch: int,
        stream: OutputStream,
        offset: int,
        timeout: timedelta | None = None,
    ) -> OutputState:
        """Let the agent forget output before an offset. Never goes back; repeating is harmless."""
        ...

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
        """Write to standard input at an absolute offset, exactly once, and return the length accepted, ever.

        Any size: the adapter cuts it. After a failure repeat the same call: what was accepted before is skipped.

        Raises:
            StaleEpochError: A higher epoch was seen.
            StdinGapError: The offset lies above what was accepted.
            StdinClosedError: Standard input is closed and the data is new.
            ProcessExitedError: The process has exited and the data is new.
        """
        ...

    async def resize_process(
        self, process_id: ProcessId, size: TerminalSize, *, timeout: timedelta | None = None
    ) -> None:
        """Set the size of the process's terminal."""
        ...

    async def signal_process(
        self,
        process_id: ProcessId,
        signal: int,
        *,
        scope: SignalScope = SignalScope.GROUP,
        timeout: timedelta | None = None,
    ) -> int:
        """Send a signal and return how many processes were there to receive it.

        Raises:
            ProcessExitedError: The group's leader has exited (TREE still works).
        """
        ...

    async def freeze(self, *, timeout: timedelta | None = None) -> FreezeResult:
        """Stop every process of the sandbox, parents first, until nothing runs. Repeating is harmless."""
        ...

    async def thaw(self, *, timeout: timedelta | None = None) -> int:
        """Continue what was frozen, leaves first, and return how many."""
        ...

    async def get_activity(self, *, timeout: timedelta | None = None) -> AgentActivity:
        """Tell what is being used. Asking does not count as use."""
        ...

    async def get_stats(self, *, measure_trees: bool = False, timeout: timedelta | None = None) -> AgentStats:
        """Measure memory, processor and disk."""
        ...

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
        """Unpack a tar stream below home or workspace; members that point outside are refused."""
        ...

    def copy_out(
        self, root: Root, path: str, *, max_bytes: int = 0, timeout: timedelta
    ) -> AsyncGenerator[bytes | CopyResult, None]:
        """Stream a tree as tar bytes; the last item is a `CopyResult`, without which the archive is cut."""
        ...

    async def set_model_endpoint(
        self,
        *,
        base_url: str,
        token: str,
        expire_time: datetime | None = None,
        ca_pem: bytes = b"",
        timeout: timedelta | None = None,
    ) -> int:
        """Point the model endpoint at the gateway, with a token; renew by repeating. Returns its port."""
        ...

    async def get_model_endpoint(self, *, timeout: timedelta | None = None) -> ModelEndpointState:
        """Return the state of the model endpoint; never the token."""
        ...

    async def shutdown(self, *, grace: timedelta, timeout: timedelta | None = None) -> ShutdownResult:
        """End every process, then the agent."""
        ...

    async def close(self) -> None:
        """Let go of the connection. The agent goes on."""
        ...


class AgentConnector(Protocol):
    """Opens connections to agents."""

    async def connect(self, endpoint: AgentEndpoint) -> Agent:
        """Return a connection. It does not wait for the agent: the first call does, and reconnects as needed."""
        ...

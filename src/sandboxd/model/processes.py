"""Processes in a sandbox, as the agent reports them: what was started, how it ended, and what it has put out.

Pure data, no rules of conversation. Offsets are absolute: the first byte ever written to a stream has offset 0.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NewType

ProcessId = NewType("ProcessId", str)
"""The caller's id of a process: 1 to 128 characters of letters, digits, `-`, `_` and `.`."""


class OutputStream(enum.Enum):
    """One of a process's output streams."""

    STDOUT = "stdout"
    STDERR = "stderr"


class SpoolPolicy(enum.Enum):
    """What happens when a spool is full."""

    BLOCK = "block"
    """The process blocks until output is acknowledged; nothing is lost."""
    DROP_OLDEST = "drop_oldest"
    """The oldest bytes make room; a reader that comes too late gets an `OutputGap`."""


class SignalScope(enum.Enum):
    """Which processes a signal reaches."""

    GROUP = "group"
    """The process group that the process leads."""
    TREE = "tree"
    """The process and all its descendants; works after the process has exited."""
    FOREGROUND = "foreground"
    """The foreground group of the process's terminal: what Ctrl-C reaches."""


class Root(enum.Enum):
    """One of the two persistent directories of a sandbox."""

    HOME = "home"
    WORKSPACE = "workspace"


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSize:
    """The size of a terminal in character cells."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """Room for one output stream and what happens beyond it."""

    max_bytes: int = 0
    """Most bytes kept; 0 takes the agent's default (64 MiB for standard output, 1 MiB for the others)."""
    policy: SpoolPolicy | None = None
    """None: BLOCK for the standard output of pipes, DROP_OLDEST for terminals and standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """Limits of the kernel for a process and each of its descendants; None inherits the agent's."""

    open_files: int | None = None
    processes: int | None = None
    """Counts every process of the same user, also outside the sandbox."""
    core_bytes: int | None = None
    """None means no core dumps."""
    file_bytes: int | None = None
    address_space_bytes: int | None = None
    """Node reserves many gigabytes: leave it None for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What to run, and how."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """The whole environment; nothing is inherited from the agent."""
    working_directory: str = ""
    """Absolute; empty means the workspace."""
    terminal: TerminalSize | None = None
    """None: pipes."""
    limits: ProcessLimits = field(default_factory=ProcessLimits)
    stdout_spool: Spool = field(default_factory=Spool)
    stderr_spool: Spool = field(default_factory=Spool)
    merge_stderr: bool = False
    """Standard error goes into standard output; always so with a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessExit:
    """How a process ended."""

    exit_code: int
    """0 to 255; 0 when a signal ended it."""
    signal: int
    """Number of the signal that ended it; 0 when it exited by itself."""
    exit_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputState:
    """The state of one output stream."""

    start_offset: int
    """Offset of the oldest byte that is kept."""
    end_offset: int
    """Offset after the newest byte."""
    acknowledged_offset: int
    complete: bool
    """True when no further byte will come."""
    blocked: bool
    """True while the spool is full and the process is held back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that was started and not removed."""

    process_id: ProcessId
    spec: ProcessSpec
    """What it was started with, defaults filled in."""
    pid: int
    start_time: datetime
    exit: ProcessExit | None
    """None while it runs."""
    stdout: OutputState
    stderr: OutputState | None
    """None when standard error is merged."""
    stdin_length: int
    """Bytes of standard input accepted, ever: the offset of the next write."""
    stdin_pending_bytes: int
    """How many of these the process has not taken yet."""
    stdin_closed: bool
    highest_epoch: int
    """The highest epoch seen; 0 before the first."""

    @property
    def running(self) -> bool:
        """True while it has not exited."""
        return self.exit is None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChunk:
    """Bytes that a process wrote."""

    stream: OutputStream
    offset: int
    """Offset of the first byte."""
    data: bytes
    """Never empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputGap:
    """Bytes that are no longer kept: dropped, or acknowledged before."""

    stream: OutputStream
    from_offset: int
    to_offset: int
    """Offset after the last missing byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputExited:
    """The process has exited, and everything that was asked for was delivered. Always the last output."""

    exit: ProcessExit
    stdout_end_offset: int
    stderr_end_offset: int


Output = OutputChunk | OutputGap | OutputExited
"""One step of a process's output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDescription:
    """Who answers at an endpoint."""

    version: str
    api_level: int
    sandbox: str
    incarnation: str
    start_time: datetime
    pid: int
    model_port: int
    """Port of the model endpoint on 127.0.0.1 of the sandbox."""
    home: str
    workspace: str
    frozen: bool
    stopping: bool
    max_write_bytes: int
    stdin_buffer_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessActivity:
    """What one process has done."""

    process_id: ProcessId
    running: bool
    cpu_time: timedelta
    """Of it and its descendants; never goes back."""
    last_input_time: datetime | None
    last_output_time: datetime | None
    live_processes: int
    foreground_command: str
    """What the program calls itself: not to be trusted."""
    foreground_busy: bool
    """True when something runs in the terminal's shell."""
    foreground_cpu_time: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentActivity:
    """What is being used in a sandbox. Our own probes do not count."""

    report_time: datetime
    processes: Sequence[ProcessActivity]
    last_input_time: datetime | None
    last_output_time: datetime | None
    open_model_requests: int
    last_model_request_time: datetime | None
    cpu_time: timedelta
    frozen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RootStats:
    """One persistent directory."""

    root: Root
    filesystem_bytes: int
    available_bytes: int
    used_bytes: int | None
    """None when it was not asked for."""
    partial: bool
    """True when `used_bytes` and `files` are lower bounds."""
    files: int | None = None
    """Files, links and the like, without directories; None when it was not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStats:
    """Memory, processor and disk of a sandbox."""

    memory_bytes: int
    agent_memory_bytes: int
    cpu_time: timedelta
    agent_cpu_time: timedelta
    live_processes: int
    roots: Sequence[RootStats]


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeResult:
    """What a freeze stopped."""

    frozen_processes: int
    already_stopped_processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownResult:
    """How the processes ended."""

    terminated_processes: int
    killed_processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """What was packed or unpacked."""

    entries: int
    content_bytes: int
    skipped_entries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEndpointState:
    """The state of the sandbox's model endpoint."""

    model_port: int
    base_url: str
    """Empty: not set yet."""
    has_token: bool
    expire_time: datetime | None
    open_requests: int
    requests: int
    failed_requests: int
    last_request_time: datetime | None

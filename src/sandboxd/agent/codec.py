"""Between the agent's messages on the wire and our own types; for the server and the client alike. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.model.errors import InvalidRequestError
from sandboxd.model.processes import (
    AgentActivity,
    AgentStats,
    OutputChunk,
    OutputExited,
    OutputGap,
    OutputState,
    OutputStream,
    Process,
    ProcessActivity,
    ProcessExit,
    ProcessId,
    ProcessLimits,
    ProcessSpec,
    Root,
    RootStats,
    SignalScope,
    Spool,
    SpoolPolicy,
    TerminalSize,
)
from sandboxd.model.processes import Output as OutputEvent

_Ours = TypeVar("_Ours")
_Theirs = TypeVar("_Theirs", bound=int)

STREAMS: Final = {
    OutputStream.STDOUT: pb.OUTPUT_STREAM_STDOUT,
    OutputStream.STDERR: pb.OUTPUT_STREAM_STDERR,
}
POLICIES: Final = {
    None: pb.SPOOL_POLICY_UNSPECIFIED,
    SpoolPolicy.BLOCK: pb.SPOOL_POLICY_BLOCK,
    SpoolPolicy.DROP_OLDEST: pb.SPOOL_POLICY_DROP_OLDEST,
}
SCOPES: Final = {
    SignalScope.GROUP: pb.SIGNAL_SCOPE_GROUP,
    SignalScope.TREE: pb.SIGNAL_SCOPE_TREE,
    SignalScope.FOREGROUND: pb.SIGNAL_SCOPE_FOREGROUND,
}
ROOTS: Final = {Root.HOME: pb.ROOT_HOME, Root.WORKSPACE: pb.ROOT_WORKSPACE}


def stream_from(value: pb.OutputStream.ValueType) -> OutputStream:
    """Read an output stream."""
    return _invert(STREAMS, value, "stream")


def scope_from(value: pb.SignalScope.ValueType) -> SignalScope:
    """Read a signal's scope; unspecified means the group."""
    return SignalScope.GROUP if value == pb.SIGNAL_SCOPE_UNSPECIFIED else _invert(SCOPES, value, "scope")


def root_from(value: pb.Root.ValueType) -> Root:
    """Read a root."""
    return _invert(ROOTS, value, "root")


def time_to(moment: datetime | None) -> Timestamp | None:
    """Write a moment; None leaves the field absent."""
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def time_from(message: Timestamp) -> datetime:
    """Read a moment."""
    return message.ToDatetime(tzinfo=UTC)


def span_to(span: timedelta) -> Duration:
    """Write a span."""
    message = Duration()
    message.FromTimedelta(span)
    return message


def span_from(message: Duration) -> timedelta:
    """Read a span."""
    return message.ToTimedelta()


def spec_to(spec: ProcessSpec) -> pb.ProcessSpec:
    """Write a specification."""
    limits = spec.limits
    return pb.ProcessSpec(
        argv=spec.argv,
        environment=dict(spec.environment),
        working_directory=spec.working_directory,
        terminal=size_to(spec.terminal) if spec.terminal is not None else None,
        limits=pb.ProcessLimits(
            open_files=limits.open_files,
            processes=limits.processes,
            core_bytes=limits.core_bytes,
            file_bytes=limits.file_bytes,
            address_space_bytes=limits.address_space_bytes,
        ),
        stdout_spool=pb.Spool(max_bytes=spec.stdout_spool.max_bytes, policy=POLICIES[spec.stdout_spool.policy]),
        stderr_spool=pb.Spool(max_bytes=spec.stderr_spool.max_bytes, policy=POLICIES[spec.stderr_spool.policy]),
        stderr_mode=pb.STDERR_MODE_MERGED if spec.merge_stderr else pb.STDERR_MODE_SEPARATE,
    )


def spec_from(message: pb.ProcessSpec) -> ProcessSpec:
    """Read a specification."""
    limits = message.limits
    return ProcessSpec(
        argv=tuple(message.argv),
        environment=dict(message.environment),
        working_directory=message.working_directory,
        terminal=size_from(message.terminal) if message.HasField("terminal") else None,
        limits=ProcessLimits(
            open_files=limits.open_files if limits.HasField("open_files") else None,
            processes=limits.processes if limits.HasField("processes") else None,
            core_bytes=limits.core_bytes if limits.HasField("core_bytes") else None,
            file_bytes=limits.file_bytes if limits.HasField("file_bytes") else None,
            address_space_bytes=limits.address_space_bytes if limits.HasField("address_space_bytes") else None,
        ),
        stdout_spool=_spool_from(message.stdout_spool),
        stderr_spool=_spool_from(message.stderr_spool),
        merge_stderr=message.stderr_mode == pb.STDERR_MODE_MERGED,
    )


def size_to(size: TerminalSize) -> pb.TerminalSize:
    """Write a terminal's size."""
    return pb.TerminalSize(rows=size.rows, columns=size.columns)


def size_from(message: pb.TerminalSize) -> TerminalSize:
    """Read a terminal's size."""
    return TerminalSize(rows=message.rows, columns=message.columns)


def process_to(process: Process) -> pb.Process:
    """Write a process."""
    return pb.Process(
        process_id=process.process_id,
        spec=spec_to(process.spec),
        pid=process.pid,
        state=pb.PROCESS_STATE_RUNNING if process.exit is None else pb.PROCESS_STATE_EXITED,
        start_time=time_to(process.start_time),
        exit=exit_to(process.exit) if process.exit is not None else None,
        stdout=output_state_to(process.stdout),
        stderr=output_state_to(process.stderr) if process.stderr is not None else None,
        stdin_length=process.stdin_length,
        stdin_pending_bytes=process.stdin_pending_bytes,
        stdin_closed=process.stdin_closed,
        highest_epoch=process.highest_epoch,
    )


def process_from(message: pb.Process) -> Process:
    """Read a process."""
    return Process(
        process_id=ProcessId(message.process_id),
        spec=spec_from(message.spec),
        pid=message.pid,
        start_time=time_from(message.start_time),
        exit=exit_from(message.exit) if message.HasField("exit") else None,
        stdout=output_state_from(message.stdout),
        stderr=output_state_from(message.stderr) if message.HasField("stderr") else None,
        stdin_length=message.stdin_length,
        stdin_pending_bytes=message.stdin_pending_bytes,
        stdin_closed=message.stdin_closed,
        highest_epoch=message.highest_epoch,
    )


def exit_to(end: ProcessExit) -> pb.ProcessExit:
    """Write how a process ended."""
    return pb.ProcessExit(exit_code=end.exit_code, signal=end.signal, exit_time=time_to(end.exit_time))


def exit_from(message: pb.ProcessExit) -> ProcessExit:
    """Read how a process ended."""
    return ProcessExit(exit_code=message.exit_code, signal=message.signal, exit_time=time_from(message.exit_time))


def output_state_to(state: OutputState) -> pb.OutputState:
    """Write a stream's state."""
    return pb.OutputState(
        start_offset=state.start_offset,
        end_offset=state.end_offset,
        acknowledged_offset=state.acknowledged_offset,
        complete=state.complete,
        blocked=state.blocked,
    )


def output_state_from(message: pb.OutputState) -> OutputState:
    """Read a stream's state."""
    return OutputState(
        start_offset=message.start_offset,
        end_offset=message.end_offset,
        acknowledged_offset=message.acknowledged_offset,
        complete=message.complete,
        blocked=message.blocked,
    )


def output_to(event: OutputEvent) -> pb.AttachResponse:
    """Write one step of the output."""
    match event:
        case OutputChunk():
            chunk = pb.OutputChunk(stream=STREAMS[event.stream], offset=event.offset, data=event.data)
            return pb.AttachResponse(chunk=chunk)
        case OutputGap():
            gap = pb.OutputGap(stream=STREAMS[event.stream], from_offset=event.from_offset, to_offset=event.to_offset)
            return pb.AttachResponse(gap=gap)
        case OutputExited():
            exited = pb.OutputExited(
                exit=exit_to(event.exit),
                stdout_end_offset=event.stdout_end_offset,
                stderr_end_offset=event.stderr_end_offset,
            )
            return pb.AttachResponse(exited=exited)


def output_from(message: pb.AttachResponse) -> OutputEvent | None:
    """Read one step of the output; None for a kind that a newer agent knows."""
    match message.WhichOneof("event"):
        case "chunk":
            chunk = message.chunk
            return OutputChunk(stream=stream_from(chunk.stream), offset=chunk.offset, data=chunk.data)
        case "gap":
            gap = message.gap
            return OutputGap(stream=stream_from(gap.stream), from_offset=gap.from_offset, to_offset=gap.to_offset)
        case "exited":
            exited = message.exited
            return OutputExited(
                exit=exit_from(exited.exit),
                stdout_end_offset=exited.stdout_end_offset,
                stderr_end_offset=exited.stderr_end_offset,
            )
        case _:
            return None


def activity_to(activity: AgentActivity) -> pb.GetActivityResponse:
    """Write an activity report."""
    return pb.GetActivityResponse(
        report_time=time_to(activity.report_time),
        processes=[
            pb.ProcessActivity(
                process_id=one.process_id,
                running=one.running,
                cpu_time=span_to(one.cpu_time),
                last_input_time=time_to(one.last_input_time),
                last_output_time=time_to(one.last_output_time),
                live_processes=one.live_processes,
                foreground_command=one.foreground_command,
                foreground_busy=one.foreground_busy,
                foreground_cpu_time=span_to(one.foreground_cpu_time),
            )
            for one in activity.processes
        ],
        last_input_time=time_to(activity.last_input_time),
        last_output_time=time_to(activity.last_output_time),
        open_model_requests=activity.open_model_requests,
        last_model_request_time=time_to(activity.last_model_request_time),
        cpu_time=span_to(activity.cpu_time),
        frozen=activity.frozen,
    )


def activity_from(message: pb.GetActivityResponse) -> AgentActivity:
    """Read an activity report."""
    return AgentActivity(
        report_time=time_from(message.report_time),
        processes=tuple(
            ProcessActivity(
                process_id=ProcessId(one.process_id),
                running=one.running,
                cpu_time=span_from(one.cpu_time),
                last_input_time=time_from(one.last_input_time) if one.HasField("last_input_time") else None,
                last_output_time=time_from(one.last_output_time) if one.HasField("last_output_time") else None,
                live_processes=one.live_processes,
                foreground_command=one.foreground_command,
                foreground_busy=one.foreground_busy,
                foreground_cpu_time=span_from(one.foreground_cpu_time),
            )
            for one in message.processes
        ),
        last_input_time=time_from(message.last_input_time) if message.HasField("last_input_time") else None,
        last_output_time=time_from(message.last_output_time) if message.HasField("last_output_time") else None,
        open_model_requests=message.open_model_requests,
        last_model_request_time=(
            time_from(message.last_model_request_time) if message.HasField("last_model_request_time") else None
        ),
        cpu_time=span_from(message.cpu_time),
        frozen=message.frozen,
    )


def stats_to(stats: AgentStats) -> pb.GetStatsResponse:
    """Write figures."""
    return pb.GetStatsResponse(
        memory_bytes=stats.memory_bytes,
        agent_memory_bytes=stats.agent_memory_bytes,
        cpu_time=span_to(stats.cpu_time),
        agent_cpu_time=span_to(stats.agent_cpu_time),
        live_processes=stats.live_processes,
        roots=[
            pb.RootStats(
                root=ROOTS[one.root],
                filesystem_bytes=one.filesystem_bytes,
                available_bytes=one.available_bytes,
                used_bytes=one.used_bytes,
                files=one.files,
                partial=one.partial,
            )
            for one in stats.roots
        ],
    )


def stats_from(message: pb.GetStatsResponse) -> AgentStats:
    """Read figures."""
    return AgentStats(
        memory_bytes=message.memory_bytes,
        agent_memory_bytes=message.agent_memory_bytes,
        cpu_time=span_from(message.cpu_time),
        agent_cpu_time=span_from(message.agent_cpu_time),
        live_processes=message.live_processes,
        roots=tuple(
            RootStats(
                root=root_from(one.root),
                filesystem_bytes=one.filesystem_bytes,
                available_bytes=one.available_bytes,
                used_bytes=one.used_bytes if one.HasField("used_bytes") else None,
                files=one.files if one.HasField("files") else None,
                partial=one.partial,
            )
            for one in message.roots
        ),
    )


def _spool_from(message: pb.Spool) -> Spool:
    policy = next((ours for ours, theirs in POLICIES.items() if theirs == message.policy), None)
    return Spool(max_bytes=message.max_bytes, policy=policy)


def _invert(table: Mapping[_Ours, _Theirs], value: int, field: str) -> _Ours:
    for ours, theirs in table.items():
        if theirs == value:
            return ours
    raise InvalidRequestError(f"{field} {value} is not known to this agent.", field=field)

"""The client of the agent: implements the middle's `Agent` port over gRPC with mutual TLS, and hides protobuf.

Channels reconnect by themselves; keepalive finds a dead peer. Every call has a deadline, except Attach, which lives as
long as the connection does.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message
from typing_extensions import override

from sandboxd.agent import codec
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.agent.v1 import agent_pb2_grpc
from sandboxd.agent.wire import from_rpc_error
from sandboxd.model.errors import AgentUnavailableError
from sandboxd.model.processes import (
    AgentActivity,
    AgentDescription,
    AgentStats,
    CopyResult,
    FreezeResult,
    ModelEndpointState,
    OutputExited,
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
from sandboxd.model.processes import Output as OutputEvent
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.model.trace import NO_TRACES, SpanKind, Tracer
from sandboxd.stream.agent_port import Agent, AgentConnector

_Answer = TypeVar("_Answer")

DEFAULT_TIMEOUT: Final = timedelta(seconds=10)
SHUTDOWN_SPARE: Final = timedelta(seconds=15)
"""What a shutdown may take beyond its grace: killing, and the answer."""
WRITE_BYTES: Final = 1 << 18
COPY_BYTES: Final = 1 << 18
OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name this is the time that one attempt may take, TLS included; 100 ms are too few on a loaded machine.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
)


class GrpcAgentConnector(AgentConnector):
    """Opens channels to agents with the service's own certificate."""

    def __init__(self, *, certificate: bytes, key: bytes, agent_authority: bytes, tracer: Tracer = NO_TRACES) -> None:
        """Take the service's identity.

        Args:
            certificate: The service's certificate chain, PEM.
            key: Its key, PEM.
            agent_authority: Certificates that sign the agents' certificates, PEM.
            tracer: Where calls are reported.
        """
        self._tracer = tracer
        self._open = weakref.WeakSet[GrpcAgentClient]()
        self._credentials = grpc.ssl_channel_credentials(
            root_certificates=agent_authority, private_key=key, certificate_chain=certificate
        )

    @property
    def connections(self) -> int:
        """How many clients are open."""
        return len(self._open)

    @override
    async def connect(self, endpoint: AgentEndpoint) -> GrpcAgentClient:
        """Return a client; the first call connects."""
        options = (*OPTIONS, ("grpc.ssl_target_name_override", endpoint.server_name))
        channel = grpc.aio.secure_channel(f"{endpoint.host}:{endpoint.port}", self._credentials, options=options)
        client = GrpcAgentClient(channel, tracer=self._tracer, closed=self._open.discard)
        self._open.add(client)
        return client


class GrpcAgentClient(Agent):
    """One agent over one channel."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        tracer: Tracer = NO_TRACES,
        closed: Callable[[GrpcAgentClient], None] = lambda _: None,
    ) -> None:
        """Take a channel.

        Args:
            channel: To the agent; closed with the client.
            tracer: Where calls are reported that belong to something traced.
            closed: Told when the client is closed.
        """
        self._tracer = tracer
        self._closed = closed
        self._channel = channel
        self._stub = agent_pb2_grpc.AgentServiceStub(channel)

    @property
    def stub(self) -> agent_pb2_grpc.AgentServiceAsyncStub:
        """The calls themselves, for the modules beside this one that implement other ports."""
        return self._stub

    @override
    async def describe(self, *, timeout: timedelta | None = None) -> AgentDescription:
        answer = await self._call(self._stub.GetAgent, pb.GetAgentRequest(), _seconds(timeout))
        return AgentDescription(
            version=answer.version,
            api_level=answer.api_level,
            sandbox=answer.sandbox,
            incarnation=answer.incarnation,
            start_time=codec.time_from(answer.start_time),
            pid=answer.pid,
            model_port=answer.model_port,
            home=answer.home,
            workspace=answer.workspace,
            frozen=answer.frozen,
            stopping=answer.stopping,
            max_write_bytes=answer.limits.max_write_bytes,
            stdin_buffer_bytes=answer.limits.stdin_buffer_bytes,
        )

    @override
    async def start_process(
        self, process_id: ProcessId, spec: ProcessSpec, *, timeout: timedelta | None = None
    ) -> Process:
        request = pb.StartProcessRequest(process_id=process_id, spec=codec.spec_to(spec))
        answer = await self._call(self._stub.StartProcess, request, _seconds(timeout))
        return codec.process_from(answer.process)

    @override
    async def get_process(self, process_id: ProcessId, *, timeout: timedelta | None = None) -> Process:
        request = pb.GetProcessRequest(process_id=process_id)
        return codec.process_from((await self._call(self._stub.GetProcess, request, _seconds(timeout))).process)

    @override
    async def list_processes(self, *, timeout: timedelta | None = None) -> Sequence[Process]:
        answer = await self._call(self._stub.ListProcesses, pb.ListProcessesRequest(), _seconds(timeout))
        return tuple(codec.process_from(process) for process in answer.processes)

    @override
    async def wait_process(self, process_id: ProcessId, *, timeout: timedelta) -> Process:
        request = pb.WaitProcessRequest(process_id=process_id)
        return codec.process_from((await self._call(self._stub.WaitProcess, request, _seconds(timeout))).process)

    @override
    async def remove_process(self, process_id: ProcessId, *, timeout: timedelta | None = None) -> None:
        request = pb.RemoveProcessRequest(process_id=process_id)
        await self._call(self._stub.RemoveProcess, request, _seconds(timeout))

    @override
    async def attach(
        self, process_id: ProcessId, *, epoch: int, positions: Mapping[OutputStream, int]
    ) -> AsyncGenerator[OutputEvent, None]:
        request = pb.AttachRequest(
            process_id=process_id,
            epoch=epoch,
            positions=[
                pb.StreamPosition(stream=codec.STREAMS[stream], offset=offset) for stream, offset in positions.items()
            ],
        )
        call = None
        try:
            call = self._stub.Attach(request)
            async for message in call:
                event = codec.output_from(message)
                if event is not None:
                    yield event
                if isinstance(event, OutputExited):
                    return
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            raise from_rpc_error(error) from error
        finally:
            if call is not None:
                call.cancel()
        raise AgentUnavailableError("The agent ended the output before the process's end.")

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
        request = pb.AckOutputRequest(process_id=process_id, epoch=epoch, stream=codec.STREAMS[stream], offset=offset)
        answer = await self._call(self._stub.AckOutput, request, _seconds(timeout))
        return codec.output_state_from(answer.output)

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
        deadline = Deadline(timeout)
        begin = 0
        while True:
            piece = data[begin : begin + WRITE_BYTES]
            last = begin + len(piece) >= len(data)
            request = pb.WriteRequest(
                process_id=process_id,
                epoch=epoch,
                offset=offset + begin,
                data=piece,
                close_stdin=close_stdin and last,
            )
            answer = await self._call(self._stub.Write, request, deadline.seconds)
            if last:
                return answer.stdin_length
            begin += len(piece)

    @override
    async def resize_process(
        self, process_id: ProcessId, size: TerminalSize, *, timeout: timedelta | None = None
    ) -> None:
        request = pb.ResizeProcessRequest(process_id=process_id, size=codec.size_to(size))
        await self._call(self._stub.ResizeProcess, request, _seconds(timeout))

    @override
    async def signal_process(
        self,
        process_id: ProcessId,
        signal: int,
        *,
        scope: SignalScope = SignalScope.GROUP,
        timeout: timedelta | None = None,
    ) -> int:
        request = pb.SignalProcessRequest(process_id=process_id, signal=signal, scope=codec.SCOPES[scope])
        return (await self._call(self._stub.SignalProcess, request, _seconds(timeout))).signalled

    @override
    async def freeze(self, *, timeout: timedelta | None = None) -> FreezeResult:
        # The agent gives up a little earlier than we do, so that its own answer is the one that arrives.
        inside = (timeout or DEFAULT_TIMEOUT) * 0.8
        request = pb.FreezeRequest(timeout=codec.span_to(inside))
        answer = await self._call(self._stub.Freeze, request, _seconds(timeout))
        return FreezeResult(
            frozen_processes=answer.frozen_processes, already_stopped_processes=answer.already_stopped_processes
        )

    @override
    async def thaw(self, *, timeout: timedelta | None = None) -> int:
        return (await self._call(self._stub.Thaw, pb.ThawRequest(), _seconds(timeout))).thawed_processes

    @override
    async def get_activity(self, *, timeout: timedelta | None = None) -> AgentActivity:
        return codec.activity_from(await self._call(self._stub.GetActivity, pb.GetActivityRequest(), _seconds(timeout)))

    @override
    async def get_stats(self, *, measure_trees: bool = False, timeout: timedelta | None = None) -> AgentStats:
        request = pb.GetStatsRequest(measure_trees=measure_trees)
        return codec.stats_from(await self._call(self._stub.GetStats, request, _seconds(timeout)))

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
        async def pieces() -> AsyncIterator[pb.CopyInRequest]:
            start = pb.CopyInStart(root=codec.ROOTS[root], path=path, max_bytes=max_bytes, max_entries=max_entries)
            yield pb.CopyInRequest(start=start)
            async for data in archive:
                for begin in range(0, len(data), COPY_BYTES):
                    yield pb.CopyInRequest(data=data[begin : begin + COPY_BYTES])

        answer = await self._call(self._stub.CopyIn, pieces(), _seconds(timeout))
        return CopyResult(entries=answer.entries, content_bytes=answer.bytes)

    @override
    async def copy_out(
        self, root: Root, path: str, *, max_bytes: int = 0, timeout: timedelta
    ) -> AsyncGenerator[bytes | CopyResult, None]:
        request = pb.CopyOutRequest(root=codec.ROOTS[root], path=path, max_bytes=max_bytes)
        call = None
        try:
            call = self._stub.CopyOut(request, timeout=_seconds(timeout))
            async for message in call:
                if message.WhichOneof("piece") == "summary":
                    summary = message.summary
                    yield CopyResult(
                        entries=summary.entries,
                        content_bytes=summary.bytes,
                        skipped_entries=summary.skipped_entries,
                    )
                else:
                    yield message.data
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            raise from_rpc_error(error) from error
        finally:
            if call is not None:
                call.cancel()

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
        request = pb.SetModelEndpointRequest(
            base_url=base_url, token=token, expire_time=codec.time_to(expire_time), ca_pem=ca_pem
        )
        return (await self._call(self._stub.SetModelEndpoint, request, _seconds(timeout))).model_port

    @override
    async def get_model_endpoint(self, *, timeout: timedelta | None = None) -> ModelEndpointState:
        request = pb.GetModelEndpointRequest()
        answer = await self._call(self._stub.GetModelEndpoint, request, _seconds(timeout))
        return ModelEndpointState(
            model_port=answer.model_port,
            base_url=answer.base_url,
            has_token=answer.has_token,
            expire_time=codec.time_from(answer.expire_time) if answer.HasField("expire_time") else None,
            open_requests=answer.open_requests,
            requests=answer.requests,
            failed_requests=answer.failed_requests,
            last_request_time=(
                codec.time_from(answer.last_request_time) if answer.HasField("last_request_time") else None
            ),
        )

    @override
    async def shutdown(self, *, grace: timedelta, timeout: timedelta | None = None) -> ShutdownResult:
        request = pb.ShutdownRequest(grace=codec.span_to(grace))
        answer = await self._call(self._stub.Shutdown, request, _seconds(timeout or grace + SHUTDOWN_SPARE))
        return ShutdownResult(
            terminated_processes=answer.terminated_processes, killed_processes=answer.killed_processes
        )

    @override
    async def close(self) -> None:
        self._closed(self)
        await self._channel.close()

    async def _call(self, method: Callable[..., Awaitable[_Answer]], request: object, seconds: float) -> _Answer:
        # A copy in sends pieces and not one request; all others are named by what they send.
        name = type(request).__name__.removesuffix("Request") if isinstance(request, Message) else "CopyIn"
        try:
            with self._tracer.step(f"agent.{name}", kind=SpanKind.CLIENT):
                return await method(request, timeout=seconds)
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            raise from_rpc_error(error) from error


class Deadline:
    """One budget for several calls."""

    def __init__(self, timeout: timedelta | None) -> None:
        self._end = time.monotonic() + _seconds(timeout)

    @property
    def seconds(self) -> float:
        """What is left of it."""
        return max(self._end - time.monotonic(), 0.001)


def _seconds(timeout: timedelta | None) -> float:
    return (timeout if timeout is not None else DEFAULT_TIMEOUT).total_seconds()

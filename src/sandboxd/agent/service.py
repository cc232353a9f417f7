"""AgentService: decode, call, encode. No method ends an RPC with an error itself; the interceptor does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from typing import IO, Any

import grpc
from typing_extensions import override

from sandboxd.agent import codec, package_wire, stdin, supervisor
from sandboxd.agent.activity import ActivityReporter, measure_tree
from sandboxd.agent.capturing import Capturing
from sandboxd.agent.config import AgentConfig
from sandboxd.agent.copying import drain, feed
from sandboxd.agent.freezer import Freezer
from sandboxd.agent.model_endpoint import ModelEndpoint
from sandboxd.agent.model_exchange import BODY_BYTES
from sandboxd.agent.package_watch import PackageWatch
from sandboxd.agent.process import CHUNK_BYTES, ManagedProcess
from sandboxd.agent.supervisor import Supervisor
from sandboxd.agent.user import User
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.agent.v1 import agent_pb2_grpc
from sandboxd.model.errors import InvalidRequestError, SandboxdError
from sandboxd.model.processes import CopyResult, ProcessId, RootStats

API_LEVEL = 2
"""2: Capture."""
WRITE_BYTES = 1 << 20
"""Most bytes in one Write."""
FREEZE_TIMEOUT = timedelta(seconds=5)
SHUTDOWN_GRACE = timedelta(seconds=5)
MAX_SHUTDOWN_GRACE = timedelta(seconds=60)
COPY_IN_BYTES = 10 << 30
COPY_IN_ENTRIES = 1_000_000
READ_AWAY_SECONDS = 2.0

# Any: grpc's stubs give a context the types of request and response, which no method here needs.
Context = grpc.aio.ServicerContext[Any, Any]


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """The agent's contract on the wire."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        version: str,
        start_time: datetime,
        supervisor: Supervisor,
        freezer: Freezer,
        reporter: ActivityReporter,
        model_endpoint: ModelEndpoint,
        packages: PackageWatch,
        capturing: Capturing,
        end: Callable[[], None],
        user: User | None = None,
    ) -> None:
        """Take the parts.

        Args:
            config: How this agent is set up.
            version: Version of the program.
            start_time: When it started.
            supervisor: The processes.
            freezer: What freezes them.
            reporter: What looks at them.
            model_endpoint: The way to the gateway.
            packages: What notices installations.
            capturing: What streams the root file system.
            end: Ends the agent, soon after the running answers are out.
            user: Whose rights copies have; None is the agent's own user.
        """
        self._config = config
        self._version = version
        self._start_time = start_time
        self._supervisor = supervisor
        self._freezer = freezer
        self._reporter = reporter
        self._model_endpoint = model_endpoint
        self._packages = packages
        self._capturing = capturing
        self._end = end
        self._user = user

    @override
    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.GetAgentResponse:
        return pb.GetAgentResponse(
            version=self._version,
            api_level=API_LEVEL,
            sandbox=self._config.sandbox,
            incarnation=self._config.incarnation,
            start_time=codec.time_to(self._start_time),
            limits=pb.AgentLimits(
                max_processes=self._config.max_processes,
                max_spool_bytes=supervisor.MAX_SPOOL_BYTES,
                default_stdout_spool_bytes=supervisor.STDOUT_SPOOL_BYTES,
                default_stderr_spool_bytes=supervisor.STDERR_SPOOL_BYTES,
                default_terminal_spool_bytes=supervisor.TERMINAL_SPOOL_BYTES,
                stdin_buffer_bytes=stdin.BUFFER_BYTES,
                max_write_bytes=WRITE_BYTES,
                max_chunk_bytes=CHUNK_BYTES,
                max_model_request_bytes=BODY_BYTES,
            ),
            model_port=self._model_endpoint.port,
            frozen=self._freezer.frozen,
            stopping=self._supervisor.stopping,
            home=str(self._config.home),
            workspace=str(self._config.workspace),
            pid=os.getpid(),
        )

    @override
    async def StartProcess(self, request: pb.StartProcessRequest, context: Context) -> pb.StartProcessResponse:
        spec = codec.spec_from(request.spec)
        process, created = self._supervisor.start(ProcessId(request.process_id), spec)
        return pb.StartProcessResponse(process=codec.process_to(process.describe()), created=created)

    @override
    async def GetProcess(self, request: pb.GetProcessRequest, context: Context) -> pb.GetProcessResponse:
        return pb.GetProcessResponse(process=codec.process_to(self._find(request.process_id).describe()))

    @override
    async def ListProcesses(self, request: pb.ListProcessesRequest, context: Context) -> pb.ListProcessesResponse:
        described = [codec.process_to(process.describe()) for process in self._supervisor.processes]
        return pb.ListProcessesResponse(processes=described)

    @override
    async def WaitProcess(self, request: pb.WaitProcessRequest, context: Context) -> pb.WaitProcessResponse:
        process = self._find(request.process_id)
        await process.wait()
        return pb.WaitProcessResponse(process=codec.process_to(process.describe()))

    @override
    async def RemoveProcess(self, request: pb.RemoveProcessRequest, context: Context) -> pb.RemoveProcessResponse:
        self._supervisor.remove(ProcessId(request.process_id))
        return pb.RemoveProcessResponse()

    @override
    async def Attach(self, request: pb.AttachRequest, context: Context) -> None:  # type: ignore[override]  # writes
        process = self._find(request.process_id)
        positions = {codec.stream_from(one.stream): one.offset for one in request.positions}
        if len(positions) != len(request.positions):
            raise InvalidRequestError("Name each output stream once.")
        process.take_epoch(request.epoch)
        process.check_positions(positions)

        async def copy() -> None:
            async with contextlib.aclosing(process.read(positions)) as events:
                async for event in events:
                    await context.write(codec.output_to(event))

        # A write waits for a slow reader; a higher epoch must not.
        await _first(copy(), process.superseded(request.epoch))

    @override
    async def AckOutput(self, request: pb.AckOutputRequest, context: Context) -> pb.AckOutputResponse:
        process = self._find(request.process_id)
        process.take_epoch(request.epoch)
        state = process.acknowledge(codec.stream_from(request.stream), request.offset)
        return pb.AckOutputResponse(output=codec.output_state_to(state))

    @override
    async def Write(self, request: pb.WriteRequest, context: Context) -> pb.WriteResponse:
        process = self._find(request.process_id)
        if len(request.data) > WRITE_BYTES:
            raise InvalidRequestError(f"One write takes at most {WRITE_BYTES} bytes.", max_bytes=str(WRITE_BYTES))
        if request.offset < 0:
            raise InvalidRequestError("An offset is never negative.", offset=str(request.offset))
        process.take_epoch(request.epoch)
        length = await process.write(request.epoch, request.offset, request.data, close=request.close_stdin)
        return pb.WriteResponse(stdin_length=length)

    @override
    async def ResizeProcess(self, request: pb.ResizeProcessRequest, context: Context) -> pb.ResizeProcessResponse:
        size = codec.size_from(request.size)
        if not (1 <= size.rows <= 10_000 and 1 <= size.columns <= 10_000):
            raise InvalidRequestError("A terminal has 1 to 10000 rows and columns.")
        self._find(request.process_id).resize(size)
        return pb.ResizeProcessResponse()

    @override
    async def SignalProcess(self, request: pb.SignalProcessRequest, context: Context) -> pb.SignalProcessResponse:
        scope = codec.scope_from(request.scope)
        count = self._supervisor.signal(ProcessId(request.process_id), request.signal, scope)
        return pb.SignalProcessResponse(signalled=count)

    @override
    async def Freeze(self, request: pb.FreezeRequest, context: Context) -> pb.FreezeResponse:
        timeout = codec.span_from(request.timeout) if request.HasField("timeout") else FREEZE_TIMEOUT
        result = await self._freezer.freeze(timeout=timeout)
        return pb.FreezeResponse(
            frozen_processes=result.frozen_processes, already_stopped_processes=result.already_stopped_processes
        )

    @override
    async def Thaw(self, request: pb.ThawRequest, context: Context) -> pb.ThawResponse:
        return pb.ThawResponse(thawed_processes=await self._freezer.thaw())

    @override
    async def GetActivity(self, request: pb.GetActivityRequest, context: Context) -> pb.GetActivityResponse:
        model = self._model_endpoint.state
        activity = self._reporter.activity(
            open_model_requests=model.open_requests, last_model_request_time=model.last_request_time
        )
        return codec.activity_to(activity)

    @override
    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.GetStatsResponse:
        stats = self._reporter.stats()
        if request.measure_trees:
            stats = replace(stats, roots=[await self._measured(one) for one in stats.roots])
        return codec.stats_to(stats)

    @override
    async def CopyIn(self, request_iterator: AsyncIterator[pb.CopyInRequest], context: Context) -> pb.CopyInResponse:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("piece") != "start":
            raise InvalidRequestError("The first message of a copy must carry `start`.")
        start = first.start
        root = self._reporter.roots[codec.root_from(start.root)]

        async def pieces() -> AsyncIterator[bytes]:
            async for message in request_iterator:
                if message.WhichOneof("piece") == "start":
                    raise InvalidRequestError("Only the first message of a copy carries `start`.")
                yield message.data

        def work(stream: IO[bytes]) -> CopyResult:
            from sandboxd.agent.unpack import unpack  # with the first copy: tarfile costs a start its time

            return unpack(
                stream,
                root=root,
                path=start.path,
                max_bytes=start.max_bytes or COPY_IN_BYTES,
                max_entries=start.max_entries or COPY_IN_ENTRIES,
            )

        try:
            result = await feed(pieces(), work if self._user is None else self._user.acting(work))
        except SandboxdError:
            await _read_away(request_iterator)
            raise
        return pb.CopyInResponse(entries=result.entries, bytes=result.content_bytes)

    @override
    async def CopyOut(self, request: pb.CopyOutRequest, context: Context) -> None:  # type: ignore[override]  # writes
        root = self._reporter.roots[codec.root_from(request.root)]

        def work(stream: IO[bytes]) -> CopyResult:
            from sandboxd.agent.pack import pack  # as in CopyIn

            return pack(stream, root=root, path=request.path, max_bytes=request.max_bytes)

        async with contextlib.aclosing(drain(work if self._user is None else self._user.acting(work))) as pieces:
            async for piece in pieces:
                if isinstance(piece, bytes):
                    await context.write(pb.CopyOutResponse(data=piece))
                else:
                    summary = pb.CopyOutSummary(
                        entries=piece.entries, bytes=piece.content_bytes, skipped_entries=piece.skipped_entries
                    )
                    await context.write(pb.CopyOutResponse(summary=summary))

    @override
    async def ListPackages(self, request: pb.ListPackagesRequest, context: Context) -> pb.ListPackagesResponse:
        return pb.ListPackagesResponse(snapshot=package_wire.snapshot_to(await self._packages.look()))

    @override
    async def WatchPackages(  # type: ignore[override]  # writes
        self, request: pb.WatchPackagesRequest, context: Context
    ) -> None:
        async with contextlib.aclosing(self._packages.watch(request.after_sequence)) as news:
            async for one in news:
                for message in package_wire.news_to(one):
                    await context.write(message)

    @override
    async def Capture(  # type: ignore[override]  # writes
        self, request_iterator: AsyncIterator[pb.CaptureRequest], context: Context
    ) -> None:
        await self._capturing.serve(request_iterator, context.write)

    @override
    async def SetModelEndpoint(
        self, request: pb.SetModelEndpointRequest, context: Context
    ) -> pb.SetModelEndpointResponse:
        self._model_endpoint.set_target(
            base_url=request.base_url,
            token=request.token,
            expire_time=codec.time_from(request.expire_time) if request.HasField("expire_time") else None,
            ca_pem=request.ca_pem,
        )
        return pb.SetModelEndpointResponse(model_port=self._model_endpoint.port)

    @override
    async def GetModelEndpoint(
        self, request: pb.GetModelEndpointRequest, context: Context
    ) -> pb.GetModelEndpointResponse:
        state = self._model_endpoint.state
        return pb.GetModelEndpointResponse(
            model_port=state.model_port,
            base_url=state.base_url,
            has_token=state.has_token,
            expire_time=codec.time_to(state.expire_time),
            open_requests=state.open_requests,
            requests=state.requests,
            failed_requests=state.failed_requests,
            last_request_time=codec.time_to(state.last_request_time),
        )

    @override
    async def Shutdown(self, request: pb.ShutdownRequest, context: Context) -> pb.ShutdownResponse:
        grace = codec.span_from(request.grace) if request.HasField("grace") else SHUTDOWN_GRACE
        if not timedelta() <= grace <= MAX_SHUTDOWN_GRACE:
            raise InvalidRequestError("The grace lies between 0 and 60 seconds.")
        result = await self._supervisor.shutdown(grace=grace)
        self._end()
        return pb.ShutdownResponse(
            terminated_processes=result.terminated_processes, killed_processes=result.killed_processes
        )

    def _find(self, process_id: str) -> ManagedProcess:
        return self._supervisor.get(ProcessId(process_id))

    async def _measured(self, stats: RootStats) -> RootStats:
        used, files, partial = await asyncio.to_thread(measure_tree, self._reporter.roots[stats.root])
        return replace(stats, used_bytes=used, files=files, partial=partial)


async def _first(work: Coroutine[None, None, None], interruption: Coroutine[None, None, None]) -> None:
    """Do the work until it ends or the interruption raises."""
    tasks = [asyncio.create_task(work, name="attach"), asyncio.create_task(interruption, name="attach-fence")]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read_away(pieces: AsyncIterator[pb.CopyInRequest]) -> None:
    """Take what the caller still sends, for a moment: grpc.aio shows an answer that comes meanwhile as INTERNAL."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_AWAY_SECONDS):
            async for _ in pieces:
                pass

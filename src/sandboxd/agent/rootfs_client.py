"""The service's side of a capture: implements `RootfsCapture` over an agent's `Capture`, and hides protobuf.

The base goes out while frames come in, and each end takes only what the other has room for. The order of the base is
checked here: an entry out of its order would look deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Final, Protocol

import grpc
from typing_extensions import override

from sandboxd.agent import codec, rootfs_wire
from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.agent.rootfs_walk import Expected
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.agent.wire import from_rpc_error
from sandboxd.images.ports import RootfsCapture
from sandboxd.manager.backend_port import Observation
from sandboxd.model.errors import (
    AgentUnavailableError,
    DeadlineError,
    InternalError,
    NotImplementedYetError,
    SandboxdError,
    UnavailableError,
)
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.rootfs import BaselineEntry, CaptureEnd, CaptureFrame, order_key

IDLE_TIMEOUT: Final = timedelta(seconds=30)
"""An agent says something every second; one that is silent for so long is cut off."""
FIRST_ATTEMPTS: Final = 3
"""How often a capture is asked for until the agent has answered: grpc.aio loses a refusal that meets the first write,
and says INTERNAL instead. Nothing was sent by then but the request itself."""
PACKAGE_WAIT: Final = timedelta(seconds=60)
"""How long an installation that runs is waited for, at most; and at most a quarter of the time there is."""


_Call = grpc.aio.StreamStreamCall[pb.CaptureRequest, pb.CaptureResponse]


class Observer(Protocol):
    """The one thing of a `Backend` that is needed."""

    async def observe(self, sandbox: SandboxId) -> Observation:
        """What is there of one sandbox."""
        ...


class GrpcRootfsCapture(RootfsCapture):
    """Captures from whatever runs in the backend."""

    def __init__(
        self, *, backend: Observer, connector: GrpcAgentConnector, idle_timeout: timedelta = IDLE_TIMEOUT
    ) -> None:
        """Take the parts.

        Args:
            backend: Where sandboxes run.
            connector: To their agents.
            idle_timeout: Longest silence of an agent.
        """
        self._backend = backend
        self._connector = connector
        self._idle_timeout = idle_timeout

    @override
    async def capture(
        self,
        sandbox: SandboxId,
        incarnation: IncarnationId,
        baseline: AsyncIterator[BaselineEntry],
        *,
        previous: Sequence[bytes],
        exclude: Sequence[bytes],
        timeout: timedelta,
    ) -> AsyncGenerator[CaptureFrame, None]:
        deadline = time.monotonic() + timeout.total_seconds()
        life = (await self._backend.observe(sandbox)).find(incarnation)
        if life is None or life.endpoint is None:
            raise UnavailableError(f"Incarnation {incarnation} of sandbox {sandbox} does not run.", sandbox=sandbox)
        outgoing = _Outgoing(baseline, previous)
        start = pb.CaptureStart(
            incarnation=incarnation,
            exclude=exclude,
            package_wait=codec.span_to(min(PACKAGE_WAIT, timeout / 4)),
        )
        agent = await self._connector.connect(life.endpoint)
        try:
            for attempt in range(1, FIRST_ATTEMPTS + 1):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise _too_late()
                call = agent.stub.Capture(outgoing.messages(start), timeout=left)
                try:
                    async with contextlib.aclosing(self._frames(call, outgoing, deadline)) as frames:
                        async for frame in frames:
                            yield frame
                    return
                except AgentUnavailableError:
                    if attempt == FIRST_ATTEMPTS or outgoing.accepted.is_set():
                        raise
                finally:
                    call.cancel()
        finally:
            await agent.close()

    async def _frames(self, call: _Call, outgoing: _Outgoing, deadline: float) -> AsyncGenerator[CaptureFrame, None]:
        end: CaptureEnd | None = None
        try:
            while True:
                idle = self._idle_timeout if outgoing.accepted.is_set() else self._idle_timeout + PACKAGE_WAIT
                async with asyncio.timeout(idle.total_seconds()):
                    message = await call.read()
                if not isinstance(message, pb.CaptureResponse):  # grpc.aio.EOF: the status was OK
                    break
                outgoing.accepted.set()
                for frame in map(rootfs_wire.frame_from, message.frames):
                    if isinstance(frame, CaptureEnd):
                        end = frame
                    elif frame is not None:
                        yield frame
        except TimeoutError as error:
            raise AgentUnavailableError("The agent has fallen silent while it was captured.") from error
        except asyncio.CancelledError as error:
            if outgoing.failure is None:
                raise
            raise _translate(error, outgoing) from error  # grpc.aio cancels a call whose requests fail
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            if outgoing.failure is None and time.monotonic() >= deadline:
                raise _too_late() from error  # grpc.aio says INTERNAL where the end meets a write
            raise _translate(error, outgoing) from error
        if end is None:
            raise AgentUnavailableError("The agent ended the capture before its end.")
        yield end


class _Outgoing:
    """What is sent. A failure in it ends the call as a cancellation, so it is kept here."""

    def __init__(self, baseline: AsyncIterator[BaselineEntry], previous: Sequence[bytes]) -> None:
        self._baseline = baseline
        self._previous = previous
        self.failure: Exception | None = None
        self.accepted = asyncio.Event()
        """The agent has answered. Before that nothing of the base is read from anywhere, and none of it is on its way:
        grpc.aio loses a refusal that meets a write."""

    async def messages(self, start: pb.CaptureStart) -> AsyncIterator[pb.CaptureRequest]:
        yield pb.CaptureRequest(start=start)
        await self.accepted.wait()
        count = 0
        try:
            async for batch in _batches(merged(self._baseline, self._previous)):
                count += len(batch)
                yield pb.CaptureRequest(baseline=rootfs_wire.batch_to(batch))
        except Exception as error:
            self.failure = error
            raise
        yield pb.CaptureRequest(end=pb.BaselineEnd(entries=count))


async def merged(baseline: AsyncIterator[BaselineEntry], previous: Sequence[bytes]) -> AsyncIterator[Expected]:
    """Merge the base with the paths that are always sent.

    Raises:
        InternalError: One of them is not in the order of `walk_key`.
    """
    paths = iter([*previous])
    path = next(paths, None)
    last: bytes | None = None
    async for entry in baseline:
        key = order_key(entry.path)
        if last is not None and key <= last:
            raise InternalError(f"The base is not in order at {entry.path!r}.")
        last = key
        while path is not None and path != entry.path and order_key(path) < key:
            yield rootfs_wire.only_always(path)
            path = _next_in_order(path, paths)
        always = path == entry.path
        if always and path is not None:
            path = _next_in_order(path, paths)
        yield rootfs_wire.expected_from_entry(entry, always=always)
    while path is not None:
        yield rootfs_wire.only_always(path)
        path = _next_in_order(path, paths)


def _next_in_order(path: bytes, paths: Iterator[bytes]) -> bytes | None:
    following = next(paths, None)
    if following is not None and order_key(following) <= order_key(path):
        raise InternalError(f"The previous paths are not in order at {following!r}.")
    return following


async def _batches(entries: AsyncIterator[Expected]) -> AsyncIterator[list[Expected]]:
    batch: list[Expected] = []
    async for entry in entries:
        batch.append(entry)
        if len(batch) >= rootfs_wire.BATCH_ENTRIES:
            yield batch
            batch = []
    if batch:
        yield batch


def _translate(error: BaseException, outgoing: _Outgoing) -> SandboxdError:
    if isinstance(outgoing.failure, SandboxdError):
        return outgoing.failure
    if outgoing.failure is not None:
        return InternalError(f"The base could not be read: {outgoing.failure}")
    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return NotImplementedYetError(
            "The agent of this sandbox is of an older version, which cannot be captured. Stop and start the sandbox."
        )
    found = from_rpc_error(error)  # type: ignore[arg-type]  # a cancellation has a failure
    return _too_late() if isinstance(found, DeadlineError) else found


def _too_late() -> DeadlineError:
    return DeadlineError("The capture did not end in time.")

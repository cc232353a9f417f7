"""Drives sandboxes as clients would, and collects what their stamps tell."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from http import HTTPStatus

import grpc

from sandboxd.v1 import sandbox_pb2, sandbox_pb2_grpc, stream_pb2

CREATE_AT_ONCE = 2
TERMINATE_AT_ONCE = 10
MODEL = "gemini-2.5-flash"
"""A fixed model: no routing call before the one that is measured."""
TURN_SECONDS = 300
RESEND_SECONDS = 0.5
MILLISECOND = 1e6
"""In nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What each turn does."""

    chunks: int
    interval: float
    """Seconds between chunks."""
    calls: int

    @property
    def seconds(self) -> float:
        """How long its text takes."""
        return self.chunks * self.interval

    @property
    def prompt(self) -> str:
        """The prompt that makes the stand-in CLI do it."""
        return json.dumps({"chunks": self.chunks, "interval": self.interval, "calls": self.calls})


@dataclass(slots=True, kw_only=True)
class Samples:
    """What was measured, in milliseconds."""

    event: list[float] = field(default_factory=list)
    """From the stand-in CLI's write to the client's event; with the real CLI, from the upstream's write."""
    first_byte: list[float] = field(default_factory=list)
    """What agent and gateway add until the first chunk of a model call."""
    whole_call: list[float] = field(default_factory=list)
    """What they add until its end; the ledger's settlement is in it."""
    turns: int = 0
    resent: int = 0
    """Prompts that were sent again, because the service asked for it."""
    reopened: int = 0
    """Streams that the service ended with UNAVAILABLE, and that were opened again after the last event seen."""
    failures: list[str] = field(default_factory=list)

    def take(self, line: str, received: int) -> None:
        """Read one stamped line of text."""
        stamp = json.loads(line)
        self.event.append((received - stamp["sent"]) / MILLISECOND)
        if call := stamp.get("call"):
            self.take_call(call)

    def take_call(self, call: Mapping[str, int]) -> None:
        """Read the moments of one model call."""
        if call["status"] != HTTPStatus.OK:
            self.failures.append(f"a model call was answered {call['status']}")
            return
        self.first_byte.append((call["request"] + call["first"]) / MILLISECOND)
        self.whole_call.append((call["request"] + call["last"]) / MILLISECOND)


class _Stream:
    """One session over as many calls as it takes.

    Not `ctl.session_stream`: a read that is measured goes without the tasks that a client makes of it.
    """

    def __init__(
        self,
        stub: sandbox_pb2_grpc.SandboxServiceAsyncStub,
        metadata: Sequence[tuple[str, str]],
        opening: stream_pb2.Open,
    ) -> None:
        self._stub, self._metadata, self._opening = stub, metadata, opening
        self._open_id = str(uuid.uuid4())
        self._call: grpc.aio.StreamStreamCall[stream_pb2.StreamRequest, stream_pb2.StreamResponse] | None = None

    async def write(self, request: stream_pb2.StreamRequest) -> None:
        """Write, on a new call where there is none; whatever is wrong with the call, the next read tells."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            if self._call is None:
                self._call = self._stub.Stream(metadata=tuple(self._metadata))
                await self._call.write(stream_pb2.StreamRequest(request_id=self._open_id, open=self._opening))
            await self._call.write(request)

    async def read(self) -> object:
        """Read the next answer; after an error there is no call any more."""
        assert self._call is not None
        try:
            event = await self._call.read()
        except grpc.aio.AioRpcError:
            self._call = None
            raise
        if isinstance(event, stream_pb2.StreamResponse):
            if event.HasField("stream_ready"):
                self._opening.session, self._open_id = event.stream_ready.session, ""
            if event.sequence:
                self._opening.after_sequence = event.sequence
        return event

    async def end(self) -> None:
        """Say that nothing more comes."""
        if self._call is not None:
            await self._call.done_writing()


class Client:
    """One client of the service, with a stub and the token of its caller."""

    def __init__(self, channel: grpc.aio.Channel, *, token: str) -> None:
        self._stub: sandbox_pb2_grpc.SandboxServiceAsyncStub = sandbox_pb2_grpc.SandboxServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def create(self, count: int) -> list[str]:
        """Create sandboxes, a few at a time, and return their names."""
        gate = asyncio.Semaphore(CREATE_AT_ONCE)

        async def one(number: int) -> str:
            async with gate:
                request = sandbox_pb2.CreateRequest(request_id=str(uuid.uuid4()))
                request.sandbox.model = MODEL
                request.sandbox.freelancer = f"bench-{number}-{uuid.uuid4().hex[:8]}"
                answer = await self._stub.Create(request, metadata=self._metadata, timeout=TURN_SECONDS)
                return answer.sandbox.name

        return list(await asyncio.gather(*map(one, range(count))))

    async def terminate(self, names: Sequence[str]) -> None:
        """End the sandboxes, a few at a time: each takes about a second, most of it waiting."""
        gate = asyncio.Semaphore(TERMINATE_AT_ONCE)

        async def one(name: str) -> None:
            async with gate:
                request = sandbox_pb2.TerminateRequest(request_id=str(uuid.uuid4()), name=name)
                await self._stub.Terminate(request, metadata=self._metadata, timeout=TURN_SECONDS)

        await asyncio.gather(*map(one, names))

    async def converse(
        self,
        sandbox: str,
        plan: Plan,
        *,
        turns: int,
        samples: Samples,
        ready: asyncio.Barrier,
        at_once: Samples | None = None,
        gate: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        """Open a session, take a turn that is not counted, wait for the others, and take the turns that are.

        Each stream for itself: its turns begin at random moments, as people's do. Then, where `at_once` is given and
        all are through, one more turn that everybody begins in the same instant. The first turn, for which the CLI is
        started, is taken within `gate`.
        """
        stream = _Stream(self._stub, self._metadata, stream_pb2.Open(sandbox=sandbox))
        async with gate or nullcontext():
            await self._turn(stream, Plan(chunks=1, interval=0, calls=0), warm_up := Samples())
        samples.resent += warm_up.resent
        samples.reopened += warm_up.reopened
        samples.failures += [f"in the turn before: {failure}" for failure in warm_up.failures]
        await ready.wait()
        # The first turns are spread over the length of one, or they would come in step.
        await asyncio.sleep(random.uniform(0, plan.seconds))
        for _ in range(turns):
            await asyncio.sleep(random.uniform(0, plan.seconds / 2))
            await self._turn(stream, plan, samples)
        await ready.wait()
        if at_once is not None:
            await ready.wait()
            await self._turn(stream, plan, at_once)
            await ready.wait()
        await stream.end()

    async def _turn(
        self,
        stream: _Stream,
        plan: Plan,
        samples: Samples,
    ) -> None:
        prompt = stream_pb2.StreamRequest(request_id=str(uuid.uuid4()), prompt=stream_pb2.Prompt(text=plan.prompt))
        await stream.write(prompt)
        text = ""
        async with asyncio.timeout(TURN_SECONDS):
            while True:
                try:
                    event = await stream.read()
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    # What every client does: open it again after the last event seen, and send what may be lost again.
                    samples.reopened += 1
                    await asyncio.sleep(RESEND_SECONDS)
                    await stream.write(prompt)
                    continue
                received = time.monotonic_ns()
                if not isinstance(event, stream_pb2.StreamResponse):
                    samples.failures.append("the stream ended in a turn")
                    return
                match event.WhichOneof("event"):
                    case "text":
                        *lines, text = (text + event.text.text).split("\n")
                        for line in lines:
                            samples.take(line, received)
                    case "turn_completed":
                        samples.turns += 1
                        if event.turn_completed.stop_reason != stream_pb2.STOP_REASON_END_TURN:
                            samples.failures.append(stream_pb2.StopReason.Name(event.turn_completed.stop_reason))
                        return
                    case "error":
                        samples.failures.append(event.error.message)
                    case "command_failed" if event.command_failed.reason.endswith("UNAVAILABLE"):
                        # What every client does: the same request again, which is done once.
                        samples.resent += 1
                        await asyncio.sleep(RESEND_SECONDS)
                        await stream.write(prompt)
                    case "command_failed":
                        raise RuntimeError(f"refused: {event.command_failed.message}")
                    case _:
                        pass

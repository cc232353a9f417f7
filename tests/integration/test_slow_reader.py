"""A client that reads one byte a second: it costs no memory, slows nobody, is ended, and comes back."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sandboxd.api.grpc.server import ServerLimits
from sandboxd.model.caller import Caller
from sandboxd.model.events import SessionEvent, Text
from sandboxd.model.ids import SandboxId
from sandboxd.stream.opening import Opening
from sandboxd.v1 import sandbox_pb2_grpc
from sandboxd.v1 import stream_pb2 as pb
from tests.eventually import eventually
from tests.fakes.api import MOMENT, FakeHandle, a_sandbox
from tests.integration.api_world import World, a_world

EVENT_BYTES = 64 << 10
EVENTS = 600
"""Together 38 MiB: far beyond what sockets and windows take."""
SOON = timedelta(seconds=1)


@dataclass(kw_only=True)
class SlowPipe:
    """A network that lets requests through, and answers one byte a second once it is told to."""

    port: int
    slow: bool = False
    listening: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        narrow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", self.port))
        up_reader, up_writer = await asyncio.open_connection(sock=narrow, limit=8192)
        self.tasks += [
            asyncio.create_task(self._forward(reader, up_writer)),
            asyncio.create_task(self._back(up_reader, writer)),
        ]

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 if self.slow else 4096):
                writer.write(data)
                await writer.drain()
                for _ in range(100):
                    if not self.slow:
                        break
                    await asyncio.sleep(0.01)
        writer.close()


@asynccontextmanager
async def slow_pipe(port: int) -> AsyncIterator[SlowPipe]:
    pipe = SlowPipe(port=port)
    server = await asyncio.start_server(pipe.serve, "127.0.0.1", 0)
    pipe.listening = server.sockets[0].getsockname()[1]
    try:
        yield pipe
    finally:
        server.close()
        for task in pipe.tasks:
            task.cancel()
        await asyncio.gather(*pipe.tasks, return_exceptions=True)


@dataclass(kw_only=True)
class Torrent:
    """A session with far more events than anybody takes at once, made as they are asked for."""

    made: int = 0

    def attach(self, world: World) -> None:
        torrent = self

        async def events(handle: FakeHandle) -> AsyncIterator[SessionEvent]:
            for sequence in range(handle._opening.after_sequence + 1, EVENTS + 1):
                torrent.made += 1
                body = Text(text="x" * EVENT_BYTES)
                yield SessionEvent(
                    session=handle.session.id, sequence=sequence, turn=None, event_time=MOMENT, body=body
                )
            await asyncio.Event().wait()

        made = world.hub.open

        async def opened(caller: Caller, opening: Opening) -> FakeHandle:
            handle = await made(caller, opening)
            handle.events = lambda: events(handle)  # type: ignore[method-assign]
            return handle

        world.hub.open = opened  # type: ignore[method-assign]


async def opened(channel: grpc.aio.Channel, world: World, *, session: str = "", after: int = 0) -> Any:
    call = sandbox_pb2_grpc.SandboxServiceStub(channel).Stream(metadata=world.metadata())
    opening = pb.Open(sandbox="sandboxes/sbx-1", session=session, after_sequence=after)
    await call.write(pb.StreamRequest(request_id="" if session else "open-0001", open=opening))
    return call


async def test_a_reader_of_one_byte_a_second_is_ended_and_comes_back(tmp_path: Path) -> None:
    torrent = Torrent()
    async with a_world(tmp_path, limits=ServerLimits(write_within=SOON, max_streams=2)) as world:
        world.manager.sandboxes[SandboxId("sbx-1")] = a_sandbox()
        torrent.attach(world)
        options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))
        async with (
            slow_pipe(world.port) as pipe,
            grpc.aio.insecure_channel(f"127.0.0.1:{pipe.listening}", options=options) as narrow,
        ):
            call = await opened(narrow, world)
            ready = (await call.read()).stream_ready
            last = (await call.read()).sequence
            pipe.slow = True

            await eventually(lambda: len(world.hub.left) == 1, within=30)

            assert world.hub.left[0][1], "its turn is not cancelled: it may come back"
            assert torrent.made < EVENTS // 2, "what it did not read is not made, and not kept"
            made = torrent.made
            await quick(world, session=ready.session)  # somebody else meanwhile, in the slots that it gave back
            torrent.made = made
            pipe.slow = False
            ended, status = await drained(call, last)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as wide:
                again = await opened(wide, world, session=ready.session, after=ended)
                rest = [await again.read() for _ in range(EVENTS - ended + 1)][1:]
                again.cancel()

    assert (status.code(), "read nothing" in (status.details() or "")) == (grpc.StatusCode.UNAVAILABLE, True)
    assert [event.sequence for event in rest] == list(range(ended + 1, EVENTS + 1))


async def drained(call: Any, last: int) -> tuple[int, grpc.aio.AioRpcError]:
    """Read what is still on its way; answers the last event and how the stream ended."""
    try:
        async with asyncio.timeout(20):
            while True:
                event = await call.read()
                assert event.sequence == last + 1
                last = event.sequence
    except grpc.aio.AioRpcError as error:
        return last, error


async def quick(world: World, *, session: str) -> None:
    """Another client's stream at full speed, while the slow one is in the way."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as channel:
        began = time.monotonic()
        calls = [await opened(channel, world, session=session, after=EVENTS - 50) for _ in range(2)]
        for call in calls:
            assert [(await call.read()).sequence for _ in range(51)][1:] == list(range(EVENTS - 49, EVENTS + 1))
            call.cancel()
        assert time.monotonic() - began < 10

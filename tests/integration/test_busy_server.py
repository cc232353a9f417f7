"""Calls end as CANCELLED where their caller cancelled them, and nowhere else: not for a busy server's sake either."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import grpc

from sandboxd.api.grpc.server import ServerLimits
from sandboxd.v1 import sandbox_pb2, sandbox_pb2_grpc
from sandboxd.v1 import stream_pb2 as pb
from tests.eventually import eventually
from tests.integration.api_world import World, a_world, refused

CALLS = 20
SANDBOX = "sandboxes/sbx-1"
BUSY = timedelta(seconds=2)


async def answers_of_a_busy_server(world: World) -> Counter[str]:
    """Make calls from another thread while the server's event loop stands still, and count how they ended."""
    found: Counter[str] = Counter()
    connected, standing = threading.Event(), threading.Event()

    def call() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{world.port}") as channel:
            method = sandbox_pb2_grpc.SandboxServiceStub(channel).List
            method(sandbox_pb2.ListRequest(), metadata=world.metadata(), timeout=60)
            connected.set()
            standing.wait()
            calls = [
                method.future(sandbox_pb2.ListRequest(), metadata=world.metadata(), timeout=60) for _ in range(CALLS)
            ]
            found.update(one.code().name for one in calls)

    caller = threading.Thread(target=call)
    caller.start()
    await eventually(connected.is_set)
    standing.set()
    time.sleep(BUSY.total_seconds())  # noqa: ASYNC251  the loop is what must stand still
    await asyncio.to_thread(caller.join)
    return found


async def test_calls_that_a_busy_server_takes_up_late_are_answered(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        assert await answers_of_a_busy_server(world) == {"OK": CALLS}


async def test_without_patience_grpc_cancels_calls_that_were_never_taken_up(tmp_path: Path) -> None:
    """The control: what 30 s, gRPC's own patience, did to one of 300 streams that began at once."""
    async with a_world(tmp_path, limits=ServerLimits(accept_within=BUSY / 2)) as world:
        assert (await answers_of_a_busy_server(world))["CANCELLED"] > 0


def test_patience_is_longer_than_any_crowd_takes() -> None:
    assert ServerLimits().accept_within > timedelta(minutes=10)


async def test_a_call_that_waited_for_cancelled_work_is_told_to_try_again(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.manager.failure = asyncio.CancelledError()

        error = await refused(
            world.sandboxes.Get(sandbox_pb2.GetRequest(name=SANDBOX), metadata=world.metadata(), timeout=10)
        )

        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


async def test_a_stream_that_waited_for_cancelled_work_is_told_to_come_again(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.manager.failure = asyncio.CancelledError()
        call = world.stream()
        await call.write(pb.StreamRequest(request_id="request-one", open=pb.Open(sandbox=SANDBOX)))

        async with asyncio.timeout(10):
            error = await refused(call)

        assert error.code is grpc.StatusCode.UNAVAILABLE

"""A real service whose PostgreSQL is silent, slow or away, and a real stack whose disk is full: told, bounded, back."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import grpc
import grpc.aio
import psutil
import pytest

from sandboxd.ctl.backoff import RetryPolicy
from sandboxd.ctl.client import ApiError
from sandboxd.dev.identity import DevIssuer
from sandboxd.persistence.engine import plain_url
from sandboxd.settings import load_settings
from sandboxd.v1 import sandbox_pb2 as pb
from sandboxd.v1 import sandbox_pb2_grpc, stream_pb2
from tests.e2e.service import Service
from tests.e2e.stack import Stack, Transcript
from tests.fake_gemini import FakeGemini
from tests.fault_proxy import FaultProxy, before_postgres, url_through
from tests.small_disk import small_disk

pytestmark = pytest.mark.timeout(400)

AT_ONCE = 60
DEADLINE = 4.0
"""What a caller gives a call, in seconds."""
POOL = 8
SLOW_AT_ONCE = 2 * POOL
"""Two rounds of the pool, with a few round trips each, stay within the five seconds that a call waits for a connection;
more than that is shed with UNAVAILABLE, as it should be."""
GROWN_BYTES = 40 << 20
ONCE = RetryPolicy(budget=timedelta(0))
"""A caller who takes the first answer; a patient one asks again for a minute."""
AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


@asynccontextmanager
async def stub_of(service: Service) -> AsyncIterator[tuple[Any, tuple[tuple[str, str]]]]:  # Any: gRPC's stubs
    token = DevIssuer.open(load_settings(data_dir=service.data)).mint(
        client="acme", subject="platform", role="platform", seconds=3600
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        yield sandbox_pb2_grpc.SandboxServiceStub(channel), (("authorization", f"Bearer {token}"),)


async def ended(call: Awaitable[object]) -> tuple[grpc.StatusCode, float]:
    began = time.monotonic()
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), time.monotonic() - began
    return grpc.StatusCode.OK, time.monotonic() - began


async def page(service: Service, name: str) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{service.web_port}/{name}"
    async with aiohttp.ClientSession() as http, http.get(url, timeout=aiohttp.ClientTimeout(total=15)) as answer:
        return answer.status, json.loads(await answer.read())


async def test_a_database_that_is_away_is_an_outage_that_ends_with_it(tmp_path: Path, postgres_url: str) -> None:
    proxy = before_postgres(postgres_url)
    async with proxy.running():
        service = Service(data=tmp_path, database_url=url_through(proxy, postgres_url))
        try:
            async with service.client() as client:
                await service.start(settings={"SANDBOXD_DATABASE_POOL_SIZE": str(POOL)})
                await service.wait_ready()
                first = await client.create(display_name="before", freelancer="first")
            await weather(service, proxy, first.name)
            await nothing_is_lost(service, postgres_url)
        finally:
            proxy.silent = proxy.refusing = False
            await service.end()


async def weather(service: Service, proxy: FaultProxy, sandbox: str) -> None:
    """One kind of weather after the other; in each of them, many calls at once."""
    assert service._process is not None
    process = psutil.Process(service._process.pid)
    memory = process.memory_info().rss

    def silent(*, on: bool) -> None:
        proxy.silent = on

    def refusing(*, on: bool) -> None:
        proxy.refusing = on
        if on:
            proxy.cut()

    kinds: dict[str, Callable[..., None]] = {"silent": silent, "refusing": refusing}
    async with stub_of(service) as (stub, metadata):
        for name, switch in kinds.items():
            switch(on=True)
            calls = [
                ended(stub.Get(pb.GetRequest(name=sandbox), metadata=metadata, timeout=DEADLINE))
                for _ in range(AT_ONCE)
            ]
            request = pb.CreateRequest(
                request_id=f"create-{name}-0001", sandbox=pb.Sandbox(display_name=name, freelancer=name)
            )
            calls.append(ended(stub.Create(request, metadata=metadata, timeout=DEADLINE)))
            found = await asyncio.gather(*calls)
            ready, body = await page(service, "readyz")
            alive, _ = await page(service, "healthz")
            switch(on=False)

            codes = Counter(code for code, _ in found)
            assert set(codes) <= AWAY, (name, codes)
            assert codes[grpc.StatusCode.UNAVAILABLE] > 0 or name == "silent", (name, codes)
            assert max(seconds for _, seconds in found) < DEADLINE + 5, name
            assert (ready, body["checks"]["database"], alive) == (503, False, 200), name
            await service.wait_ready()
            answer = await stub.Create(request, metadata=metadata, timeout=60)  # the same request: the same sandbox
            assert answer.sandbox.state == pb.SANDBOX_STATE_ACTIVE
            assert await ended(stub.Get(pb.GetRequest(name=sandbox), metadata=metadata, timeout=60)) >= ()

        proxy.latency = 0.15  # 300 ms for every round trip
        slow = await asyncio.gather(
            *(ended(stub.Get(pb.GetRequest(name=sandbox), metadata=metadata, timeout=60)) for _ in range(SLOW_AT_ONCE))
        )
        proxy.latency = 0
        assert {code for code, _ in slow} == {grpc.StatusCode.OK}, "slow is not away"
        assert max(seconds for _, seconds in slow) < 40
    assert process.memory_info().rss - memory < GROWN_BYTES


async def nothing_is_lost(service: Service, postgres_url: str) -> None:
    """Each acknowledged sandbox is there once, and the server's connections stay bounded."""
    async with service.client() as client:
        names = Counter([sandbox.display_name async for sandbox in client.sandboxes()])
    connection = await asyncpg.connect(plain_url(postgres_url), timeout=10)
    try:
        open_ = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    finally:
        await connection.close()

    assert names == {"before": 1, "silent": 1, "refusing": 1}
    assert open_ <= POOL + 5 + 1 + 4, "the pool, its overflow, the presence, and what the server has yet to notice"


async def test_a_full_disk_under_everything_ends_turns_with_an_error_and_room_makes_it_work_again(
    postgres_url: str,
) -> None:
    """The sandboxes' homes, the agents' spools, the services' logs and the gateway's spool, all on one full disk."""
    mount = Path(tempfile.mkdtemp(prefix="sandboxd-full-"))
    try:
        with small_disk(mount, megabytes=64) as disk, FakeGemini() as model:
            stack = Stack(home=disk.path, database_url=postgres_url, model=model)
            try:
                await asyncio.gather(stack.start("gateway"), stack.start("serve"))
                async with stack.client() as client:
                    sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo", freelancer="one")
                    async with client.stream(sandbox.name) as stream:
                        seen = Transcript(stream=stream)
                        await seen.turn("fake:say(text=before)")

                        disk.fill()
                        writing = await seen.turn("fake:write(path=big.txt; content=" + "x" * 200_000 + ")")
                        async with stack.client(retry=ONCE) as impatient:
                            with pytest.raises(ApiError) as refused:
                                await impatient.create(model="gemini-2.5-flash", freelancer="two", timeout=60)
                        still = await client.get(sandbox.name)
                        disk.make_room()

                        again = await seen.turn("fake:write(path=small.txt; content=fits)")
                        said = await seen.turn("fake:shell(cmd=cat small.txt)")
                    made = await client.create(model="gemini-2.5-flash", freelancer="three")
                    rows = await stack.ledger(client, sandbox.name)
            finally:
                disk.make_room()
                await stack.stop()
    finally:
        shutil.rmtree(mount, ignore_errors=True)

    seen.assert_whole()
    assert writing.stop_reason != stream_pb2.STOP_REASON_UNSPECIFIED
    assert "ENOSPC" in seen_text(seen) or "space" in seen_text(seen) or "error" in seen_text(seen).lower()
    assert refused.value.code.name in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}, refused.value
    assert still.state == pb.SANDBOX_STATE_ACTIVE
    assert again.stop_reason == said.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert "fits" in seen_text(seen)
    assert made.state == pb.SANDBOX_STATE_ACTIVE
    assert len(rows) == len(model.requests)


def seen_text(seen: Transcript) -> str:
    return " ".join(str(event) for event in seen.events)

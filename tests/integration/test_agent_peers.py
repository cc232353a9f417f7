"""Who may speak to an agent, and what happens to whoever may not."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.agent.v1 import agent_pb2_grpc
from sandboxd.model.errors import AgentUnavailableError, UnavailableError
from sandboxd.model.processes import OutputStream, ProcessId, ProcessSpec
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.stream.agent_port import PeerRefusedError
from tests.contract.agent_process import AGENT_NAME, SERVICE_NAME, AgentProcess, Authority, Identity, start_agent

SHORT = timedelta(seconds=5)


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    running = await start_agent(tmp_path)
    yield running
    await running.end()


async def _describe(process: AgentProcess, identity: Identity, authority: bytes, name: str = AGENT_NAME) -> str:
    connector = GrpcAgentConnector(certificate=identity.certificate, key=identity.key, agent_authority=authority)
    client = await connector.connect(AgentEndpoint(host="127.0.0.1", port=process.port, server_name=name))
    try:
        return (await client.describe(timeout=SHORT)).incarnation
    finally:
        await client.close()


async def test_the_service_is_let_in(process: AgentProcess) -> None:
    assert await _describe(process, process.service, process.authority.certificate) == "inc-test"


async def test_a_valid_certificate_of_another_name_is_refused(process: AgentProcess) -> None:
    for name in ("inc-other.agent.sandboxd.internal", f"x.{SERVICE_NAME}", "gateway.sandboxd.internal"):
        with pytest.raises(PeerRefusedError):
            await _describe(process, process.authority.issue(name), process.authority.certificate)


async def test_a_refused_peer_can_do_nothing_at_all(process: AgentProcess) -> None:
    stranger = process.authority.issue("stranger.sandboxd.internal")
    connector = GrpcAgentConnector(
        certificate=stranger.certificate, key=stranger.key, agent_authority=process.authority.certificate
    )
    client = await connector.connect(process.endpoint)

    with pytest.raises(PeerRefusedError):
        await client.start_process(ProcessId("prc-1"), ProcessSpec(argv=["touch", "evil"]))
    with pytest.raises(PeerRefusedError):
        async for _ in client.attach(ProcessId("prc-1"), epoch=9, positions={OutputStream.STDOUT: 0}):
            pass

    await client.close()
    assert list(process.workspace.iterdir()) == []


async def test_another_authoritys_certificate_is_refused_even_with_the_right_name(process: AgentProcess) -> None:
    with pytest.raises(UnavailableError):
        await _describe(process, Authority().issue(SERVICE_NAME), process.authority.certificate)


async def test_the_client_refuses_an_agent_of_another_name_or_authority(process: AgentProcess) -> None:
    with pytest.raises(AgentUnavailableError):
        await _describe(process, process.service, process.authority.certificate, "inc-other.agent.sandboxd.internal")
    with pytest.raises(AgentUnavailableError):
        await _describe(process, process.service, Authority().certificate)


async def test_a_caller_without_a_certificate_is_refused(process: AgentProcess) -> None:
    context = ssl.create_default_context(cadata=process.authority.certificate.decode())
    context.set_alpn_protocols(["h2"])

    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):  # noqa: PT012 - either may tell
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", process.port, ssl=context, server_hostname=AGENT_NAME
        )
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        await asyncio.wait_for(reader.readexactly(1 << 16), 5)


async def test_a_plain_caller_is_refused(process: AgentProcess) -> None:
    async with grpc.aio.insecure_channel(process.address) as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetAgent(pb.GetAgentRequest(), timeout=3)

    assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_garbage_on_the_port_harms_nobody(process: AgentProcess) -> None:
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + os.urandom(4096), bytes(1 << 18)):
        for _ in range(10):
            with contextlib.suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", process.port)
                writer.write(garbage)
                await writer.drain()
                writer.close()

    assert await _describe(process, process.service, process.authority.certificate) == "inc-test"
    assert process.resident_bytes < 60_000_000


async def test_a_lost_agent_is_told_as_such(process: AgentProcess) -> None:
    client = await process.connector.connect(process.endpoint)
    await client.start_process(ProcessId("prc-1"), ProcessSpec(argv=["sleep", "1000"]))

    async def follow() -> None:
        async for _ in client.attach(ProcessId("prc-1"), epoch=1, positions={OutputStream.STDOUT: 0}):
            pass

    following = asyncio.create_task(follow())
    await client.write(ProcessId("prc-1"), epoch=1, offset=0, data=b"x")
    process.process.kill()

    with pytest.raises(AgentUnavailableError):
        await asyncio.wait_for(following, 10)
    with pytest.raises(AgentUnavailableError):
        await client.describe(timeout=SHORT)
    await client.close()
    with pytest.raises(AgentUnavailableError):
        await client.describe(timeout=SHORT)


async def test_configuration_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="unknown names: nonsense"):
        await start_agent(tmp_path / "a", nonsense=1)
    with pytest.raises(RuntimeError, match="absolute path"):
        await start_agent(tmp_path / "b", home="relative")
    with pytest.raises(RuntimeError, match="cannot listen"):
        await start_agent(tmp_path / "c", listen="192.0.2.1:1")

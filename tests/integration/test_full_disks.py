"""A disk that is full under a sandbox or under the gateway: it is told, nothing hangs, and room makes it work again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.agent.rootfs_client import GrpcRootfsCapture
from sandboxd.model.processes import OutputChunk, OutputExited, OutputStream, ProcessId, ProcessSpec, Root
from sandboxd.model.rootfs import BaselineEntry
from sandboxd.model.usage import CallError, UsageState
from sandboxd.stream.agent_port import Agent, DiskFullError
from tests.contract.agent_process import AgentProcess, start_agent
from tests.contract.test_rootfs_capture import INCARNATION, SANDBOX, Running
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.gateway_world import CANARY, GatewayWorld, config_for
from tests.integration.test_agent_copies import _file, _tar
from tests.rootfs_trees import baseline_of, read
from tests.small_disk import SmallDisk, small_disk

OUT = OutputStream.STDOUT
QUICK = timedelta(seconds=10)
LINES = 120_000


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[SmallDisk]:
    with small_disk(tmp_path / "disk", megabytes=4) as made:
        yield made


@pytest.fixture
async def process(tmp_path: Path, disk: SmallDisk) -> AsyncIterator[AgentProcess]:
    """An agent whose spools and workspace lie on the small disk."""
    running = await start_agent(
        tmp_path / "agent", spool_directory=str(disk.path / "spools"), workspace=str(disk.path / "workspace")
    )
    yield running
    await running.end()


@pytest.fixture
async def agent(process: AgentProcess) -> AsyncIterator[Agent]:
    client = await process.connector.connect(process.endpoint)
    yield client
    await client.close()


async def whole(agent: Agent, process_id: ProcessId) -> tuple[bytes, OutputExited]:
    """All output until the exit; acknowledged as it comes, as the service does."""
    data = b""
    async with (
        asyncio.timeout(60),
        contextlib.aclosing(agent.attach(process_id, epoch=1, positions={OUT: 0})) as outputs,
    ):
        async for output in outputs:
            if isinstance(output, OutputExited):
                return data, output
            assert isinstance(output, OutputChunk), output
            data += output.data
            await agent.ack_output(process_id, epoch=1, stream=OUT, offset=len(data), timeout=QUICK)
    raise AssertionError("the output ended without an exit")


async def test_output_that_the_spools_disk_does_not_take_waits_and_none_of_it_is_lost(
    agent: Agent, process: AgentProcess, disk: SmallDisk
) -> None:
    flood = ProcessId("flood")
    disk.fill()
    await agent.start_process(flood, ProcessSpec(argv=["seq", "1", str(LINES)]))

    def stalled() -> bool:
        return "output.spool_refused" in (process.directory / "agent.log").read_text()

    await eventually(stalled, within=10)
    meanwhile = await agent.get_process(flood, timeout=QUICK)  # the agent answers all the same
    await agent.describe(timeout=QUICK)
    disk.make_room()
    data, end = await whole(agent, flood)

    assert meanwhile.exit is None, "the process waits; its output was not thrown away"
    assert data == b"".join(b"%d\n" % number for number in range(1, LINES + 1))
    assert end.exit.exit_code == 0


async def test_a_full_workspace_is_told_to_whoever_writes_and_works_again_with_room(
    agent: Agent, process: AgentProcess, disk: SmallDisk
) -> None:
    async def write(name: str) -> tuple[bytes, int]:
        script = f"head -c 1000000 /dev/zero > {name}.bin 2>&1 && echo written || {{ rm -f {name}.bin; exit 7; }}"
        await agent.start_process(ProcessId(name), ProcessSpec(argv=["sh", "-c", f"({script}) 2>&1"]))
        data, end = await whole(agent, ProcessId(name))
        return data, end.exit.exit_code

    async def copy() -> None:
        async def archive() -> AsyncIterator[bytes]:
            yield _tar(_file("copied.bin", b"x" * 1_000_000))

        await agent.copy_in(Root.WORKSPACE, ".", archive(), max_bytes=10 << 20, timeout=QUICK)

    disk.fill(leave=200_000)
    _, refused = await write("full")
    with pytest.raises(DiskFullError):
        await copy()
    disk.make_room()
    said, done = await write("room")
    await copy()

    assert refused == 7
    assert (said, done) == (b"written\n", 0)
    assert (disk.path / "workspace" / "copied.bin").stat().st_size == 1_000_000


async def test_a_root_file_system_without_a_free_byte_is_captured_whole(tmp_path: Path, disk: SmallDisk) -> None:
    root = disk.path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    baseline = baseline_of(root)
    running = await start_agent(tmp_path / "agent", capture_root=str(root), spool_directory=str(disk.path / "spools"))
    (root / "new").write_bytes(b"new" * 1000)
    disk.fill()

    async def base() -> AsyncIterator[BaselineEntry]:
        for entry in baseline:
            yield entry

    capture = GrpcRootfsCapture(backend=Running(running.endpoint), connector=running.connector)
    frames = capture.capture(SANDBOX, INCARNATION, base(), previous=(), exclude=(), timeout=timedelta(seconds=30))
    try:
        found = read([frame async for frame in frames])
    finally:
        await running.end()

    assert disk.free == 0
    assert found.contents == {b"new": b"new" * 1000}
    assert found.deleted == []


async def test_a_settlement_that_the_gateways_disk_does_not_take_is_kept_until_the_ledger_does(tmp_path: Path) -> None:
    with FakeGemini(key=CANARY) as fake, small_disk(tmp_path / "disk", megabytes=1) as disk:
        world = GatewayWorld(fake=fake, config=config_for(fake, disk.path))
        async with world.running():
            async with world.request("fake:gated") as answer:
                await answer.content.readuntil(b"\r\n\r\n")
                disk.fill()
                world.ledger.down = True
                fake.gate.set()
                await asyncio.wait_for(answer.read(), 20)
            in_between = world.rows[0].state
            on_disk = [path for path in world.config.spool_directory.rglob("*.settlement") if path.stat().st_size]
            world.ledger.down = False
            row = await world.settled()

    assert disk.path.exists()
    assert (in_between, on_disk) == (UsageState.OPEN, [])
    assert (row.state, row.tokens.total) == (UsageState.SETTLED, 114)


async def test_what_a_stopping_gateway_can_keep_nowhere_is_said_and_ended_by_the_next_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeGemini(key=CANARY) as fake, small_disk(tmp_path / "disk", megabytes=1) as disk:
        world = GatewayWorld(fake=fake, config=config_for(fake, disk.path, dead_after_seconds=0.3))
        async with world.running(), world.request("fake:gated") as answer:
            await answer.content.readuntil(b"\r\n\r\n")
            disk.fill()
            world.ledger.down = True
            fake.gate.set()
            await asyncio.wait_for(answer.read(), 20)
        disk.make_room()
        world.ledger.down = False
        state_between = world.rows[0].state
        async with world.running():
            row = await world.settled()

    assert "gateway.settlement_not_saved" in capsys.readouterr().out
    assert state_between is UsageState.OPEN
    assert (row.state, row.error_reason) == (UsageState.ESTIMATED, CallError.GATEWAY_LOST)
    assert row.tokens.total >= row.reserved.tokens, "unknown is not nothing"

"""The CLI's process as its owner sees it: how seldom committed output is acknowledged, and that it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from typing_extensions import override

from sandboxd.model.ids import IncarnationId
from sandboxd.model.processes import OutputState, OutputStream, ProcessId, ProcessSpec
from sandboxd.stream.cli_process import ACK_BYTES, CliProcess
from sandboxd.stream.reports import Output, Report
from tests.eventually import eventually
from tests.fakes.agent import FakeAgent, FakeIo
from tests.fakes.journal import FakeJournal, FakeStore
from tests.stream_world import SANDBOX, FakeSandboxes, StreamWorld

PROCESS = ProcessId("cli-1")
CHUNK = 1024
NEVER = timedelta(hours=1)


class CountingAgent(FakeAgent):
    """Remembers the offsets that were acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged: list[int] = []

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
        self.acknowledged.append(offset)
        return await super().ack_output(process_id, epoch=epoch, stream=stream, offset=offset)


@asynccontextmanager
async def followed(agent: CountingAgent, *, chunks: int, ack_after: timedelta) -> AsyncIterator[list[int]]:
    """A process that writes so many chunks and stays; each is committed as it comes. Gives the committed offsets."""

    async def program(io: FakeIo) -> int:
        for _ in range(chunks):
            await io.write(b"x" * CHUNK)
        await asyncio.Event().wait()
        return 0

    agent.programs["gemini"] = program
    await agent.start_process(PROCESS, ProcessSpec(argv=["gemini"]))
    committed: list[int] = []
    sandboxes: FakeSandboxes = StreamWorld().sandboxes

    async def put(report: Report) -> None:
        if isinstance(report, Output):
            committed.append((committed[-1] if committed else 0) + len(report.data))
            cli.committed(committed[-1])
            await asyncio.sleep(0)

    cli = CliProcess(
        agent,
        sandbox=SANDBOX,
        incarnation=IncarnationId("inc-1"),
        process=PROCESS,
        epoch=1,
        consumed=0,
        journal=FakeJournal(store=FakeStore(), dead=set()),
        sandboxes=sandboxes,
        put=put,
        ack_after=ack_after,
    )
    running = asyncio.create_task(cli.run())
    await eventually(lambda: committed and committed[-1] == chunks * CHUNK)
    try:
        yield committed
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_output_is_not_acknowledged_chunk_by_chunk() -> None:
    agent = CountingAgent()
    async with followed(agent, chunks=100, ack_after=NEVER):
        await asyncio.sleep(0)

        assert agent.acknowledged == []


async def test_much_output_is_acknowledged_at_once() -> None:
    agent = CountingAgent()
    enough = 2 * ACK_BYTES // CHUNK
    async with followed(agent, chunks=enough, ack_after=NEVER):
        await eventually(lambda: agent.acknowledged)

    assert agent.acknowledged[0] >= ACK_BYTES
    assert len(agent.acknowledged) <= 2


async def test_little_output_is_acknowledged_after_a_while_and_once() -> None:
    agent = CountingAgent()
    async with followed(agent, chunks=3, ack_after=timedelta(milliseconds=20)):
        await eventually(lambda: agent.acknowledged == [3 * CHUNK])
        await asyncio.sleep(0.1)  # that something does not happen can only be waited for

        assert agent.acknowledged == [3 * CHUNK]


async def test_an_acknowledgement_that_was_not_answered_is_repeated() -> None:
    agent = CountingAgent()
    async with followed(agent, chunks=3, ack_after=timedelta(milliseconds=20)):
        agent.dead = True
        await eventually(lambda: agent.acknowledged)
        agent.dead = False

        await eventually(lambda: agent.processes[PROCESS].streams[OutputStream.STDOUT].acknowledged == 3 * CHUNK)

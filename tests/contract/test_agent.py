"""What an agent promises to the middle: the same suite for the fake and for a real agent process over mutual TLS."""

import asyncio
import contextlib
import io
import random
import signal
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.model.errors import AgentUnavailableError, DeadlineError, InvalidRequestError
from sandboxd.model.processes import (
    CopyResult,
    Output,
    OutputChunk,
    OutputExited,
    OutputGap,
    OutputStream,
    ProcessId,
    ProcessSpec,
    Root,
    SignalScope,
    Spool,
    SpoolPolicy,
    TerminalSize,
)
from sandboxd.stream.agent_port import (
    Agent,
    AgentFrozenError,
    NoTerminalError,
    OutputBeyondEndError,
    PathNotFoundError,
    ProcessExitedError,
    ProcessNotFoundError,
    ProcessRunningError,
    ProcessSpecDiffersError,
    ProcessStartError,
    StaleEpochError,
    StdinClosedError,
    StdinGapError,
)
from tests.contract.agent_process import start_agent
from tests.eventually import eventually
from tests.fakes.agent import FakeAgent, FakeIo

OUT = OutputStream.STDOUT
PROCESS = ProcessId("prc-1")
CAT = ProcessSpec(argv=["cat"])
SLEEP = ProcessSpec(argv=["sleep", "1000"])
PATIENCE = timedelta(seconds=20)


@dataclass(slots=True, kw_only=True)
class Subject:
    """The agent under test."""

    agent: Agent
    real: bool


async def _cat(io: FakeIo) -> int:
    while data := await io.read():
        await io.write(data)
    return 0


async def _sleep(io: FakeIo) -> int:
    await asyncio.sleep(float(io.spec.argv[1]))
    return 0


async def _seq(io: FakeIo) -> int:
    await io.write("".join(f"{number}\n" for number in range(1, int(io.spec.argv[1]) + 1)).encode())
    return 0


async def _false(_: FakeIo) -> int:
    return 1


@pytest.fixture(params=["fake", "real"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    if request.param == "fake":
        fake = FakeAgent()
        fake.programs |= {"cat": _cat, "sleep": _sleep, "seq": _seq, "false": _false}
        yield Subject(agent=fake, real=False)
        if not fake.dead:
            fake.die()
        return
    process = await start_agent(tmp_path)
    client = await process.connector.connect(process.endpoint)
    yield Subject(agent=client, real=True)
    await client.close()
    await process.end()


@pytest.fixture
def agent(subject: Subject) -> Agent:
    return subject.agent


async def _take(agent: Agent, *, epoch: int = 1, offset: int = 0, process: ProcessId = PROCESS) -> list[Output]:
    """Attach until the end."""
    async with (
        asyncio.timeout(20),
        contextlib.aclosing(agent.attach(process, epoch=epoch, positions={OUT: offset})) as outputs,
    ):
        return [output async for output in outputs]


async def _read(agent: Agent, size: int, *, epoch: int = 1, offset: int = 0) -> bytes:
    """Attach until that many bytes came."""
    data = b""
    async with (
        asyncio.timeout(20),
        contextlib.aclosing(agent.attach(PROCESS, epoch=epoch, positions={OUT: offset})) as outputs,
    ):
        async for output in outputs:
            assert isinstance(output, OutputChunk), output
            assert output.offset == offset + len(data)
            data += output.data
            if len(data) >= size:
                break
    return data


def _joined(outputs: list[Output]) -> bytes:
    return b"".join(output.data for output in outputs if isinstance(output, OutputChunk))


async def test_it_says_who_it_is(agent: Agent) -> None:
    description = await agent.describe()

    assert (description.sandbox, description.incarnation) == ("sbx-test", "inc-test")
    assert description.api_level >= 1
    assert not description.frozen


async def test_starting_the_same_process_again_finds_the_first(agent: Agent) -> None:
    first = await agent.start_process(PROCESS, CAT)

    again = await agent.start_process(PROCESS, CAT)

    assert (again.pid, again.start_time) == (first.pid, first.start_time)
    assert len(await agent.list_processes()) == 1


async def test_a_process_id_is_refused_for_another_specification(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)

    with pytest.raises(ProcessSpecDiffersError):
        await agent.start_process(PROCESS, SLEEP)


async def test_starting_an_exited_process_again_does_not_run_it_twice(agent: Agent) -> None:
    await agent.start_process(PROCESS, ProcessSpec(argv=["false"]))
    exited = await agent.wait_process(PROCESS, timeout=PATIENCE)

    again = await agent.start_process(PROCESS, ProcessSpec(argv=["false"]))

    assert again.exit == exited.exit
    assert again.exit is not None
    assert again.exit.exit_code == 1


async def test_a_program_that_does_not_exist_is_refused_and_leaves_nothing(agent: Agent) -> None:
    with pytest.raises(ProcessStartError):
        await agent.start_process(PROCESS, ProcessSpec(argv=["no-such-program"]))

    assert await agent.list_processes() == ()


async def test_a_process_that_was_not_started_is_not_found(agent: Agent) -> None:
    with pytest.raises(ProcessNotFoundError):
        await agent.get_process(PROCESS)
    with pytest.raises(ProcessNotFoundError):
        await agent.write(PROCESS, epoch=1, offset=0, data=b"x")
    with pytest.raises(ProcessNotFoundError):
        await _take(agent)


async def test_output_ends_with_how_the_process_ended(agent: Agent) -> None:
    await agent.start_process(PROCESS, ProcessSpec(argv=["seq", "3"]))

    outputs = await _take(agent)

    assert _joined(outputs) == b"1\n2\n3\n"
    end = outputs[-1]
    assert isinstance(end, OutputExited)
    assert (end.exit.exit_code, end.exit.signal, end.stdout_end_offset) == (0, 0, 6)


async def test_output_can_be_read_again_from_any_offset(agent: Agent) -> None:
    await agent.start_process(PROCESS, ProcessSpec(argv=["seq", "20"]))
    whole = _joined(await _take(agent))

    for offset in range(len(whole) + 1):
        assert _joined(await _take(agent, offset=offset)) == whole[offset:]


async def test_an_offset_above_the_end_is_refused_with_the_end(agent: Agent) -> None:
    await agent.start_process(PROCESS, ProcessSpec(argv=["seq", "3"]))
    await _take(agent)

    with pytest.raises(OutputBeyondEndError) as refused:
        await _take(agent, offset=7)

    assert refused.value.end_offset == 6


async def test_input_reaches_the_process_once_however_often_it_is_sent(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)
    dice = random.Random(7)
    text = bytes(dice.randrange(256) for _ in range(20_000))
    length = 0

    while length < len(text):
        begin = dice.randrange(max(0, length - 300), length + 1)
        end = min(len(text), begin + dice.randrange(600))
        length = await agent.write(PROCESS, epoch=1, offset=begin, data=text[begin:end])
        assert length >= end
    await agent.write(PROCESS, epoch=1, offset=0, data=text, close_stdin=True)

    assert _joined(await _take(agent)) == text


async def test_writes_of_the_same_bytes_at_the_same_time_count_once(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)
    text = bytes(range(256)) * 8192

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(agent.write(PROCESS, epoch=1, offset=0, data=text, timeout=PATIENCE))
        received = group.create_task(_read(agent, len(text)))

    assert received.result() == text
    assert (await agent.get_process(PROCESS)).stdin_length == len(text)


async def test_a_gap_in_the_input_is_refused_with_the_present_length(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)
    await agent.write(PROCESS, epoch=1, offset=0, data=b"abc")

    with pytest.raises(StdinGapError) as refused:
        await agent.write(PROCESS, epoch=1, offset=4, data=b"e")

    assert refused.value.stdin_length == 3


async def test_closed_input_takes_repeated_bytes_but_no_new_ones(agent: Agent) -> None:
    await agent.start_process(PROCESS, ProcessSpec(argv=["sleep", "1000"]))
    await agent.write(PROCESS, epoch=1, offset=0, data=b"abc", close_stdin=True)

    assert await agent.write(PROCESS, epoch=1, offset=0, data=b"abc", close_stdin=True) == 3
    assert await agent.write(PROCESS, epoch=1, offset=1, data=b"bc") == 3
    with pytest.raises(StdinClosedError):
        await agent.write(PROCESS, epoch=1, offset=3, data=b"d")


async def test_a_write_repeated_after_the_process_has_ended_succeeds_only_without_new_bytes(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)
    await agent.write(PROCESS, epoch=1, offset=0, data=b"abc", close_stdin=True)
    await agent.wait_process(PROCESS, timeout=PATIENCE)

    assert await agent.write(PROCESS, epoch=1, offset=0, data=b"abc", close_stdin=True) == 3
    with pytest.raises(ProcessExitedError):
        await agent.write(PROCESS, epoch=1, offset=3, data=b"d")


async def test_a_write_to_a_process_that_does_not_read_ends_at_its_deadline_and_can_be_repeated(agent: Agent) -> None:
    await agent.start_process(PROCESS, SLEEP)
    text = bytes(8 << 20)

    with pytest.raises(DeadlineError):
        await agent.write(PROCESS, epoch=1, offset=0, data=text, timeout=timedelta(seconds=0.5))

    length = (await agent.get_process(PROCESS)).stdin_length
    assert 0 < length < len(text)
    assert await agent.write(PROCESS, epoch=1, offset=0, data=text[:length]) == length


async def test_a_full_spool_blocks_the_process_until_its_output_is_acknowledged(agent: Agent) -> None:
    spool = Spool(max_bytes=4096, policy=SpoolPolicy.BLOCK)
    await agent.start_process(PROCESS, replace(CAT, argv=["seq", "100000"], stdout_spool=spool))
    expected = "".join(f"{number}\n" for number in range(1, 100_001)).encode()

    async def blocked() -> bool:
        return (await agent.get_process(PROCESS)).stdout.blocked

    await eventually(blocked)
    before = await agent.get_process(PROCESS)
    received = b""
    async with asyncio.timeout(30), contextlib.aclosing(agent.attach(PROCESS, epoch=1, positions={OUT: 0})) as outputs:
        async for output in outputs:
            if isinstance(output, OutputExited):
                break
            assert isinstance(output, OutputChunk), output
            received += output.data
            await agent.ack_output(PROCESS, epoch=1, stream=OUT, offset=len(received))

    assert before.running
    assert before.stdout.end_offset == 4096
    assert received == expected


async def test_a_spool_that_drops_tells_what_is_missing(agent: Agent) -> None:
    spool = Spool(max_bytes=4096, policy=SpoolPolicy.DROP_OLDEST)
    await agent.start_process(PROCESS, replace(CAT, argv=["seq", "100000"], stdout_spool=spool))
    await agent.wait_process(PROCESS, timeout=PATIENCE)
    whole = "".join(f"{number}\n" for number in range(1, 100_001)).encode()

    async def complete() -> bool:
        return (await agent.get_process(PROCESS)).stdout.complete

    await eventually(complete)
    outputs = await _take(agent)

    assert outputs[0] == OutputGap(stream=OUT, from_offset=0, to_offset=len(whole) - 4096)
    assert _joined(outputs) == whole[-4096:]


async def test_acknowledged_output_is_reported_missing(agent: Agent) -> None:
    await agent.start_process(PROCESS, ProcessSpec(argv=["seq", "3"]))
    await _take(agent)

    state = await agent.ack_output(PROCESS, epoch=1, stream=OUT, offset=4)
    again = await agent.ack_output(PROCESS, epoch=1, stream=OUT, offset=2)
    outputs = await _take(agent)

    assert (state.start_offset, again.acknowledged_offset) == (4, 4)
    assert outputs[0] == OutputGap(stream=OUT, from_offset=0, to_offset=4)
    assert _joined(outputs) == b"3\n"


async def test_acknowledging_above_the_end_is_refused(agent: Agent) -> None:
    await agent.start_process(PROCESS, SLEEP)

    with pytest.raises(OutputBeyondEndError):
        await agent.ack_output(PROCESS, epoch=1, stream=OUT, offset=1)


async def test_a_lower_epoch_is_refused_with_the_highest(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)
    await agent.write(PROCESS, epoch=5, offset=0, data=b"abc")

    with pytest.raises(StaleEpochError) as refused:
        await agent.write(PROCESS, epoch=4, offset=3, data=b"d")
    with pytest.raises(StaleEpochError):
        await _take(agent, epoch=4)
    with pytest.raises(StaleEpochError):
        await agent.ack_output(PROCESS, epoch=4, stream=OUT, offset=0)

    assert refused.value.highest_epoch == 5
    assert (await agent.get_process(PROCESS)).stdin_length == 3


async def test_an_epoch_starts_at_one(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)

    with pytest.raises(InvalidRequestError):
        await agent.write(PROCESS, epoch=0, offset=0, data=b"abc")


async def test_a_higher_epoch_ends_the_attaches_below_it_at_once(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)
    await agent.write(PROCESS, epoch=1, offset=0, data=b"abc")
    attached = asyncio.Event()

    async def follow() -> None:
        async with contextlib.aclosing(agent.attach(PROCESS, epoch=1, positions={OUT: 0})) as outputs:
            async for _ in outputs:
                attached.set()

    old = asyncio.create_task(follow())
    await asyncio.wait_for(attached.wait(), 10)
    await agent.write(PROCESS, epoch=2, offset=3, data=b"")

    with pytest.raises(StaleEpochError):
        await asyncio.wait_for(old, 5)


async def test_a_higher_epoch_ends_a_write_that_waits(agent: Agent) -> None:
    await agent.start_process(PROCESS, SLEEP)
    waiting = asyncio.create_task(agent.write(PROCESS, epoch=1, offset=0, data=bytes(8 << 20), timeout=PATIENCE))

    async def full() -> bool:
        return (await agent.get_process(PROCESS)).stdin_pending_bytes >= 1 << 20

    await eventually(full)
    await agent.write(PROCESS, epoch=2, offset=0, data=b"")

    with pytest.raises(StaleEpochError):
        await asyncio.wait_for(waiting, 5)


async def test_attaches_of_one_epoch_see_the_same(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(_take(agent)) for _ in range(3)]
        await agent.write(PROCESS, epoch=1, offset=0, data=b"hello", close_stdin=True, timeout=PATIENCE)

    assert [_joined(reader.result()) for reader in readers] == [b"hello"] * 3


async def test_detaching_ends_nothing(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)
    await agent.write(PROCESS, epoch=1, offset=0, data=b"abc")
    assert await _read(agent, 3) == b"abc"

    await agent.write(PROCESS, epoch=1, offset=3, data=b"def")

    assert await _read(agent, 3, offset=3) == b"def"


async def test_attach_needs_a_stream(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)

    with pytest.raises(InvalidRequestError):
        async for _ in agent.attach(PROCESS, epoch=1, positions={}):
            pass


async def test_a_signal_ends_a_process_and_is_told(agent: Agent) -> None:
    await agent.start_process(PROCESS, SLEEP)

    assert await agent.signal_process(PROCESS, signal.SIGTERM) == 1

    exited = await agent.wait_process(PROCESS, timeout=PATIENCE)
    assert exited.exit is not None
    assert (exited.exit.exit_code, exited.exit.signal) == (0, signal.SIGTERM)
    with pytest.raises(ProcessExitedError):
        await agent.signal_process(PROCESS, signal.SIGTERM)
    assert await agent.signal_process(PROCESS, signal.SIGTERM, scope=SignalScope.TREE) == 0


async def test_a_signal_that_does_not_exist_is_refused(agent: Agent) -> None:
    await agent.start_process(PROCESS, SLEEP)

    with pytest.raises(InvalidRequestError):
        await agent.signal_process(PROCESS, 99)


async def test_waiting_for_a_process_that_runs_ends_at_the_deadline(agent: Agent) -> None:
    await agent.start_process(PROCESS, SLEEP)

    with pytest.raises(DeadlineError):
        await agent.wait_process(PROCESS, timeout=timedelta(seconds=0.2))


async def test_only_an_exited_process_can_be_removed_and_an_absent_one_is_no_error(agent: Agent) -> None:
    await agent.start_process(PROCESS, SLEEP)
    with pytest.raises(ProcessRunningError):
        await agent.remove_process(PROCESS)
    await agent.signal_process(PROCESS, signal.SIGKILL)
    await agent.wait_process(PROCESS, timeout=PATIENCE)

    await agent.remove_process(PROCESS)
    await agent.remove_process(PROCESS)

    assert await agent.list_processes() == ()


async def test_a_process_with_pipes_has_no_terminal_to_resize(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)

    with pytest.raises(NoTerminalError):
        await agent.resize_process(PROCESS, TerminalSize(rows=10, columns=10))


async def test_a_terminal_merges_its_streams_and_drops_its_oldest(agent: Agent) -> None:
    process = await agent.start_process(PROCESS, replace(SLEEP, terminal=TerminalSize(rows=24, columns=80)))

    assert process.stderr is None
    assert process.spec.stdout_spool.policy is SpoolPolicy.DROP_OLDEST
    await agent.resize_process(PROCESS, TerminalSize(rows=10, columns=20))


async def test_a_frozen_process_takes_input_only_after_the_thaw(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)
    await agent.write(PROCESS, epoch=1, offset=0, data=b"abc")
    await _read(agent, 3)

    frozen = await agent.freeze()
    await agent.write(PROCESS, epoch=1, offset=3, data=b"def")
    with pytest.raises(AgentFrozenError):
        await agent.start_process(ProcessId("prc-2"), SLEEP)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(_read(agent, 3, offset=3), 0.3)
    thawed = await agent.thaw()

    assert await _read(agent, 3, offset=3) == b"def"
    assert (frozen.frozen_processes, thawed) == (1, 1)
    assert await agent.thaw() == 0


async def test_freezing_twice_is_harmless(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)

    await agent.freeze()
    again = await agent.freeze()

    assert again.frozen_processes == 1
    assert (await agent.describe()).frozen
    assert await agent.thaw() == 1
    assert not (await agent.describe()).frozen


async def test_asking_is_not_using(agent: Agent) -> None:
    await agent.start_process(PROCESS, CAT)
    await agent.write(PROCESS, epoch=1, offset=0, data=b"abc")
    await _read(agent, 3)
    before = await agent.get_activity()

    await agent.describe()
    await agent.get_process(PROCESS)
    await agent.get_stats()
    await agent.write(PROCESS, epoch=1, offset=0, data=b"abc")
    after = await agent.get_activity()

    assert before.last_input_time is not None
    assert before.last_output_time is not None
    assert (after.last_input_time, after.last_output_time) == (before.last_input_time, before.last_output_time)
    assert [one.process_id for one in after.processes] == [PROCESS]


async def test_a_tree_comes_out_as_it_went_in(agent: Agent) -> None:
    sent = io.BytesIO()
    with tarfile.open(fileobj=sent, mode="w") as archive:
        info = tarfile.TarInfo("deep/er/file.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"hello"))

    async def pieces() -> AsyncIterator[bytes]:
        yield sent.getvalue()

    result = await agent.copy_in(Root.WORKSPACE, "given", pieces(), timeout=PATIENCE)
    received = [piece async for piece in agent.copy_out(Root.WORKSPACE, "given", timeout=PATIENCE)]

    assert (result.entries, result.content_bytes) == (1, 5)
    assert isinstance(received[-1], CopyResult)
    with tarfile.open(fileobj=io.BytesIO(b"".join(p for p in received if isinstance(p, bytes)))) as archive:
        file = archive.extractfile("deep/er/file.txt")
        assert file is not None
        assert file.read() == b"hello"


async def test_a_tree_that_is_not_there_is_not_found(agent: Agent) -> None:
    with pytest.raises(PathNotFoundError):
        async for _ in agent.copy_out(Root.HOME, "nothing", timeout=PATIENCE):
            pass


async def test_the_model_endpoint_never_tells_its_token(agent: Agent) -> None:
    unset = await agent.get_model_endpoint()

    port = await agent.set_model_endpoint(base_url="http://127.0.0.1:9/base", token="canary-token")
    state = await agent.get_model_endpoint()

    assert (unset.has_token, unset.base_url) == (False, "")
    assert (state.model_port, state.base_url, state.has_token) == (port, "http://127.0.0.1:9/base", True)
    assert "canary" not in repr(state)


async def test_a_shutdown_ends_every_process_and_the_agent(agent: Agent) -> None:
    await agent.start_process(PROCESS, SLEEP)

    result = await agent.shutdown(grace=timedelta(seconds=2))

    assert (result.terminated_processes, result.killed_processes) == (1, 0)

    async def gone() -> bool:
        try:
            await agent.describe(timeout=timedelta(seconds=1))
        except AgentUnavailableError:
            return True
        return False

    await eventually(gone)

"""A real agent against what real programs do: orphans, zombies, floods, shells, frozen builds, and its own death."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from sandboxd.model.errors import AgentUnavailableError
from sandboxd.model.processes import (
    Output,
    OutputChunk,
    OutputExited,
    OutputStream,
    ProcessId,
    ProcessLimits,
    ProcessSpec,
    SignalScope,
    Spool,
    SpoolPolicy,
    TerminalSize,
)
from sandboxd.stream.agent_port import Agent, ProcessStartError, StaleEpochError
from tests.contract.agent_process import AgentProcess, start_agent
from tests.eventually import eventually

OUT, ERR = OutputStream.STDOUT, OutputStream.STDERR
PROCESS = ProcessId("prc-1")
PATIENCE = timedelta(seconds=30)
SIZE = TerminalSize(rows=24, columns=80)
HELD = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DISK_SLEEP}
"""What a frozen process may look like: one that waits for the exec of its stopped vfork child sleeps in the kernel."""
RESIDENT_LIMIT = 60_000_000
"""The stated limit: 60 MB in every sandbox."""


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    running = await start_agent(tmp_path)
    yield running
    await running.end()


@pytest.fixture
async def agent(process: AgentProcess) -> AsyncIterator[Agent]:
    client = await process.connector.connect(process.endpoint)
    yield client
    await client.close()


def _shell(script: str, **more: object) -> ProcessSpec:
    return replace(ProcessSpec(argv=["sh", "-c", script]), **more)  # type: ignore[arg-type]  # fields by name


async def _take(agent: Agent, *, epoch: int = 1, streams: tuple[OutputStream, ...] = (OUT,)) -> list[Output]:
    positions = dict.fromkeys(streams, 0)
    async with (
        asyncio.timeout(30),
        contextlib.aclosing(agent.attach(PROCESS, epoch=epoch, positions=positions)) as outputs,
    ):
        return [output async for output in outputs]


def _joined(outputs: list[Output], stream: OutputStream = OUT) -> bytes:
    return b"".join(o.data for o in outputs if isinstance(o, OutputChunk) and o.stream is stream)


async def _output(agent: Agent, spec: ProcessSpec) -> bytes:
    await agent.start_process(PROCESS, spec)
    return _joined(await _take(agent))


async def _until_output(agent: Agent, wanted: bytes) -> bytes:
    """Read from the beginning until a text has come."""
    data = b""
    async with asyncio.timeout(20), contextlib.aclosing(agent.attach(PROCESS, epoch=1, positions={OUT: 0})) as outputs:
        async for output in outputs:
            assert isinstance(output, OutputChunk), (output, data)
            data += output.data
            if wanted in data:
                break
    return data


def _below(process: AgentProcess) -> list[psutil.Process]:
    try:
        return psutil.Process(process.process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _assert_small(process: AgentProcess, when: str) -> None:
    resident = process.resident_bytes
    print(f"agent resident {when}: {resident / 1e6:.1f} MB")  # noqa: T201 - the figure is worth seeing with -s
    assert resident < RESIDENT_LIMIT


async def test_standard_error_is_kept_apart(agent: Agent) -> None:
    await agent.start_process(PROCESS, _shell("echo out; echo err >&2"))

    outputs = await _take(agent, streams=(OUT, ERR))

    assert (_joined(outputs), _joined(outputs, ERR)) == (b"out\n", b"err\n")


async def test_standard_error_can_be_merged_in_order(agent: Agent) -> None:
    assert await _output(agent, _shell("echo 1; echo 2 >&2; echo 3", merge_stderr=True)) == b"1\n2\n3\n"


async def test_nothing_of_the_agents_environment_is_inherited(tmp_path: Path) -> None:
    process = await start_agent(tmp_path, environment={"CANARY": "secret"})
    client = await process.connector.connect(process.endpoint)

    told = await _output(client, ProcessSpec(argv=["env"], environment={"MINE": "1"}))

    names = {line.partition(b"=")[0] for line in told.splitlines()}
    assert names == {b"HOME", b"PATH", b"TERM", b"MINE", b"SBXD_INCARNATION", b"SBXD_PROCESS"}
    await client.close()
    await process.end()


async def test_a_process_starts_in_the_workspace_and_nothing_is_open_but_its_streams(
    agent: Agent, process: AgentProcess
) -> None:
    told = await _output(agent, _shell("pwd; ls /proc/$$/fd | tr '\\n' ' '"))

    assert told.decode().splitlines() == [str(process.workspace), "0 1 2 "]


async def test_limits_hold(agent: Agent) -> None:
    limits = ProcessLimits(open_files=77, file_bytes=4096)

    told = await _output(
        agent, _shell("ulimit -n; ulimit -c; head -c 9999 /dev/zero > big; wc -c < big", limits=limits)
    )

    assert told.split() == [b"77", b"0", b"4096"]


async def test_a_directory_that_does_not_exist_is_told(agent: Agent) -> None:
    with pytest.raises(ProcessStartError, match="directory"):
        await agent.start_process(PROCESS, replace(_shell("true"), working_directory="/no/such/place"))


async def test_a_file_that_is_no_program_is_told(agent: Agent, process: AgentProcess) -> None:
    (process.workspace / "text").write_text("hello")

    with pytest.raises(ProcessStartError):
        await agent.start_process(PROCESS, ProcessSpec(argv=[str(process.workspace / "text")]))

    assert _below(process) == []


async def test_a_broken_python_in_the_sandbox_does_not_matter(tmp_path: Path) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    for name in ("python", "python3", "sh"):
        (broken / name).write_text("#!/bin/false\n")
        (broken / name).chmod(0o755)
    process = await start_agent(tmp_path / "agent", environment={"PATH": f"{broken}:{os.environ['PATH']}"})
    client = await process.connector.connect(process.endpoint)
    for name in ("sitecustomize.py", "os.py", "grpc.py"):
        (process.home / name).write_text("raise SystemExit('broken')")

    told = await _output(client, ProcessSpec(argv=["/bin/echo", "works"], environment={"PYTHONHOME": "/nowhere"}))

    assert told == b"works\n"
    await client.close()
    await process.end()


async def test_orphans_and_zombies_are_reaped(agent: Agent, process: AgentProcess) -> None:
    script = "i=0; while [ $i -lt 20 ]; do (sh -c 'sleep 0.05 & exit' &); i=$((i+1)); done; echo done"

    assert await _output(agent, _shell(script)) == b"done\n"

    await eventually(lambda: _below(process) == [])


async def test_a_descendant_that_keeps_the_pipe_does_not_delay_the_end(agent: Agent) -> None:
    begun = time.monotonic()
    outputs = await _output(agent, _shell("sleep 1000 & echo said"))

    assert outputs == b"said\n"
    assert time.monotonic() - begun < 10
    activity = await agent.get_activity()
    assert [(one.running, one.live_processes) for one in activity.processes] == [(False, 1)]
    assert await agent.signal_process(PROCESS, signal.SIGKILL, scope=SignalScope.TREE) == 1


async def test_a_descendant_that_writes_on_neither_blocks_nor_dies(agent: Agent, process: AgentProcess) -> None:
    script = "(while echo noise; do :; done; echo died > gone) & echo said"

    await agent.start_process(PROCESS, _shell(script, stdout_spool=Spool(max_bytes=1 << 20)))
    outputs = await _take(agent)

    assert isinstance(outputs[-1], OutputExited)
    assert outputs[-1].stdout_end_offset <= 1 << 20
    assert not (process.workspace / "gone").exists()
    await agent.signal_process(PROCESS, signal.SIGKILL, scope=SignalScope.TREE)


async def test_a_tree_signal_reaches_sessions_of_their_own_and_nobody_else(agent: Agent, process: AgentProcess) -> None:
    await agent.start_process(ProcessId("other"), ProcessSpec(argv=["sleep", "1000"]))
    await agent.start_process(PROCESS, _shell("setsid sh -c '(setsid sleep 1000 &)'; sleep 1000"))
    await eventually(lambda: sum(one.name() == "sleep" for one in _below(process)) == 3)

    count = await agent.signal_process(PROCESS, signal.SIGKILL, scope=SignalScope.TREE)

    assert count == 3
    await eventually(lambda: len(_below(process)) == 1)
    assert (await agent.get_process(ProcessId("other"))).running


async def test_a_group_signal_leaves_other_sessions_alone(agent: Agent, process: AgentProcess) -> None:
    await agent.start_process(PROCESS, _shell("setsid sleep 1000 & sleep 1000"))
    await eventually(lambda: sum(one.name() == "sleep" for one in _below(process)) == 2)

    await agent.signal_process(PROCESS, signal.SIGTERM)

    await eventually(lambda: [one.name() for one in _below(process)] == ["sleep"])


STUBBORN = (
    "trap '' TERM HUP INT; (setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' &); while :; do sleep 1; done"
)


async def test_a_shutdown_leaves_no_process_however_stubborn(agent: Agent, process: AgentProcess) -> None:
    await agent.start_process(PROCESS, _shell(STUBBORN))
    await agent.start_process(ProcessId("kind"), ProcessSpec(argv=["sleep", "1000"]))
    await agent.start_process(ProcessId("shell"), ProcessSpec(argv=["bash", "-i"], terminal=SIZE))
    await eventually(lambda: len(_below(process)) >= 5)
    everything = _below(process)

    result = await agent.shutdown(grace=timedelta(seconds=1))

    assert result.killed_processes >= 2
    assert result.terminated_processes >= 2
    assert [one for one in everything if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert await process.wait() == 0


async def test_term_ends_the_agent_and_everything_in_it(agent: Agent, process: AgentProcess) -> None:
    await agent.start_process(PROCESS, _shell(STUBBORN))
    await agent.freeze()
    everything = _below(process)

    process.process.terminate()

    assert await process.wait() == 0
    assert [one for one in everything if one.is_running()] == []
    assert not (process.directory / "ready.json").exists()


async def test_started_processes_die_with_a_killed_agent(agent: Agent, process: AgentProcess) -> None:
    started = await agent.start_process(PROCESS, _shell(STUBBORN))
    await eventually(lambda: sum(one.name() == "sleep" for one in _below(process)) == 2)
    orphans = _below(process)

    process.process.kill()
    await process.wait()

    try:
        await eventually(lambda: not psutil.pid_exists(started.pid))
        with pytest.raises(AgentUnavailableError):
            await agent.describe(timeout=timedelta(seconds=2))
    finally:  # the rest is what a local backend finds by its marker
        for orphan in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()


async def test_the_environment_marks_whose_a_process_is(agent: Agent) -> None:
    started = await agent.start_process(PROCESS, ProcessSpec(argv=["sleep", "1000"]))

    environment = psutil.Process(started.pid).environ()

    assert (environment["SBXD_INCARNATION"], environment["SBXD_PROCESS"]) == ("inc-test", "prc-1")


async def test_a_flood_that_nobody_reads_is_bounded_and_the_agent_stays_quick(
    agent: Agent, process: AgentProcess
) -> None:
    spec = ProcessSpec(argv=["yes"], stdout_spool=Spool(max_bytes=8 << 20))
    await agent.start_process(PROCESS, spec)

    async def blocked() -> bool:
        return (await agent.get_process(PROCESS)).stdout.blocked

    async with contextlib.aclosing(agent.attach(PROCESS, epoch=1, positions={OUT: 0})) as outputs:
        first = await anext(outputs)
        await eventually(blocked)
        assert (await agent.get_process(PROCESS)).stdout.end_offset == 8 << 20
        assert isinstance(first, OutputChunk)
        assert process.resident_bytes < RESIDENT_LIMIT

        # The reader that stands still is ended at once by the next owner.
        begun = time.monotonic()
        await agent.write(PROCESS, epoch=2, offset=0, data=b"")
        with pytest.raises(StaleEpochError):
            async for _ in outputs:
                pass
        assert time.monotonic() - begun < 5


async def test_a_flood_that_drops_costs_no_memory_and_keeps_others_going(agent: Agent, process: AgentProcess) -> None:
    spec = ProcessSpec(argv=["yes"], stdout_spool=Spool(max_bytes=1 << 20, policy=SpoolPolicy.DROP_OLDEST))
    await agent.start_process(PROCESS, spec)

    async with contextlib.aclosing(agent.attach(PROCESS, epoch=1, positions={OUT: 0})) as outputs:
        await anext(outputs)
        for number in range(10):
            name = ProcessId(f"other-{number}")
            await agent.start_process(name, ProcessSpec(argv=["true"]))
            await agent.wait_process(name, timeout=PATIENCE)
        read = 0
        async for output in outputs:
            read += len(output.data) if isinstance(output, OutputChunk) else 0
            if read > 4 << 20:
                break

    assert process.resident_bytes < RESIDENT_LIMIT
    await agent.signal_process(PROCESS, signal.SIGKILL)


async def test_a_client_killed_in_the_middle_of_an_attach_harms_nobody(agent: Agent, process: AgentProcess) -> None:
    script = f"""
import asyncio
from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.model.processes import OutputStream, ProcessId
from sandboxd.model.sandbox import AgentEndpoint

async def main():
    connector = GrpcAgentConnector(
        certificate={process.service.certificate!r}, key={process.service.key!r},
        agent_authority={process.authority.certificate!r})
    agent = await connector.connect(
        AgentEndpoint(host="127.0.0.1", port={process.port}, server_name={process.endpoint.server_name!r}))
    async for output in agent.attach(ProcessId("prc-1"), epoch=1, positions={{OutputStream.STDOUT: 0}}):
        print("reading", flush=True)
        await asyncio.sleep(0.01)

asyncio.run(main())
"""
    await agent.start_process(PROCESS, ProcessSpec(argv=["yes"], stdout_spool=Spool(max_bytes=4 << 20)))
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)  # noqa: ASYNC220
        assert child.stdout is not None
        assert await asyncio.wait_for(asyncio.to_thread(child.stdout.readline), 20) == b"reading\n"
        child.kill()
        child.wait()
        child.stdout.close()

    async with contextlib.aclosing(agent.attach(PROCESS, epoch=1, positions={OUT: 0})) as outputs:
        first = await anext(outputs)
    state = await agent.ack_output(PROCESS, epoch=1, stream=OUT, offset=1 << 20)

    assert isinstance(first, OutputChunk)
    assert first.offset == 0
    assert state.start_offset == 1 << 20


async def test_a_hundred_processes_at_once_fit_in_the_limit(agent: Agent, process: AgentProcess) -> None:
    cat = ProcessSpec(argv=["cat"])
    names = [ProcessId(f"prc-{number}") for number in range(100)]

    async def talk(name: ProcessId) -> bytes:
        await agent.start_process(name, cat, timeout=PATIENCE)
        await agent.write(name, epoch=1, offset=0, data=name.encode(), close_stdin=True, timeout=PATIENCE)
        async with contextlib.aclosing(agent.attach(name, epoch=1, positions={OUT: 0})) as outputs:
            return b"".join([output.data async for output in outputs if isinstance(output, OutputChunk)])

    answers = await asyncio.wait_for(asyncio.gather(*(talk(name) for name in names)), 60)
    activity = await agent.get_activity()

    assert answers == [name.encode() for name in names]
    assert activity.processes == ()
    _assert_small(process, "after 100 processes")
    assert _below(process) == []


async def test_a_terminal_is_a_terminal(agent: Agent) -> None:
    await agent.start_process(PROCESS, _shell('tty; stty size; read line; stty size; echo "got $line"', terminal=SIZE))
    await _until_output(agent, b"24 80")

    await agent.resize_process(PROCESS, TerminalSize(rows=50, columns=132))
    await agent.write(PROCESS, epoch=1, offset=0, data="grüß\n".encode())
    outputs = await _take(agent)

    told = _joined(outputs).decode()
    assert told.startswith("/dev/pts/")
    assert "50 132" in told
    assert "got grüß" in told
    assert isinstance(outputs[-1], OutputExited)


async def test_the_last_output_of_a_terminal_is_not_lost(agent: Agent) -> None:
    for number in range(10):
        name = ProcessId(f"prc-t{number}")
        await agent.start_process(name, _shell("seq 3000; echo the-end", terminal=SIZE))
        async with contextlib.aclosing(agent.attach(name, epoch=1, positions={OUT: 0})) as outputs:
            data = b"".join([output.data async for output in outputs if isinstance(output, OutputChunk)])
        assert data.endswith(b"3000\r\nthe-end\r\n")


async def test_ctrl_c_reaches_what_runs_in_the_shell_and_not_the_shell(agent: Agent) -> None:
    shell = ProcessSpec(argv=["bash", "--norc", "-i"], terminal=SIZE)
    await agent.start_process(PROCESS, shell)
    length = await agent.write(PROCESS, epoch=1, offset=0, data=b"sleep 1000; echo first=$?\n")

    async def busy() -> bool:
        activity = await agent.get_activity()
        return activity.processes[0].foreground_busy and activity.processes[0].foreground_command == "sleep"

    async def at_its_prompt() -> bool:
        activity = await agent.get_activity()
        return not activity.processes[0].foreground_busy

    await eventually(busy)
    length = await agent.write(PROCESS, epoch=1, offset=length, data=b"\x03")
    await eventually(at_its_prompt)
    length = await agent.write(PROCESS, epoch=1, offset=length, data=b"sleep 1001; echo second=$?\n")
    await eventually(busy)
    assert await agent.signal_process(PROCESS, signal.SIGTERM, scope=SignalScope.FOREGROUND) == 1

    await _until_output(agent, b"second=143")
    activity = (await agent.get_activity()).processes[0]
    assert (activity.running, activity.foreground_busy, activity.foreground_command) == (True, False, "bash")


async def test_end_of_file_ends_a_shell(agent: Agent) -> None:
    await agent.start_process(PROCESS, ProcessSpec(argv=["bash", "--norc", "-i"], terminal=SIZE))
    await _until_output(agent, b"$ " if os.getuid() else b"# ")

    await agent.write(PROCESS, epoch=1, offset=0, data=b"", close_stdin=True)

    assert (await agent.wait_process(PROCESS, timeout=PATIENCE)).exit is not None


async def test_a_frozen_shell_goes_on_as_if_nothing_had_been(agent: Agent, process: AgentProcess) -> None:
    script = b"(while :; do echo x >> ticks; sleep 0.01; done) | cat; echo after\n"
    await agent.start_process(PROCESS, ProcessSpec(argv=["bash", "--norc", "-i"], terminal=SIZE))
    await agent.write(PROCESS, epoch=1, offset=0, data=script)
    ticks = process.workspace / "ticks"
    await eventually(lambda: ticks.exists() and ticks.stat().st_size > 10)

    for _ in range(5):
        await agent.freeze()
        frozen_at = ticks.stat().st_size
        assert {one.status() for one in _below(process)} <= HELD
        await agent.thaw()
        await eventually(lambda at=frozen_at: ticks.stat().st_size > at)  # type: ignore[misc]  # bound now

    await agent.signal_process(PROCESS, signal.SIGINT, scope=SignalScope.FOREGROUND)
    await _until_output(agent, b"# " if os.getuid() == 0 else b"$ ")
    told = _joined(await _kept(agent))
    assert b"Stopped" not in told
    assert b"+ " not in told


async def test_a_build_survives_being_frozen(agent: Agent, process: AgentProcess) -> None:
    targets = " ".join(f"t{number}" for number in range(60))
    recipe = "\tfor i in 1 2 3; do sleep 0.02; done; echo $@ >> done"
    (process.workspace / "Makefile").write_text(f"all: {targets}\n{targets}:\n{recipe}\n")
    await agent.start_process(PROCESS, ProcessSpec(argv=["make", "-s", "-j4"]))

    for _ in range(40):
        await agent.freeze()
        assert {one.status() for one in _below(process)} <= HELD
        await agent.thaw()

    exited = await agent.wait_process(PROCESS, timeout=PATIENCE)
    assert exited.exit is not None
    assert exited.exit.exit_code == 0
    assert len((process.workspace / "done").read_text().split()) == 60


async def test_what_was_stopped_before_a_freeze_stays_stopped_after_it(agent: Agent, process: AgentProcess) -> None:
    stopped = await agent.start_process(PROCESS, ProcessSpec(argv=["sleep", "1000"]))
    await agent.start_process(ProcessId("other"), ProcessSpec(argv=["sleep", "1000"]))
    await agent.signal_process(PROCESS, signal.SIGSTOP)
    await eventually(lambda: psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED)

    frozen = await agent.freeze()
    thawed = await agent.thaw()

    assert (frozen.frozen_processes, frozen.already_stopped_processes, thawed) == (1, 1, 1)
    assert psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED


async def test_freezing_a_fork_storm_catches_all_of_it(agent: Agent, process: AgentProcess) -> None:
    script = "while :; do (sleep 0.001; true) & wait; done"
    for number in range(4):
        await agent.start_process(ProcessId(f"storm-{number}"), _shell(script))

    await agent.freeze()
    before = sorted(one.pid for one in _below(process))
    states = {one.status() for one in _below(process)}

    assert states <= HELD
    assert sorted(one.pid for one in _below(process)) == before
    await agent.thaw()


async def test_a_freeze_touches_nobody_outside(agent: Agent) -> None:
    outside = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220
    try:
        await agent.start_process(PROCESS, ProcessSpec(argv=["sleep", "1000"]))

        await agent.freeze()

        assert psutil.Process(outside.pid).status() == psutil.STATUS_SLEEPING
    finally:
        outside.kill()
        outside.wait()


async def test_processor_time_is_told_and_never_goes_back(agent: Agent) -> None:
    await agent.start_process(
        PROCESS, _shell("while :; do sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; done")
    )
    figures = []

    async def used() -> bool:
        figures.append((await agent.get_activity()).processes[0].cpu_time)
        return figures[-1] > timedelta(seconds=0.5)

    await eventually(used, within=20)
    assert figures == sorted(figures)


async def test_figures_count_what_lies_in_the_workspace(agent: Agent, process: AgentProcess) -> None:
    (process.workspace / "big").write_bytes(os.urandom(1 << 20))
    await agent.start_process(PROCESS, ProcessSpec(argv=["sleep", "1000"]))

    stats = await agent.get_stats(measure_trees=True)

    workspace = stats.roots[1]
    assert workspace.used_bytes is not None
    assert workspace.used_bytes >= 1 << 20
    assert (workspace.partial, stats.live_processes) == (False, 1)
    assert 0 < stats.memory_bytes < 100 << 20


async def test_the_agent_is_small_from_its_start(agent: Agent, process: AgentProcess) -> None:
    await agent.describe()

    _assert_small(process, "idle")


async def test_spools_leave_no_file_and_give_their_disk_back(agent: Agent, process: AgentProcess) -> None:
    await agent.start_process(PROCESS, _shell("head -c 4000000 /dev/zero; sleep 1000"))

    async def written() -> bool:
        return (await agent.get_process(PROCESS)).stdout.end_offset == 4_000_000

    await eventually(written)
    await agent.ack_output(PROCESS, epoch=1, stream=OUT, offset=4_000_000)

    assert list((process.directory / "spools").iterdir()) == []
    place = f"{process.directory / 'spools'}/"  # also where the file never had a name
    spools = [fd for fd in Path(f"/proc/{process.process.pid}/fd").iterdir() if str(fd.readlink()).startswith(place)]
    assert [fd.stat().st_blocks for fd in spools] == [0]


async def _kept(agent: Agent) -> list[Output]:
    end = (await agent.get_process(PROCESS)).stdout.end_offset
    received: list[Output] = []
    async with contextlib.aclosing(agent.attach(PROCESS, epoch=1, positions={OUT: 0})) as outputs:
        async for output in outputs:
            received.append(output)
            if isinstance(output, OutputChunk) and output.offset + len(output.data) >= end:
                break
    return received

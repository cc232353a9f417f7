"""`python -m tests.bench.capture`: what a capture by a real agent costs, by the size of its root file system."""

import argparse
import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from sandboxd.agent.rootfs_client import GrpcRootfsCapture
from sandboxd.manager.backend_port import Observation, RunningIncarnation
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.rootfs import BaselineEntry, CaptureEnd, CaptureFrame, FileData
from sandboxd.model.sandbox import AgentEndpoint
from tests.contract.agent_process import AgentProcess, start_agent
from tests.rootfs_trees import baseline_of

SANDBOX, INCARNATION = SandboxId("sbx-test"), IncarnationId("inc-test")
FILES_IN_DIRECTORY = 9
"""As images have it: about one directory to nine files."""
DIRECTORIES_IN_DIRECTORY = 12
PATIENCE = timedelta(minutes=5)
TIMES = 3


class Running:
    """Where the agent runs."""

    def __init__(self, endpoint: AgentEndpoint) -> None:
        self._endpoint = endpoint

    async def observe(self, sandbox: SandboxId) -> Observation:
        running = [RunningIncarnation(incarnation=INCARNATION, endpoint=self._endpoint)]
        return Observation(sandbox=sandbox, present=True, running=running)


def grow(root: Path, inodes: int) -> None:
    """Make a tree of empty files, level by level."""
    made, waiting = 0, [os.fsencode(root)]
    while made < inodes:
        directory = waiting.pop(0)
        for number in range(FILES_IN_DIRECTORY):
            os.close(os.open(directory + b"/some-file-%d.py" % number, os.O_WRONLY | os.O_CREAT, 0o644))
        for number in range(DIRECTORIES_IN_DIRECTORY):
            deeper = directory + b"/package%d" % number
            os.mkdir(deeper)  # noqa: PTH102 - bytes, and many of them
            waiting.append(deeper)
        made += FILES_IN_DIRECTORY + DIRECTORIES_IN_DIRECTORY
        if made + len(waiting) * FILES_IN_DIRECTORY >= inodes:
            for last in waiting[: (inodes - made) // FILES_IN_DIRECTORY]:
                for number in range(FILES_IN_DIRECTORY):
                    os.close(os.open(last + b"/some-file-%d.py" % number, os.O_WRONLY | os.O_CREAT, 0o644))
            return


async def measure(agent: AgentProcess, baseline: list[BaselineEntry]) -> tuple[CaptureEnd, float, float, float]:
    """Capture once: the end, seconds, the agent's processor seconds, and the longest answer to somebody else (ms)."""
    capture = GrpcRootfsCapture(backend=Running(agent.endpoint), connector=agent.connector)
    used, began = _processor_seconds(agent), time.monotonic()
    asking = asyncio.create_task(_ask(agent))
    end = None
    async for frame in _frames(capture, baseline):
        end = frame if isinstance(frame, CaptureEnd) else end
    seconds = time.monotonic() - began
    asking.cancel()
    slowest = 0.0
    with contextlib.suppress(asyncio.CancelledError):
        slowest = await asking
    assert end is not None
    return end, seconds, _processor_seconds(agent) - used, slowest


async def _ask(agent: AgentProcess) -> float:
    """Ask the agent who it is every 20 ms; when cancelled, return the longest time to an answer, in milliseconds."""
    slowest, client = 0.0, await agent.connector.connect(agent.endpoint)
    try:
        await client.describe()
        while True:
            began = time.monotonic()
            await client.describe()
            slowest = max(slowest, (time.monotonic() - began) * 1000)
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        return slowest
    finally:
        await client.close()


def _frames(capture: GrpcRootfsCapture, baseline: list[BaselineEntry]) -> AsyncIterator[CaptureFrame]:
    async def base() -> AsyncIterator[BaselineEntry]:
        for entry in baseline:
            yield entry

    return capture.capture(SANDBOX, INCARNATION, base(), previous=(), exclude=(), timeout=PATIENCE)


def _processor_seconds(agent: AgentProcess) -> float:
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(agent: AgentProcess) -> float:
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


async def run(inodes: int) -> None:
    """Make one tree, capture it some times, print a row."""
    place = Path(tempfile.mkdtemp(prefix="capture-bench-"))
    try:
        root = place / "root"
        root.mkdir()
        grow(root, inodes)
        baseline = baseline_of(root)
        agent = await start_agent(place / "agent", capture_root=str(root))
        before = _peak_mb(agent)
        (root / "changed").write_bytes(bytes(1024))
        rows = [await measure(agent, baseline) for _ in range(TIMES)]
        end, seconds, processor, slowest = min(rows, key=lambda row: row[1])
        peak = _peak_mb(agent)
        (root / "changed").unlink()
        await agent.end()
        print(
            f"| {end.entries:,} | {seconds:.1f} | {end.entries / seconds:,.0f} | {processor:.1f} "
            f"| {before:.0f} → {peak:.0f} | {slowest:.0f} |",
            flush=True,
        )
        assert (end.changed, end.deleted, end.bytes) == (1, 0, 1024), end
    finally:
        shutil.rmtree(place)


async def content(megabytes: int) -> None:
    """Capture one large new file, print how fast it came."""
    place = Path(tempfile.mkdtemp(prefix="capture-bench-"))
    try:
        root = place / "root"
        root.mkdir()
        agent = await start_agent(place / "agent", capture_root=str(root))
        with (root / "large").open("wb") as file:
            for _ in range(megabytes):
                file.write(os.urandom(1 << 20))
        capture = GrpcRootfsCapture(backend=Running(agent.endpoint), connector=agent.connector)
        began, size = time.monotonic(), 0
        async for frame in _frames(capture, []):
            size += len(frame.data) if isinstance(frame, FileData) else 0
        seconds, peak = time.monotonic() - began, _peak_mb(agent)
        await agent.end()
        speed = (size >> 20) / seconds
        print(f"content: {size >> 20} MB in {seconds:.1f} s, {speed:.0f} MB/s, agent at most {peak:.0f} MB")
    finally:
        shutil.rmtree(place)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inodes", default="60000,300000,640000", help="sizes of trees, with commas")
    parser.add_argument("--megabytes", type=int, default=500, help="of the file that is new; 0 leaves that out")
    arguments = parser.parse_args()
    print(
        "| Inodes | Seconds | Inodes a second | Processor seconds of the agent | Agent, MB | Slowest other answer, ms |"
    )
    for inodes in map(int, arguments.inodes.split(",")):
        asyncio.run(run(inodes))
    if arguments.megabytes:
        asyncio.run(content(arguments.megabytes))


if __name__ == "__main__":
    main()

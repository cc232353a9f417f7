"""What bounds one service process: RPCs and events a second, and what it costs to know a thousand idle sandboxes.

`python -m tests.bench.limits` measures and rewrites its part of docs/benchmarks.md; `make bench` calls it, too.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any  # rows of a query

import asyncpg
import grpc

from tests.bench.driver import Client, Plan, Samples
from tests.bench.figures import PARTS, Parts, Use, percentile
from tests.bench.report import PAGE, write
from tests.bench.stack import Stack, stack
from tests.bench.upstream import upstream

BEGIN, END = "<!-- measured by tests.bench.limits: begin -->", "<!-- measured by tests.bench.limits: end -->"
MEBIBYTE = 1 << 20
RPCS = {"Get": 32, "List (50)": 16, "Update": 64}
"""How many callers at once."""
_IDLE = """
    WITH people AS (
        INSERT INTO freelancers (client, id, create_time)
        SELECT 'dev', 'idle-' || n, now() FROM generate_series(1, $1::int) AS n RETURNING id
    )
    INSERT INTO sandboxes (id, client, freelancer, display_name, labels, tier, model, approval_mode, state,
        state_reason, incarnations, create_time, update_time, last_use_time, version)
    SELECT 'sbx-' || lpad(substr(id, 6), 26, '0'), 'dev', id, '', '{}', 'basic', '', 'default',
        CASE WHEN substr(id, 6)::int % 2 = 0 THEN 'STOPPED' ELSE 'PAUSED' END, '', 1, now(), now(), now(), 1 FROM people
"""
_TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """A stack that nobody uses."""

    sandboxes: int
    transactions: float
    """A second, of all processes."""
    uses: dict[str, Use]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpcs:
    """One RPC, called as fast as it is answered."""

    method: str
    at_once: int
    seconds: float
    took: list[float]
    """Seconds of each call."""
    failed: int
    uses: dict[str, Use]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """Streams whose CLIs write as fast as they can."""

    streams: int
    events: int
    seconds: float
    failures: int
    uses: dict[str, Use]


def make_room(data: Path, *, sandboxes: int) -> None:
    """Make the files of the idle sandboxes, as the local backend does."""
    for number in range(1, sandboxes + 1):
        for part in ("home", "workspace"):
            (data / "sandboxes" / f"sbx-{number:026}" / part).mkdir(parents=True)


async def rest(running: Stack, database: Any, *, sandboxes: int, seconds: float) -> Rest:
    """Watch a stack that nobody uses."""
    await asyncio.sleep(5)  # what came before has settled
    parts, before = Parts(PARTS, within=str(running.data)), await database.fetchval(_TRANSACTIONS)
    await asyncio.sleep(seconds)
    after, uses = await database.fetchval(_TRANSACTIONS), parts.used(seconds)
    return Rest(sandboxes=sandboxes, transactions=(after - before) / seconds, uses=uses)


async def call(running: Stack, *, sandbox: str, method: str, at_once: int, seconds: float) -> Rpcs:
    """Let another process call one RPC."""
    arguments = [f"--address={running.address}", f"--token-file={running.data / 'token'}", f"--sandbox={sandbox}"]
    arguments += [f"--method={method}", f"--seconds={seconds}", f"--at-once={at_once}"]
    parts, began = Parts(PARTS, within=str(running.data)), time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.caller", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    uses = parts.used(time.monotonic() - began)
    seen = json.loads(output)
    return Rpcs(
        method=method,
        at_once=at_once,
        seconds=seen["seconds"],
        took=seen["took"],
        failed=len(seen["failed"]),
        uses=uses,
    )


async def flood(running: Stack, *, streams: int, chunks: int) -> Flood:
    """Let CLIs write without a pause."""
    samples = Samples()
    async with grpc.aio.insecure_channel(running.address) as channel:
        client = Client(channel, token=running.token)
        names = await client.create(streams)
        ready = asyncio.Barrier(streams + 1)
        plan = Plan(chunks=chunks, interval=0, calls=0)
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(client.converse(name, plan, turns=1, samples=samples, ready=ready), name=name)
            await ready.wait()
            parts, began = Parts(PARTS, within=str(running.data)), time.monotonic()
            await ready.wait()
            seconds = time.monotonic() - began
            uses = parts.used(seconds)
        await client.terminate(names)
    return Flood(streams=streams, events=len(samples.event), seconds=seconds, failures=len(samples.failures), uses=uses)


def render(rests: Sequence[Rest], rpcs: Sequence[Rpcs], floods: Sequence[Flood], *, day: str) -> str:
    """Return the tables."""
    lines = [f"Measured {day}.", "", "| RPC | Callers at once | Calls a second | P50 ms | P99 ms | Failed |"]
    lines[-1] += " serve, cores | serve, CPU ms a call | PostgreSQL, cores | caller, cores |"
    lines.append("| --- |" + " ---: |" * 9)
    for one in rpcs:
        rate, cores = len(one.took) / one.seconds, {part: use.cores for part, use in one.uses.items()}
        quick, slow = (percentile(one.took, share) * 1000 for share in (0.5, 0.99))
        lines.append(
            f"| {one.method} | {one.at_once} | {rate:.0f} | {quick:.1f} | {slow:.1f} | {one.failed} "
            f"| {cores['serve']:.2f} | {cores['serve'] / rate * 1000:.2f} | {cores['PostgreSQL']:.2f} "
            f"| {cores['this bench']:.2f} |"
        )
    lines += ["", "| Flood: streams | Events | Events a second | Failures | serve, cores | serve, CPU ms an event |"]
    lines[-1] += " agents, cores | PostgreSQL, cores |"
    lines.append("| ---: |" + " ---: |" * 7)
    for run in floods:
        rate, cores = run.events / run.seconds, {part: use.cores for part, use in run.uses.items()}
        lines.append(
            f"| {run.streams} | {run.events} | {rate:.0f} | {run.failures} | {cores['serve']:.2f} "
            f"| {cores['serve'] / rate * 1000:.2f} | {cores['agents']:.2f} | {cores['PostgreSQL']:.2f} |"
        )
    lines += ["", "| Idle sandboxes known | Transactions a second | Part | CPU (% of a core) | Memory (MB, PSS) |"]
    lines.append("| ---: | ---: | --- | ---: | ---: |")
    lines += [
        f"| {one.sandboxes} | {one.transactions:.1f} | {part} | {use.cores * 100:.1f} | {use.memory / MEBIBYTE:.0f} |"
        for one in rests
        for part, use in one.uses.items()
        if part in ("serve", "gateway", "PostgreSQL")
    ]
    return "\n".join(lines)


async def main() -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.limits", description=__doc__)
    parser.add_argument("--idle", type=int, default=1000, help="idle sandboxes (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="of each look at rest (default %(default)s)")
    parser.add_argument("--calls", type=float, default=5, help="seconds of each RPC (default %(default)s)")
    parser.add_argument("--chunks", type=int, default=5000, help="of each stream of the flood (default %(default)s)")
    parser.add_argument("--dry", action="store_true", help="print only, leave docs/benchmarks.md as it is")
    given = parser.parse_args()
    async with upstream() as url:
        with tempfile.TemporaryDirectory(prefix="sandboxd-bench-") as directory:
            data = Path(directory) / "data"
            async with stack(data, upstream=url, stand_in=True) as running:
                database = await asyncpg.connect(f"postgresql://postgres@/sandboxd?host={data}/postgres/run")
                async with grpc.aio.insecure_channel(running.address) as channel:
                    (sandbox,) = await Client(channel, token=running.token).create(1)
                rests = [await rest(running, database, sandboxes=1, seconds=given.seconds)]
                make_room(data, sandboxes=given.idle)
                await database.execute(_IDLE, given.idle)
                rests += [await rest(running, database, sandboxes=given.idle + 1, seconds=given.seconds)]
                await database.close()
                rpcs = [
                    await call(running, sandbox=sandbox, method=method, at_once=at_once, seconds=given.calls)
                    for method, at_once in RPCS.items()
                ]
                floods = [await flood(running, streams=streams, chunks=given.chunks) for streams in (1, 8)]
    tables = render(rests, rpcs, floods, day=f"{datetime.now(UTC):%Y-%m-%d}")
    print(tables)
    if not given.dry:
        write(PAGE, tables, begin=BEGIN, end=END)
    return 1 if any(one.failures for one in floods) or any(one.failed for one in rpcs) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

"""`make bench`: what the stream and the gateway add at 1, 10 and 100 streams, with CPU and memory by part."""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import grpc

from tests.bench.bare import bare
from tests.bench.driver import Client, Plan, Samples
from tests.bench.figures import PARTS, Parts, Use
from tests.bench.recorded_cli import call_model
from tests.bench.report import PAGE, Run, render, write
from tests.bench.stack import Stack, stack
from tests.bench.upstream import upstream

DIRECT_CALLS = 100
STAND_IN, REAL = "stand-in", "real"


async def measure(running: Stack, streams: int, plan: Plan, *, turns: int, cli: str) -> list[Run]:
    """Create the sandboxes, let the streams take their turns, each for itself and then all at once, and end them."""
    samples, together, ready = Samples(), Samples(), asyncio.Barrier(streams + 1)
    async with grpc.aio.insecure_channel(running.address) as channel:
        client = Client(channel, token=running.token)
        began = time.monotonic()
        names = await client.create(streams)
        print(f"{streams} sandboxes created in {time.monotonic() - began:.1f} s", flush=True)
        async with asyncio.TaskGroup() as group:
            for name in names:
                work = client.converse(name, plan, turns=turns, samples=samples, ready=ready, at_once=together)
                group.create_task(work, name=name)
            await ready.wait()
            spread_uses = await _watched(running, ready)
            await ready.wait()
            together_uses = await _watched(running, ready)
        await client.terminate(names)
    failures = samples.failures + together.failures
    for failure in sorted(set(failures)):
        print(f"failure: {failure} ({failures.count(failure)} times)", flush=True)
    return [
        Run(cli=cli, streams=streams, starts="spread", samples=samples, uses=spread_uses),
        Run(cli=cli, streams=streams, starts="at once", samples=together, uses=together_uses),
    ]


async def _watched(running: Stack, end: asyncio.Barrier) -> dict[str, Use]:
    """Watch what the parts use until the streams are through."""
    parts, began = Parts(PARTS, within=str(running.data)), time.monotonic()
    await end.wait()
    return parts.used(time.monotonic() - began)


async def direct(url: str) -> Samples:
    """Make the same model calls without agent and gateway, one after the other."""
    samples = Samples()
    for _ in range(DIRECT_CALLS):
        samples.take_call(await asyncio.to_thread(call_model, url, "none"))
    return samples


async def main() -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--streams", default="1,10,100", help="with the stand-in CLI, a run each (default %(default)s)")
    parser.add_argument("--real", default="1,10", help="with the real CLI, a run each (default %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each stream (default %(default)s)")
    parser.add_argument("--chunks", type=int, default=20, help="text chunks of a turn (default %(default)s)")
    parser.add_argument("--rate", type=float, default=5.0, help="chunks a second of a stream (default %(default)s)")
    parser.add_argument("--calls", type=int, default=2, help="model calls of a turn (default %(default)s)")
    parser.add_argument("--logs", type=Path, help="keep the stack's logs in this directory")
    parser.add_argument("--dry", action="store_true", help="print only, leave docs/benchmarks.md as it is")
    given = parser.parse_args()
    plan = Plan(chunks=given.chunks, interval=1 / given.rate, calls=given.calls)
    runs = []
    async with upstream() as url:
        without = await direct(url)
        floors = {}
        for streams in map(int, given.streams.split(",") if given.streams else []):
            floors[streams] = await bare(streams, plan, turns=given.turns, upstream=url)
        for cli, numbers in ((STAND_IN, given.streams), (REAL, given.real)):
            if numbers:
                with tempfile.TemporaryDirectory(prefix="sandboxd-bench-") as directory:
                    data = Path(directory) / "data"
                    try:
                        async with stack(data, upstream=url, stand_in=cli == STAND_IN) as running:
                            for streams in map(int, numbers.split(",")):
                                runs += await measure(running, streams, plan, turns=given.turns, cli=cli)
                    finally:
                        if given.logs:
                            shutil.copytree(data / "logs", given.logs / cli, dirs_exist_ok=True)
    tables = render(
        runs, without=without, floors=floors, plan=plan, turns=given.turns, day=f"{datetime.now(UTC):%Y-%m-%d}"
    )
    print(tables)
    if not given.dry:
        write(PAGE, tables)
    return 1 if any(run.samples.failures for run in runs) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

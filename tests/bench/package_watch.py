"""`python -m tests.bench.package_watch`: what it costs to watch the packages of sandboxes in which nothing happens.

Local agents, PostgreSQL embedded. Processor time of `serve`, of all agents and of the database is read over the same
length with the watches and without them; and how long it takes from an install to its row in the history.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from sandboxd.ctl.client import Client
from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from tests.bench.figures import percentile
from tests.e2e.service import Service

AWAKE = {f"SANDBOXD_{step}_AFTER_SECONDS": "0" for step in ("HIBERNATE", "STOP", "TERMINATE")}
"""Nothing rests meanwhile: a frozen sandbox is not watched."""
WITHOUT = """
import asyncio, sys
from sandboxd.__main__ import main
from sandboxd.manager.package_watching import PackageWatcher
async def nothing(self):
    await asyncio.Event().wait()
PackageWatcher.run = nothing
sys.argv = ["sandboxd", "serve"]
main()
"""
SETTLE_SECONDS = 40
"""After a start: every agent is connected, and what a start costs is over."""


def _processor_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(used.user + used.system for used in (process.cpu_times() for process in processes))


async def at_rest(service: Service, postgres: EmbeddedPostgres, *, seconds: float) -> str:
    """Measure for so long; one line."""
    serve = psutil.Process(service.pid)
    postmaster = psutil.Process(postgres.pid() or 0)
    agents = [psutil.Process(agent.pid) for agent in service.agents()]
    parts = {"serve": [serve], f"{len(agents)} agents": agents, "PostgreSQL": [postmaster, *postmaster.children()]}
    before, began = {name: _processor_seconds(of) for name, of in parts.items()}, time.monotonic()
    await asyncio.sleep(seconds)
    passed = time.monotonic() - began
    used = {name: 100 * (_processor_seconds(of) - before[name]) / passed for name, of in parts.items()}
    shown = ", ".join(f"{name} {share:.2f} %" for name, share in used.items())
    return f"{shown} of a core; serve {serve.memory_info().rss / 2**20:.0f} MB"


async def install(client: Client, service: Service, sandbox: str) -> float:
    """Seconds from what pip writes last to the change in the history."""
    home = service.data / "sandboxes" / sandbox.removeprefix("sandboxes/") / "home"
    entry = home / ".local/lib/python3.11/site-packages/bench-1.dist-info"
    entry.mkdir(parents=True)
    (entry / "METADATA").write_text("Name: bench\nVersion: 1\n")
    (entry / "RECORD").write_text("")
    began = time.monotonic()
    while time.monotonic() < began + 60:
        changes, _ = await client.packages.history(sandbox)
        if changes:
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    return math.nan


async def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sandboxes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--installs", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-", ignore_cleanup_errors=True) as folder:
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        url = await postgres.start()
        await migrations.upgrade(url)
        service = Service(data=Path(folder) / "data", database_url=url)
        service.data.mkdir()
        try:
            await _measure(service, postgres, given)
        finally:
            await service.end()
            await postgres.stop()


async def _measure(service: Service, postgres: EmbeddedPostgres, given: argparse.Namespace) -> None:
    async with service.client():  # makes the development key that the service will trust
        pass
    await service.start(settings=AWAKE)
    await service.wait_ready()
    gate = asyncio.Semaphore(4)

    async def make() -> str:
        async with gate:
            return (await client.create()).name

    async with service.client() as client:
        made = await asyncio.gather(*(make() for _ in range(given.sandboxes)))
    for watching in (True, False, True):
        await service.kill()
        await service.start(settings=AWAKE, program="" if watching else WITHOUT)
        await service.wait_ready()
        await asyncio.sleep(SETTLE_SECONDS)
        line = await at_rest(service, postgres, seconds=given.seconds)
        print("watching:" if watching else "without: ", line, flush=True)
    async with service.client() as client:
        took = await asyncio.gather(*(install(client, service, name) for name in made[: given.installs]))
    figures = f"P50 {percentile(took, 0.5):.1f} s, P99 {percentile(took, 0.99):.1f} s"
    print(f"from install to history, {len(took)} sandboxes: {figures}")


if __name__ == "__main__":
    asyncio.run(main())

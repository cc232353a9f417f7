"""Several `serve` replicas as processes, on one PostgreSQL: operations and watches on any of them, live streams through
death, restart and freeze.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxd.ctl.client import Client
from sandboxd.v1 import sandbox_pb2 as pb
from tests.bench.upstream import upstream
from tests.e2e.service import Service
from tests.soak.cluster import cluster
from tests.soak.rolling import Plan, Run

SHORT = Plan(
    short=True,
    streams=6,
    sandboxes=3,
    replicas=2,
    lease_seconds=2.0,
    freeze_seconds=6.0,
    calm_seconds=0.5,
    chunks=10,
    interval=0.15,
)
"""`python -m tests.soak.rolling --streams 100` is the long form."""


@pytest.fixture
async def pair(tmp_path: Path, postgres_url: str) -> AsyncIterator[tuple[Service, Service]]:
    """Two replicas on one data directory and one database."""
    one = Service(data=tmp_path, database_url=postgres_url)
    two = Service(data=tmp_path, database_url=postgres_url)
    async with one.client():  # makes the development key that both will trust
        pass
    try:
        for replica in (one, two):
            await replica.start()
            await replica.wait_ready()
        yield one, two
    finally:
        for replica in (one, two):
            if replica._process is not None:
                await replica.end()


@pytest.mark.timeout(300)
async def test_operations_and_watches_work_at_either_replica(pair: tuple[Service, Service]) -> None:
    one, two = pair
    async with one.client() as first, two.client() as second:
        seen = Watcher(second)
        watching = asyncio.create_task(seen.run())

        # The same request at both at the same moment makes one sandbox.
        made = await asyncio.gather(*(client.create(request_id="create-0001") for client in (first, second)))
        name = made[0].name
        assert {sandbox.name for sandbox in made} == {name}
        assert [sandbox.name async for sandbox in first.sandboxes()] == [name]
        await seen.until(name, pb.SANDBOX_STATE_ACTIVE)

        paused = await second.pause(name)
        assert (paused.state, (await first.get(name)).state) == (pb.SANDBOX_STATE_PAUSED,) * 2
        await seen.until(name, pb.SANDBOX_STATE_PAUSED)

        # Both resume it: one operation holds the lease, both get its result.
        resumed = await asyncio.gather(first.resume(name), second.resume(name), return_exceptions=True)
        assert any(isinstance(one, pb.Sandbox) and one.state == pb.SANDBOX_STATE_ACTIVE for one in resumed), resumed
        await seen.until(name, pb.SANDBOX_STATE_ACTIVE)
        (agent,) = one.agents()

        # The replica that began dies in the middle: the other one finishes it, and answers the same request.
        terminating = asyncio.create_task(first.terminate(name))
        await seen.until(name, pb.SANDBOX_STATE_TERMINATING, pb.SANDBOX_STATE_TERMINATED)
        await one.kill()
        await seen.until(name, pb.SANDBOX_STATE_TERMINATED)
        terminating.cancel()
        watching.cancel()
        await asyncio.gather(terminating, watching, return_exceptions=True)
        assert agent not in two.agents()


class Watcher:
    """Follows the watch of one replica and knows the latest state of each sandbox."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._states: dict[str, list[int]] = {}
        self._moved = asyncio.Condition()

    async def run(self) -> None:
        async for change in self._client.watch():
            async with self._moved:
                if change.HasField("sandbox"):
                    self._states.setdefault(change.sandbox.name, []).append(change.sandbox.state)
                self._moved.notify_all()

    async def until(self, name: str, *states: int) -> None:
        """Wait until one of these was seen, and forget what came before."""
        async with asyncio.timeout(60), self._moved:
            await self._moved.wait_for(lambda: set(states) & set(self._states.get(name, ())))
            seen = self._states[name]
            first = min(seen.index(state) for state in states if state in seen)
            self._states[name] = seen[first:]


@pytest.mark.timeout(600)
async def test_live_streams_lose_and_double_nothing_while_replicas_die_restart_freeze_and_lose_the_database(
    tmp_path: Path, postgres_url: str
) -> None:
    """Being cut off means: pings are answered, and the journal is out of reach."""
    async with (
        upstream() as api,
        cluster(
            tmp_path / "data",
            database_url=postgres_url,
            upstream=api,
            replicas=SHORT.replicas,
            lease_seconds=SHORT.lease_seconds,
        ) as running,
    ):
        outcome = await Run(running, SHORT).run()

    assert outcome.problems == []
    assert outcome.cuts > 0
    assert len(outcome.disturbances) == 4

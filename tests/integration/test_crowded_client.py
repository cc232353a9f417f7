"""A crowd of one client's Creates, over a real PostgreSQL: they wait for each other, and nobody else for them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg

from sandboxd.manager.creation import NewSandbox
from sandboxd.model.pool import StartLimits
from sandboxd.model.sandbox import SandboxState
from sandboxd.persistence.engine import Database, plain_url
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from tests.eventually import eventually
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.manager import FakeBackend, FakeClock, FakeIds
from tests.manager_world import a_caller, a_request
from tests.pools_world import PoolReplica

LONG = timedelta(seconds=60)
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
CROWD = 40
"""More than the process has connections."""


async def test_creates_that_wait_for_their_client_leave_connections_to_the_others(
    database: Database, postgres_url: str
) -> None:
    clock = FakeClock()
    backend, limits = FakeBackend(FakeAgentConnector()), StartLimits(total=100, per_client=100)
    replica = PoolReplica(PostgresUnitsOfWork(database), backend, clock=clock, ids=FakeIds(clock), starts=limits)
    manager, crowded, calm = replica.manager, a_caller(client="crowded"), a_caller(client="calm")
    await manager.create(a_request(crowded), NewSandbox(), timeout=LONG)
    other = await asyncpg.connect(plain_url(postgres_url))
    try:
        async with other.transaction():
            await other.execute("SELECT FROM clients WHERE id = 'crowded' FOR UPDATE")
            crowd = [
                asyncio.ensure_future(manager.create(a_request(crowded), NewSandbox(), timeout=LONG))
                for _ in range(CROWD)
            ]

            async def somebody_waits() -> bool:
                return bool(await other.fetchval(WAITING))

            await eventually(somebody_waits)
            served = await asyncio.wait_for(manager.create(a_request(calm), NewSandbox(), timeout=LONG), 3)
        made = await asyncio.gather(*crowd)
    finally:
        await other.close()

    assert {sandbox.state for sandbox in [served, *made]} == {SandboxState.ACTIVE}

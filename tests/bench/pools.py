"""`python -m tests.bench.pools`: warm claims on the local backend, their hit rate, and claims with agents of memory.

`latency`: Create to the end of a first command in the sandbox, one at a time and 40 at once, by a whole `sandboxd dev`.
`poisson`: an open loop of Creates against a pool that is refilled meanwhile. `claims`: the control plane alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
import uuid
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import grpc

from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.backends.certificates import CertificateAuthority, agent_name
from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.bootstrap.sources import RandomIds, SystemClock
from sandboxd.manager.creation import NewSandbox
from sandboxd.model.ids import IncarnationId
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from sandboxd.v1 import pool_pb2, pool_pb2_grpc, sandbox_pb2, sandbox_pb2_grpc
from tests.bench.cluster import first_command
from tests.bench.figures import percentile
from tests.bench.stack import Stack, stack
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.manager import FakeBackend
from tests.manager_world import a_caller, a_request
from tests.pools_world import PoolReplica

AT_ONCE = 40
TIMEOUT = 60.0
_MEMBERS = """
    INSERT INTO pool_members (sandbox, incarnation, pool, client, tier, state, host, port, server_name, recipe, replica,
        start_time, ready_time)
    SELECT 'sbx-' || md5($3 || '/' || n), 'inc-' || md5($3 || '/' || n), $2, $3, 'basic', 'READY', '127.0.0.1', 1,
        'agent', $4, 'first', now(), now()
    FROM generate_series(1, $1::int) AS n
"""


class Caller:
    """Somebody who creates sandboxes and runs a first command in each."""

    def __init__(self, channel: grpc.aio.Channel, running: Stack) -> None:
        self.sandboxes = sandbox_pb2_grpc.SandboxServiceStub(channel)
        self.pools = pool_pb2_grpc.PoolServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {running.token}"),)
        self.data = running.data
        authority = CertificateAuthority.open(KeyFiles(home=running.data).agent_authority, clock=SystemClock())
        identity = authority.issue_service()
        self.connector = GrpcAgentConnector(
            certificate=identity.certificate, key=identity.key, agent_authority=authority.certificate
        )
        self.made: list[str] = []

    async def pool(self, target: int, *, most: int = 0) -> None:
        """Make a pool, and wait until it is full."""
        request = pool_pb2.CreatePoolRequest(
            request_id=str(uuid.uuid4()), pool=pool_pb2.Pool(target=target, max=max(target, most))
        )
        await self.pools.CreatePool(request, metadata=self.metadata)
        await self.full()

    async def full(self) -> None:
        """Wait until the pool is as full as it should be."""
        while True:
            found = (await self.pools.ListPools(pool_pb2.ListPoolsRequest(), metadata=self.metadata)).pools[0]
            if found.ready == found.target:
                return
            await asyncio.sleep(0.2)

    async def create(self) -> tuple[float, float, sandbox_pb2.Startup]:
        """Seconds until Create answered and until the first command had ended, and how it came up."""
        began = time.monotonic()
        answer = await self.sandboxes.Create(
            sandbox_pb2.CreateRequest(request_id=str(uuid.uuid4())), metadata=self.metadata, timeout=TIMEOUT
        )
        answered = time.monotonic() - began
        await first_command(self.connector, self._endpoint(answer.sandbox))
        self.made.append(answer.sandbox.name)
        return answered, time.monotonic() - began, answer.startup

    async def end_all(self) -> None:
        """Terminate what was made, so that the machine is free again."""
        for name in self.made:
            request = sandbox_pb2.TerminateRequest(request_id=str(uuid.uuid4()), name=name)
            await self.sandboxes.Terminate(request, metadata=self.metadata, timeout=TIMEOUT)
        self.made.clear()

    def _endpoint(self, sandbox: sandbox_pb2.Sandbox) -> AgentEndpoint:
        incarnation = IncarnationId(sandbox.incarnation)
        ready = self.data / "sandboxes" / sandbox.name.split("/")[1] / "run" / incarnation / "ready.json"
        port = json.loads(ready.read_text())["port"]
        return AgentEndpoint(host="127.0.0.1", port=port, server_name=agent_name(incarnation))


def show(what: str, seconds: list[float]) -> None:
    """Print a distribution in milliseconds."""
    shown = "  ".join(f"P{part} {percentile(seconds, part / 100) * 1000:8.1f}" for part in (50, 90, 99))
    print(f"{what:44s} n={len(seconds):5d}  {shown}  max {max(seconds) * 1000:8.1f} ms", flush=True)


async def latency(caller: Caller, number: int) -> None:
    """One at a time, then many at once."""
    await caller.pool(AT_ONCE)
    one = [await caller.create() for _ in range(min(number, AT_ONCE))]
    _tell("one at a time", one)
    await caller.end_all()
    await caller.full()
    _tell(f"{AT_ONCE} at once", list(await asyncio.gather(*(caller.create() for _ in range(AT_ONCE)))))
    await caller.end_all()


async def poisson(caller: Caller, *, rate: float, seconds: float, target: int) -> None:
    """Creates that come when they come, against a pool that is refilled meanwhile."""
    await caller.pool(target, most=2 * target)
    chance, tasks, until = random.Random(7), list[asyncio.Task[tuple[float, float, sandbox_pb2.Startup]]](), 0.0
    began = time.monotonic()
    while (until := until + chance.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, began + until - time.monotonic()))
        tasks.append(asyncio.create_task(caller.create()))
    _tell(f"Poisson, {rate:g}/s, pool of {target}", list(await asyncio.gather(*tasks)))
    await caller.end_all()


def _tell(what: str, made: list[tuple[float, float, sandbox_pb2.Startup]]) -> None:
    show(f"{what}: Create", [answered for answered, _, _ in made])
    show(f"{what}: first command", [whole for _, whole, _ in made])
    warm = [whole for _, whole, startup in made if startup.path == sandbox_pb2.START_PATH_WARM]
    misses = Counter(sandbox_pb2.MissReason.Name(s.miss_reason) for _, _, s in made if s.miss_reason)
    print(f"{what}: {len(warm)} of {len(made)} warm; misses {dict(misses)}", flush=True)


async def claims(url: str, *, members: int, at_once: int, clients: int) -> None:
    """Claims of members whose agents are of memory: Create in the manager, by one process, against PostgreSQL."""
    database = Database(make_engine(DatabaseSettings(url=url)))
    clock = SystemClock()
    ids = RandomIds(clock)
    backend = FakeBackend(FakeAgentConnector())
    replica = PoolReplica(PostgresUnitsOfWork(database), backend, clock=clock, ids=ids)
    callers = [a_caller(client=f"client-{number}") for number in range(clients)]
    for caller in callers:
        pool = await replica.given_pool(members // clients, caller=caller)
        values = (members // clients, pool, caller.client, backend.recipe)
        async with database.raw() as connection:
            await connection.execute(_MEMBERS, *values)
            await connection.execute("ANALYZE pool_members")
    took, waiting = list[float](), [callers[number % clients] for number in range(members)]

    async def work_off() -> None:
        while waiting:
            began = time.monotonic()
            await replica.manager.create(a_request(waiting.pop()), NewSandbox(), timeout=timedelta(seconds=TIMEOUT))
            took.append(time.monotonic() - began)

    began, cpu = time.monotonic(), time.process_time()
    await asyncio.gather(*(work_off() for _ in range(at_once)))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    show(f"{members} members, {at_once} callers, {clients} clients", took)
    print(
        f"  {len(took) / seconds:.0f} claims/s, {cpu / len(took) * 1000:.1f} ms of processor a claim, "
        f"{backend.starts} started anew",
        flush=True,
    )
    await replica.manager.claims.drain()
    await database.close()


async def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["latency", "poisson", "claims"])
    parser.add_argument("--number", type=int, default=AT_ONCE)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--target", type=int, default=8)
    parser.add_argument("--members", type=int, default=5000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--clients", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sandboxd-pools-", ignore_cleanup_errors=True) as directory:
        data = Path(directory)
        if given.what == "claims":
            server = EmbeddedPostgres(data / "postgres")
            try:
                url = await server.start()
                await migrations.upgrade(url)
                await claims(url, members=given.members, at_once=given.at_once, clients=given.clients)
            finally:
                await server.stop()
            return
        async with (
            stack(data, upstream="http://127.0.0.1:1", stand_in=True) as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            caller = Caller(channel, running)
            if given.what == "latency":
                await latency(caller, given.number)
            else:
                await poisson(caller, rate=given.rate, seconds=given.seconds, target=given.target)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())

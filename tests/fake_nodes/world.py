"""`serve` and operator on fake nodes: pools are filled and claimed as everywhere, by the chart's service accounts."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg
import grpc

from sandboxd.dev.identity import DevIssuer
from sandboxd.model.cluster import API_VERSION, INSTANCE_LABEL
from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.persistence.engine import plain_url
from sandboxd.settings import Settings
from sandboxd.v1 import pool_pb2, pool_pb2_grpc, sandbox_pb2, sandbox_pb2_grpc
from tests.cluster.roles import Role, a_role
from tests.eventually import eventually
from tests.fake_nodes.control_plane import NAMESPACE, ControlPlane, a_control_plane

INSTANCE: Final = "sandboxd"
PER_CLIENT: Final = 250
"""Members of a pool: a client's namespace may have 500 pods."""
FILL: Final = {"SANDBOXD_POOL_STARTS_AT_ONCE": "48", "SANDBOXD_POOL_STARTS_PER_SECOND": "200"}
NO_REFILL: Final = {"SANDBOXD_POOL_STARTS_AT_ONCE": "1", "SANDBOXD_POOL_STARTS_PER_SECOND": "0.0001"}
"""One member is begun, and no more: claims alone are measured."""
TIMEOUT: Final = 60.0
AGAIN_SECONDS: Final = 0.5
_GRPC, _WEB, _OPERATOR_WEB = "127.0.0.1:9090", "127.0.0.1:9091", "127.0.0.1:9092"
_TEMPLATE: Final = {
    "apiVersion": API_VERSION,
    "kind": "SandboxTemplate",
    "metadata": {"name": "default", "labels": {INSTANCE_LABEL: INSTANCE}},
    # Nothing pulls them.
    "spec": {"image": "example.invalid/sandbox:1", "agentImage": "example.invalid/agent:1"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """One Create."""

    seconds: float
    warm: bool
    again: int
    """How often it was sent again."""


@dataclass(kw_only=True)
class World:
    """Everything that runs."""

    plane: ControlPlane
    home: Path
    database_url: str
    clients: Sequence[str]
    members: int
    tokens: dict[str, str] = field(default_factory=dict)
    roles: list[Role] = field(default_factory=list)

    @asynccontextmanager
    async def serving(self, *, refill: bool) -> AsyncIterator[grpc.aio.Channel]:
        """Run `serve`, and answer a channel to it."""
        settings = {
            "KUBECONFIG": str(self.plane.kubeconfig("serve")),
            "SANDBOXD_BACKEND": "kubernetes",
            "SANDBOXD_DATA_DIR": str(self.home),
            "SANDBOXD_DATABASE_URL": self.database_url,
            "SANDBOXD_GRPC_LISTEN": _GRPC,
            "SANDBOXD_WEB_LISTEN": _WEB,
            "SANDBOXD_GATEWAY_URL": "https://gateway.example.invalid",  # agents are told of it; nobody calls it
            "SANDBOXD_POOL_MEMBERS_PER_CLIENT": "1000",
            "SANDBOXD_LOG_LEVEL": "warning",
            **_NAMES,
            **(FILL if refill else NO_REFILL),
        }
        ready = f"http://{_WEB}/readyz"
        async with (
            a_role("serve", self.plane.cluster, instance=INSTANCE, home=self.home, settings=settings, ready_url=ready),
            grpc.aio.insecure_channel(_GRPC) as channel,
        ):
            yield channel

    async def fill(
        self, channel: grpc.aio.Channel, *, within: float, told: Callable[[float, int], None] = lambda *_: None
    ) -> float:
        """Make a pool for each client and wait until all are full; seconds that it took.

        `told` hears now and then after how many seconds how many members were ready.
        """
        pools = pool_pb2_grpc.PoolServiceStub(channel)
        began = time.monotonic()
        for client, size in zip(self.clients, self.sizes, strict=True):
            wanted = pool_pb2.Pool(min=size, target=size, max=size)
            request = pool_pb2.CreatePoolRequest(request_id=str(uuid.uuid4()), pool=wanted)
            await pools.CreatePool(request, metadata=self._metadata(client), timeout=TIMEOUT)

        async def full() -> bool:
            self._check_lives()
            ready = (await self.counted()).get("READY", 0)
            told(time.monotonic() - began, ready)
            return ready == self.members

        await eventually(full, within=within, every=min(10.0, self.members / 100), what="pools are full")
        return time.monotonic() - began

    @property
    def sizes(self) -> Sequence[int]:
        """Of the clients' pools."""
        share, more = divmod(self.members, len(self.clients))
        return [share + (number < more) for number in range(len(self.clients))]

    async def counted(self) -> dict[str, int]:
        """How many members there are by state."""
        connection = await asyncpg.connect(plain_url(self.database_url))
        try:
            rows = await connection.fetch("SELECT state, count(*) AS n FROM pool_members GROUP BY state")
        finally:
            await connection.close()
        return {row["state"]: row["n"] for row in rows}

    async def claim(self, channel: grpc.aio.Channel, client: str) -> Claimed:
        """Create a sandbox."""
        stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
        request = sandbox_pb2.CreateRequest(request_id=str(uuid.uuid4()))
        began, again = time.monotonic(), 0
        while True:
            try:
                answer = await stub.Create(request, metadata=self._metadata(client), timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                # What every client does: the same request again, which is done once. gRPC itself refuses calls where
                # a thousand wait to be taken up.
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() - began > TIMEOUT:
                    raise
                again += 1
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            warm = answer.startup.path == sandbox_pb2.START_PATH_WARM
            return Claimed(seconds=time.monotonic() - began, warm=warm, again=again)

    def turns(self) -> itertools.cycle[str]:
        """The clients, one after the other."""
        return itertools.cycle(self.clients)

    async def adopted(self, *, within: float) -> float:
        """Wait until the cluster knows whose everything is that was claimed; seconds that it took."""
        began = time.monotonic()

        async def none_left() -> bool:
            self._check_lives()
            return not (await self.counted()).get("CLAIMED", 0)

        await eventually(none_left, within=within, every=0.2, what="claimed members are adopted")
        return time.monotonic() - began

    def _check_lives(self) -> None:
        for role in self.roles:
            if role.process is None or role.process.returncode is not None:
                raise RuntimeError(f"{role.name} has ended:\n{role.log[-3000:]}")

    def _metadata(self, client: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.tokens[client]}"),)


_NAMES: Final = {
    "SANDBOXD_KUBERNETES_NAMESPACE": NAMESPACE,
    "SANDBOXD_KUBERNETES_NAMESPACE_PREFIX": "client-",
    "SANDBOXD_KUBERNETES_TEMPLATE": "default",
}


@asynccontextmanager
async def a_world(home: Path, *, members: int) -> AsyncIterator[World]:
    """One with everything but `serve` running."""
    clients = [f"client-{number}" for number in range(max(2, -(-members // PER_CLIENT)))]
    postgres = EmbeddedPostgres(home / "postgres")
    async with AsyncExitStack() as stack:
        plane, url = await asyncio.gather(
            stack.enter_async_context(a_control_plane(home, nodes=members // 200 + 2)), _database(postgres)
        )
        stack.push_async_callback(postgres.stop)
        await plane.cluster.apply([_TEMPLATE])
        issuer = DevIssuer.open(Settings(data_dir=home))
        tokens = {
            client: issuer.mint(client=client, subject=client, role="client_admin", seconds=86400) for client in clients
        }
        simulator = [sys.executable, "-m", "tests.fake_nodes.agents", "--home", str(home), "--instance", INSTANCE]
        await plane.run("agents", *simulator, "--kubeconfig", str(plane.kubeconfig("admin")))
        settings = {
            "KUBECONFIG": str(plane.kubeconfig("operator")),
            "SANDBOXD_DATA_DIR": str(home),
            "SANDBOXD_OPERATOR_WEB_LISTEN": _OPERATOR_WEB,
            "SANDBOXD_KUBERNETES_PREPULL": "false",
            **_NAMES,
        }
        ready = f"http://{_OPERATOR_WEB}/readyz"
        operator = await stack.enter_async_context(
            a_role("operator", plane.cluster, instance=INSTANCE, home=home, settings=settings, ready_url=ready)
        )
        await eventually((home / "agents.ready").exists, within=TIMEOUT, what="the agents answer")
        world = World(plane=plane, home=home, database_url=url, clients=clients, members=members, tokens=tokens)
        world.roles.append(operator)
        yield world


async def _database(postgres: EmbeddedPostgres) -> str:
    url = await postgres.start()
    await migrations.upgrade(url)
    return url

"""Several `serve` replicas on one database, with a gateway and light stand-in CLIs: processes that a run may kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp
import grpc
import grpc.aio

from sandboxd.backends.local.layout import Layout
from sandboxd.backends.local.processes import find_agents, kill_marked, kill_tree
from sandboxd.ctl.backoff import RetryPolicy
from sandboxd.ctl.client import Client
from sandboxd.ctl.connection import MESSAGE_BYTES, Connection, Target
from sandboxd.dev.child import child_environment
from sandboxd.dev.identity import DevIssuer
from sandboxd.dev.node import find_node
from sandboxd.settings import Settings
from tests.eventually import eventually
from tests.fault_proxy import FaultProxy, before_postgres, url_through
from tests.ports import a_free_port

CLI = Path(__file__).resolve().parents[1] / "bench" / "recorded_cli.py"
READY_SECONDS = 90.0
STOP_SECONDS = 60.0
PATIENT = RetryPolicy(budget=timedelta(minutes=3), longest=timedelta(seconds=2))


@dataclass(kw_only=True)
class Role:
    """One process of the cluster, at addresses that it keeps over its lives."""

    name: str
    verb: str
    web_port: int = field(default_factory=a_free_port)
    port: int = field(default_factory=a_free_port)
    process: asyncio.subprocess.Process | None = None
    way: FaultProxy | None = None
    """Between it and the database."""

    @property
    def alive(self) -> asyncio.subprocess.Process:
        assert self.process is not None
        assert self.process.returncode is None, f"{self.name} has ended"
        return self.process


@dataclass(kw_only=True)
class Cluster:
    """The processes, and how a client reaches whichever of them lives."""

    home: Path
    database_url: str
    upstream: str
    lease_seconds: float
    replicas: list[Role]
    gateway: Role = field(default_factory=lambda: Role(name="gateway", verb="gateway"))

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        settings = Settings(data_dir=self.home)
        self.token = DevIssuer.open(settings).mint(client="soak", subject="soak", role="platform", seconds=7200)

    async def start(self, role: Role) -> None:
        """Start one process and wait until it is ready."""
        local = "127.0.0.1"
        environment = child_environment(
            {
                "SANDBOXD_DATA_DIR": str(self.home),
                "SANDBOXD_DATABASE_URL": url_through(role.way, self.database_url) if role.way else self.database_url,
                "SANDBOXD_GRPC_LISTEN": f"{local}:{role.port}",
                "SANDBOXD_WEB_LISTEN": f"{local}:{role.web_port}",
                "SANDBOXD_GATEWAY_LISTEN": f"{local}:{self.gateway.port}",
                "SANDBOXD_GATEWAY_URL": f"http://{local}:{self.gateway.port}",
                "SANDBOXD_GATEWAY_WEB_LISTEN": f"{local}:{self.gateway.web_port}",
                "SANDBOXD_GEMINI_URL": self.upstream,
                "SANDBOXD_GEMINI_API_KEY": "soak",
                "SANDBOXD_NODE": str(self._shim()),
                "SANDBOXD_GEMINI_CLI": str(CLI),
                "SANDBOXD_REPLICA": role.name,
                "SANDBOXD_LEASE_SECONDS": str(self.lease_seconds),
                "SANDBOXD_CONNECTION_AGE_SECONDS": "5",
                "SANDBOXD_LOG_LEVEL": "info",
            },
            with_api_key=True,
        )
        with (self.home / f"{role.name}.log").open("ab") as log:
            role.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sandboxd", role.verb, env=environment, stdout=log, stderr=log
            )

        async def ready() -> bool:
            assert role.process is not None
            if role.process.returncode is not None:
                raise RuntimeError(f"{role.name} ended with {role.process.returncode}: {self.log(role)}")
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with session.get(f"http://{local}:{role.web_port}/readyz") as answer:
                    return answer.status == 200
            return False

        async with aiohttp.ClientSession() as session:
            await eventually(ready, within=READY_SECONDS, every=0.05, what=f"{role.name} is ready")

    async def kill(self, role: Role) -> None:
        """SIGKILL."""
        role.alive.kill()
        await role.alive.wait()

    async def stop(self, role: Role) -> int:
        """SIGTERM, and wait until it has handed over; answers its exit code."""
        process = role.alive
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_SECONDS):
            return await process.wait()

    def freeze(self, role: Role) -> None:
        """SIGSTOP: its connections stay, and nothing answers."""
        role.alive.send_signal(signal.SIGSTOP)

    def thaw(self, role: Role) -> None:
        """SIGCONT."""
        role.alive.send_signal(signal.SIGCONT)

    def cut_off(self, role: Role, *, cut: bool) -> None:
        """Let not a byte pass between it and the database, and tell nobody; or let them pass again."""
        assert role.way is not None, f"{role.name} has no proxy before its database"
        role.way.silent = cut

    def log(self, role: Role) -> str:
        return (self.home / f"{role.name}.log").read_text(errors="replace")[-3000:]

    def connection(self) -> Connection:
        """A client's way to whichever replica lives, as a load balancer would give it."""
        return _Spread(self.token, [f"127.0.0.1:{role.port}" for role in self.replicas])

    def client(self, connection: Connection) -> Client:
        return Client(connection, reconnect=PATIENT)

    async def end(self) -> None:
        """Leave nothing behind."""
        for role in (*self.replicas, self.gateway):
            if role.process is not None and role.process.returncode is None:
                role.process.send_signal(signal.SIGCONT)
                role.process.kill()
                await role.process.wait()
        layout = Layout(data=self.home.absolute())
        for agent in find_agents(layout):
            kill_tree(agent, seconds=5)
        for sandbox in layout.present():
            kill_marked(layout.sandbox(sandbox).home, seconds=5)

    def _shim(self) -> Path:
        # The sandbox is prepared by small scripts for Node; only the CLI itself is replaced.
        shim = self.home / "node"
        if not shim.exists():
            python, node = shlex.quote(sys.executable), shlex.quote(str(find_node().binary))
            fresh = shim.with_name(f"node.{os.getpid()}")
            fresh.write_text(f'#!/bin/sh\ncase "$1" in *recorded_cli.py) exec {python} "$@";; esac\nexec {node} "$@"\n')
            fresh.chmod(0o755)
            fresh.replace(shim)
        return shim


class _Spread(Connection):
    """One channel to all replicas; each new call goes to the next one that is connected."""

    def __init__(self, token: str, addresses: list[str]) -> None:
        self.target = Target(address=addresses[0], token=lambda: token)
        self.retry = PATIENT
        self.channel = grpc.aio.insecure_channel(
            "ipv4:" + ",".join(addresses),
            options=[
                ("grpc.lb_policy_name", "round_robin"),
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 3000),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )


@asynccontextmanager
async def cluster(
    home: Path, *, database_url: str, upstream: str, replicas: int, lease_seconds: float
) -> AsyncIterator[Cluster]:
    """Start everything, and end everything that was started, the agents too."""
    made = Cluster(
        home=home,
        database_url=database_url,
        upstream=upstream,
        lease_seconds=lease_seconds,
        replicas=[Role(name=f"serve-{number}", verb="serve") for number in range(replicas)],
    )
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(made.end)
        for role in made.replicas:
            role.way = await cleanup.enter_async_context(before_postgres(database_url).running())
        for role in (made.gateway, *made.replicas):
            await made.start(role)
        yield made

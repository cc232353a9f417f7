"""A real `sandboxd serve` as a process of its own, that a test may kill and start again at the same address."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from sandboxd.backends.local.layout import Layout
from sandboxd.backends.local.processes import AgentProcess, find_agents, kill_marked, kill_tree
from sandboxd.ctl.backoff import RECONNECT
from sandboxd.ctl.client import Client, connect
from sandboxd.dev.identity import DevIssuer
from sandboxd.model.failpoints import VARIABLE
from sandboxd.settings import load_settings
from tests.eventually import eventually
from tests.ports import a_free_port


@dataclass(kw_only=True)
class Service:
    """One installation: a data directory, a database, and the process that serves them when it runs."""

    data: Path
    database_url: str
    grpc_port: int = field(default_factory=a_free_port)
    web_port: int = field(default_factory=a_free_port)
    _process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> str:
        return (self.data / "serve.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Of the process that serves."""
        assert self._process is not None
        return self._process.pid

    async def start(
        self, *, failpoints: str = "", settings: Mapping[str, str] | None = None, program: str = ""
    ) -> None:
        """Start it, or a program that does so otherwise; whether it gets ready is up to the failpoints."""
        environment = self._environment(failpoints=failpoints, settings=settings or {})
        command = ("-c", program) if program else ("-m", "sandboxd", "serve")
        with (self.data / "serve.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *command, env=environment, stdout=log, stderr=log
            )

    async def sweep(self, *arguments: str, settings: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Run `sandboxd sweep` to its end; answers its exit code and what it printed."""
        environment = self._environment(failpoints="", settings=settings or {})
        with (self.data / "sweep.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "sandboxd",
                "sweep",
                *arguments,
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
            printed, _ = await process.communicate()
        return process.returncode or 0, printed.decode()

    def _environment(self, *, failpoints: str, settings: Mapping[str, str]) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOXD_")}
        environment |= {
            "SANDBOXD_DATA_DIR": str(self.data),
            "SANDBOXD_DATABASE_URL": self.database_url,
            "SANDBOXD_GRPC_LISTEN": f"127.0.0.1:{self.grpc_port}",
            "SANDBOXD_WEB_LISTEN": f"127.0.0.1:{self.web_port}",
            "SANDBOXD_GATEWAY_URL": "http://127.0.0.1:9",  # no test here makes a model call
            "SANDBOXD_NODE": sys.executable,
            "SANDBOXD_GEMINI_CLI": __file__,  # and none starts the CLI
            VARIABLE: failpoints,
            **settings,
        }
        return environment

    async def wait_ready(self) -> None:
        async def ready() -> bool:
            assert self._process is not None
            if self._process.returncode is not None:
                raise RuntimeError(f"serve ended with {self._process.returncode}:\n{self.log[-4000:]}")
            try:
                url = f"http://127.0.0.1:{self.web_port}/readyz"
                async with aiohttp.ClientSession() as session, session.get(url) as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(ready, within=30, every=0.05)

    async def wait_end(self, *, within: float = 60) -> int:
        """Wait until it has ended by itself; answers its exit code, negative for a signal."""
        assert self._process is not None
        try:
            return await asyncio.wait_for(self._process.wait(), within)
        except TimeoutError:
            raise AssertionError(f"serve still runs after {within:g} s:\n{self.log[-4000:]}") from None

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    def agents(self) -> list[AgentProcess]:
        """The agents that run on this data directory."""
        return find_agents(Layout(data=self.data.absolute()))

    async def end(self) -> None:
        """Leave nothing behind."""
        await self.kill()
        layout = Layout(data=self.data.absolute())
        for agent in self.agents():
            kill_tree(agent, seconds=5)
        for sandbox in layout.present():
            kill_marked(layout.sandbox(sandbox).home, seconds=5)

    @asynccontextmanager
    async def client(
        self, *, name: str = "acme", subject: str = "platform", role: str = "platform"
    ) -> AsyncIterator[Client]:
        issuer = DevIssuer.open(load_settings(data_dir=self.data))
        token = issuer.mint(client=name, subject=subject, role=role, seconds=3600)
        async with connect(f"127.0.0.1:{self.grpc_port}", token=token, retry=RECONNECT) as client:
            yield client

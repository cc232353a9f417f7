"""Our own roles (`operator`, `serve`, …) as processes of the node, working on the cluster of the tests."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.eventually import eventually
from tests.kube import Cluster


@dataclass(kw_only=True)
class Role:
    """One role, that a test may kill and start again."""

    name: str
    home: Path
    environment: Mapping[str, str]
    ready_url: str = ""
    """Answers 200 when it is ready; empty counts a process that lives."""
    process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> str:
        """All that it printed."""
        return (self.home / f"{self.name}.log").read_text(errors="replace")

    async def start(self, *, within: float = 60) -> None:
        """Start it and wait until it is ready."""
        with (self.home / f"{self.name}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sandboxd", self.name, env=dict(self.environment), stdout=log, stderr=log
            )

        async def ready() -> bool:
            assert self.process is not None
            if self.process.returncode is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.log[-4000:]}")
            if not self.ready_url:
                return True
            try:
                async with aiohttp.ClientSession() as session, session.get(self.ready_url) as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(ready, within=within, every=0.05)

    async def kill(self) -> None:
        """End it as a crash does."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Ask it to end; after 20 seconds it is made to."""
        await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> None:
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(how)
        try:
            async with asyncio.timeout(20):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def a_role(
    name: str, cluster: Cluster, *, instance: str, home: Path, settings: Mapping[str, str], ready_url: str = ""
) -> AsyncIterator[Role]:
    """A role that is ready, as the installation `instance`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SANDBOXD_")}
    environment = {
        **inherited,
        "KUBECONFIG": str(cluster.kubeconfig),
        "SANDBOXD_KUBERNETES_INSTANCE": instance,
        "SANDBOXD_KUBERNETES_NAMESPACE_PREFIX": f"{instance}-",
        "SANDBOXD_KUBERNETES_NAMESPACE": f"{instance}-system",
        **settings,
    }
    role = Role(name=name, home=home, environment=environment, ready_url=ready_url)
    try:
        await role.start()
        yield role
    finally:
        await role.stop()

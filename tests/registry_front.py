"""A real docker-registry for tests, and a front before it that spoils single exchanges."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.eventually import eventually
from tests.ports import a_free_port

Spoil = Callable[[web.Request], web.Response | None]


@dataclass(kw_only=True)
class RealRegistry:
    """One that runs."""

    address: str
    root: Path

    def open_uploads(self) -> list[Path]:
        """Sessions that nobody has ended; of others the registry leaves empty directories."""
        return list(self.root.glob("docker/registry/v2/repositories/**/_uploads/*/startedat"))


@asynccontextmanager
async def a_registry(directory: Path, *, passwords: str = "", cache: str = "") -> AsyncIterator[RealRegistry]:
    """Start one on a free port, with these lines of an htpasswd file, and a cache of what it knows of blobs."""
    address = f"127.0.0.1:{a_free_port()}"
    storage: dict[str, object] = {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}}
    settings: dict[str, object] = {"version": "0.1", "storage": storage, "http": {"addr": address}}
    if cache:
        storage["cache"] = {"blobdescriptor": cache}
    if passwords:
        (directory / "htpasswd").write_text(passwords)
        settings["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    (directory / "registry.yml").write_text(json.dumps(settings))
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "docker-registry", "serve", str(directory / "registry.yml"), stdout=log, stderr=log
        )
    try:
        await eventually(lambda: _answers(address), within=20)
        yield RealRegistry(address=address, root=directory / "data")
    finally:
        process.kill()
        await process.wait()


async def _answers(address: str) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(f"http://{address}/v2/") as answer:
            return answer.status in {200, 401}
    except aiohttp.ClientError:
        return False


@dataclass(kw_only=True)
class Front:
    """Passes everything on, but for what a test spoils."""

    registry: RealRegistry
    before: Spoil = lambda _: None
    """Answers instead of the registry."""
    after: Spoil = lambda _: None
    """Answers instead of what the registry has answered: its work is done."""
    slow: dict[str, float] = field(default_factory=dict)
    """Seconds by method, between the registry's work and its answer."""
    seen: list[str] = field(default_factory=list)
    """Methods, in order."""
    address: str = ""
    _runner: web.AppRunner | None = None
    _site: web.TCPSite | None = None

    async def start(self) -> None:
        """Listen at a free port."""
        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{path:.*}", self.handle)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        self.address = f"127.0.0.1:{a_free_port()}"
        await self.restore()

    async def cut(self) -> None:
        """Listen no more: connections are refused."""
        assert self._site is not None
        await self._site.stop()

    async def restore(self) -> None:
        """Listen again, at the same port."""
        assert self._runner is not None
        host, _, port = self.address.rpartition(":")
        self._site = web.TCPSite(self._runner, host, int(port))
        await self._site.start()

    async def stop(self) -> None:
        """End for good."""
        assert self._runner is not None
        await self._runner.cleanup()

    async def handle(self, request: web.Request) -> web.Response:
        """Pass one exchange on."""
        self.seen.append(request.method)
        body = await request.read()
        if spoiled := self.before(request):
            return spoiled
        skipped = {"transfer-encoding", "authorization"}
        headers = {name: value for name, value in request.headers.items() if name.lower() not in skipped}
        url = f"http://{self.registry.address}{request.raw_path}"
        async with (
            aiohttp.ClientSession(auto_decompress=False) as http,
            http.request(request.method, url, data=body, headers=headers) as answer,
        ):
            content = await answer.read()
            await asyncio.sleep(self.slow.get(request.method, 0))
            if spoiled := self.after(request):
                return spoiled
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in {"content-length", "date"}}
            return web.Response(status=answer.status, headers=kept, body=content)


@asynccontextmanager
async def a_front(registry: RealRegistry) -> AsyncIterator[Front]:
    """Start one on a free port."""
    front = Front(registry=registry)
    await front.start()
    try:
        yield front
    finally:
        await front.stop()

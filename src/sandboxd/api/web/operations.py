"""`/metrics`, `/healthz` and `/readyz` of `serve`. They need no token, so they tell nothing about any client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sandboxd.api.web.complaints import http_logger
from sandboxd.tls.contexts import make_server_context
from sandboxd.tls.files import TlsFiles

Check = Callable[[], Awaitable[None]]
"""Raises when what it checks is not ready."""
CHECK_SECONDS: Final = 2.0


class OperationsServer:
    """A small HTTP server beside the gRPC one."""

    def __init__(self, *, registry: CollectorRegistry, checks: Mapping[str, Check]) -> None:
        self._registry = registry
        self._checks = checks
        self._ready = False
        self._runner: web.AppRunner | None = None

    async def start(self, address: str, *, tls: TlsFiles | None = None) -> int:
        """Listen, and return the port.

        Raises:
            OSError: The address is taken, or not ours.
            TlsFilesError: The certificate cannot be used.
        """
        context = make_server_context(tls) if tls else None
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, logger=http_logger())
        await self._runner.setup()
        host, _, port = address.rpartition(":")
        await web.TCPSite(self._runner, host.strip("[]"), int(port), ssl_context=context).start()
        bound: int = self._runner.addresses[0][1]
        return bound

    def set_ready(self, *, ready: bool) -> None:
        """Say whether this process takes calls."""
        self._ready = ready

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _request: web.Request) -> web.Response:
        """Alive: the event loop turns. A dependency that is down is no reason to be killed."""
        return web.json_response({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        results = {name: await _passes(check) for name, check in self._checks.items()}
        ready = self._ready and all(results.values())
        body = {"ready": ready, "serving": self._ready, "checks": results}
        return web.json_response(body, status=200 if ready else 503)


async def _passes(check: Check) -> bool:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except Exception:  # noqa: BLE001  a task guard: whatever is wrong with it, it is not ready
        return False
    return True

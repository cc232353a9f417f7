"""The gateway as a server: two ports, one for sandboxes and one for operators, started and drained in order."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from contextlib import AsyncExitStack
from typing import Self

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import override

from sandboxd.gateway.breaker import CircuitBreaker
from sandboxd.gateway.calls import CallHandler
from sandboxd.gateway.config import GatewayConfig
from sandboxd.gateway.forwarding import Forwarder
from sandboxd.gateway.meter import Meter, MeterTiming
from sandboxd.gateway.metrics import GatewayMetrics
from sandboxd.gateway.policy import StaticModelPolicies
from sandboxd.gateway.ports import ApiKeys, Clock, ModelPolicies
from sandboxd.gateway.refusals import RefusalReason
from sandboxd.gateway.reporting import Reporter
from sandboxd.gateway.spool import SettlementSpool
from sandboxd.gateway.tokens import SandboxTokenVerifier
from sandboxd.gateway.tracing import CallTraces
from sandboxd.gateway.upstream import GeminiUpstream
from sandboxd.model.ids import ENTROPY_BYTES, make_id
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.model.usage import GatewayId
from sandboxd.monitor.ports import GatewayReports, PriceBookStore, UsageLedger
from sandboxd.monitor.sweep import OrphanSweep
from sandboxd.tls.contexts import make_server_context
from sandboxd.tls.files import TlsFiles

_log = structlog.get_logger()


class Gateway:
    """One gateway process. Use it as a context; leaving it drains the running calls and settles all of them."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        ledger: UsageLedger,
        prices: PriceBookStore,
        keys: ApiKeys,
        verifier: SandboxTokenVerifier,
        clock: Clock,
        registry: CollectorRegistry,
        policies: ModelPolicies | None = None,
        tracer: Tracer = NO_TRACES,
        reports: GatewayReports | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._metrics = GatewayMetrics(registry)
        timeouts = config.timeouts
        self._breaker = CircuitBreaker(policy=config.breaker, monotonic=time.monotonic)
        self._upstream = GeminiUpstream(base_url=config.upstream_url, timeouts=timeouts)
        self._meter = Meter(
            gateway=GatewayId(make_id("gtw", at=clock.now(), entropy=os.urandom(ENTROPY_BYTES))),
            ledger=ledger,
            prices=prices,
            spool=SettlementSpool(config.spool_directory, limit=config.spool_limit),
            sweep=OrphanSweep(ledger=ledger, prices=prices, clock=clock),
            clock=clock,
            timing=MeterTiming(
                beat=config.beat_seconds,
                dead_after=config.dead_after_seconds,
                open=timeouts.ledger_open,
                settle=timeouts.ledger_settle,
            ),
            metrics=self._metrics,
        )
        traces = CallTraces(tracer=tracer, clock=clock, tell_upstream=config.trace_upstream)
        self._forwarder = Forwarder(
            config=config,
            meter=self._meter,
            upstream=self._upstream,
            breaker=self._breaker,
            clock=clock,
            traces=traces,
            metrics=self._metrics,
        )
        self._handler = CallHandler(
            config=config,
            verifier=verifier,
            keys=keys,
            policies=policies or StaticModelPolicies(),
            meter=self._meter,
            breaker=self._breaker,
            forwarder=self._forwarder,
            metrics=self._metrics,
            clock=clock,
            traces=traces,
        )
        self._reporter: Reporter | None = None
        if reports is not None:
            self._reporter = Reporter(
                meter=self._meter,
                breaker=self._breaker,
                reports=reports,
                every=config.beat_seconds,
                timeout=timeouts.ledger_settle,
            )
        self._stack = AsyncExitStack()
        self.url = ""
        """Base URL for sandboxes, known once the gateway runs."""
        self.admin_url = ""
        """Base URL for operators, known once the gateway runs."""

    async def __aenter__(self) -> Self:
        """Begin to serve."""
        config = self._config
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._upstream)
            stack.push_async_callback(self._meter.close)
            beating = asyncio.create_task(self._meter.run(), name="gateway meter")
            stack.push_async_callback(_cancelled, beating)
            if self._reporter is not None:
                reporting = asyncio.create_task(self._reporter.run(), name="gateway reports")
                stack.push_async_callback(_cancelled, reporting)
            self.admin_url = await self._serve(
                stack, self._admin_app(), config.admin_host, config.admin_port, tls=_tls(config.admin_tls)
            )
            self.url = await self._serve(stack, self._app(), config.host, config.port, tls=_tls(config.tls))
            stack.callback(self._stop)
            self._stack = stack.pop_all()
        _log.info("gateway.started", url=self.url, admin_url=self.admin_url, gateway=self._meter.gateway)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Refuse new calls, let running ones end within the deadline, cut the rest, settle all."""
        await self._stack.aclose()
        _log.info("gateway.stopped", gateway=self._meter.gateway)

    def _stop(self) -> None:
        self._handler.stopping = True
        self._forwarder.stop()

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{anything:.*}", self._handler.handle)
        return app

    def _admin_app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._show_metrics)
        return app

    async def _serve(
        self, stack: AsyncExitStack, app: web.Application, host: str, port: int, *, tls: ssl.SSLContext | None = None
    ) -> str:
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_http_logger(self._metrics),
            handler_cancellation=True,  # a CLI that goes away cancels its call, and the call its request upstream
            keepalive_timeout=75.0,
            lingering_time=2.0,  # seconds in which the rest of a refused body is read away, so that the answer arrives
            shutdown_timeout=self._config.timeouts.shutdown,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, host, port, ssl_context=tls, backlog=1024)
        await site.start()
        bound = runner.addresses[0]
        return f"{'https' if tls else 'http'}://{bound[0]}:{bound[1]}"

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        ready = self._meter.ready and not self._handler.stopping
        return web.Response(text="ready\n" if ready else "not ready\n", status=200 if ready else 503)

    async def _show_metrics(self, _: web.Request) -> web.Response:
        self._metrics.circuit_is(self._breaker.state)
        self._meter.show()
        return web.Response(body=generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})


async def run_gateway(
    *,
    config: GatewayConfig,
    ledger: UsageLedger,
    prices: PriceBookStore,
    keys: ApiKeys,
    verifier: SandboxTokenVerifier,
    clock: Clock,
    registry: CollectorRegistry,
    stop: asyncio.Event,
    started: asyncio.Future[Gateway] | None = None,
    policies: ModelPolicies | None = None,
    tracer: Tracer = NO_TRACES,
    reports: GatewayReports | None = None,
) -> None:
    """Run a gateway until `stop` is set (or the task is cancelled), then drain it.

    Args:
        config: How it is set up.
        ledger: Where usage is written.
        prices: Where prices are read.
        keys: The clients' API keys.
        verifier: Checks sandbox tokens.
        clock: The present moment.
        registry: Where its metrics are registered.
        stop: Set it to end.
        started: Gets the running gateway, with its addresses.
        policies: What each client may call; by default all Gemini models.
        tracer: Where spans are reported.
        reports: Where it says how it is; None for nowhere.
    """
    async with Gateway(
        config=config,
        ledger=ledger,
        prices=prices,
        keys=keys,
        verifier=verifier,
        clock=clock,
        registry=registry,
        policies=policies,
        tracer=tracer,
        reports=reports,
    ) as gateway:
        if started is not None:
            started.set_result(gateway)
        await stop.wait()


class _CountingHandler(logging.Handler):
    """Counts what the HTTP library complains of. Its messages hold raw request bytes, so they are not written."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        super().__init__(logging.WARNING)
        self._metrics = metrics

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._metrics.refusals.labels(RefusalReason.HTTP_INVALID.value).inc()


def _http_logger(metrics: GatewayMetrics) -> logging.Logger:
    # Of its own, outside the tree: no handler of the process writes what it says.
    logger = logging.Logger("sandboxd.gateway.http")  # noqa: LOG001
    logger.addHandler(_CountingHandler(metrics))
    return logger


def _tls(files: TlsFiles | None) -> ssl.SSLContext | None:
    return make_server_context(files) if files else None


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])

"""Counts RPCs. Labels come from closed sets: our methods and gRPC's codes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from typing_extensions import override

from sandboxd.api.grpc.rpc import CallInterceptor, Rpc


class MetricsInterceptor(CallInterceptor):
    """Keeps the RPC metrics. `method` is one of the contract's methods, `code` one of gRPC's 17 codes."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        self._handled = Counter(
            "sandboxd_grpc_handled_total", "RPCs that ended.", ["method", "code"], registry=registry
        )
        self._seconds = Histogram(
            "sandboxd_grpc_handling_seconds",
            "How long RPCs took; streams are not in it.",
            ["method"],
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10, 60),
            registry=registry,
        )
        self._in_flight = Gauge("sandboxd_grpc_in_flight", "RPCs that run now.", ["method"], registry=registry)

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Run the call and count it."""
        began = time.monotonic()
        with self._in_flight.labels(method=rpc.method).track_inprogress():
            try:
                yield
            finally:
                self._handled.labels(method=rpc.method, code=rpc.code.name).inc()
                if not rpc.streaming:
                    self._seconds.labels(method=rpc.method).observe(time.monotonic() - began)

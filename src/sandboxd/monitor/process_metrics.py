"""What every role measures of itself: which version it is, and how long its event loop keeps work waiting."""

from __future__ import annotations

import asyncio
import platform
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector, disable_created_metrics

LOOK_SECONDS: Final = 0.25
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class ProcessMetrics:
    """One for each process; `run` must run in its event loop."""

    def __init__(self, registry: CollectorRegistry, *, role: str, version: str) -> None:
        # One more series for each counter, for what a restart shows anyway.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types
        ProcessCollector(registry=registry)
        info = Gauge(
            "sandboxd_build_info",
            "1, with the version of sandboxd and of Python, and the role.",
            ("version", "python", "role"),
            registry=registry,
        )
        info.labels(version, platform.python_version(), role).set(1)
        self._lag = Histogram(
            "sandboxd_event_loop_lag_seconds",
            f"How much later than asked the event loop runs what is due; looked at every {LOOK_SECONDS} s.",
            buckets=_BUCKETS,
            registry=registry,
        )

    async def run(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            self._lag.observe(max(0.0, loop.time() - due))

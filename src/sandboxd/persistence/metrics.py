"""The pool's figures: how long work waits for a connection, and how many are out."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class DatabaseMetrics:
    """What is measured of one pool."""

    def __init__(self, registry: CollectorRegistry, engine: AsyncEngine) -> None:
        self._wait = Histogram(
            "sandboxd_database_wait_seconds",
            "How long work waited for a connection of the pool, making a new one included.",
            buckets=_QUICK,
            registry=registry,
        )
        connections = Gauge(
            "sandboxd_database_connections",
            "Connections of the pool, by state (used, idle).",
            ("state",),
            registry=registry,
        )
        limit = Gauge("sandboxd_database_connections_limit", "Most connections of the pool.", registry=registry)
        pool = engine.pool
        if isinstance(pool, QueuePool):
            connections.labels("used").set_function(pool.checkedout)
            connections.labels("idle").set_function(pool.checkedin)
            limit.set(pool.size() + pool._max_overflow)  # noqa: SLF001  it has no public name

    def waited(self, seconds: float) -> None:
        """Note a wait."""
        self._wait.observe(seconds)

"""The manager's figures. Labels come from closed sets: transient states, outcomes, kinds of orphans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sandboxd.model.sandbox import SandboxState

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)

Orphan = Literal["sandbox_unknown", "incarnation_unknown", "files_missing"]
"""`sandbox_unknown`: files or processes without a row. `incarnation_unknown`: processes that no row calls living.
`files_missing`: a row whose files are not there."""


class ManagerMetrics:
    """What is counted and measured of the work on sandboxes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._operations = Histogram(
            "sandboxd_operation_seconds",
            "Time of one piece of work on a sandbox, by transient state and outcome (done, refused, error, cancelled).",
            ("operation", "outcome"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._recovered = Counter(
            "sandboxd_recovered_operations_total", "Sandboxes found on their way after a crash.", registry=registry
        )
        self._lost = Counter(
            "sandboxd_lost_incarnations_total", "Incarnations whose agent was found gone.", registry=registry
        )
        self._orphans = Gauge(
            "sandboxd_orphans",
            "Things without their counterpart, by kind; reported, never deleted.",
            ("kind",),
            registry=registry,
        )
        self._sandboxes = Gauge(
            "sandboxd_sandboxes",
            "Sandboxes that are not terminated, by state; counted in the database, the same on every replica.",
            ("state",),
            registry=registry,
        )
        self._stuck = Gauge(
            "sandboxd_sandboxes_stuck",
            "Sandboxes that have been on their way for more than five minutes.",
            registry=registry,
        )
        self._tokens = Counter(
            "sandboxd_sandbox_tokens_total",
            "Tokens given to agents, by outcome (given, failed).",
            ("outcome",),
            registry=registry,
        )

    def operation(self, state: SandboxState, *, outcome: str, seconds: float) -> None:
        """Note a finished piece of work."""
        self._operations.labels(state.value, outcome).observe(seconds)

    def recovered(self) -> None:
        """Note that a sandbox was taken over by recovery."""
        self._recovered.inc()

    def lost(self) -> None:
        """Note an incarnation whose agent is gone."""
        self._lost.inc()

    def orphans(self, kind: Orphan, number: int) -> None:
        """Note how many orphans of a kind there are."""
        self._orphans.labels(kind).set(number)

    def census(self, numbers: Mapping[SandboxState, int], *, stuck: int) -> None:
        """Note how many sandboxes there are in each state, and how many of them are stuck on their way."""
        self._stuck.set(stuck)
        for state, number in numbers.items():
            self._sandboxes.labels(state.value).set(number)

    def token(self, *, given: bool) -> None:
        """Note that an agent was given its token, or could not be."""
        self._tokens.labels("given" if given else "failed").inc()

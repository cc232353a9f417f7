"""Figures of warm pools. Labels come from closed sets: outcomes of claims, states of members, reasons of ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sandboxd.model.pool import EndReason, MemberState
from sandboxd.model.startup import MissReason

_QUICK: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_SLOW: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
HIT: Final = "hit"


class PoolMetrics:
    """What is counted and measured of pools."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._claims = Counter(
            "sandboxd_pool_claims_total",
            "Creates by what their pool gave: hit, or why not (no_pool, pool_off, pool_filling, pool_empty).",
            ("outcome",),
            registry=registry,
        )
        self._members = Gauge(
            "sandboxd_pool_members",
            "Members of all pools by state, as the refilling replica saw them last; 0 on the others.",
            ("state",),
            registry=registry,
        )
        self._claim_seconds = Histogram(
            "sandboxd_pool_claim_seconds",
            "From a Create to the durable claim of a member: the whole of a warm Create but the wire.",
            buckets=_QUICK,
            registry=registry,
        )
        self._refill_seconds = Histogram(
            "sandboxd_pool_refill_seconds",
            "From the plan to make a member until it is ready to be claimed.",
            buckets=_SLOW,
            registry=registry,
        )
        self._ended = Counter(
            "sandboxd_pool_members_ended_total",
            "Members that ended unclaimed, by reason (stale, old, lost, shrunk, failed).",
            ("reason",),
            registry=registry,
        )
        self._waiting = Gauge(
            "sandboxd_cold_starts_waiting", "Creates that wait until a start may begin.", registry=registry
        )
        self._refused = Counter(
            "sandboxd_cold_starts_refused_total",
            "Creates that were refused because no start could begin in time.",
            registry=registry,
        )
        for outcome in (HIT, *(reason.value for reason in MissReason)):
            self._claims.labels(outcome)

    def claimed(self, miss: MissReason | None, *, seconds: float) -> None:
        """Note what a Create found, and how long it took where it found a member."""
        self._claims.labels(HIT if miss is None else miss.value).inc()
        if miss is None:
            self._claim_seconds.observe(seconds)

    def members(self, numbers: Mapping[MemberState, int]) -> None:
        """Note how many members there are in each state."""
        for state in MemberState:
            self._members.labels(state.value).set(numbers.get(state, 0))

    def refilled(self, seconds: float) -> None:
        """Note a member that became ready."""
        self._refill_seconds.observe(seconds)

    def ended(self, reason: EndReason, number: int) -> None:
        """Note members that ended unclaimed."""
        self._ended.labels(reason.value).inc(number)

    def starts_waiting(self, number: int) -> None:
        """Note how many Creates wait for a start."""
        self._waiting.set(number)

    def start_refused(self) -> None:
        """Note a Create that was refused."""
        self._refused.inc()

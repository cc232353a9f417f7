"""The sweep's figures. Labels come from closed sets: steps of the lifecycle, and what became of them."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sandboxd.model.lifecycle import LifecycleStep

StepOutcome = Literal["done", "called_off", "in_use", "late", "failed"]
"""`called_off`: it was used when the step had begun, and is as it was. `in_use`: it was used, or worked on by somebody
else, before. `late`: it takes longer than a minute, and goes on."""


class LifecycleMetrics:
    """What is counted and measured of the sweep."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._steps = Counter(
            "sandboxd_lifecycle_steps_total",
            "Steps that the sweep began, by step (hibernate, stop, terminate) and outcome (done, called_off, in_use, "
            "late, failed).",
            ("step", "outcome"),
            registry=registry,
        )
        self._announcements = Counter(
            "sandboxd_lifecycle_announcements_total",
            "Steps that were announced, and announced ones that were called off, by kind (announced, called_off).",
            ("kind",),
            registry=registry,
        )
        self._seconds = Histogram(
            "sandboxd_lifecycle_sweep_seconds",
            "Time of one pass of the sweep, with the steps that it took.",
            buckets=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0),
            registry=registry,
        )
        self._candidates = Gauge(
            "sandboxd_lifecycle_candidates",
            "Sandboxes that the last pass of this replica looked at.",
            registry=registry,
        )
        self._lag = Gauge(
            "sandboxd_lifecycle_lag_seconds",
            "How late the latest step of this replica's last pass was begun.",
            registry=registry,
        )
        self._leading = Gauge(
            "sandboxd_lifecycle_leading", "1 where this replica has the duty of the sweep.", registry=registry
        )

    def step(self, step: LifecycleStep, outcome: StepOutcome) -> None:
        """Note a step and what became of it."""
        self._steps.labels(step.value.lower(), outcome).inc()

    def announced(self, *, called_off: bool) -> None:
        """Note an announcement, or that one is void."""
        self._announcements.labels("called_off" if called_off else "announced").inc()

    def passed(self, *, candidates: int, seconds: float, lag: float) -> None:
        """Note a pass."""
        self._seconds.observe(seconds)
        self._candidates.set(candidates)
        self._lag.set(lag)

    def leads(self, leading: bool) -> None:
        """Note whether this replica has the duty."""
        self._leading.set(int(leading))

"""What the operator measures of itself. Labels are from closed sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from sandboxd.model.cluster_status import PlacedState
from sandboxd.operator.kinds import Kind

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SUBJECTS: Final = ("sandbox", "namespace", "pool", "template")
OUTCOMES: Final = ("done", "refused", "conflict", "failed")
STEPS: Final = ("create", "patch", "resize", "delete", "writeidentity")


class OperatorMetrics:
    """One for each process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._leader = Gauge("sandboxd_operator_leader", "1 while this operator is the active one.", registry=registry)
        self._depth = Gauge("sandboxd_operator_queue_depth", "Keys that wait to be reconciled.", registry=registry)
        self._seconds = Histogram(
            "sandboxd_operator_reconcile_seconds",
            "How long a pass over a sandbox, pool, probe, backup, client's namespace or template's images takes, and "
            "how it ended.",
            ("subject", "outcome"),
            buckets=_BUCKETS,
            registry=registry,
        )
        self._steps = Counter(
            "sandboxd_operator_steps_total",
            "Writes to the cluster, by what they do and how they ended.",
            ("step", "outcome"),
            registry=registry,
        )
        self.watches = _Watches()
        registry.register(self.watches)

    def lead(self, leads: bool) -> None:
        """Say whether this operator is the active one."""
        self._leader.set(int(leads))

    def watch_depth(self, depth: Callable[[], float]) -> None:
        """Say where the queue's depth is to be read."""
        self._depth.set_function(depth)

    def reconciled(self, subject: str, *, outcome: str, seconds: float) -> None:
        """Count one pass."""
        self._seconds.labels(subject, outcome).observe(seconds)

    def stepped(self, step: str, *, outcome: str) -> None:
        """Count one write."""
        self._steps.labels(step, outcome).inc()


class _Watches(Collector):
    """Read when somebody asks: which watches are cut off, and how many sandboxes are in which state."""

    def __init__(self) -> None:
        self.problems: Callable[[], Mapping[str, bool]] = dict
        self.states: Callable[[], Mapping[PlacedState, int]] = dict

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        watches = GaugeMetricFamily(
            "sandboxd_operator_watch_interrupted", "1 while the watch of a kind is cut off.", labels=["kind"]
        )
        problems = self.problems()
        for kind in Kind:
            watches.add_metric([kind.value[1]], int(problems.get(kind.value[1], False)))
        yield watches
        states = GaugeMetricFamily(
            "sandboxd_operator_sandboxes", "Sandbox resources of this installation, by state.", labels=["state"]
        )
        counts = self.states()
        for state in PlacedState:
            states.add_metric([state.value], counts.get(state, 0))
        yield states

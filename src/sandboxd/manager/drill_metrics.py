"""Figures of restore drills. Labels come from closed sets: what one came to, and the step."""

from __future__ import annotations

from datetime import timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sandboxd.model.drill import ENDS, Drill, DrillStatus, DrillStep

_SECONDS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)


class DrillMetrics:
    """What is counted and measured of drills."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._drills = Counter(
            "sandboxd_restore_drills_total",
            "Restore drills that ended, by outcome (passed; failed: the backup does not come back as it was; "
            "abandoned: it could not be carried out).",
            ("outcome",),
            registry=registry,
        )
        self._seconds = Histogram(
            "sandboxd_restore_drill_step_seconds",
            "Time of a step of a drill that passed (restore, boot, compare, clear).",
            ("step",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._bytes = Counter(
            "sandboxd_restore_drill_bytes_total",
            "Bytes of restored files that drills have compared with the repository's.",
            registry=registry,
        )
        self._silence = Gauge(
            "sandboxd_restore_drill_silence_seconds",
            "How long ago the last drill began that passed, or the first of all where none did; of the replica that "
            "looks after drills, where they are made by schedule, else 0.",
            registry=registry,
        )
        for status in ENDS:
            self._drills.labels(status.value)
        for step in DrillStep:
            self._seconds.labels(step.value)

    def ended(self, drill: Drill) -> None:
        """Note a drill that has ended."""
        self._drills.labels(drill.status.value).inc()
        self._bytes.inc(sum(one.bytes for one in drill.volumes))
        if drill.status is DrillStatus.PASSED:
            for step, seconds in drill.seconds.items():
                self._seconds.labels(step).observe(seconds)

    def silent(self, since: timedelta) -> None:
        """Note how long nothing has been proven."""
        self._silence.set(since.total_seconds())

"""Figures of packages. Labels come from closed sets: managers, kinds of change, and why a watch ended."""

from __future__ import annotations

from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sandboxd.model.package_history import KeptChange, Requester
from sandboxd.model.packages import PackageChangeKind, PackageManager

WatchEnd = Literal["unanswered", "refused", "broken"]
"""`unanswered`: the agent was lost, or what it said could not be kept now. `refused`: it is older than this. `broken`:
what it said could not be taken."""
_LAG_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0, 3600.0)


class PackageMetrics:
    """What is counted and measured of packages."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._changes = Counter(
            "sandboxd_package_changes_total",
            "Changes of packages that this replica kept, by manager (dpkg, pip, npm, cargo, gem, go) and kind "
            "(installed, removed, changed).",
            ("manager", "kind"),
            registry=registry,
        )
        self._missed = Counter(
            "sandboxd_package_changes_missed_total",
            "Changes that agents numbered and did not tell: too many came while nobody watched, or too fast.",
            registry=registry,
        )
        self._throttled = Counter(
            "sandboxd_package_watches_throttled_total",
            "How often a sandbox told more than is taken at once, and was made to wait.",
            registry=registry,
        )
        self._ends = Counter(
            "sandboxd_package_watch_ends_total",
            "Watches that ended and are begun again, by why (unanswered, refused, broken).",
            ("why",),
            registry=registry,
        )
        self._lag = Histogram(
            "sandboxd_package_lag_seconds",
            "From when a sandbox noticed a change, by its clock, to when it was kept.",
            buckets=_LAG_SECONDS,
            registry=registry,
        )
        self.watched = Gauge(
            "sandboxd_package_watches", "Sandboxes whose packages this replica watches.", registry=registry
        )
        self._dirty = Gauge(
            "sandboxd_dirty_sandboxes",
            "Sandboxes with compute whose root file system has what no commit has, of all replicas.",
            registry=registry,
        )
        self._oldest = Gauge(
            "sandboxd_dirty_oldest_seconds",
            "For how long that one of them has been so that has longest; 0 where none is.",
            registry=registry,
        )
        for manager in PackageManager:
            for kind in PackageChangeKind:
                self._changes.labels(manager.value, kind.value)

    def kept(self, change: KeptChange) -> None:
        """Count a change, and how long it took."""
        self._changes.labels(change.change.package.key.manager.value, change.change.kind.value).inc()
        if change.asked.requester is not Requester.IMAGE:
            self._lag.observe(max(0.0, (change.kept_time - change.change.time).total_seconds()))

    def missed(self, number: int) -> None:
        """Count changes that were not told."""
        self._missed.inc(number)

    def throttled(self) -> None:
        """Count that somebody was made to wait."""
        self._throttled.inc()

    def ended(self, why: WatchEnd) -> None:
        """Count a watch that has to be begun again."""
        self._ends.labels(why).inc()

    def dirty(self, *, sandboxes: int, oldest_seconds: float) -> None:
        """Show how many sandboxes have something unsaved, and since when."""
        self._dirty.set(sandboxes)
        self._oldest.set(oldest_seconds)

"""Figures of backups. Labels come from closed sets: why, and what became of it."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sandboxd.model.backup import BackupSet

BackupOutcome = Literal["complete", "failed", "cancelled"]
WorkOutcome = Literal["done", "failed"]

_SECONDS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)


class BackupMetrics:
    """What is counted and measured of backups, of restores, and of deletions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._backups = Counter(
            "sandboxd_backups_total",
            "Backups that ended, by trigger (request, schedule, terminate, restore) and outcome (complete, failed, "
            "cancelled).",
            ("trigger", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "sandboxd_backup_seconds",
            "Time of a backup that is complete, from the wish for it on.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._read = Counter(
            "sandboxd_backup_bytes_total", "Bytes of the files in complete backups.", registry=registry
        )
        self._stored = Counter(
            "sandboxd_backup_stored_bytes_total",
            "What of that was new and had to be stored, compressed and encrypted.",
            registry=registry,
        )
        self._frozen = Histogram(
            "sandboxd_backup_frozen_seconds",
            "For how long running sandboxes were read while they stood still for a backup.",
            buckets=(0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
            registry=registry,
        )
        self._running = Gauge(
            "sandboxd_backups_running", "Backups and deletions that this replica works on.", registry=registry
        )
        self._recovered = Counter(
            "sandboxd_backups_recovered_total", "Backups taken over after a crash.", registry=registry
        )
        self._deleted = Counter(
            "sandboxd_backups_deleted_total",
            "Backups whose deletion was tried, by outcome (done: with proof; failed: it is tried again).",
            ("outcome",),
            registry=registry,
        )

        self._released = Counter(
            "sandboxd_volume_releases_total",
            "Terminated sandboxes whose volumes were to be released, by outcome (done; failed: it is tried again).",
            ("outcome",),
            registry=registry,
        )
        self._released_bytes = Counter(
            "sandboxd_volume_release_bytes_total", "Room that released volumes had taken.", registry=registry
        )

    def ended(self, backup: BackupSet, outcome: BackupOutcome) -> None:
        """Note a backup that has ended."""
        self._backups.labels(backup.trigger.value, outcome).inc()
        if outcome == "complete":
            self._seconds.observe((backup.update_time - backup.create_time).total_seconds())
            self._read.inc(backup.bytes)
            self._stored.inc(sum(one.added_bytes for one in backup.volumes))

    def frozen(self, seconds: float) -> None:
        """Note for how long a sandbox was read while it stood still."""
        self._frozen.observe(seconds)

    def running(self, number: int) -> None:
        """Note how much this replica works on."""
        self._running.set(number)

    def recovered(self) -> None:
        """Note one that was taken over."""
        self._recovered.inc()

    def deleted(self, outcome: WorkOutcome, *, sets: int) -> None:
        """Note a deletion, or that it has to be tried again."""
        self._deleted.labels(outcome).inc(sets)

    def released(self, outcome: WorkOutcome, *, size_bytes: int = 0) -> None:
        """Note that a terminated sandbox's volumes were released, or could not be."""
        self._released.labels(outcome).inc()
        self._released_bytes.inc(size_bytes)

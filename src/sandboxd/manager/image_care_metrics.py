"""Figures of the care of kept images. Labels come from closed sets: what a lost one was replaced by, how passes end."""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

CareOutcome = Literal["done", "uses_unknown", "registry_refuses", "images_missing", "held", "failed"]
ProjectOutcome = Literal["done", "failed"]
LostTarget = Literal["previous", "base", "none"]


class ImageCareMetrics:
    """What is counted of images that are removed, found and missed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._passes = Counter(
            "sandboxd_image_care_passes_total",
            "Passes over kept images that were no dry runs, by outcome (done, uses_unknown, registry_refuses, "
            "images_missing, held: somebody holds pushes, failed).",
            ("outcome",),
            registry=registry,
        )
        self._reaped = Counter("sandboxd_images_reaped_total", "Images removed from the registry.", registry=registry)
        self._bytes = Counter(
            "sandboxd_images_reaped_bytes_total",
            "Bytes of the layers of removed images; the registry's own garbage collection frees them.",
            registry=registry,
        )
        self._removed = Counter(
            "sandboxd_image_orphans_removed_total",
            "Images without a row that were removed from the registry.",
            registry=registry,
        )
        self._lost = Counter(
            "sandboxd_images_lost_total",
            "Images that the registry has no more, by what their sandbox takes instead (previous, base, or none where "
            "it had another one).",
            ("target",),
            registry=registry,
        )
        # From the beginning, so that the first one of each is seen as an increase.
        for outcome in get_args(CareOutcome):
            self._passes.labels(outcome)
        for target in get_args(LostTarget):
            self._lost.labels(target)
        self._kept = Gauge("sandboxd_images_kept", "Images that the last pass left where they are.", registry=registry)
        self._orphans = Gauge(
            "sandboxd_image_orphans", "Images without a row that the last pass found.", registry=registry
        )
        self._waiting = Gauge(
            "sandboxd_images_waiting", "Images that may go, beyond those of the last pass.", registry=registry
        )

        self._projects = Counter(
            "sandboxd_image_project_passes_total",
            "Passes over clients' projects on the registry, by outcome (done, or failed where one of them could not be "
            "put right: its account to pull with may end).",
            ("outcome",),
            registry=registry,
        )
        for ended in get_args(ProjectOutcome):
            self._projects.labels(ended)

    def passed(self, outcome: CareOutcome) -> None:
        """Note how a pass ended."""
        self._passes.labels(outcome).inc()

    def found(self, *, kept: int, orphans: int, waiting: int) -> None:
        """Note what a pass found."""
        self._kept.set(kept)
        self._orphans.set(orphans)
        self._waiting.set(waiting)

    def projects_passed(self, outcome: ProjectOutcome) -> None:
        """Note how a pass over projects ended."""
        self._projects.labels(outcome).inc()

    def reaped(self, size: int) -> None:
        """Note an image that was removed, with its layer's bytes."""
        self._reaped.inc()
        self._bytes.inc(size)

    def removed(self) -> None:
        """Note an orphan that was removed."""
        self._removed.inc()

    def lost(self, target: LostTarget) -> None:
        """Note an image that is lost."""
        self._lost.labels(target).inc()

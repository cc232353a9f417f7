"""Figures of commits. Labels come from closed sets: why, what became of it, and its phases."""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sandboxd.model.commit_errors import CommitCancelledError
from sandboxd.model.image import CommitPhase, CommitTrigger, Generation, GenerationStatus

CommitOutcome = Literal["active", "unchanged", "dry_run", "superseded", "failed", "cancelled"]
FallbackTarget = Literal["previous", "base"]
SbomOutcome = Literal["attached", "failed"]
SigningOutcome = Literal["signed", "failed"]
SignatureSeen = Literal["good", "missing", "bad", "unknown"]

_G = GenerationStatus
_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_PHASES = frozenset(phase.value for phase in CommitPhase)
_BYTES = (1e4, 1e5, 1e6, 1e7, 1e8, 5e8, 1e9, 5e9, 1e10, 5e10, 1e11)


class CommitMetrics:
    """What is counted and measured of commits and of what becomes of images."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._commits = Counter(
            "sandboxd_commits_total",
            "Commits that ended, by trigger (request, stop, pause, terminate, install, upgrade) and outcome (active, "
            "unchanged, dry_run, superseded, failed, cancelled).",
            ("trigger", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "sandboxd_commit_phase_seconds",
            "Time of one phase of a commit (replay, capture, push, verify, probe, activate).",
            ("phase",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._raw = Histogram(
            "sandboxd_commit_layer_raw_bytes",
            "Length of the layer of a commit as a tar: what it takes on each node.",
            buckets=_BYTES,
            registry=registry,
        )
        self._compressed = Histogram(
            "sandboxd_commit_layer_compressed_bytes",
            "Length of the layer of a commit as it is pushed.",
            buckets=_BYTES,
            registry=registry,
        )
        self._running = Gauge("sandboxd_commits_running", "Commits that this replica works on.", registry=registry)
        self._recovered = Counter(
            "sandboxd_commits_recovered_total", "Commits taken over after a crash.", registry=registry
        )
        self._untold = Gauge(
            "sandboxd_images_untold",
            "Active images that the tag latest or the backend could not be told of, at the last look.",
            registry=registry,
        )
        self._kept_here = Gauge(
            "sandboxd_images_kept_here",
            "1 where what is installed in sandboxes is committed to images, 0 where it is not.",
            registry=registry,
        )
        self._rollbacks = Counter("sandboxd_image_rollbacks_total", "Rollbacks that callers made.", registry=registry)
        self._fallbacks = Counter(
            "sandboxd_image_fallbacks_total",
            "Starts whose image did not boot, by what was taken instead (previous, base).",
            ("target",),
            registry=registry,
        )
        self._sboms = Counter(
            "sandboxd_image_sboms_total",
            "Attempts to attach an image's list of packages to it, by outcome (attached, failed).",
            ("outcome",),
            registry=registry,
        )
        self._sboms_waiting = Gauge(
            "sandboxd_image_sboms_waiting",
            "Kept images whose list of packages the registry does not have yet, at the last look.",
            registry=registry,
        )
        self._signed = Counter(
            "sandboxd_image_signings_total",
            "Attempts to sign an image, by outcome (signed, failed).",
            ("outcome",),
            registry=registry,
        )
        self._signatures = Counter(
            "sandboxd_image_signatures_seen_total",
            "Looks at the signature of an image before a start, by what was found (good, missing, bad: of no trusted "
            "key for this image, unknown: the registry did not answer).",
            ("signature",),
            registry=registry,
        )
        # From the beginning, so that the first one of each is seen as an increase.
        for trigger in CommitTrigger:
            for outcome in get_args(CommitOutcome):
                self._commits.labels(trigger.value, outcome)
        for target in get_args(FallbackTarget):
            self._fallbacks.labels(target)
        for tried in get_args(SbomOutcome):
            self._sboms.labels(tried)
        for ended in get_args(SigningOutcome):
            self._signed.labels(ended)
        for seen in get_args(SignatureSeen):
            self._signatures.labels(seen)

    def kept_here(self, kept: bool) -> None:
        """Note whether this installation commits at all."""
        self._kept_here.set(int(kept))

    def ended(self, generation: Generation, outcome: CommitOutcome) -> None:
        """Note a commit that has ended."""
        self._commits.labels(generation.trigger.value, outcome).inc()
        for phase, seconds in generation.seconds.items():
            if phase in _PHASES:
                self._seconds.labels(phase).observe(seconds)
        if generation.content is not None and outcome in ("active", "superseded"):
            self._raw.observe(generation.content.raw_bytes)
            self._compressed.observe(generation.content.compressed_bytes)

    def running(self, number: int) -> None:
        """Note how many this replica works on."""
        self._running.set(number)

    def recovered(self) -> None:
        """Note one that was taken over."""
        self._recovered.inc()

    def untold(self, number: int) -> None:
        """Note how many active images are not told everywhere."""
        self._untold.set(number)

    def rolled_back(self) -> None:
        """Note a rollback that a caller made."""
        self._rollbacks.inc()

    def fell_back(self, target: FallbackTarget) -> None:
        """Note a start whose image did not boot."""
        self._fallbacks.labels(target).inc()

    def sbom_tried(self, outcome: SbomOutcome) -> None:
        """Note an attempt to attach a list of packages."""
        self._sboms.labels(outcome).inc()

    def sboms_waiting(self, number: int) -> None:
        """Note how many lists are not attached."""
        self._sboms_waiting.set(number)

    def signed(self, outcome: SigningOutcome) -> None:
        """Note an attempt to sign an image."""
        self._signed.labels(outcome).inc()

    def signature_seen(self, found: SignatureSeen) -> None:
        """Note what a start found of its image's signature."""
        self._signatures.labels(found).inc()


def outcome_of(generation: Generation) -> CommitOutcome:
    """Say what became of a commit that has ended."""
    if generation.status is _G.DISCARDED:
        return "dry_run" if generation.dry_run else "unchanged"
    if generation.status is _G.SUPERSEDED:
        return "superseded"
    if generation.status is _G.FAILED:
        cancelled = generation.failure is not None and generation.failure.reason == CommitCancelledError.reason
        return "cancelled" if cancelled else "failed"
    return "active"

"""Figures of what is abandoned. Labels come from closed sets: what it is."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from sandboxd.model.abandoned import Abandoned, AbandonedKind, Thing

_KINDS = "volume, image, snapshot, namespace, work, leftover, upload"


class AbandonedMetrics:
    """What is counted of abandoned things; on the replica that looked last."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._found = Gauge(
            "sandboxd_abandoned", f"Things that nobody needs, by kind ({_KINDS}).", ("kind",), registry=registry
        )
        self._bytes = Gauge(
            "sandboxd_abandoned_bytes",
            "Room that these take, as far as it is known, by kind.",
            ("kind",),
            registry=registry,
        )
        self._by_hand = Gauge(
            "sandboxd_abandoned_by_hand",
            "Of these such as do not go by themselves: somebody has to look.",
            registry=registry,
        )
        self._unasked = Gauge(
            "sandboxd_abandoned_places_unasked",
            "Places that did not answer the last look.",
            registry=registry,
        )
        self._removed = Counter(
            "sandboxd_abandoned_removed_total",
            "Abandoned things that were removed, by kind.",
            ("kind",),
            registry=registry,
        )
        for kind in AbandonedKind:
            self._removed.labels(kind.value)

    def found(self, found: Sequence[Abandoned], *, unasked: int) -> None:
        """Note what a look found."""
        for kind in AbandonedKind:
            of_kind = [one.thing for one in found if one.thing.kind is kind]
            self._found.labels(kind.value).set(len(of_kind))
            self._bytes.labels(kind.value).set(sum(one.size_bytes or 0 for one in of_kind))
        self._by_hand.set(sum(not one.automatic for one in found))
        self._unasked.set(unasked)

    def removed(self, thing: Thing) -> None:
        """Note one that is gone."""
        self._removed.labels(thing.kind.value).inc()

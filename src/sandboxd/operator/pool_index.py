"""Which sandboxes were made for which pool, kept while the mirror of sandboxes is followed.

A pool's pass looks at its members alone, and is woken by those that wait and by what is claimed, not by every change
of every sandbox.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from sandboxd.kubeapi.reflector import Key
from sandboxd.model.pool import POOLED


class PoolIndex:
    """Members by pool."""

    def __init__(self) -> None:
        self._of: dict[Key, tuple[Key, bool]] = {}
        self._waiting: defaultdict[Key, set[str]] = defaultdict(set)
        self._claimed: defaultdict[Key, set[str]] = defaultdict(set)

    def take(self, key: Key, obj: Mapping[str, Any] | None) -> Iterator[Key]:
        """Take note of a sandbox, and name the pools that a pass should look at."""
        before, after = self._of.get(key), _member_of(key[0], obj)
        if before is not None and before != after:
            self._set(before).discard(key[1])
        if after is None:
            self._of.pop(key, None)
        else:
            self._of[key] = after
            self._set(after).add(key[1])
        if before is not None and (before != after or not before[1]):
            yield before[0]
        if after is not None and (before is None or before[0] != after[0]):
            yield after[0]

    def waiting(self, pool: Key) -> frozenset[str]:
        """Those that nobody has claimed."""
        return frozenset(self._waiting.get(pool, ()))

    def claimed(self, pool: Key) -> int:
        """How many were claimed and are still there."""
        return len(self._claimed.get(pool, ()))

    def _set(self, member: tuple[Key, bool]) -> set[str]:
        return (self._claimed if member[1] else self._waiting)[member[0]]


def _member_of(namespace: str, obj: Mapping[str, Any] | None) -> tuple[Key, bool] | None:
    if obj is None or "deletionTimestamp" in obj["metadata"]:
        return None
    spec = obj.get("spec") or {}
    pool = spec.get("pool", "")
    return ((namespace, pool), spec.get("freelancer") != POOLED) if pool else None

"""What a sandbox is paid for beside tokens: compute while an incarnation lives, and storage as long as it is kept.

Pure: the rules, as words. The database applies them in the transaction of every change (migration `intervals`).

- Running compute counts from the moment an incarnation's agent answered until the incarnation ended, by tier, and apart
  for the time in which its processes were frozen (HIBERNATED). A sandbox that comes up or rests has none.
- An incarnation that was found dead counts until it was last seen alive, not until somebody found out.
- Storage counts from the first incarnation's readiness until the sandbox is TERMINATED, at the tier's size, by volume.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.sandbox import TIER_RESOURCES, Tier

SEEN_EVERY: Final = timedelta(seconds=60)
"""How often it is noted which incarnations live; what a dead one may be billed too little."""


class ResourceKind(enum.Enum):
    """What is held."""

    RUNTIME = "RUNTIME"
    STORAGE = "STORAGE"


class RunningState(enum.Enum):
    """How compute is held."""

    ACTIVE = "ACTIVE"
    HIBERNATED = "HIBERNATED"
    """Processes frozen, CPU and memory requests given back."""


VOLUME_PERCENT: Final[Mapping[str, int]] = {"home": 20, "workspace": 80}
"""How a tier's storage is split into volumes."""


def volume_bytes(tier: Tier, volume: str) -> int:
    """Size of a volume of a tier."""
    return TIER_RESOURCES[tier].storage_bytes * VOLUME_PERCENT[volume] // 100


class ResourceDimension(enum.Enum):
    """What intervals can be added up by."""

    CLIENT = "client"
    FREELANCER = "freelancer"
    SANDBOX = "sandbox"
    DAY = "day"
    """Day in UTC, as `2026-11-28`; an interval is split at midnight."""
    TIER = "tier"
    STATE = "state"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceFilter:
    """Which intervals, and which part of them: all conditions that are set must hold."""

    client: ClientId
    freelancer: FreelancerId | None = None
    sandbox: SandboxId | None = None
    start_from: datetime | None = None
    """Only what was held at this moment or later."""
    start_before: datetime | None = None
    """Only what was held before this moment; the present one where it is not set or later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceSum:
    """A sum of intervals."""

    key: tuple[str, ...]
    """Values of the dimensions, in the order asked for."""
    span: timedelta
    """All intervals' lengths together; of storage, those of its volumes."""
    megabyte_seconds: int
    """Sizes times lengths, in 10^6 bytes; 0 for running compute."""
    sandboxes: int
    """How many sandboxes are in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceSummary:
    """Sums by the dimensions that were asked for, and the sum of all."""

    rows: tuple[ResourceSum, ...]
    """Longest first, then by key."""
    total: ResourceSum

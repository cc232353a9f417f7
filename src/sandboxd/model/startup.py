"""How an incarnation came up: by which path, and how long each step took."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta


class StartPath(enum.Enum):
    """What it was made from; the first is the quickest."""

    WARM = "warm"
    """A member of a pool, already running, was claimed."""
    LOCAL = "local"
    """Made anew; its image was on the node."""
    PULL = "pull"
    """Made anew; its image had to be pulled."""
    PROCESS = "process"
    """Made anew as processes of the service's machine; there is no image."""


class MissReason(enum.Enum):
    """Why no member of a pool was claimed. Also the label of a metric: a closed set."""

    NO_POOL = "no_pool"
    """The client has no pool for this template and tier."""
    POOL_OFF = "pool_off"
    """The pool is to keep none: its target is zero, or it is being deleted."""
    POOL_FILLING = "pool_filling"
    """All members were claimed, and others are on their way."""
    POOL_EMPTY = "pool_empty"
    """All members were claimed, and none is on its way yet."""


class StartStepName(enum.Enum):
    """The steps, in their order."""

    QUEUE = "queue"
    """Waiting until the service had room for one more start."""
    CLAIM = "claim"
    """The transaction that claimed a member of a pool, quotas and all."""
    SCHEDULE = "schedule"
    """From the request until a node was chosen."""
    PULL = "pull"
    """The image's way to the node."""
    START = "start"
    """Volumes, network and container."""
    AGENT = "agent"
    """From the container's start until its agent answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartStep:
    """One step."""

    name: StartStepName
    duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReport:
    """How it came up."""

    path: StartPath
    steps: Sequence[StartStep] = ()
    """Those that were seen; together about the whole time."""
    miss: MissReason | None = None
    """Why no member of a pool was claimed; None where one was, or where no pool was asked."""

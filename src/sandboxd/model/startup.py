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


class StartStepName(enum.Enum):
    """The steps, in their order."""

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

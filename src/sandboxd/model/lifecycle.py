"""How long a sandbox may rest before policy does something: limits, who overrides whom, and their bounds. Pure.

The installation has defaults, a client's policy may override each of them, and a sandbox may override those. What comes
next for a sandbox, and when, is `model/next_step.py`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

SHORTEST: Final = timedelta(minutes=1)
"""Shortest limit that a client or a sandbox may have; the installation's own may be shorter, for trials."""
LONGEST: Final = timedelta(days=3650)
LONGEST_AWAKE: Final = timedelta(days=7)
"""How far ahead `keep_awake_until` may lie."""
LEAD: Final = timedelta(minutes=1)
"""How long before it a step is announced; a quarter of its limit where that is shorter."""


class LifecycleStep(enum.Enum):
    """What policy does by itself, from the weakest to the strongest."""

    HIBERNATE = "HIBERNATE"
    STOP = "STOP"
    TERMINATE = "TERMINATE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit that somebody set."""

    after: timedelta | None
    """None is never."""


NEVER: Final = Limit(after=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleOverrides:
    """What a client or a sandbox wants otherwise; None takes what is above it."""

    hibernate_after: Limit | None = None
    stop_after: Limit | None = None
    terminate_after: Limit | None = None
    terminate_paused_after: Limit | None = None
    discard_root_changes: bool | None = None
    """True: a stop may lose what changed in the root file system. Files in home and workspace are never lost."""


NO_OVERRIDES: Final = LifecycleOverrides()


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecyclePolicy:
    """What holds for one sandbox. Each limit is counted from the last use; None is never."""

    hibernate_after: timedelta | None = timedelta(minutes=15)
    stop_after: timedelta | None = timedelta(hours=1)
    terminate_after: timedelta | None = timedelta(hours=24)
    terminate_paused_after: timedelta | None = timedelta(days=30)
    """Counted from the pause."""
    discard_root_changes: bool = False
    lead: timedelta = LEAD
    """How long before it a step is announced."""

    def under(self, overrides: LifecycleOverrides) -> LifecyclePolicy:
        """Answer what holds for whoever wants some of it otherwise."""

        def chosen(own: Limit | None, above: timedelta | None) -> timedelta | None:
            return above if own is None else own.after

        discard = overrides.discard_root_changes
        return LifecyclePolicy(
            hibernate_after=chosen(overrides.hibernate_after, self.hibernate_after),
            stop_after=chosen(overrides.stop_after, self.stop_after),
            terminate_after=chosen(overrides.terminate_after, self.terminate_after),
            terminate_paused_after=chosen(overrides.terminate_paused_after, self.terminate_paused_after),
            discard_root_changes=self.discard_root_changes if discard is None else discard,
            lead=self.lead,
        )

    def lead_of(self, limit: timedelta) -> timedelta:
        """How long before it a step with this limit is announced."""
        return min(self.lead, limit / 4)


def limit_problem(limit: Limit | None) -> str:
    """Say what is wrong with a limit that somebody wants to set; empty where nothing is."""
    if limit is None or limit.after is None or SHORTEST <= limit.after <= LONGEST:
        return ""
    return f"must be from {SHORTEST.total_seconds():.0f} seconds to {LONGEST.days} days, or never"

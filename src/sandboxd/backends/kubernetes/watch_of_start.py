"""Notes when each step of a start was seen, and makes the report of it.

The cluster's own times have whole seconds; what is seen through the watch has milliseconds, and includes the way here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from sandboxd.backends.kubernetes.placed import Placed
from sandboxd.model.cluster_status import ConditionType
from sandboxd.model.startup import StartPath, StartReport, StartStep, StartStepName

_PULLED: Final = re.compile(r"Successfully pulled image .* in (?P<time>(?:\d+(?:\.\d+)?(?:h|ms|m|s))+)")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@dataclass(slots=True, kw_only=True)
class WatchOfStart:
    """When, by the monotonic clock, what was seen first."""

    began: float
    scheduled: float | None = None
    started: float | None = None
    pulled: timedelta | None = field(default=None)
    """Time of the pulls; None while no pull was seen."""

    def see(self, placed: Placed, *, at: float) -> None:
        """Look at what the operator reports."""
        if self.scheduled is None and (_true(placed, ConditionType.SCHEDULED) or placed.status.pod_ip):
            self.scheduled = at
        if self.started is None and _true(placed, ConditionType.AGENT_STARTED):
            self.started = at

    def read(self, messages: Sequence[str]) -> None:
        """Look at what the kubelet said about images."""
        for message in messages:
            found = _PULLED.match(message)
            if found is not None:
                self.pulled = (self.pulled or timedelta(0)) + _span(found["time"])

    def report(self, *, answered: float) -> StartReport:
        """Make the report."""
        scheduled = self.began if self.scheduled is None else self.scheduled
        started = answered if self.started is None else min(self.started, answered)
        pulled = self.pulled or timedelta(0)
        spans = {
            StartStepName.SCHEDULE: timedelta(seconds=scheduled - self.began),
            StartStepName.PULL: pulled,
            StartStepName.START: max(timedelta(0), timedelta(seconds=started - scheduled) - pulled),
            StartStepName.AGENT: timedelta(seconds=answered - started),
        }
        return StartReport(
            path=StartPath.LOCAL if self.pulled is None else StartPath.PULL,
            steps=[StartStep(name=name, duration=span) for name, span in spans.items() if span],
        )


def _true(placed: Placed, kind: ConditionType) -> bool:
    condition = placed.status.find(kind)
    return condition is not None and condition.status is True


def _span(text: str) -> timedelta:
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text)))

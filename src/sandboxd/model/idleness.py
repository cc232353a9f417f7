"""Whether a sandbox was used, from two looks at what runs in it. Pure.

Use is: a model call, input at a terminal or a program, and processor time of anything that runs there, in the
foreground or not. The agent is not one of those processes, so our own probes do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sandboxd.model.ids import IncarnationId
from sandboxd.model.processes import AgentActivity

BUSY_SHARE: Final = 0.02
"""Share of one processor from which on processes count as working. A CLI that waits takes less than a tenth of it."""
BUSY_LEAST: Final = timedelta(milliseconds=100)
"""Less processor time than this is never work, however short the time between two looks."""
SPAN: Final = timedelta(seconds=1)
"""Two looks that are closer together are not compared: the first one stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is kept of one look, to be compared with the next."""

    incarnation: IncarnationId
    time: datetime
    """When we looked, by our clock."""
    cpu_time: timedelta
    """Of everything that ran so far; never goes back within an incarnation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look found."""

    reading: Reading
    """To be kept: the new one, or the former one where too little time has passed."""
    compared: bool
    """False where there was nothing to compare with: processor time says nothing yet."""
    used: datetime | None
    """The last use that was found; None where there was none."""


def look_at(activity: AgentActivity, *, incarnation: IncarnationId, former: Reading | None, at: datetime) -> Seen:
    """Compare what an agent reports with the former look.

    Args:
        activity: What it reports.
        incarnation: Whose agent it is; the counters of another one say nothing.
        former: The look before; None where there was none.
        at: Now, by our clock. What the agent says lies in our future counts as now.
    """
    fresh = Reading(incarnation=incarnation, time=at, cpu_time=activity.cpu_time)
    moments = [activity.last_input_time, activity.last_model_request_time]
    if activity.open_model_requests:
        moments.append(at)
    comparable = former is not None and former.incarnation == incarnation and former.cpu_time <= activity.cpu_time
    compared = False
    if former is not None and comparable:
        span, spent = at - former.time, activity.cpu_time - former.cpu_time
        compared = span >= SPAN
        if compared and spent >= max(BUSY_LEAST, span * BUSY_SHARE):
            moments.append(at)
        fresh = fresh if compared else former
    used = max((min(moment, at) for moment in moments if moment is not None), default=None)
    return Seen(reading=fresh, compared=compared, used=used)

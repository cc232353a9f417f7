"""Which changes of a status may wait a moment for the next one. Pure.

A start goes through more steps than anybody follows: the set is made, one claim is bound, then the other, the image is
looked at, the container made. Each of them written at once is a patch and an event of the watch for everybody.
"""

from __future__ import annotations

from typing import Final

from sandboxd.model.cluster_status import ConditionType, PlacedState, PlacedStatus, Reason

HOLD_SECONDS: Final = 0.5
"""How long a change waits at most, from the first one that was not written on."""
_ON_THE_WAY: Final = frozenset({PlacedState.PENDING, PlacedState.STARTING})
_PASSING: Final = frozenset(
    {
        Reason.NOT_CREATED,
        Reason.STARTING,
        Reason.WAITING,
        Reason.UNSCHEDULABLE,
        Reason.VOLUME_PENDING,
        Reason.NAMESPACE_FOREIGN,
    }
)
"""Reasons that every start may have for a moment."""
_FOLLOWED: Final = (
    ConditionType.READY,
    ConditionType.SCHEDULED,
    ConditionType.AGENT_STARTED,
    ConditionType.RESIZE_PENDING,
    ConditionType.DEGRADED,
)
"""What is written at once when it becomes true, or ceases to be: `serve` times the steps of a start by them."""


def may_wait(before: PlacedStatus, after: PlacedStatus) -> bool:
    """Tell whether a change says only how far a start is between two steps that somebody waits for."""
    return (
        {before.state, after.state} <= _ON_THE_WAY
        and {before.reason, after.reason} <= _PASSING
        and _identity(before) == _identity(after)
        and all(_holds(before, kind) == _holds(after, kind) for kind in _FOLLOWED)
    )


def _identity(status: PlacedStatus) -> tuple[int, str, str]:
    return status.observed_generation, status.incarnation, status.pod_uid


def _holds(status: PlacedStatus, kind: ConditionType) -> bool:
    found = status.find(kind)
    return found is not None and found.status is True

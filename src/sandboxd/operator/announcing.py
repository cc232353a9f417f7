"""Which changes of a status are worth an Event on the resource. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sandboxd.model.cluster_status import ConditionType, PlacedState, PlacedStatus, Reason

_RESTING: Final = frozenset({PlacedState.RUNNING, PlacedState.HIBERNATED, PlacedState.STOPPED, PlacedState.FAILED})
_QUIET: Final = frozenset(
    {
        Reason.NOT_CREATED,
        Reason.STARTING,
        Reason.WAITING,
        Reason.RESIZE_IN_PROGRESS,
        Reason.EXPANSION_WAITS,
        Reason.AS_DESIRED,
    }
)
_PASSING: Final = frozenset({Reason.UNSCHEDULABLE, Reason.VOLUME_PENDING, Reason.NAMESPACE_FOREIGN})
"""Reasons that every start may have for a moment; they are told of when they stay."""
PATIENCE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """One Event."""

    reason: str
    message: str
    warning: bool


def announcements(before: PlacedStatus, after: PlacedStatus) -> Iterator[Announcement]:
    """Say what is to be told of a change."""
    changed = (before.state, before.reason) != (after.state, after.reason)
    if changed and after.state is PlacedState.FAILED:
        yield Announcement(reason=after.reason.value, message=after.message or "It failed.", warning=True)
    elif changed and after.state in _RESTING and before.state is not after.state:
        text = f"It is {after.state.value.lower()}{f' on {after.node}' if after.pod_name else ''}."
        yield Announcement(reason=after.state.value, message=text, warning=False)
    elif changed and after.state is PlacedState.PENDING and after.reason not in _QUIET | _PASSING:
        yield Announcement(reason=after.reason.value, message=after.message or "It waits.", warning=True)
    for kind in (ConditionType.RESIZE_PENDING, ConditionType.DEGRADED):
        was, now = before.find(kind), after.find(kind)
        if now is None or not now.status or now.reason in _QUIET or now.reason is after.reason:
            continue
        if was is None or not was.status or was.reason is not now.reason:
            yield Announcement(reason=now.reason.value, message=now.message, warning=True)


def lasting(status: PlacedStatus) -> Announcement | None:
    """Say what is to be told when it is still so after a while; None for what is told at once, or not at all."""
    if status.state is PlacedState.PENDING and status.reason in _PASSING:
        return Announcement(reason=status.reason.value, message=status.message or "It waits.", warning=True)
    return None

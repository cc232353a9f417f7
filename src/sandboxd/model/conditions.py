"""Conditions of our resources, in the form that Kubernetes has for them (`metav1.Condition`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def condition_mapping(
    kind: str,
    status: str,
    reason: str,
    message: str,
    *,
    before: Mapping[str, Any],  # Any: JSON
    generation: int,
    now: str,
) -> dict[str, Any]:
    """One condition as a resource has it; one whose status stays keeps the time of its last change.

    Args:
        kind: Its type.
        status: `True`, `False` or `Unknown`.
        reason: One word.
        message: For people.
        before: Conditions so far are in this status of the resource.
        generation: Of the spec that this is about.
        now: RFC 3339.
    """
    was: Mapping[str, Any] = next((one for one in before.get("conditions", ()) if one["type"] == kind), {})
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": was.get("lastTransitionTime", now) if was.get("status") == status else now,
        "observedGeneration": generation,
    }

"""Whether an incarnation was lost, and how. Pure.

The pod that first ran for an incarnation *is* that incarnation: its uid is kept in the status. When that pod goes, or
its container starts a second time, the incarnation is over, whatever the StatefulSet puts in its place. A loss is
remembered until the spec names another incarnation, for what told of it is gone by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.model.cluster import Mode
from sandboxd.model.cluster_status import PlacedState, Reason
from sandboxd.operator.observed import (
    Desired,
    Observed,
    container_status,
    incarnation_of,
    is_terminating,
    pod_condition,
)

LOSSES: Final = frozenset(
    {
        Reason.CONTAINER_RESTARTED,
        Reason.CONTAINER_FAILED,
        Reason.OUT_OF_MEMORY,
        Reason.POD_EVICTED,
        Reason.POD_DELETED,
        Reason.POD_FAILED,
        Reason.NODE_LOST,
    }
)
_DISRUPTIONS: Final[Mapping[str, tuple[Reason, str]]] = {
    "EvictionByEvictionAPI": (
        Reason.POD_EVICTED,
        "The pod was evicted: its node is drained, or somebody asked for it.",
    ),
    "TerminationByKubelet": (Reason.POD_EVICTED, "The node evicted the pod: it was short of memory or disk."),
    "PreemptionByScheduler": (Reason.POD_EVICTED, "The pod had to make room for another of higher priority."),
    "DeletionByTaintManager": (Reason.NODE_LOST, "The pod's node does not answer, or was tainted against it."),
    "DeletionByPodGC": (Reason.NODE_LOST, "The pod's node is gone."),
}
_NEVER_RAN: Final = frozenset({"StartError", "ContainerCannotRun"})
"""What runtimes say of a container whose first program they could not start."""
_DELETED: Final = (Reason.POD_DELETED, "The pod was deleted by somebody else than sandboxd.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How an incarnation ended without our wish."""

    reason: Reason
    message: str


def is_bound(desired: Desired) -> bool:
    """Tell whether a pod is known to be the present incarnation."""
    return bool(desired.status.pod_uid) and desired.status.incarnation == desired.spec.incarnation


def find_loss(desired: Desired, observed: Observed) -> Loss | None:
    """Say how the present incarnation was lost; None while it lives, or has not begun."""
    status = desired.status
    if desired.spec.mode is Mode.STOPPED:
        return None
    same = status.incarnation == desired.spec.incarnation
    if same and status.state is PlacedState.FAILED and status.reason in LOSSES:
        return Loss(reason=status.reason, message=status.message)
    pod, bound = observed.pod, is_bound(desired)
    if pod is not None and bound and pod["metadata"]["uid"] == status.pod_uid:
        return _ended(pod) or (_disrupted(pod) if is_terminating(pod) else None)
    if bound:
        gone = (Reason.NODE_LOST, "The pod went with its node.")
        reason, message = _DELETED if observed.node_ready else gone
        return Loss(reason=reason, message=message)
    if pod is not None and incarnation_of(pod) == desired.spec.incarnation and not is_terminating(pod):
        return _restarted(pod)
    return None


def _ended(pod: Mapping[str, Any]) -> Loss | None:  # Any: JSON
    status = pod.get("status", {})
    if status.get("phase") in ("Failed", "Succeeded"):
        if status.get("reason") == "Evicted":
            return Loss(reason=Reason.POD_EVICTED, message=status.get("message", "The node evicted the pod."))
        if pod_condition(pod, "DisruptionTarget").get("status") == "True":
            return _disrupted(pod)
        return _restarted(pod) or Loss(reason=Reason.POD_FAILED, message=status.get("message", "The pod ended."))
    return _restarted(pod)


def _restarted(pod: Mapping[str, Any]) -> Loss | None:
    status = container_status(pod)
    ended = status.get("lastState", {}).get("terminated") or status.get("state", {}).get("terminated")
    if ended is None and not status.get("restartCount", 0):
        return None
    if ended is None:
        return Loss(reason=Reason.CONTAINER_RESTARTED, message="The container was started again.")
    if ended.get("reason") == "OOMKilled":
        return Loss(
            reason=Reason.OUT_OF_MEMORY, message="The sandbox used more memory than its tier has, and was killed."
        )
    last = (ended.get("message") or "").strip()
    if ended.get("reason") in _NEVER_RAN:
        text = f"The node cannot start the container. {last}".strip()
        return Loss(reason=Reason.CONTAINER_FAILED, message=text[:1000])
    text = f"The container ended with exit code {ended.get('exitCode')}. {last}".strip()
    return Loss(reason=Reason.CONTAINER_RESTARTED, message=text[:1000])


def _disrupted(pod: Mapping[str, Any]) -> Loss:
    target = pod_condition(pod, "DisruptionTarget")
    reason, message = _DISRUPTIONS.get(target.get("reason", ""), _DELETED)
    return Loss(reason=reason, message=message)

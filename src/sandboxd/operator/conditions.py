"""What each condition of a `Sandbox` says, and why a pod that should run does not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.model.cluster_status import Condition, ConditionType, PlacedState, Reason
from sandboxd.model.quantity import parse_quantity
from sandboxd.operator.comparing import says
from sandboxd.operator.image_rules import is_foreign, pull_reason
from sandboxd.operator.kinds import Kind
from sandboxd.operator.losses import find_loss
from sandboxd.operator.observed import (
    Desired,
    Observed,
    Refusal,
    container_resources,
    container_status,
    incarnation_of,
    is_ours,
    is_started,
    is_terminating,
    pod_condition,
)
from sandboxd.operator.plan import PlanSettings, sizes

IMAGE_REASONS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
_STARTING_REASONS: Final = frozenset({"", "ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of one question."""

    status: bool | None
    reason: Reason
    message: str = ""

    def as_condition(self, kind: ConditionType) -> Condition:
        """Return it as a condition."""
        return Condition(type=kind, status=self.status, reason=self.reason, message=self.message[:1000])


def reason_of(refusal: Refusal) -> Reason:
    """Say in our words what was refused."""
    text = refusal.message
    if "exceeded quota" in text:
        return Reason.QUOTA_EXCEEDED
    if "being terminated" in text:
        return Reason.NAMESPACE_TERMINATING
    if refusal.reason == "Foreign":
        return Reason.OBJECT_FOREIGN
    return Reason.POD_REFUSED


def waiting(desired: Desired, observed: Observed, settings: PlanSettings) -> Finding:
    """Say what a pod that should run waits for."""

    def found(reason: Reason, message: str = "") -> Finding:
        return Finding(status=False, reason=reason, message=message)

    if not is_ours(observed.namespace, instance=settings.instance):
        return found(Reason.NAMESPACE_FOREIGN, "The namespace is not one that sandboxd made.")
    assert observed.namespace is not None
    if is_terminating(observed.namespace):
        return found(Reason.NAMESPACE_TERMINATING, "The namespace is being deleted.")
    if observed.template is None:
        return found(Reason.TEMPLATE_MISSING, f"There is no SandboxTemplate {desired.spec.template}.")
    if foreign := _foreign(desired, observed, settings):
        return found(Reason.OBJECT_FOREIGN, foreign)
    if refused := is_foreign(desired.spec):
        return found(Reason.IMAGE_FOREIGN, refused)
    pod = observed.pod
    if pod is not None and incarnation_of(pod) == desired.spec.incarnation:
        return _pod_waits(pod, observed, before=desired.status.reason)
    # A claim that was refused its growth keeps no pod from starting.
    if refusal := next((one for one in observed.refusals if not one.growth), None):
        return found(reason_of(refusal), refusal.message)
    if pod is not None:
        return found(Reason.WAITING, "The pod of the former incarnation is ending.")
    if observed.stateful_set is None:
        return found(Reason.NOT_CREATED)
    return found(Reason.STARTING, "The pod is being made.")


def _pod_waits(pod: Mapping[str, Any], observed: Observed, *, before: Reason) -> Finding:  # Any: JSON
    placed = pod_condition(pod, "PodScheduled")
    if placed.get("status") == "False":
        text = str(placed.get("message", ""))
        bound = volumes_bound(observed)
        if bound.status is False and ("unbound" in text or "persistentvolumeclaim" in text.lower()):
            return Finding(status=False, reason=bound.reason, message=f"{bound.message} {text}".strip())
        return Finding(status=False, reason=Reason.UNSCHEDULABLE, message=text)
    state = container_status(pod).get("state", {}).get("waiting", {})
    for other in pod.get("status", {}).get("initContainerStatuses", ()):
        state = other.get("state", {}).get("waiting") or state
    why, text = state.get("reason", ""), state.get("message", "")
    if why in IMAGE_REASONS or why.startswith("ErrImage"):
        return Finding(status=False, reason=pull_reason(why, text, before=before), message=f"{why}: {text}")
    if why not in _STARTING_REASONS:
        return Finding(status=False, reason=Reason.CONTAINER_FAILED, message=f"{why}: {text}")
    return Finding(status=False, reason=Reason.STARTING, message="The container is being made.")


def _foreign(desired: Desired, observed: Observed, settings: PlanSettings) -> str:
    for kind, obj in ((Kind.STATEFUL_SET, observed.stateful_set), (Kind.SECRET, observed.secret)):
        if obj is not None and not is_ours(obj, instance=settings.instance, owner=desired.uid):
            return f"{kind.value[1]}/{obj['metadata']['name']} belongs to somebody else; it is left alone."
    return next((one.message for one in observed.refusals if one.reason == "Foreign"), "")


def ready(observed: Observed) -> Finding:
    """Whether the agent's port answers."""
    answers = observed.pod is not None and pod_condition(observed.pod, "Ready").get("status") == "True"
    if answers:
        return Finding(status=True, reason=Reason.AS_DESIRED)
    return Finding(status=False, reason=Reason.STARTING, message="The agent does not answer yet.")


def started(desired: Desired, observed: Observed) -> Finding:
    """Whether the container of this incarnation runs."""
    pod = observed.pod
    if pod is not None and incarnation_of(pod) == desired.spec.incarnation and is_started(pod):
        return Finding(status=True, reason=Reason.AS_DESIRED)
    return Finding(status=False, reason=Reason.STARTING)


def scheduled(observed: Observed) -> Finding:
    """Whether the pod has a node."""
    if observed.pod is None:
        return Finding(status=None, reason=Reason.WAITING)
    placed = pod_condition(observed.pod, "PodScheduled")
    if observed.pod["spec"].get("nodeName"):
        return Finding(status=True, reason=Reason.AS_DESIRED)
    if placed.get("status") == "False":
        return Finding(status=False, reason=Reason.UNSCHEDULABLE, message=str(placed.get("message", "")))
    return Finding(status=None, reason=Reason.WAITING)


def volumes_bound(observed: Observed) -> Finding:
    """Whether both claims have their volumes."""
    if not observed.claims:
        return Finding(status=None, reason=Reason.NOT_CREATED)
    phases = {claim["metadata"]["name"]: claim.get("status", {}).get("phase", "") for claim in observed.claims.values()}
    lost = sorted(name for name, phase in phases.items() if phase == "Lost")
    unbound = sorted(name for name, phase in phases.items() if phase != "Bound")
    if lost:
        return Finding(status=False, reason=Reason.VOLUME_LOST, message=f"The volume of {', '.join(lost)} is gone.")
    if unbound:
        text = f"{', '.join(unbound)} has no volume yet; look at the storage class."
        return Finding(status=False, reason=Reason.VOLUME_PENDING, message=text)
    return Finding(status=True, reason=Reason.AS_DESIRED)


def resize_pending(desired: Desired, observed: Observed, *, idle: bool) -> Finding:
    """What the pod, or a volume, does not have yet of what it should."""
    return _pod_size(desired, observed, idle=idle) or _volume_size(desired, observed) or _fine()


def _fine() -> Finding:
    return Finding(status=False, reason=Reason.AS_DESIRED)


def _pod_size(desired: Desired, observed: Observed, *, idle: bool) -> Finding | None:
    pod, template = observed.pod, observed.template
    if idle or pod is None or template is None:
        return None
    refused = next((one for one in observed.refusals if one.resize), None)
    if refused is not None:
        quota = "exceeded quota" in refused.message
        reason = Reason.QUOTA_EXCEEDED if quota else Reason.RESIZE_INFEASIBLE
        return Finding(status=True, reason=reason, message=refused.message)
    gpus = container_resources(pod).get("limits", {}).get(template.gpu_resource, "0")
    if int(gpus) != desired.spec.resources.gpu:
        return Finding(
            status=True, reason=Reason.RESTART_NEEDED, message="The number of GPUs changes with the next start."
        )
    pending = pod_condition(pod, "PodResizePending")
    if pending.get("status") == "True":
        infeasible = pending.get("reason") == "Infeasible"
        reason = Reason.RESIZE_INFEASIBLE if infeasible else Reason.RESIZE_DEFERRED
        return Finding(status=True, reason=reason, message=str(pending.get("message", "")))
    moving = pod_condition(pod, "PodResizeInProgress")
    if moving.get("status") == "True" or not says(container_resources(pod), sizes(desired, template)):
        return Finding(status=True, reason=Reason.RESIZE_IN_PROGRESS, message=str(moving.get("message", "")))
    return None


def _volume_size(desired: Desired, observed: Observed) -> Finding | None:
    wanted = {"home": desired.spec.resources.home, "workspace": desired.spec.resources.workspace}
    for volume, claim in observed.claims.items():
        asked = parse_quantity(claim["spec"]["resources"]["requests"]["storage"])
        size, want = parse_quantity(claim.get("status", {}).get("capacity", {}).get("storage", "0")), wanted[volume]
        if parse_quantity(want) < asked:
            text = f"The volume {volume} keeps its size: storage never shrinks."
            return Finding(status=True, reason=Reason.SHRINK_REFUSED, message=text)
        if parse_quantity(want) > asked and not observed.expandable:
            text = f"The storage class cannot expand the volume {volume}."
            return Finding(status=True, reason=Reason.EXPANSION_UNSUPPORTED, message=text)
        if parse_quantity(want) > asked or (size and size < asked):
            return _growth(volume, claim, observed, asked=parse_quantity(want) <= asked)
    return None


def _growth(volume: str, claim: Mapping[str, Any], observed: Observed, *, asked: bool) -> Finding:
    """What has become of a volume that is to grow: nothing yet, a failure, or work in progress."""
    refusal = next((one for one in observed.refusals if one.growth), None)
    if refusal is not None:
        quota = "exceeded quota" in refusal.message
        reason = Reason.QUOTA_EXCEEDED if quota else Reason.EXPANSION_FAILED
        return Finding(status=True, reason=reason, message=refusal.message)
    status = claim.get("status", {})
    told = {one["type"]: one for one in status.get("conditions", ()) if one.get("status") == "True"}
    resizing = status.get("allocatedResourceStatuses", {}).get("storage", "")
    for kind in ("ControllerResizeError", "NodeResizeError"):
        if kind in told or resizing.endswith("Infeasible"):
            text = told.get(kind, {}).get("message") or f"The storage driver says {resizing or kind}."
            return Finding(status=True, reason=Reason.EXPANSION_FAILED, message=f"The volume {volume}: {text}")
    if told or resizing or not asked:
        return Finding(status=True, reason=Reason.RESIZE_IN_PROGRESS, message=f"The volume {volume} is growing.")
    text = f"The claim of the volume {volume} asks for its new size, and the storage driver has not begun to expand it."
    return Finding(status=True, reason=Reason.EXPANSION_WAITS, message=text)


def degraded(desired: Desired, observed: Observed, settings: PlanSettings) -> Finding:
    """What was lost, or stands in the way."""
    if desired.deleting:
        return _fine()
    if (loss := find_loss(desired, observed)) is not None:
        return Finding(status=True, reason=loss.reason, message=loss.message)
    if foreign := _foreign(desired, observed, settings):
        return Finding(status=True, reason=Reason.OBJECT_FOREIGN, message=foreign)
    if refused := is_foreign(desired.spec):
        return Finding(status=True, reason=Reason.IMAGE_FOREIGN, message=refused)
    if not observed.node_ready:
        return Finding(status=True, reason=Reason.NODE_LOST, message="The pod's node does not answer.")
    if desired.status.state is PlacedState.FAILED:
        return _fine()
    bound = volumes_bound(observed)
    if bound.reason is Reason.VOLUME_LOST:
        return Finding(status=True, reason=bound.reason, message=bound.message)
    return _fine()

"""From what is there to the status of a `Sandbox`: state, reason and conditions. Pure."""

from __future__ import annotations

from dataclasses import replace

from sandboxd.model.cluster import Mode
from sandboxd.model.cluster_status import Condition, ConditionType, PlacedState, PlacedStatus, Reason
from sandboxd.operator.comparing import says
from sandboxd.operator.conditions import (
    Finding,
    degraded,
    ready,
    resize_pending,
    scheduled,
    started,
    volumes_bound,
    waiting,
)
from sandboxd.operator.losses import find_loss, is_bound
from sandboxd.operator.observed import (
    Desired,
    Observed,
    container_image,
    container_resources,
    container_status,
    incarnation_of,
    is_started,
    is_terminating,
    last_node_of,
)
from sandboxd.operator.plan import PlanSettings, sizes
from sandboxd.operator.pod_shape import next_image


def conclude(desired: Desired, observed: Observed, settings: PlanSettings, *, now: str) -> PlacedStatus:
    """Say what the sandbox is.

    Args:
        desired: The resource, with the status that was written last.
        observed: What is there, and what was refused.
        settings: Of the installation.
        now: RFC 3339; the time of conditions that have changed.
    """
    status = _with_pod(desired, observed)
    found = _state(desired, observed, settings)
    state, reason, message = found
    conditions = _conditions(desired, observed, settings, state=state, reason=reason, message=message)
    return replace(
        status,
        observed_generation=desired.generation,
        state=state,
        reason=reason,
        message=message[:1000],
        conditions=tuple(_stamp(one, desired.status.find(one.type), now) for one in conditions),
    )


def _with_pod(desired: Desired, observed: Observed) -> PlacedStatus:
    """The status with what is known of the pod; the pod of the incarnation is bound at its first start."""
    spec, pod = desired.spec, observed.pod
    before = desired.status
    kept = replace(
        PlacedStatus(),
        incarnation=spec.incarnation,
        node=before.node,
        last_node=last_node_of(desired),
        pod_uid=before.pod_uid if is_bound(desired) else "",
        start_time=before.start_time if is_bound(desired) else "",
        restarts=before.restarts if is_bound(desired) else 0,
        next_image="" if observed.template is None else next_image(spec, observed.template),
    )
    if pod is None or incarnation_of(pod) != spec.incarnation:
        # A stopped incarnation has no pod to be told from: what comes next is bound anew.
        return replace(kept, pod_uid="") if spec.mode is Mode.STOPPED else kept
    uid = pod["metadata"]["uid"]
    if kept.pod_uid not in ("", uid):
        return kept
    status = container_status(pod)
    bound = is_started(pod) and not is_terminating(pod)
    return replace(
        kept,
        pod_uid=kept.pod_uid or (uid if bound else ""),
        pod_ip=pod.get("status", {}).get("podIP", ""),
        pod_name=pod["metadata"]["name"],
        image=container_image(pod),
        node=pod["spec"].get("nodeName", "") or kept.node,
        start_time=status.get("state", {}).get("running", {}).get("startedAt", kept.start_time),
        restarts=int(status.get("restartCount", 0)),
    )


def _state(desired: Desired, observed: Observed, settings: PlanSettings) -> tuple[PlacedState, Reason, str]:
    pod = observed.pod
    if desired.deleting or desired.spec.mode is Mode.STOPPED:
        replicas = 0 if observed.stateful_set is None else observed.stateful_set["spec"].get("replicas", 0)
        if pod is None and not replicas:
            return PlacedState.STOPPED, Reason.STOPPED, ""
        return PlacedState.STOPPING, Reason.STOPPING, "The pod is ending."
    if (loss := find_loss(desired, observed)) is not None:
        return PlacedState.FAILED, loss.reason, loss.message
    if pod is None or incarnation_of(pod) != desired.spec.incarnation or not is_started(pod):
        cause = waiting(desired, observed, settings)
        state = PlacedState.STARTING if cause.reason is Reason.STARTING else PlacedState.PENDING
        return state, cause.reason, cause.message
    if not ready(observed).status:
        return PlacedState.STARTING, Reason.STARTING, "The agent does not answer yet."
    template = observed.template
    small = template is not None and says(container_resources(pod), sizes(desired, template))
    if desired.spec.mode is Mode.HIBERNATED and small:
        return PlacedState.HIBERNATED, Reason.HIBERNATED, ""
    return PlacedState.RUNNING, Reason.AS_DESIRED, ""


def _conditions(
    desired: Desired,
    observed: Observed,
    settings: PlanSettings,
    *,
    state: PlacedState,
    reason: Reason,
    message: str,
) -> list[Condition]:
    idle = state in (PlacedState.STOPPED, PlacedState.STOPPING)
    lost = Finding(status=False, reason=reason, message=message)
    running = state in (PlacedState.RUNNING, PlacedState.HIBERNATED)
    if idle or state is PlacedState.FAILED:
        answers = begun = lost
        node = Finding(status=None, reason=reason)
    else:
        answers = ready(observed)
        if not observed.node_ready:
            answers = Finding(status=False, reason=Reason.NODE_LOST, message="The node does not answer.")
        elif not running:
            answers = lost
        begun, node = started(desired, observed), scheduled(observed)
    return [
        answers.as_condition(ConditionType.READY),
        node.as_condition(ConditionType.SCHEDULED),
        volumes_bound(observed).as_condition(ConditionType.VOLUMES_BOUND),
        begun.as_condition(ConditionType.AGENT_STARTED),
        resize_pending(desired, observed, idle=not running).as_condition(ConditionType.RESIZE_PENDING),
        degraded(desired, observed, settings).as_condition(ConditionType.DEGRADED),
    ]


def _stamp(condition: Condition, before: Condition | None, now: str) -> Condition:
    same = before is not None and before.status == condition.status and before.transition_time
    return replace(condition, transition_time=before.transition_time if same and before else now)

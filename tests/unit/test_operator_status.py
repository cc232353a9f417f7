from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.model.cluster import Mode
from sandboxd.model.cluster_status import ConditionType, PlacedState, PlacedStatus, Reason
from sandboxd.operator.announcing import announcements, lasting
from sandboxd.operator.builders import Json
from sandboxd.operator.concluding import conclude
from sandboxd.operator.kinds import Kind
from sandboxd.operator.observed import Desired, Observed, Refusal
from tests.operator_world import (
    FIRST,
    NOW,
    OWN_IMAGE,
    POD_UID,
    RESOURCES,
    SECOND,
    SETTINGS,
    TEMPLATE,
    THEIRS,
    a_claim,
    a_desired,
    a_namespace,
    a_pod,
    a_set,
    an_observed,
    bound,
    claims,
    running,
)

LATER = "2026-01-02T00:00:00Z"
S, R = PlacedState, Reason


def waiting_for(reason: str, message: str = "") -> Observed:
    return running(pod=a_pod(state={"waiting": {"reason": reason, "message": message}}, ready=False))


def unscheduled(message: str, **changes: Any) -> Observed:
    pod = a_pod(
        state={},
        ready=False,
        status={
            "phase": "Pending",
            "containerStatuses": [],
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}],
        },
    )
    del pod["spec"]["nodeName"]
    return running(pod=pod, **changes)


def disrupted(reason: str) -> Observed:
    target = {"type": "DisruptionTarget", "status": "True", "reason": reason}
    return running(pod=a_pod(conditions=(target,), deletionTimestamp=NOW))


def refused(message: str, *, reason: str = "Forbidden", resize: bool = False, **changes: Any) -> Observed:
    refusal = Refusal(kind=Kind.POD, status=403, message=message, reason=reason, resize=resize)
    return running(refusals=[refusal], **changes)


KILLED = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
EXITED = {"terminated": {"exitCode": 3, "reason": "Error", "message": "no such file"}}
NEVER_RAN = {"terminated": {"exitCode": 128, "reason": "StartError", "message": "not a directory"}}
PENDING_CLAIMS = {"home": a_claim("home", "2G", phase="Pending")}
EVICTED = a_pod(
    status={"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory.", "containerStatuses": []}
)

TABLE = {
    "nothing is there": (a_desired(), an_observed(), S.PENDING, R.NOT_CREATED),
    "the pod is being made": (a_desired(), running(pod=None, claims={}), S.STARTING, R.STARTING),
    "the container is being made": (a_desired(), waiting_for("ContainerCreating"), S.STARTING, R.STARTING),
    "the agent does not answer yet": (a_desired(), running(pod=a_pod(ready=False)), S.STARTING, R.STARTING),
    "the agent answers": (a_desired(), running(), S.RUNNING, R.AS_DESIRED),
    "it is hibernated": (
        a_desired(mode=Mode.HIBERNATED, status=bound()),
        running(pod=a_pod(mode=Mode.HIBERNATED)),
        S.HIBERNATED,
        R.HIBERNATED,
    ),
    "it has not shrunk yet": (a_desired(mode=Mode.HIBERNATED, status=bound()), running(), S.RUNNING, R.AS_DESIRED),
    "it is ending": (a_desired(mode=Mode.STOPPED, status=bound()), running(), S.STOPPING, R.STOPPING),
    "it has ended": (
        a_desired(mode=Mode.STOPPED, status=bound()),
        running(stateful_set=a_set(replicas=0), pod=None),
        S.STOPPED,
        R.STOPPED,
    ),
    "it is deleted": (a_desired(deleting=True, status=bound()), running(), S.STOPPING, R.STOPPING),
    "the former pod is ending": (a_desired(incarnation=SECOND, status=bound()), running(), S.PENDING, R.WAITING),
    "no node has room": (
        a_desired(),
        unscheduled("0/1 nodes are available: 1 Insufficient cpu."),
        S.PENDING,
        R.UNSCHEDULABLE,
    ),
    "a claim has no volume": (
        a_desired(),
        unscheduled("pod has unbound immediate PersistentVolumeClaims.", claims=PENDING_CLAIMS),
        S.PENDING,
        R.VOLUME_PENDING,
    ),
    "the image cannot be pulled": (a_desired(), waiting_for("ErrImagePull", "not found"), S.PENDING, R.IMAGE_MISSING),
    "pulling is given time": (a_desired(), waiting_for("ImagePullBackOff"), S.PENDING, R.REGISTRY_UNAVAILABLE),
    "pulling is given time after the registry has said no": (
        a_desired(status=PlacedStatus(state=S.PENDING, incarnation=FIRST, reason=R.IMAGE_MISSING)),
        waiting_for("ImagePullBackOff", 'Back-off pulling image "x"'),
        S.PENDING,
        R.IMAGE_MISSING,
    ),
    "the registry is away": (
        a_desired(),
        waiting_for("ErrImagePull", "dial tcp 127.0.0.1:5000: connect: connection refused"),
        S.PENDING,
        R.REGISTRY_UNAVAILABLE,
    ),
    "the image is another client's": (
        a_desired(image=THEIRS),
        running(stateful_set=None, pod=None),
        S.PENDING,
        R.IMAGE_FOREIGN,
    ),
    "the next image is another client's": (a_desired(image=THEIRS, status=bound()), running(), S.RUNNING, R.AS_DESIRED),
    "its container could never be started": (
        a_desired(),
        running(pod=a_pod(restarts=1, last=NEVER_RAN, state={"waiting": {"reason": "CrashLoopBackOff"}})),
        S.FAILED,
        R.CONTAINER_FAILED,
    ),
    "the image's name is none": (a_desired(), waiting_for("InvalidImageName"), S.PENDING, R.IMAGE_MISSING),
    "the container cannot be made": (
        a_desired(),
        waiting_for("CreateContainerError", "no command"),
        S.PENDING,
        R.CONTAINER_FAILED,
    ),
    "the namespace is full": (
        a_desired(),
        refused("pods is forbidden: exceeded quota: sandboxd", pod=None),
        S.PENDING,
        R.QUOTA_EXCEEDED,
    ),
    "admission refuses the pod": (a_desired(), refused("denied by policy", pod=None), S.PENDING, R.POD_REFUSED),
    "the namespace was just deleted": (
        a_desired(),
        refused("unable to create, because it is being terminated", pod=None),
        S.PENDING,
        R.NAMESPACE_TERMINATING,
    ),
    "the namespace is going": (
        a_desired(),
        an_observed(namespace=a_namespace(deletionTimestamp=NOW)),
        S.PENDING,
        R.NAMESPACE_TERMINATING,
    ),
    "the namespace is not ours": (a_desired(), an_observed(namespace=None), S.PENDING, R.NAMESPACE_FOREIGN),
    "the template is missing": (a_desired(), an_observed(template=None), S.PENDING, R.TEMPLATE_MISSING),
    "somebody else has our name": (
        a_desired(),
        refused("statefulsets/x belongs to somebody else", reason="Foreign", pod=None, stateful_set=None),
        S.PENDING,
        R.OBJECT_FOREIGN,
    ),
    "it used too much memory": (
        a_desired(status=bound()),
        running(pod=a_pod(restarts=1, last=KILLED)),
        S.FAILED,
        R.OUT_OF_MEMORY,
    ),
    "it used too much memory and has not been restarted": (
        a_desired(status=bound()),
        running(pod=a_pod(state=KILLED, ready=False)),
        S.FAILED,
        R.OUT_OF_MEMORY,
    ),
    "its container was restarted": (
        a_desired(status=bound()),
        running(pod=a_pod(restarts=1, last=EXITED)),
        S.FAILED,
        R.CONTAINER_RESTARTED,
    ),
    "its agent ended before it ever answered": (
        a_desired(),
        running(pod=a_pod(restarts=2, last=EXITED, state={"waiting": {"reason": "CrashLoopBackOff"}})),
        S.FAILED,
        R.CONTAINER_RESTARTED,
    ),
    "the node evicted it": (a_desired(status=bound()), running(pod=EVICTED), S.FAILED, R.POD_EVICTED),
    "its node is drained": (a_desired(status=bound()), disrupted("EvictionByEvictionAPI"), S.FAILED, R.POD_EVICTED),
    "its node does not answer any more": (
        a_desired(status=bound()),
        disrupted("DeletionByTaintManager"),
        S.FAILED,
        R.NODE_LOST,
    ),
    "somebody deletes it": (
        a_desired(status=bound()),
        running(pod=a_pod(deletionTimestamp=NOW)),
        S.FAILED,
        R.POD_DELETED,
    ),
    "somebody deleted it": (a_desired(status=bound()), running(pod=None), S.FAILED, R.POD_DELETED),
    "another pod has its place": (
        a_desired(status=bound()),
        running(pod=a_pod(uid="another")),
        S.FAILED,
        R.POD_DELETED,
    ),
    "it went with its node": (a_desired(status=bound()), running(pod=None, node_ready=False), S.FAILED, R.NODE_LOST),
    "a loss is remembered": (
        a_desired(status=bound(state=S.FAILED, reason=R.OUT_OF_MEMORY, message="It was killed.")),
        running(stateful_set=a_set(replicas=0), pod=None),
        S.FAILED,
        R.OUT_OF_MEMORY,
    ),
    "a pod that had not started may go": (
        a_desired(),
        running(pod=a_pod(state={}, ready=False, deletionTimestamp=NOW)),
        S.STARTING,
        R.STARTING,
    ),
}


@pytest.mark.parametrize(("desired", "observed", "state", "reason"), TABLE.values(), ids=TABLE.keys())
def test_the_state_and_its_reason(desired: Desired, observed: Observed, state: PlacedState, reason: Reason) -> None:
    status = conclude(desired, observed, SETTINGS, now=NOW)

    assert (status.state, status.reason) == (state, reason)
    assert {one.type for one in status.conditions} == set(ConditionType)
    ready = status.find(ConditionType.READY)
    assert ready is not None
    assert ready.status == (state in (S.RUNNING, S.HIBERNATED))
    assert PlacedStatus.from_mapping(status.as_mapping()) == status


DEFERRED = {"type": "PodResizePending", "status": "True", "reason": "Deferred", "message": "Node didn't have room."}
INFEASIBLE = {**DEFERRED, "reason": "Infeasible"}
BIGGER = replace(RESOURCES, workspace="40G")


def growing(**status: Any) -> Mapping[str, Json]:
    """Claims of which one asks for more than its volume has."""
    claim = a_claim("workspace", "40G")
    claim["status"] |= {"capacity": {"storage": "8G"}, **status}
    return {"home": a_claim("home", "2G"), "workspace": claim}


def growth_refused(message: str) -> Refusal:
    return Refusal(kind=Kind.CLAIM, status=403, message=message, growth=True)


RESIZES = {
    "nothing changes": (a_desired(status=bound()), running(), None),
    "the node has no room yet": (
        a_desired(status=bound()),
        running(pod=a_pod(conditions=(DEFERRED,))),
        R.RESIZE_DEFERRED,
    ),
    "no node ever has room": (
        a_desired(status=bound()),
        running(pod=a_pod(conditions=(INFEASIBLE,))),
        R.RESIZE_INFEASIBLE,
    ),
    "it is growing back": (
        a_desired(status=bound()),
        running(pod=a_pod(mode=Mode.HIBERNATED)),
        R.RESIZE_IN_PROGRESS,
    ),
    "the quota has no room": (
        a_desired(status=bound()),
        refused("exceeded quota: sandboxd", resize=True),
        R.QUOTA_EXCEEDED,
    ),
    "a GPU needs a restart": (
        a_desired(status=bound(), resources=replace(RESOURCES, gpu=1)),
        running(),
        R.RESTART_NEEDED,
    ),
    "the storage class cannot expand": (
        a_desired(status=bound(), resources=BIGGER),
        running(),
        R.EXPANSION_UNSUPPORTED,
    ),
    "a volume is growing": (
        a_desired(status=bound(), resources=BIGGER),
        running(expandable=True),
        R.RESIZE_IN_PROGRESS,
    ),
    "nobody expands the volume": (
        a_desired(status=bound(), resources=BIGGER),
        running(expandable=True, claims=growing()),
        R.EXPANSION_WAITS,
    ),
    "its driver expands it": (
        a_desired(status=bound(), resources=BIGGER),
        running(expandable=True, claims=growing(conditions=[{"type": "Resizing", "status": "True"}])),
        R.RESIZE_IN_PROGRESS,
    ),
    "the node expands it": (
        a_desired(status=bound(), resources=BIGGER),
        running(expandable=True, claims=growing(allocatedResourceStatuses={"storage": "NodeResizePending"})),
        R.RESIZE_IN_PROGRESS,
    ),
    "its driver cannot": (
        a_desired(status=bound(), resources=BIGGER),
        running(expandable=True, claims=growing(conditions=[{"type": "ControllerResizeError", "status": "True"}])),
        R.EXPANSION_FAILED,
    ),
    "its node cannot": (
        a_desired(status=bound(), resources=BIGGER),
        running(expandable=True, claims=growing(allocatedResourceStatuses={"storage": "NodeResizeInfeasible"})),
        R.EXPANSION_FAILED,
    ),
    "the API server refuses the claim its growth": (
        a_desired(status=bound(), resources=BIGGER),
        running(expandable=True, refusals=[growth_refused("only dynamically provisioned pvc can be resized")]),
        R.EXPANSION_FAILED,
    ),
    "the quota of storage is spent": (
        a_desired(status=bound(), resources=BIGGER),
        running(expandable=True, refusals=[growth_refused("exceeded quota: sandboxd")]),
        R.QUOTA_EXCEEDED,
    ),
    "a smaller tier keeps its volumes": (
        a_desired(status=bound(), resources=replace(RESOURCES, workspace="4G")),
        running(),
        R.SHRINK_REFUSED,
    ),
    "a stopped sandbox waits for nothing of its pod": (
        a_desired(mode=Mode.STOPPED),
        running(stateful_set=a_set(replicas=0), pod=None),
        None,
    ),
}


def test_a_volume_that_was_refused_its_growth_keeps_no_pod_from_starting() -> None:
    desired = a_desired(resources=BIGGER)
    observed = running(pod=None, expandable=True, refusals=[growth_refused("exceeded quota: sandboxd")])

    assert conclude(desired, observed, SETTINGS, now=NOW).reason is R.STARTING


@pytest.mark.parametrize(("desired", "observed", "reason"), RESIZES.values(), ids=RESIZES.keys())
def test_what_a_resize_waits_for(desired: Desired, observed: Observed, reason: Reason | None) -> None:
    condition = conclude(desired, observed, SETTINGS, now=NOW).find(ConditionType.RESIZE_PENDING)

    assert condition is not None
    assert (condition.reason if condition.status else None) is reason


def test_the_pod_that_starts_first_is_the_incarnation() -> None:
    status = conclude(a_desired(), running(pod=a_pod(ready=False)), SETTINGS, now=NOW)

    assert (status.incarnation, status.pod_uid, status.pod_ip, status.node) == (FIRST, POD_UID, "10.88.0.7", "node1")


def test_a_pod_that_has_not_started_is_not_yet_the_incarnation_and_its_address_is_known() -> None:
    status = conclude(a_desired(), waiting_for("ErrImagePull"), SETTINGS, now=NOW)

    assert (status.pod_uid, status.pod_ip) == ("", "10.88.0.7")


def test_another_pod_never_becomes_the_incarnation() -> None:
    status = conclude(a_desired(status=bound()), running(pod=a_pod(uid="another")), SETTINGS, now=NOW)

    assert (status.pod_uid, status.pod_ip) == (POD_UID, "")


def test_a_new_incarnation_is_bound_to_nothing() -> None:
    status = conclude(a_desired(incarnation=SECOND, status=bound()), running(), SETTINGS, now=NOW)

    assert (status.incarnation, status.pod_uid) == (SECOND, "")


def test_a_stopped_sandbox_remembers_its_node_alone() -> None:
    status = conclude(
        a_desired(mode=Mode.STOPPED, status=bound()),
        running(stateful_set=a_set(replicas=0), pod=None),
        SETTINGS,
        now=NOW,
    )

    assert (status.node, status.pod_uid) == ("node1", "")


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    first = conclude(a_desired(), running(pod=a_pod(ready=False)), SETTINGS, now=NOW)
    second = conclude(a_desired(status=first), running(), SETTINGS, now=LATER)

    times = {one.type: one.transition_time for one in second.conditions}
    assert times[ConditionType.READY] == LATER
    assert times[ConditionType.VOLUMES_BOUND] == NOW


def test_a_status_that_was_written_leads_to_itself() -> None:
    first = conclude(a_desired(), running(), SETTINGS, now=NOW)

    assert conclude(a_desired(status=first), running(), SETTINGS, now=LATER) == first


def test_a_node_that_does_not_answer_is_told_of_and_loses_nothing_yet() -> None:
    status = conclude(a_desired(status=bound()), running(node_ready=False), SETTINGS, now=NOW)

    ready, degraded = status.find(ConditionType.READY), status.find(ConditionType.DEGRADED)
    assert ready is not None
    assert degraded is not None
    assert (status.state, ready.status, degraded.reason) == (S.RUNNING, False, R.NODE_LOST)


def test_a_volume_that_is_gone_degrades() -> None:
    gone = {**claims(), "home": a_claim("home", "2G", phase="Lost")}

    degraded = conclude(a_desired(status=bound()), running(claims=gone), SETTINGS, now=NOW).find(ConditionType.DEGRADED)

    assert degraded is not None
    assert (degraded.status, degraded.reason) == (True, R.VOLUME_LOST)


def told(before: Desired, after: PlacedStatus) -> list[str]:
    return [one.reason for one in announcements(before.status, after)]


def test_a_start_is_told_once_and_a_loss_as_a_warning() -> None:
    up = conclude(a_desired(), running(), SETTINGS, now=NOW)
    lost = conclude(a_desired(status=up), running(pod=None), SETTINGS, now=NOW)

    assert told(a_desired(), up) == ["Running"]
    assert told(a_desired(status=up), up) == []
    assert [(one.reason, one.warning) for one in announcements(up, lost)] == [("PodDeleted", True)]


def test_what_every_start_has_for_a_moment_is_told_when_it_stays() -> None:
    status = conclude(a_desired(), unscheduled("no room"), SETTINGS, now=NOW)

    assert told(a_desired(), status) == []
    late = lasting(status)
    assert late is not None
    assert late.reason == "Unschedulable"


def test_a_deferred_resize_is_told_of() -> None:
    before = conclude(a_desired(), running(), SETTINGS, now=NOW)
    after = conclude(a_desired(status=before), running(pod=a_pod(conditions=(DEFERRED,))), SETTINGS, now=NOW)

    assert told(a_desired(status=before), after) == ["ResizeDeferred"]


def test_the_status_tells_which_image_runs_and_which_is_next() -> None:
    pod = a_pod()
    pod["spec"]["containers"][0]["image"] = OWN_IMAGE

    runs = conclude(a_desired(status=bound()), running(pod=pod), SETTINGS, now=NOW)
    stopped = conclude(
        a_desired(mode=Mode.STOPPED, image=OWN_IMAGE),
        running(stateful_set=a_set(replicas=0), pod=None),
        SETTINGS,
        now=NOW,
    )
    without = conclude(a_desired(), an_observed(template=None), SETTINGS, now=NOW)

    assert (runs.image, runs.next_image) == (OWN_IMAGE, TEMPLATE.image)
    assert (stopped.image, stopped.next_image) == ("", OWN_IMAGE)
    assert (without.image, without.next_image) == ("", "")


def test_a_pod_of_a_former_incarnation_does_not_tell_which_image_runs() -> None:
    status = conclude(a_desired(incarnation=SECOND, image=OWN_IMAGE, status=bound()), running(), SETTINGS, now=NOW)

    assert (status.image, status.next_image) == ("", OWN_IMAGE)


def test_an_image_that_is_refused_is_told_of_while_the_former_runs_on() -> None:
    status = conclude(a_desired(image=THEIRS, status=bound()), running(), SETTINGS, now=NOW)

    degraded = status.find(ConditionType.DEGRADED)
    assert degraded is not None
    assert (degraded.status, degraded.reason) == (True, R.IMAGE_FOREIGN)
    assert "not one of client acme" in degraded.message

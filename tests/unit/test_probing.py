"""The operator's part of a probe: which pod, when it goes, and what its end says of the image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sandboxd.agent.selftest import BROKEN, Expected
from sandboxd.model.boot_step import BootStep
from sandboxd.model.cluster import SANDBOX_LABEL, sandbox_resource
from sandboxd.model.cluster_probe import KEPT, PlacedProbe, ProbeState, ProbeStatus, probe_resource
from sandboxd.model.cluster_status import Reason
from sandboxd.model.ids import SandboxId
from sandboxd.operator.builders import Json
from sandboxd.operator.kinds import Kind
from sandboxd.operator.observed import Refusal
from sandboxd.operator.plan import Create, Delete
from sandboxd.operator.pod_shape import pod_template
from sandboxd.operator.probe_shape import probe_pod
from sandboxd.operator.probing import BROKEN_STATUS, ProbeWorld, conclude_probe, plan_probe
from sandboxd.operator.template import AgentDelivery, Template
from tests.operator_world import (
    INSTANCE,
    NAMESPACE,
    OWN_IMAGE,
    SANDBOX,
    SETTINGS,
    TEMPLATE,
    THEIRS,
    UID,
    a_spec,
    bound,
    seen,
)

S, R, B = ProbeState, Reason, BootStep
NAME = "probe-1"
PROBE_UID, POD_UID = "uid-probe", "uid-probe-pod"
MADE = datetime(2026, 1, 1, tzinfo=UTC)
SOON = MADE + timedelta(seconds=1)
PROBE = PlacedProbe(sandbox=SANDBOX, image=OWN_IMAGE, deadline=timedelta(seconds=60))


def a_probe(*, image: str = OWN_IMAGE, status: ProbeStatus | None = None, **metadata: Any) -> Json:
    made = probe_resource(NAME, replace(PROBE, image=image), namespace=NAMESPACE, instance=INSTANCE, owner_uid=UID)
    found = seen(made, uid=PROBE_UID, creationTimestamp="2026-01-01T00:00:00Z", **metadata)
    return found if status is None else {**found, "status": status.as_mapping()}


def a_sandbox() -> Json:
    made = seen(sandbox_resource(SANDBOX, a_spec(), namespace=NAMESPACE, instance=INSTANCE), uid=UID)
    return {**made, "status": bound().as_mapping()}


def a_pod(state: Mapping[str, Any] | None = None, *, status: Mapping[str, Any] | None = None, **metadata: Any) -> Json:
    made = seen(the_pod(), uid=POD_UID, **metadata)
    container = {"name": "sandbox", "state": dict(state or {}), "restartCount": 0}
    conditions = [{"type": "PodScheduled", "status": "True"}]
    whole = {"phase": "Running", "conditions": conditions, "containerStatuses": [container], **(status or {})}
    return {**made, "status": whole}


def the_pod(*, template: Template = TEMPLATE, node: str = "node1") -> Json:
    return probe_pod(NAME, PROBE, template, namespace=NAMESPACE, uid=PROBE_UID, instance=INSTANCE, node=node)


def a_world(**changes: Any) -> ProbeWorld:
    return replace(ProbeWorld(resource=a_probe(), sandbox=a_sandbox(), template=TEMPLATE), **changes)


def waits(reason: str, message: str = "") -> Json:
    return a_pod({"waiting": {"reason": reason, "message": message}})


def ends(code: int, message: str = "", reason: str = "Error", **changes: Any) -> Json:
    return a_pod({"terminated": {"exitCode": code, "reason": reason, "message": message}}, **changes)


def found(step: str) -> str:
    return json.dumps({"step": step, "message": "why"})


def at(pod: Json, **status: Any) -> ProbeWorld:
    return a_world(pod=pod, resource=a_probe(status=ProbeStatus(pod_uid=POD_UID, **status)))


BOOTED = ProbeStatus(state=S.BOOTED, reason=R.AS_DESIRED.value, pod_uid=POD_UID)
UNPLACED = a_pod(
    status={"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]}
)
TABLE = {
    "nothing is there": (a_world(), S.WAITING, R.NOT_CREATED, None),
    "the quota is spent": (
        a_world(refusals=[Refusal(kind=Kind.POD, status=403, message="exceeded quota: sandboxd")]),
        S.WAITING,
        R.QUOTA_EXCEEDED,
        None,
    ),
    "admission refuses it": (
        a_world(refusals=[Refusal(kind=Kind.POD, status=403, message="denied")]),
        S.WAITING,
        R.POD_REFUSED,
        None,
    ),
    "no node has room": (at(UNPLACED), S.WAITING, R.UNSCHEDULABLE, None),
    "the container is being made": (at(waits("ContainerCreating")), S.WAITING, R.STARTING, None),
    "it runs": (at(a_pod({"running": {}})), S.RUNNING, R.STARTING, None),
    "it boots": (at(ends(0)), S.BOOTED, R.AS_DESIRED, None),
    "the registry does not have it": (
        at(waits("ErrImagePull", f'"{OWN_IMAGE}": not found')),
        S.BROKEN,
        R.IMAGE_MISSING,
        B.PULL,
    ),
    "it cannot be unpacked": (
        at(waits("ErrImagePull", f'failed to pull and unpack image "{OWN_IMAGE}": failed to extract layer: bad')),
        S.BROKEN,
        R.IMAGE_BROKEN,
        B.UNPACK,
    ),
    "the agent's image is gone": (
        at(waits("ErrImagePull", f'"{TEMPLATE.agent_image}": not found')),
        S.WAITING,
        R.IMAGE_MISSING,
        None,
    ),
    "the registry is away": (
        at(waits("ErrImagePull", f'"{OWN_IMAGE}": dial tcp: connection refused')),
        S.WAITING,
        R.REGISTRY_UNAVAILABLE,
        None,
    ),
    "the container cannot be made": (
        at(waits("CreateContainerError", "not a directory")),
        S.WAITING,
        R.CONTAINER_FAILED,
        B.CONTAINER,
    ),
    "something beside it is missing": (
        at(waits("CreateContainerConfigError", "no secret")),
        S.WAITING,
        R.CONTAINER_FAILED,
        None,
    ),
    "the runtime cannot start it": (
        at(ends(128, "not a directory", "StartError")),
        S.BROKEN,
        R.CONTAINER_FAILED,
        B.CONTAINER,
    ),
    **{
        f"the self test finds it broken at {step.value}": (
            at(ends(BROKEN, found(step.value))),
            S.BROKEN,
            R.IMAGE_BROKEN,
            step,
        )
        for step in (B.USER, B.MOUNTS, B.SHELL, B.PACKAGES, B.CLI, B.SUDO)
    },
    "somebody wrote over what the self test found": (at(ends(BROKEN, "{")), S.BROKEN, R.IMAGE_BROKEN, B.AGENT),
    "the step is none": (at(ends(BROKEN, found("nonsense"))), S.BROKEN, R.IMAGE_BROKEN, B.AGENT),
    "the agent has no self test": (
        at(ends(1, "No module named sandboxd.agent.selftest")),
        S.UNDECIDED,
        R.CONTAINER_FAILED,
        None,
    ),
    "it had too little memory": (at(ends(137, "", "OOMKilled")), S.UNDECIDED, R.OUT_OF_MEMORY, None),
    "its deadline was over": (
        at(ends(137, status={"phase": "Failed", "reason": "DeadlineExceeded"})),
        S.UNDECIDED,
        R.POD_FAILED,
        None,
    ),
    "its deadline was over before it ran": (
        at(a_pod(status={"phase": "Failed", "reason": "DeadlineExceeded", "containerStatuses": []})),
        S.UNDECIDED,
        R.POD_FAILED,
        None,
    ),
    "the node evicted it": (
        at(a_pod(status={"phase": "Failed", "reason": "Evicted", "containerStatuses": []})),
        S.UNDECIDED,
        R.POD_EVICTED,
        None,
    ),
    "somebody deletes it": (
        at(a_pod({"running": {}}, deletionTimestamp="2026-01-01T00:00:01Z")),
        S.UNDECIDED,
        R.POD_DELETED,
        None,
    ),
    "somebody deleted it": (
        a_world(resource=a_probe(status=ProbeStatus(state=S.RUNNING, pod_uid=POD_UID))),
        S.UNDECIDED,
        R.POD_DELETED,
        None,
    ),
    "a pod of somebody else has its name": (
        a_world(pod=a_pod({"running": {}}, ownerReferences=[])),
        S.UNDECIDED,
        R.OBJECT_FOREIGN,
        None,
    ),
    "its sandbox is not there": (a_world(sandbox=None), S.UNDECIDED, R.POD_REFUSED, None),
    "its template is not there": (a_world(template=None), S.UNDECIDED, R.TEMPLATE_MISSING, None),
    "it is another client's": (a_world(resource=a_probe(image=THEIRS)), S.UNDECIDED, R.IMAGE_FOREIGN, None),
    "what is known stays": (a_world(resource=a_probe(status=BOOTED)), S.BOOTED, R.AS_DESIRED, None),
}


@pytest.mark.parametrize(("world", "state", "reason", "step"), TABLE.values(), ids=TABLE.keys())
def test_what_is_known_of_the_image(
    world: ProbeWorld, state: ProbeState, reason: Reason, step: BootStep | None
) -> None:
    status = conclude_probe(world, SETTINGS)

    assert (status.state, status.reason, status.step) == (state, reason.value, step)
    assert ProbeStatus.from_mapping(json.loads(json.dumps(status.as_mapping()))) == status


def test_a_strangers_words_are_bounded_and_without_controls() -> None:
    status = conclude_probe(
        at(ends(BROKEN, json.dumps({"step": "shell", "message": "\x1b[2J" + "x" * 9999}))), SETTINGS
    )

    assert len(status.message) <= 1200
    assert status.message.isprintable()


def test_the_self_test_and_the_operator_mean_the_same_status() -> None:
    assert BROKEN_STATUS == BROKEN


def test_one_pod_is_made_and_prefers_the_node_of_the_sandbox() -> None:
    (step,) = plan_probe(a_world(), SETTINGS, now=SOON)

    assert isinstance(step, Create)
    assert (step.kind, step.name, step.owner) == (Kind.POD, NAME, PROBE_UID)
    assert step.body == the_pod(node="node1")
    preferred = step.body["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred[0]["preference"]["matchFields"][0]["values"] == ["node1"]


@pytest.mark.parametrize(
    "world",
    [
        a_world(pod=a_pod({"running": {}})),
        a_world(resource=a_probe(status=ProbeStatus(state=S.RUNNING, pod_uid=POD_UID))),
        a_world(namespace_ready=False),
        a_world(sandbox=None),
        a_world(template=None),
        a_world(resource=a_probe(image=THEIRS)),
        a_world(resource=a_probe(status=BOOTED)),
        a_world(resource=a_probe(deletionTimestamp="2026-01-01T00:00:01Z")),
    ],
    ids=["it runs", "it ran", "no policies yet", "no sandbox", "no template", "another client's", "ended", "going"],
)
def test_no_second_pod_is_made_and_none_where_nothing_can_be_said(world: ProbeWorld) -> None:
    assert plan_probe(world, SETTINGS, now=SOON) == ()


def test_a_pod_that_has_said_what_it_has_to_goes_at_once() -> None:
    (step,) = plan_probe(a_world(resource=a_probe(status=BOOTED), pod=ends(0)), SETTINGS, now=SOON)

    assert isinstance(step, Delete)
    assert (step.kind, step.name, step.uid) == (Kind.POD, NAME, POD_UID)


@pytest.mark.parametrize("status", [None, ProbeStatus(state=S.RUNNING, pod_uid=POD_UID), BOOTED])
def test_a_probe_goes_when_its_time_is_over_whatever_it_says(status: ProbeStatus | None) -> None:
    world = a_world(resource=a_probe(status=status), pod=a_pod({"running": {}}))
    end = MADE + PROBE.deadline + KEPT

    (step,) = plan_probe(world, SETTINGS, now=end)

    assert world.ends == end
    assert isinstance(step, Delete)
    assert (step.kind, step.name, step.uid) == (Kind.PROBE, NAME, PROBE_UID)
    before = plan_probe(world, SETTINGS, now=end - timedelta(seconds=1))
    assert all(isinstance(one, Delete) and one.kind is Kind.POD for one in before)


def test_a_probes_pod_has_nothing_of_its_owner_and_nothing_to_speak_with() -> None:
    pod = the_pod()
    spec, (container,) = pod["spec"], pod["spec"]["containers"]

    assert SANDBOX_LABEL not in pod["metadata"]["labels"]
    assert spec["automountServiceAccountToken"] is False
    assert [sorted(set(volume) - {"name"}) for volume in spec["volumes"]] == [["image"], ["emptyDir"], ["emptyDir"]]
    assert {mount["mountPath"] for mount in container["volumeMounts"]}.isdisjoint({"/home/gemini", "/workspace"})
    assert "envFrom" not in container
    assert [one["name"] for one in container["env"]] == ["OPENSSL_CONF"]
    assert (spec["restartPolicy"], spec["activeDeadlineSeconds"]) == ("Never", 60)


def test_a_probes_pod_runs_where_and_as_a_sandboxs_does() -> None:
    template = replace(
        TEMPLATE,
        runtime_class="gvisor",
        node_selector={"a": "b"},
        tolerations=({"key": "x"},),
        priority_class="high",
        agent_delivery=AgentDelivery.INIT_COPY,
        image_pull_secrets=("base",),
        user_image_pull_secrets=("kept",),
        topology_spread=({"maxSkew": 1},),
    )
    probe = the_pod(template=template)["spec"]
    sandbox = pod_template(SandboxId(SANDBOX), a_spec(image=OWN_IMAGE), template, labels={}, last_node="node1")["spec"]
    apart = {"containers", "volumes", "terminationGracePeriodSeconds", "topologySpreadConstraints"}

    assert {name: probe[name] for name in sandbox if name not in apart} == {
        name: value for name, value in sandbox.items() if name not in apart
    }
    assert "topologySpreadConstraints" not in probe
    (one,), (other,) = probe["containers"], sandbox["containers"]
    for name in ("name", "image", "imagePullPolicy", "env", "workingDir", "securityContext"):
        assert one[name] == other[name]


def test_the_self_test_is_told_what_it_understands() -> None:
    command = the_pod()["spec"]["containers"][0]["command"]
    expected = Expected.read(command[-1])

    assert command[-3:-1] == ["-m", "sandboxd.agent.selftest"]
    assert (expected.user, expected.user_id, expected.group_id) == ("gemini", 1000, 1000)
    assert expected.directories == ["/home/gemini", "/workspace"]
    assert expected.cli[-1] == "--version"

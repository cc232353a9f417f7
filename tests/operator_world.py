"""Objects as the API server has them, for the pure parts of the operator."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sandboxd.model.cluster import (
    INCARNATION_ANNOTATION,
    Mode,
    PlacedResources,
    PlacedSpec,
    namespace_resource,
    sandbox_resource,
)
from sandboxd.model.cluster_status import PlacedState, PlacedStatus, Reason
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.sandbox import Tier
from sandboxd.operator.builders import Json, agent_secret, labels_of, stateful_set
from sandboxd.operator.kinds import Kind
from sandboxd.operator.observed import Desired, Observed
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.pod_shape import resources_of
from sandboxd.operator.ports import AgentIdentity
from sandboxd.operator.template import Template
from sandboxd.operator.tenancy import Network, namespace_objects

INSTANCE = "test"
NAMESPACE = "client-acme"
SANDBOX = SandboxId("sbx-01jd0000000000000000000000")
FIRST = IncarnationId("inc-01jd0000000000000000000001")
SECOND = IncarnationId("inc-01jd0000000000000000000002")
UID, SET_UID, POD_UID = "uid-sandbox", "uid-set", "uid-pod"
TEMPLATE = Template(image="registry.example/sandbox@sha256:1", agent_image="registry.example/agent@sha256:2")
OWN_IMAGE = f"registry.example/kept/acme/gemini-cli-user-ada@sha256:{'a' * 64}"
THEIRS = f"registry.example/kept/globex/gemini-cli-user-ada@sha256:{'b' * 64}"
NETWORK = Network(own_namespace="sandboxd-system", gateway_port=8082)
SETTINGS = PlanSettings(instance=INSTANCE, network=NETWORK)
RESOURCES = PlacedResources(cpu="1", memory="2G", home="2G", workspace="8G", ephemeral_storage="10G")
NOW = "2026-01-01T00:00:00Z"


def a_spec(**changes: Any) -> PlacedSpec:
    made = PlacedSpec(
        client=ClientId("acme"),
        freelancer=FreelancerId("ada"),
        incarnation=FIRST,
        tier=Tier.BASIC,
        resources=RESOURCES,
    )
    return replace(made, **changes)


def a_desired(*, deleting: bool = False, status: PlacedStatus | None = None, **spec: Any) -> Desired:
    resource = sandbox_resource(SANDBOX, a_spec(**spec), namespace=NAMESPACE, instance=INSTANCE)
    resource["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "10"}
    if deleting:
        resource["metadata"]["deletionTimestamp"] = NOW
    if status is not None:
        resource["status"] = status.as_mapping()
    return Desired.from_resource(resource)


def bound(**changes: Any) -> PlacedStatus:
    """The status of a sandbox whose pod runs."""
    made = PlacedStatus(
        state=PlacedState.RUNNING, incarnation=FIRST, pod_uid=POD_UID, node="node1", reason=Reason.AS_DESIRED
    )
    return replace(made, **changes)


def seen(obj: Json, *, uid: str = "uid", version: str = "20", **metadata: Any) -> Json:
    """An object with what the API server adds."""
    made = copy.deepcopy(obj)
    made["metadata"] |= {"uid": uid, "resourceVersion": version, "generation": 1, **metadata}
    return made


def a_namespace(**metadata: Any) -> Json:
    return seen(namespace_resource(ClientId("acme"), prefix="client-", instance=INSTANCE), **metadata)


def namespace_parts() -> Mapping[Kind, Mapping[str, Json]]:
    built = namespace_objects(a_namespace(), instance=INSTANCE, network=NETWORK)
    return {kind: {one["metadata"]["name"]: seen(one) for one in objects} for kind, objects in built.items()}


def a_set(
    *,
    replicas: int = 1,
    incarnation: IncarnationId = FIRST,
    image: str = "",
    last_node: str = "",
    **metadata: Any,
) -> Json:
    built = stateful_set(
        SANDBOX,
        a_spec(incarnation=incarnation, image=image),
        TEMPLATE,
        namespace=NAMESPACE,
        uid=UID,
        instance=INSTANCE,
        replicas=replicas,
        last_node=last_node,
    )
    made = seen(built, uid=SET_UID, **metadata)
    made["status"] = {"observedGeneration": 1, "updateRevision": "revision-1"}
    return made


def a_secret(*, incarnation: IncarnationId = FIRST, **metadata: Any) -> Json:
    identity = AgentIdentity(certificate=b"certificate", key=b"key", authority=b"authority")
    built = agent_secret(SANDBOX, incarnation, identity, namespace=NAMESPACE, uid=UID, instance=INSTANCE)
    return seen(built, **metadata)


def a_pod(
    *,
    incarnation: IncarnationId = FIRST,
    mode: Mode = Mode.RUNNING,
    state: Mapping[str, Any] | None = None,
    last: Mapping[str, Any] | None = None,
    restarts: int = 0,
    ready: bool = True,
    revision: str = "revision-1",
    status: Mapping[str, Any] | None = None,
    conditions: tuple[Mapping[str, Any], ...] = (),
    **metadata: Any,
) -> Json:
    """A pod; it runs and answers unless something else is said."""
    running = {"running": {"startedAt": NOW}} if state is None else dict(state)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{SANDBOX}-0",
            "namespace": NAMESPACE,
            "uid": POD_UID,
            "resourceVersion": "30",
            "labels": {**labels_of(SANDBOX, instance=INSTANCE), "controller-revision-hash": revision},
            "annotations": {INCARNATION_ANNOTATION: incarnation},
            "ownerReferences": [{"kind": "StatefulSet", "uid": SET_UID}],
            **metadata,
        },
        "spec": {
            "nodeName": "node1",
            "containers": [
                {
                    "name": "sandbox",
                    "image": TEMPLATE.image,
                    "resources": resources_of(RESOURCES, TEMPLATE, mode=mode),
                }
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.88.0.7",
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": str(ready)},
                *conditions,
            ],
            "containerStatuses": [
                {"name": "sandbox", "state": running, "lastState": dict(last or {}), "restartCount": restarts}
            ],
            **(status or {}),
        },
    }


def a_claim(volume: str, size: str, *, phase: str = "Bound", **labels: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": f"{volume}-{SANDBOX}-0",
            "namespace": NAMESPACE,
            "uid": f"uid-{volume}",
            "resourceVersion": "40",
            "labels": {**labels_of(SANDBOX, instance=INSTANCE), **labels},
        },
        "spec": {"resources": {"requests": {"storage": size}}, "storageClassName": "standard"},
        "status": {"phase": phase, "capacity": {"storage": size}},
    }


def claims(**labels: str) -> Mapping[str, Json]:
    return {"home": a_claim("home", "2G", **labels), "workspace": a_claim("workspace", "8G", **labels)}


def an_observed(**changes: Any) -> Observed:
    """A namespace that is ready, and nothing of the sandbox."""
    made = Observed(template=TEMPLATE, namespace=a_namespace(), namespace_objects=namespace_parts())
    return replace(made, **changes)


def running(**changes: Any) -> Observed:
    """Everything of a sandbox that runs."""
    made = an_observed(stateful_set=a_set(), secret=a_secret(), pod=a_pod(), claims=claims())
    return replace(made, **changes)

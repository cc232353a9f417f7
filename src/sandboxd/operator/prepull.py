"""The images of a `SandboxTemplate` on every node that its sandboxes may use, before anybody needs them. Pure.

A DaemonSet for each template of the installation: its pods name the images as the sandboxes' do, and do nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.model.cluster import API_VERSION, GROUP, INSTANCE_LABEL, OPERATOR_MANAGER
from sandboxd.model.conditions import condition_mapping
from sandboxd.operator.builders import MANAGED_BY, Json, pod_wanted
from sandboxd.operator.comparing import merging, says
from sandboxd.operator.conditions import IMAGE_REASONS
from sandboxd.operator.kinds import Kind
from sandboxd.operator.observed import is_ours, is_terminating
from sandboxd.operator.plan import Create, Delete, Patch, PlanSettings, Step
from sandboxd.operator.pod_shape import agent_python
from sandboxd.operator.template import AgentDelivery, Template

IMAGES_LABEL: Final = f"{GROUP}/images"
"""Name of the DaemonSet, on its pods."""
TEMPLATE_ANNOTATION: Final = f"{GROUP}/template"
"""Name of the template, on DaemonSet and pods: it may be longer than a label's value."""
CONDITION: Final = "ImagesPulled"
_OPTIONAL: Final = ("nodeSelector", "tolerations", "runtimeClassName", "imagePullSecrets", "initContainers", "volumes")
"""Parts of a pod that a template may leave out."""
_PREFIX: Final = "sandboxd-images"
_LONGEST_NAME: Final = 52
"""Leaves room for what is appended to the names of pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesWorld:
    """What there is of one template."""

    name: str
    resource: Json | None
    """The `SandboxTemplate`; None where there is none."""
    daemon_set: Json | None
    pods: Sequence[Json] = ()
    refusal: str = ""
    """What the API server said to the last steps."""


def images_name(template: str) -> str:
    """Name of the DaemonSet of a template."""
    name = f"{_PREFIX}-{template}"
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 13]}-{hashlib.sha256(template.encode()).hexdigest()[:12]}"


def plan_images(world: ImagesWorld, settings: PlanSettings) -> Sequence[Step]:
    """Say what to do for one template; what is somebody else's is left alone."""
    found, resource, namespace = world.daemon_set, world.resource, settings.network.own_namespace
    wanted = settings.prepull and resource is not None and is_ours(resource, instance=settings.instance)
    if not wanted or resource is None or is_terminating(resource):
        if found is None or is_terminating(found) or not is_ours(found, instance=settings.instance):
            return ()
        metadata = found["metadata"]
        return [Delete(kind=Kind.DAEMON_SET, namespace=namespace, name=metadata["name"], uid=metadata["uid"])]
    uid = resource["metadata"]["uid"]
    built = daemon_set(
        world.name,
        Template.from_mapping(resource["spec"]),
        uid=uid,
        instance=settings.instance,
        namespace=namespace,
    )
    name = built["metadata"]["name"]
    if found is None:
        return [Create(kind=Kind.DAEMON_SET, namespace=namespace, name=name, body=built, owner=uid)]
    if is_terminating(found) or not is_ours(found, instance=settings.instance, owner=uid):
        return ()
    changeable = {part: built["spec"][part] for part in ("updateStrategy", "revisionHistoryLimit", "template")}
    changeable["template"] = {**changeable["template"], "spec": pod_wanted(changeable["template"]["spec"], _OPTIONAL)}
    if says(found["spec"], changeable):
        return ()
    version = found["metadata"]["resourceVersion"]
    body = {"spec": merging(found["spec"], changeable)}
    return [Patch(kind=Kind.DAEMON_SET, namespace=namespace, name=name, body=body, resource_version=version)]


def daemon_set(name: str, template: Template, *, uid: str, instance: str, namespace: str) -> Json:
    """The DaemonSet of a template, owned by it."""
    own = images_name(name)
    labels = {INSTANCE_LABEL: instance, MANAGED_BY: OPERATOR_MANAGER, IMAGES_LABEL: own}
    owner = {
        "apiVersion": API_VERSION,
        "kind": "SandboxTemplate",
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    annotations = {TEMPLATE_ANNOTATION: name}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": own,
            "namespace": namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": {
            "selector": {"matchLabels": {IMAGES_LABEL: own}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 0}},
            "revisionHistoryLimit": 1,
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": _pod(template)},
        },
    }


def _pod(template: Template) -> Json:
    limits = {"cpu": "100m", "memory": "32M"}
    security = {
        "runAsUser": 65534,
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    sleeper: Json = {
        "name": "sandbox",
        "image": template.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"],
        "resources": {"limits": limits, "requests": {"cpu": "1m", "memory": "4M"}},
        "securityContext": security,
    }
    pod: Json = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostUsers": template.host_users,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [sleeper],
    }
    match template.agent_delivery:
        case AgentDelivery.IMAGE_VOLUME:
            sleeper["volumeMounts"] = [{"name": "agent", "mountPath": "/opt/agent", "readOnly": True}]
            image = {"reference": template.agent_image, "pullPolicy": "IfNotPresent"}
            pod["volumes"] = [{"name": "agent", "image": image}]
        case AgentDelivery.INIT_COPY:
            pod["initContainers"] = [
                {
                    "name": "agent",
                    "image": template.agent_image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": [*agent_python(""), "-c", "pass"],
                    "resources": {"limits": {"cpu": "1", "memory": "128M"}, "requests": {"cpu": "1m", "memory": "4M"}},
                    "securityContext": security,
                }
            ]
    optional: Json = {
        "runtimeClassName": template.runtime_class,
        "nodeSelector": dict(template.node_selector),
        "tolerations": [dict(one) for one in template.tolerations],
        "imagePullSecrets": [{"name": name} for name in template.image_pull_secrets],
    }
    return pod | {name: value for name, value in optional.items() if value}


def images_status(world: ImagesWorld, settings: PlanSettings, *, now: str) -> Json | None:
    """The status of a template; None where there is nothing to say, or nothing new."""
    resource = world.resource
    if resource is None or not is_ours(resource, instance=settings.instance):
        return None
    before: Mapping[str, Any] = resource.get("status", {})
    if not settings.prepull and not before:
        return None
    status, reason, message = _finding(world, settings)
    told = (world.daemon_set or {}).get("status", {}) if settings.prepull else {}
    generation = resource["metadata"].get("generation", 0)
    condition = condition_mapping(
        CONDITION, status, reason, message[:1000], before=before, generation=generation, now=now
    )
    made = {
        "observedGeneration": generation,
        "nodes": int(told.get("desiredNumberScheduled", 0)),
        "readyNodes": _pulled(world.daemon_set) if settings.prepull else 0,
        "conditions": [condition],
    }
    return None if made == before else made


def _finding(world: ImagesWorld, settings: PlanSettings) -> tuple[str, str, str]:
    """Status, reason and message of the condition."""
    found, resource = world.daemon_set, world.resource
    assert resource is not None
    if not settings.prepull:
        return "Unknown", "PrepullOff", "Images are pulled when they are needed."
    if world.refusal:
        return "False", "Refused", world.refusal
    if found is None:
        return "False", "Pulling", "The DaemonSet is being made."
    where = f"daemonset/{found['metadata']['name']} in {found['metadata']['namespace']}"
    if not is_ours(found, instance=settings.instance, owner=resource["metadata"]["uid"]):
        return "False", "ObjectForeign", f"{where} belongs to somebody else; it is left alone."
    wanted = int(found.get("status", {}).get("desiredNumberScheduled", 0))
    if not _is_current(found):
        return "False", "Pulling", f"{where} is being rolled out."
    if not wanted:
        return "False", "NoNode", "No node fits the template's nodeSelector and tolerations."
    ready = _pulled(found)
    if ready >= wanted:
        return "True", "Pulled", ""
    if failure := next(_failures(world.pods), ""):
        return "False", "PullFailed", failure
    return "False", "Pulling", f"{ready} of {wanted} nodes have the images; look at {where}."


def _is_current(found: Json) -> bool:
    seen: int = found.get("status", {}).get("observedGeneration", 0)
    return seen >= int(found["metadata"].get("generation", 0))


def _pulled(found: Json | None) -> int:
    """On how many nodes the pods of the present images run."""
    if found is None or not _is_current(found):
        return 0
    status = found.get("status", {})
    return min(int(status.get("numberReady", 0)), int(status.get("updatedNumberScheduled", 0)))


def _failures(pods: Iterable[Json]) -> Iterator[str]:
    for pod in pods:
        status = pod.get("status", {})
        for one in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
            waits = one.get("state", {}).get("waiting", {})
            why = waits.get("reason", "")
            if why in IMAGE_REASONS or why.startswith("ErrImage"):
                node = pod["spec"].get("nodeName", "")
                yield f"{node}: {why}: {waits.get('message', '')}"


def template_of(obj: Mapping[str, Any]) -> str:
    """Name of the template that a DaemonSet or pod of ours pulls images for; empty for others."""
    found: str = obj["metadata"].get("annotations", {}).get(TEMPLATE_ANNOTATION, "")
    return found

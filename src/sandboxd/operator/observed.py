"""What is there of one sandbox, and what of that is ours. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxd.model.cluster import CONTAINER, INCARNATION_ANNOTATION, INSTANCE_LABEL, PlacedSpec
from sandboxd.model.cluster_status import PlacedStatus
from sandboxd.model.ids import SandboxId
from sandboxd.operator.builders import Json
from sandboxd.operator.kinds import Kind
from sandboxd.operator.template import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The `Sandbox` resource, read."""

    sandbox: SandboxId
    namespace: str
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    finalizers: Sequence[str]
    spec: PlacedSpec
    status: PlacedStatus
    """As the operator wrote it last: it remembers which pod is the incarnation."""

    @classmethod
    def from_resource(cls, resource: Mapping[str, Any]) -> Desired:
        """Read it.

        Raises:
            KeyError, ValueError: It is not what its schema promises.
        """
        metadata = resource["metadata"]
        return cls(
            sandbox=SandboxId(metadata["name"]),
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=int(metadata.get("generation", 0)),
            resource_version=metadata["resourceVersion"],
            deleting="deletionTimestamp" in metadata,
            finalizers=tuple(metadata.get("finalizers", ())),
            spec=PlacedSpec.from_mapping(resource["spec"]),
            status=PlacedStatus.from_mapping(resource.get("status", {})),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What the API server, or a controller of it, did not do for us."""

    kind: Kind
    status: int
    message: str
    reason: str = ""
    """The API's own word; `FailedCreate` for what the StatefulSet's controller was refused."""
    resize: bool = False
    """True: of the pod's size."""
    growth: bool = False
    """True: of a volume's size. It keeps nothing else from being done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the mirrors hold for one sandbox. None is what is not there."""

    template: Template | None = None
    namespace: Json | None = None
    namespace_objects: Mapping[Kind, Mapping[str, Json]] = field(default_factory=dict)
    """By kind and name."""
    stateful_set: Json | None = None
    secret: Json | None = None
    pod: Json | None = None
    claims: Mapping[str, Json] = field(default_factory=dict)
    """By volume."""
    node_ready: bool = True
    """False where the pod's node is gone, or does not answer."""
    expandable: bool = False
    """True where the claims' storage class can expand volumes."""
    refusals: Sequence[Refusal] = ()


def last_node_of(desired: Desired) -> str:
    """The node of the incarnation before the wanted one; empty for the first.

    It stays the same for as long as an incarnation does, or its pod would be outdated the moment it has a node.
    """
    status = desired.status
    return status.last_node if status.incarnation == desired.spec.incarnation else status.node


def is_ours(obj: Mapping[str, Any] | None, *, instance: str, owner: str = "") -> bool:
    """Tell whether an object carries our label and, where one is named, our owner."""
    if obj is None:
        return False
    metadata = obj["metadata"]
    owners = {one["uid"] for one in metadata.get("ownerReferences", ())}
    return metadata.get("labels", {}).get(INSTANCE_LABEL) == instance and (not owner or owner in owners)


def incarnation_of(obj: Mapping[str, Any] | None) -> str:
    """The incarnation that an object, or a pod template, was made for."""
    if obj is None:
        return ""
    found: str = obj["metadata"].get("annotations", {}).get(INCARNATION_ANNOTATION, "")
    return found


def container_status(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The status of the sandbox's container; empty where there is none yet."""
    found = (one for one in pod.get("status", {}).get("containerStatuses", ()) if one["name"] == CONTAINER)
    return next(found, {})


def container_resources(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the container has been given, as the pod's spec says."""
    for one in pod["spec"]["containers"]:
        if one["name"] == CONTAINER:
            resources: Mapping[str, Any] = one.get("resources", {})
            return resources
    return {}


def container_image(pod: Mapping[str, Any]) -> str:
    """The image that the container is made from, as the pod's spec names it: a runtime's own id of it says less."""
    return next((str(one["image"]) for one in pod["spec"]["containers"] if one["name"] == CONTAINER), "")


def pod_condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """A condition of a pod; empty where there is none."""
    found = (one for one in pod.get("status", {}).get("conditions", ()) if one["type"] == kind)
    return next(found, {})


def is_started(pod: Mapping[str, Any]) -> bool:
    """Tell whether the container runs for the first time."""
    status = container_status(pod)
    return "running" in status.get("state", {}) and not status.get("restartCount", 0)


def is_terminating(obj: Mapping[str, Any]) -> bool:
    """Tell whether an object is being deleted."""
    return "deletionTimestamp" in obj["metadata"]

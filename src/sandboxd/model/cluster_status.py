"""The status of a `Sandbox`: what the operator says of it, and `serve` and people read."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxd.model.cluster import AGENT_PORT


class PlacedState(enum.Enum):
    """What a sandbox is in the cluster, as the operator sees it."""

    PENDING = "Pending"
    """Nothing runs yet: something that it needs is missing; the reason says what."""
    STARTING = "Starting"
    RUNNING = "Running"
    HIBERNATED = "Hibernated"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    FAILED = "Failed"
    """The incarnation was lost, or cannot come about without somebody's help."""


class ConditionType(enum.Enum):
    """Conditions of a `Sandbox`."""

    READY = "Ready"
    """The agent's port answers."""
    SCHEDULED = "Scheduled"
    VOLUMES_BOUND = "VolumesBound"
    AGENT_STARTED = "AgentStarted"
    """The container runs."""
    RESIZE_PENDING = "ResizePending"
    """The pod, or a volume, does not yet have what the spec says."""
    DEGRADED = "Degraded"
    """Something was lost or is refused; the reason says what."""


class Reason(enum.Enum):
    """Why a `Sandbox` is as it is: of its status, of its conditions and of the Events on it. A closed set."""

    AS_DESIRED = "AsDesired"
    STARTING = "Starting"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    HIBERNATED = "Hibernated"
    NOT_CREATED = "NotCreated"
    WAITING = "Waiting"
    TEMPLATE_MISSING = "TemplateMissing"
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    NAMESPACE_FOREIGN = "NamespaceForeign"
    OBJECT_FOREIGN = "ObjectForeign"
    """An object of another owner has a name that we need."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    UNSCHEDULABLE = "Unschedulable"
    VOLUME_PENDING = "VolumePending"
    VOLUME_LOST = "VolumeLost"
    SNAPSHOT_FAILED = "SnapshotFailed"
    """The storage, or who asks it, says that it cannot snapshot a volume; it is tried again."""
    IMAGE_MISSING = "ImageMissing"
    """The registry says that it has no such image."""
    IMAGE_BROKEN = "ImageBroken"
    """What the registry has cannot be unpacked."""
    IMAGE_FOREIGN = "ImageForeign"
    """The image is not one of the sandbox's client."""
    REGISTRY_UNAVAILABLE = "RegistryUnavailable"
    """The registry does not answer the node, or does not let it pull: nothing is known of the image."""
    POD_REFUSED = "PodRefused"
    """Admission, or the node, did not take the pod."""
    CONTAINER_FAILED = "ContainerFailed"
    CONTAINER_RESTARTED = "ContainerRestarted"
    OUT_OF_MEMORY = "OutOfMemory"
    POD_EVICTED = "PodEvicted"
    POD_DELETED = "PodDeleted"
    POD_FAILED = "PodFailed"
    NODE_LOST = "NodeLost"
    RESIZE_DEFERRED = "ResizeDeferred"
    RESIZE_INFEASIBLE = "ResizeInfeasible"
    RESIZE_IN_PROGRESS = "ResizeInProgress"
    RESTART_NEEDED = "RestartNeeded"
    """What changed (GPU, image) takes effect with the next incarnation."""
    EXPANSION_UNSUPPORTED = "ExpansionUnsupported"
    EXPANSION_WAITS = "ExpansionWaits"
    """The claim asks for more, and whoever expands volumes has not begun."""
    EXPANSION_FAILED = "ExpansionFailed"
    SHRINK_REFUSED = "ShrinkRefused"
    DRIFT_REPAIRED = "DriftRepaired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition of a resource."""

    type: ConditionType
    status: bool | None
    """None is `Unknown`."""
    reason: Reason
    message: str = ""
    transition_time: str = ""
    """When the status changed last, RFC 3339; set by whoever writes it."""

    def as_mapping(self, *, generation: int) -> dict[str, Any]:  # Any: JSON
        """Return it as the resource has it."""
        return {
            "type": self.type.value,
            "status": "Unknown" if self.status is None else str(self.status),
            "reason": self.reason.value,
            "message": self.message,
            "lastTransitionTime": self.transition_time,
            "observedGeneration": generation,
        }

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Condition:
        """Read it from a resource."""
        return cls(
            type=ConditionType(given["type"]),
            status={"True": True, "False": False}.get(given["status"]),
            reason=Reason(given["reason"]),
            message=given.get("message", ""),
            transition_time=given.get("lastTransitionTime", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedStatus:
    """The status of a `Sandbox`."""

    state: PlacedState = PlacedState.PENDING
    observed_generation: int = 0
    incarnation: str = ""
    """The incarnation that the fields of the pod are about."""
    pod_uid: str = ""
    """The pod that is this incarnation, from its first start on. A pod of another uid is not."""
    pod_ip: str = ""
    pod_name: str = ""
    node: str = ""
    """Where the pod is, or was last."""
    last_node: str = ""
    """Where the incarnation before this one was: this one prefers it, as its volumes and image may be there."""
    agent_port: int = AGENT_PORT
    start_time: str = ""
    """When the pod's container started, RFC 3339."""
    restarts: int = 0
    image: str = ""
    """What the pod was made from; empty without one."""
    next_image: str = ""
    """What the next pod is made from; empty where the template is missing."""
    reason: Reason = Reason.NOT_CREATED
    message: str = ""
    conditions: Sequence[Condition] = field(default_factory=tuple)

    def find(self, kind: ConditionType) -> Condition | None:
        """Return the condition of this type, or None."""
        return next((one for one in self.conditions if one.type is kind), None)

    def as_mapping(self) -> dict[str, Any]:  # Any: JSON
        """Return it as the resource has it."""
        return {
            "observedGeneration": self.observed_generation,
            "state": self.state.value,
            "incarnation": self.incarnation,
            "podUID": self.pod_uid,
            "podIP": self.pod_ip,
            "podName": self.pod_name,
            "node": self.node,
            "lastNode": self.last_node,
            "agentPort": self.agent_port,
            "startTime": self.start_time,
            "restarts": self.restarts,
            "image": self.image,
            "nextImage": self.next_image,
            "reason": self.reason.value,
            "message": self.message,
            "conditions": [one.as_mapping(generation=self.observed_generation) for one in self.conditions],
        }

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> PlacedStatus:
        """Read it from a resource; an empty mapping is the status before the operator's first."""
        return cls(
            state=PlacedState(given.get("state", PlacedState.PENDING.value)),
            observed_generation=int(given.get("observedGeneration", 0)),
            incarnation=given.get("incarnation", ""),
            pod_uid=given.get("podUID", ""),
            pod_ip=given.get("podIP", ""),
            pod_name=given.get("podName", ""),
            node=given.get("node", ""),
            last_node=given.get("lastNode", ""),
            agent_port=int(given.get("agentPort", AGENT_PORT)),
            start_time=given.get("startTime", ""),
            restarts=int(given.get("restarts", 0)),
            image=given.get("image", ""),
            next_image=given.get("nextImage", ""),
            reason=Reason(given.get("reason", Reason.NOT_CREATED.value)),
            message=given.get("message", ""),
            conditions=tuple(Condition.from_mapping(one) for one in given.get("conditions", ())),
        )

"""A `SandboxTemplate` as the operator reads it: what pods are made from."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

DEFAULT_CPU_FACTOR: Final = "0.1"
DEFAULT_MEMORY_FACTOR: Final = "0.25"
DEFAULT_HIBERNATED_CPU: Final = "5m"
DEFAULT_HIBERNATED_MEMORY: Final = "32M"
DEFAULT_GPU: Final = "nvidia.com/gpu"


class Packing(enum.Enum):
    """Which node a pod prefers, among those that the scheduler finds equal otherwise."""

    DEFAULT = "Default"
    """The scheduler's own preference."""
    PACK = "Pack"
    """One where sandboxes are already, so that other nodes can be emptied."""


class AgentDelivery(enum.Enum):
    """How the agent's file system comes into the pod."""

    IMAGE_VOLUME = "ImageVolume"
    INIT_COPY = "InitCopy"
    """For clusters without image volumes: an init container copies it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The fields of the resource; the CRD says what each is for."""

    image: str
    agent_image: str
    agent_delivery: AgentDelivery = AgentDelivery.IMAGE_VOLUME
    image_pull_secrets: Sequence[str] = ()
    user_image_pull_secrets: Sequence[str] = ()
    """Beside those, for sandboxes that have an image of their own."""
    runtime_class: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()  # Any: JSON
    priority_class: str = ""
    scheduler: str = ""
    packing: Packing = Packing.DEFAULT
    topology_spread: Sequence[Mapping[str, Any]] = ()  # Any: JSON
    storage_class: str = ""
    host_users: bool = False
    cpu_factor: str = DEFAULT_CPU_FACTOR
    memory_factor: str = DEFAULT_MEMORY_FACTOR
    hibernated_cpu: str = DEFAULT_HIBERNATED_CPU
    hibernated_memory: str = DEFAULT_HIBERNATED_MEMORY
    gpu_resource: str = DEFAULT_GPU

    @classmethod
    def from_mapping(cls, spec: Mapping[str, Any], *, own_pull_secret: str = "") -> Template:  # Any: JSON
        """Read the spec of a resource; pods with an image of their own pull with `own_pull_secret`, too."""
        overcommit, hibernated = spec.get("overcommit", {}), spec.get("hibernated", {})
        return cls(
            image=spec["image"],
            agent_image=spec["agentImage"],
            agent_delivery=AgentDelivery(spec.get("agentDelivery", AgentDelivery.IMAGE_VOLUME.value)),
            image_pull_secrets=tuple(spec.get("imagePullSecrets", ())),
            user_image_pull_secrets=(
                *spec.get("userImagePullSecrets", ()),
                *((own_pull_secret,) if own_pull_secret else ()),
            ),
            runtime_class=spec.get("runtimeClassName", ""),
            node_selector=spec.get("nodeSelector", {}),
            tolerations=tuple(spec.get("tolerations", ())),
            priority_class=spec.get("priorityClassName", ""),
            scheduler=spec.get("schedulerName", ""),
            packing=Packing(spec.get("packing", Packing.DEFAULT.value)),
            topology_spread=tuple(spec.get("topologySpreadConstraints", ())),
            storage_class=spec.get("storageClassName", ""),
            host_users=spec.get("hostUsers", False),
            cpu_factor=str(overcommit.get("cpu", DEFAULT_CPU_FACTOR)),
            memory_factor=str(overcommit.get("memory", DEFAULT_MEMORY_FACTOR)),
            hibernated_cpu=str(hibernated.get("cpu", DEFAULT_HIBERNATED_CPU)),
            hibernated_memory=str(hibernated.get("memory", DEFAULT_HIBERNATED_MEMORY)),
            gpu_resource=spec.get("gpuResource", DEFAULT_GPU),
        )

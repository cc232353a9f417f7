"""A `Sandbox` resource as this room reads it, and what of it counts as running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.backends.certificates import agent_name
from sandboxd.model.cluster import Mode, PlacedResources, PlacedSpec
from sandboxd.model.cluster_status import PlacedState, PlacedStatus
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.sandbox import AgentEndpoint, Resources, Tier

ALIVE: Final = frozenset({PlacedState.STARTING, PlacedState.RUNNING, PlacedState.HIBERNATED})
"""States in which there may be a pod of the incarnation whose agent answers, now or soon."""
HOME_SHARE: Final = 0.2
"""Part of a tier's storage that is home; the rest is workspace (design, section 5)."""
_GIGA: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One `Sandbox` resource."""

    sandbox: SandboxId
    namespace: str
    uid: str
    version: str
    generation: int
    leaving: bool
    """It is being deleted."""
    spec: PlacedSpec
    status: PlacedStatus
    labels: Mapping[str, str]

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> Placed:
        """Read one. Any: JSON.

        Raises:
            KeyError, ValueError: It is not what the schema promises; a newer operator may have written it.
        """
        meta = obj["metadata"]
        return cls(
            sandbox=SandboxId(meta["name"]),
            namespace=meta["namespace"],
            uid=meta["uid"],
            version=meta["resourceVersion"],
            generation=int(meta.get("generation", 0)),
            leaving="deletionTimestamp" in meta,
            spec=PlacedSpec.from_mapping(obj["spec"]),
            status=PlacedStatus.from_mapping(obj.get("status") or {}),
            labels=meta.get("labels") or {},
        )

    @property
    def taken_up(self) -> bool:
        """True when the status is about the spec as it is now."""
        return self.status.observed_generation >= self.generation

    def alive(self, incarnation: IncarnationId | None = None) -> bool:
        """Tell whether the status shows an incarnation (this one) whose compute is there and was not lost."""
        status = self.status
        return (
            status.state in ALIVE
            and bool(status.incarnation)
            and (incarnation is None or status.incarnation == incarnation)
            and status.restarts == 0
            and self.spec.mode is not Mode.STOPPED
        )

    @property
    def endpoint(self) -> AgentEndpoint | None:
        """Where the agent of `status.incarnation` listens; None until the pod has an address."""
        status = self.status
        if not status.pod_ip or not status.incarnation:
            return None
        return AgentEndpoint(
            host=status.pod_ip, port=status.agent_port, server_name=agent_name(IncarnationId(status.incarnation))
        )


def quantities(resources: Resources, *, gpus: int = 0) -> PlacedResources:
    """A tier's limits as Kubernetes quantities."""
    home = int(resources.storage_bytes * HOME_SHARE)
    return PlacedResources(
        cpu=str(resources.cpus),
        memory=_quantity(resources.memory_bytes),
        home=_quantity(home),
        workspace=_quantity(resources.storage_bytes - home),
        ephemeral_storage=_quantity(resources.storage_bytes),
        gpu=gpus,
    )


def gpus_of(tier: Tier, *, premium_gpus: int) -> int:
    """How many GPUs a sandbox of a tier has: premium alone may have any."""
    return premium_gpus if tier is Tier.PREMIUM else 0


def _quantity(size: int) -> str:
    return f"{size // _GIGA}G" if size % _GIGA == 0 else str(size)

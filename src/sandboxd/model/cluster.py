"""What sandboxd and its operator agree on in a cluster: names, labels, and the three resources of `sandboxd.dev`.

`serve` writes the spec of a `Sandbox`, the operator its status; both speak through the dataclasses here. Nothing here
knows a Kubernetes client: a resource is a plain mapping as JSON has it.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.sandbox import Tier

GROUP: Final = "sandboxd.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
SANDBOXES: Final = "sandboxes"
"""Plural of `Sandbox`, namespaced."""
TEMPLATES: Final = "sandboxtemplates"
"""Plural of `SandboxTemplate`, of the whole cluster."""
POOLS: Final = "sandboxpools"
"""Plural of `SandboxPool`, namespaced."""
PROBES: Final = "sandboxprobes"
"""Plural of `SandboxProbe`, namespaced."""

SERVE_MANAGER: Final = "sandboxd-serve"
"""Field manager of what `serve` writes."""
OPERATOR_MANAGER: Final = "sandboxd-operator"
"""Field manager of what the operator writes."""
SANDBOX_FINALIZER: Final = f"{GROUP}/compute"
"""On a `Sandbox` until its compute is gone and its claims are labelled as kept."""

INSTANCE_LABEL: Final = f"{GROUP}/instance"
"""Which installation a thing belongs to; on everything that we make."""
SANDBOX_LABEL: Final = f"{GROUP}/sandbox"
"""Id of the sandbox that a thing belongs to."""
KEPT_LABEL: Final = f"{GROUP}/kept"
"""`true` on claims whose sandbox was terminated: nobody but `erase` may remove them."""
POOL_LABEL: Final = f"{GROUP}/pool"
"""Id of the pool that a sandbox was made for."""
PROBE_LABEL: Final = f"{GROUP}/probe"
"""On the pod of a `SandboxProbe`, with its name. Such a pod is no sandbox: no policy lets it speak to anybody."""
INCARNATION_ANNOTATION: Final = f"{GROUP}/incarnation"
CLIENT_ANNOTATION: Final = f"{GROUP}/client"
"""The client's name: names may hold what labels may not."""
FREELANCER_ANNOTATION: Final = f"{GROUP}/freelancer"

CONTAINER: Final = "sandbox"
AGENT_PORT: Final = 7443
"""Where the agent listens in the pod, with mutual TLS."""
MODEL_PORT: Final = 8787
"""The model endpoint on the pod's loopback."""
AGENT_CONFIG_DIRECTORY: Final = "/etc/sandboxd/agent"
"""Where the Secret is mounted: `agent.json`, `tls.crt`, `tls.key`, `ca.crt`."""
RUN_DIRECTORY: Final = "/run/sandboxd"
AGENT_ROOT: Final = "/opt/agent"
"""Where the agent's own file system is mounted, read-only."""
HOME_DIRECTORY: Final = "/home/gemini"
WORKSPACE_DIRECTORY: Final = "/workspace"
NODE_DIRECTORY: Final = "/opt/node/bin"
"""Where every sandbox image has the Node of its CLI."""
CLI_ENTRY: Final = "/opt/gemini-cli/node_modules/@google/gemini-cli/bundle/gemini.js"
HOME_VOLUME: Final = "home"
WORKSPACE_VOLUME: Final = "workspace"

POD_SECURITY_LABELS: Final = {f"pod-security.kubernetes.io/{way}": "baseline" for way in ("enforce", "warn", "audit")}
DEFAULT_TEMPLATE: Final = "default"

_SAFE: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_HASHED: Final = re.compile(r".*-x[0-9a-f]{12}")
_LABEL_LENGTH: Final = 63


def namespace_of(client: ClientId, *, prefix: str) -> str:
    """Return the namespace of a client.

    No two clients share one: a name that had to be changed ends in `-x` and twelve digits of its hash, and a name that
    ends so by itself is changed, too.
    """
    plain = f"{prefix}{client}"
    if _SAFE.fullmatch(plain) and len(plain) <= _LABEL_LENGTH and not _HASHED.fullmatch(plain):
        return plain
    suffix = f"-x{hashlib.sha256(client.encode()).hexdigest()[:12]}"
    kept = re.sub(r"[^a-z0-9-]", "-", plain)[: _LABEL_LENGTH - len(suffix)].rstrip("-")
    return f"{kept}{suffix}"


def agent_secret_of(sandbox: SandboxId) -> str:
    """Name of the Secret with the agent's identity."""
    return f"{sandbox}-agent"


def pod_of(sandbox: SandboxId) -> str:
    """Name of a sandbox's one pod."""
    return f"{sandbox}-0"


def claims_of(sandbox: SandboxId) -> Mapping[str, str]:
    """Name of the claim of each volume, as the StatefulSet makes them."""
    return {volume: f"{volume}-{sandbox}-0" for volume in (HOME_VOLUME, WORKSPACE_VOLUME)}


class Mode(enum.Enum):
    """What `serve` wants of a sandbox."""

    RUNNING = "Running"
    HIBERNATED = "Hibernated"
    STOPPED = "Stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedResources:
    """Limits of a sandbox, as Kubernetes quantities."""

    cpu: str
    memory: str
    home: str
    workspace: str
    ephemeral_storage: str = ""
    """Most that the root file system may change; empty sets no limit."""
    gpu: int = 0

    def as_mapping(self) -> dict[str, Any]:  # Any: JSON
        """Return it as the resource has it."""
        made: dict[str, Any] = {
            "cpu": self.cpu,
            "memory": self.memory,
            "home": self.home,
            "workspace": self.workspace,
        }
        if self.ephemeral_storage:
            made["ephemeralStorage"] = self.ephemeral_storage
        if self.gpu:
            made["gpu"] = self.gpu
        return made

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> PlacedResources:
        """Read it from a resource."""
        return cls(
            cpu=str(given["cpu"]),
            memory=str(given["memory"]),
            home=str(given["home"]),
            workspace=str(given["workspace"]),
            ephemeral_storage=str(given.get("ephemeralStorage", "")),
            gpu=int(given.get("gpu", 0)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedSpec:
    """The spec of a `Sandbox`."""

    client: ClientId
    freelancer: FreelancerId
    incarnation: IncarnationId
    tier: Tier
    resources: PlacedResources
    mode: Mode = Mode.RUNNING
    template: str = DEFAULT_TEMPLATE
    image: str = ""
    """By digest, of the client's repository; empty takes the template's. The next pod takes it, what runs goes on."""
    kept: bool = True
    """True: when the resource goes, its claims are labelled as kept. The operator never deletes claims itself."""
    pool: str = ""
    """The pool that it was made for; stays when it is claimed."""
    recipe: str = ""
    """What a member of a pool was made from."""

    def as_mapping(self) -> dict[str, Any]:  # Any: JSON
        """Return it as the resource has it."""
        return {
            "client": self.client,
            "freelancer": self.freelancer,
            "template": self.template,
            "tier": self.tier.value,
            "mode": self.mode.value,
            "incarnation": self.incarnation,
            "image": self.image,
            "resources": self.resources.as_mapping(),
            "kept": self.kept,
            "pool": self.pool,
            "recipe": self.recipe,
        }

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> PlacedSpec:
        """Read it from a resource.

        Raises:
            KeyError, ValueError: It is not what the resource's schema promises.
        """
        return cls(
            client=ClientId(given["client"]),
            freelancer=FreelancerId(given["freelancer"]),
            incarnation=IncarnationId(given["incarnation"]),
            tier=Tier(given["tier"]),
            resources=PlacedResources.from_mapping(given["resources"]),
            mode=Mode(given.get("mode", Mode.RUNNING.value)),
            template=given.get("template", DEFAULT_TEMPLATE),
            image=given.get("image", ""),
            kept=bool(given.get("kept", True)),
            pool=given.get("pool", ""),
            recipe=given.get("recipe", ""),
        )


def sandbox_resource(sandbox: SandboxId, spec: PlacedSpec, *, namespace: str, instance: str) -> dict[str, Any]:
    """Return the `Sandbox` resource that `serve` writes. Any: JSON."""
    of_pool = {POOL_LABEL: spec.pool} if spec.pool else {}
    return {
        "apiVersion": API_VERSION,
        "kind": "Sandbox",
        "metadata": {
            "name": sandbox,
            "namespace": namespace,
            "labels": {INSTANCE_LABEL: instance, SANDBOX_LABEL: sandbox, **of_pool},
            "finalizers": [SANDBOX_FINALIZER],
        },
        "spec": spec.as_mapping(),
    }


def namespace_resource(client: ClientId, *, prefix: str, instance: str) -> dict[str, Any]:
    """Return a client's namespace, bare; the operator fills it with quota, limits and policies. Any: JSON."""
    labels, annotations = {INSTANCE_LABEL: instance, **POD_SECURITY_LABELS}, {CLIENT_ANNOTATION: client}
    metadata = {"name": namespace_of(client, prefix=prefix), "labels": labels, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}

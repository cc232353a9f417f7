"""What the cluster says, as errors that tell people what to look at."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from sandboxd.backends.kubernetes.image_trouble import OWN_PATIENCE, broken_at, image_broken
from sandboxd.backends.kubernetes.placed import Placed
from sandboxd.kubeapi.errors import (
    KubeConflictError,
    KubeError,
    KubeForbiddenError,
    KubeNotFoundError,
    KubeUnavailableError,
)
from sandboxd.model.cluster_status import Reason
from sandboxd.model.errors import ConflictError, ExhaustedError, QuotaViolation, SandboxdError, UnavailableError

RETRY_SOON: Final = timedelta(seconds=10)
RETRY_CAPACITY: Final = timedelta(seconds=30)
"""What a node pool needs to grow, or a quota to be freed, at the least."""


class ClusterUnavailableError(UnavailableError):
    """The cluster's API does not answer, or refuses this service."""

    reason = "CLUSTER_UNAVAILABLE"


class PlacementError(UnavailableError):
    """The cluster cannot run the sandbox as things are; the message says what to look at."""

    reason = "PLACEMENT_FAILED"


class CapacityError(ExhaustedError):
    """A quota of the client's namespace is spent, or no node has room."""

    reason = "CLUSTER_CAPACITY"


class SupersededError(ConflictError):
    """Another service works on the same sandbox."""

    reason = "SANDBOX_SUPERSEDED"


PATIENCE: Final[Mapping[Reason, timedelta]] = {
    Reason.QUOTA_EXCEEDED: timedelta(0),
    Reason.TEMPLATE_MISSING: timedelta(seconds=3),
    Reason.NAMESPACE_FOREIGN: timedelta(0),
    Reason.OBJECT_FOREIGN: timedelta(0),
    Reason.POD_REFUSED: timedelta(seconds=3),
    Reason.IMAGE_MISSING: timedelta(seconds=10),
    Reason.IMAGE_BROKEN: timedelta(seconds=10),
    Reason.IMAGE_FOREIGN: timedelta(0),
    Reason.REGISTRY_UNAVAILABLE: timedelta(seconds=10),
    Reason.UNSCHEDULABLE: timedelta(seconds=20),
    Reason.VOLUME_LOST: timedelta(seconds=3),
}
"""How long each may stay before the start is given up. What is absent here is waited for until the deadline: a node
that joins, a volume that is just being made."""
LOOK: Final[Mapping[Reason, str]] = {
    Reason.QUOTA_EXCEEDED: "Its client's quota in the cluster is spent: stop or end other sandboxes, or raise the "
    "ResourceQuota of namespace {namespace}",
    Reason.UNSCHEDULABLE: "No node has room for it: add nodes, or look at the requests and the node selector of "
    "template {template} (kubectl describe pod -n {namespace} {sandbox}-0)",
    Reason.IMAGE_MISSING: "Its image cannot be pulled: its registry has none such. Look at the images of template "
    "{template}",
    Reason.IMAGE_BROKEN: "Its image cannot be unpacked: look at the images of template {template}",
    Reason.IMAGE_FOREIGN: "Its image is not one of its client",
    Reason.REGISTRY_UNAVAILABLE: "Its image cannot be pulled now: look at its registry, and at the pull secrets of "
    "template {template} in namespace {namespace}",
    Reason.VOLUME_PENDING: "Its volumes are not bound: look at the storage class of template {template} and at the "
    "claims of namespace {namespace}",
    Reason.VOLUME_LOST: "A volume of it is lost: look at the claims of namespace {namespace}",
    Reason.SNAPSHOT_FAILED: "Its volumes cannot be snapshotted: look at the VolumeSnapshots of namespace {namespace}, "
    "at their class, and at the CSI driver",
    Reason.TEMPLATE_MISSING: "There is no SandboxTemplate {template}",
    Reason.NAMESPACE_TERMINATING: "Namespace {namespace} is being deleted",
    Reason.NAMESPACE_FOREIGN: "Namespace {namespace} belongs to somebody else; choose another namespace prefix",
    Reason.OBJECT_FOREIGN: "An object of somebody else has its name in namespace {namespace}",
    Reason.POD_REFUSED: "The cluster's admission refuses its pod: look at the events of namespace {namespace}",
    Reason.CONTAINER_FAILED: "Its container does not start: look at the agent image of template {template}",
    Reason.OUT_OF_MEMORY: "It ran out of memory while it started",
    Reason.NODE_LOST: "Its node is lost",
}


def patience_of(placed: Placed) -> timedelta | None:
    """How long what the operator reports may stay so until a start is given up; None waits for the deadline."""
    reason = placed.status.reason
    own = OWN_PATIENCE.get(reason) if broken_at(placed) is not None else None
    return own or PATIENCE.get(reason)


def refusal(placed: Placed) -> SandboxdError:
    """The error of a sandbox that does not come about, from what the operator reports."""
    status = placed.status
    if (step := broken_at(placed)) is not None:
        return image_broken(placed.sandbox, placed.spec.image, step, status.message)
    sandbox, cause = str(placed.sandbox), status.reason.value
    names = {"namespace": placed.namespace, "template": placed.spec.template, "sandbox": placed.sandbox}
    look = LOOK.get(status.reason, "The cluster does not start it").format(**names)
    text = f"Sandbox {placed.sandbox} cannot be started. {look}." + (f" {status.message}" if status.message else "")
    if status.reason in (Reason.QUOTA_EXCEEDED, Reason.UNSCHEDULABLE):
        violation = QuotaViolation(
            subject=f"clients/{placed.spec.client}",
            description=status.message or look,
            quota="cluster_quota" if status.reason is Reason.QUOTA_EXCEEDED else "cluster_capacity",
        )
        return CapacityError(text, violations=[violation], retry_after=RETRY_CAPACITY, sandbox=sandbox, cause=cause)
    return PlacementError(text, retry_after=RETRY_SOON, sandbox=sandbox, cause=cause)


def lateness(placed: Placed, *, seconds: float, instance: str) -> str:
    """Why a sandbox is not where it should be when the time is over."""
    status = placed.status
    begin = f"Sandbox {placed.sandbox} is not ready after {seconds:.0f} s"
    if not placed.taken_up:
        return (
            f"{begin}: the operator has not taken it up. Look whether `sandboxd operator` of instance {instance} runs "
            f"(kubectl get sandbox -n {placed.namespace} {placed.sandbox})."
        )
    names = {"namespace": placed.namespace, "template": placed.spec.template, "sandbox": placed.sandbox}
    look = LOOK.get(status.reason, "").format(**names)
    parts = [f"{begin}: it is {status.state.value} ({status.reason.value})", look, status.message]
    return ". ".join(part.rstrip(".") for part in parts if part) + "."


def translated(error: KubeError, what: str, *, sandbox: str) -> SandboxdError:
    """An error of the API as one of ours."""
    match error:
        case KubeForbiddenError() if "exceeded quota" in error.message:
            text = f"{what}: the client's quota in the cluster is spent. {error.message}"
            violation = QuotaViolation(subject="cluster", description=error.message, quota="cluster_quota")
            return CapacityError(text, violations=[violation], retry_after=RETRY_CAPACITY, sandbox=sandbox)
        case KubeForbiddenError() if "being terminated" in error.message:
            return ClusterUnavailableError(
                f"{what}: its namespace is being deleted. Try again when that is over.",
                retry_after=RETRY_SOON,
                sandbox=sandbox,
            )
        case KubeForbiddenError():
            return ClusterUnavailableError(f"{what}: the cluster does not allow it: {error.message}", sandbox=sandbox)
        case KubeNotFoundError():
            return ClusterUnavailableError(
                f"{what}: the cluster does not know it: {error.message}. Are the resources of sandboxd.dev installed?",
                sandbox=sandbox,
            )
        case KubeConflictError():
            return SupersededError(f"{what}: somebody else has changed it meanwhile. Try again.", sandbox=sandbox)
        case KubeUnavailableError():
            return ClusterUnavailableError(
                f"{what}: the cluster's API does not answer now. Nothing is lost; try again. ({error.message})",
                retry_after=timedelta(seconds=2),
                sandbox=sandbox,
            )
        case _:
            return ClusterUnavailableError(f"{what}: the cluster refuses it: {error.message}", sandbox=sandbox)

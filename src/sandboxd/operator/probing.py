"""From a `SandboxProbe` and what is there of it to the steps between, and to its status. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sandboxd.model.boot_step import BootStep
from sandboxd.model.cluster import PlacedSpec
from sandboxd.model.cluster_probe import ENDS, KEPT, PlacedProbe, ProbeState, ProbeStatus
from sandboxd.model.cluster_status import PlacedStatus, Reason
from sandboxd.model.legible import legible
from sandboxd.operator.builders import Json
from sandboxd.operator.conditions import IMAGE_REASONS, reason_of
from sandboxd.operator.image_rules import is_foreign, pull_reason
from sandboxd.operator.kinds import Kind
from sandboxd.operator.observed import Refusal, container_status, is_ours, is_terminating, pod_condition
from sandboxd.operator.plan import Create, Delete, PlanSettings, Step
from sandboxd.operator.probe_shape import probe_pod
from sandboxd.operator.template import Template

BROKEN_STATUS: Final = 10
"""Exit status by which the self test says that the image is broken (`sandboxd.agent.selftest`)."""
NEVER_RAN: Final = frozenset({"StartError", "ContainerCannotRun"})
MESSAGE_CHARACTERS: Final = 1200
_STARTING: Final = frozenset({"", "ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeWorld:
    """What the mirrors hold for one probe. None is what is not there."""

    resource: Json
    sandbox: Json | None = None
    """The `Sandbox` whose image it is to become."""
    template: Template | None = None
    pod: Json | None = None
    namespace_ready: bool = True
    """Its policies and quotas are there: a pod before them would have a network."""
    refusals: Sequence[Refusal] = ()

    @property
    def probe(self) -> PlacedProbe:
        """What is wanted."""
        return PlacedProbe.from_mapping(self.resource["spec"])

    @property
    def status(self) -> ProbeStatus:
        """As it was written last."""
        return ProbeStatus.from_mapping(self.resource.get("status") or {})

    @property
    def ends(self) -> datetime:
        """When it is removed, whoever still waits."""
        made = datetime.fromisoformat(self.resource["metadata"]["creationTimestamp"])
        return made + self.probe.deadline + KEPT


def plan_probe(world: ProbeWorld, settings: PlanSettings, *, now: datetime) -> Sequence[Step]:
    """Say what to do. Nothing to do is no step."""
    metadata = world.resource["metadata"]
    if is_terminating(world.resource):
        return ()  # its pod goes with it
    if now >= world.ends:
        return (_delete(Kind.PROBE, world.resource),)
    if world.status.state in ENDS:
        pod = world.pod
        return () if pod is None or is_terminating(pod) else (_delete(Kind.POD, pod),)
    if world.pod is not None or world.status.pod_uid or not world.namespace_ready or _undecidable(world):
        return ()
    assert world.sandbox is not None
    assert world.template is not None
    body = probe_pod(
        metadata["name"],
        world.probe,
        world.template,
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        instance=settings.instance,
        node=PlacedStatus.from_mapping(world.sandbox.get("status") or {}).node,
    )
    return (
        Create(
            kind=Kind.POD,
            namespace=metadata["namespace"],
            name=metadata["name"],
            body=body,
            owner=metadata["uid"],
        ),
    )


def conclude_probe(world: ProbeWorld, settings: PlanSettings) -> ProbeStatus:
    """Say what is known of the image. What is known once stays."""
    status = world.status
    if status.state in ENDS:
        return status
    if why := _undecidable(world):
        return _told(status, ProbeState.UNDECIDED, *why)
    pod = world.pod
    if pod is None:
        if status.pod_uid:
            return _told(status, ProbeState.UNDECIDED, Reason.POD_DELETED, "The probe's pod is gone.")
        if world.refusals:
            refusal = world.refusals[0]
            return _told(status, ProbeState.WAITING, reason_of(refusal), refusal.message)
        return _told(status, ProbeState.WAITING, Reason.NOT_CREATED)
    metadata = world.resource["metadata"]
    if not is_ours(pod, instance=settings.instance, owner=metadata["uid"]):
        return _told(status, ProbeState.UNDECIDED, Reason.OBJECT_FOREIGN, "A pod of somebody else has its name.")
    return _of_pod(replace(status, pod_uid=pod["metadata"]["uid"]), pod, world.probe.image)


def _undecidable(world: ProbeWorld) -> tuple[Reason, str] | None:
    """Say why nothing can ever be said of the image."""
    probe = world.probe
    if world.sandbox is None:
        return Reason.POD_REFUSED, f"There is no Sandbox {probe.sandbox} beside the probe."
    spec = PlacedSpec.from_mapping(world.sandbox["spec"])
    if refused := is_foreign(replace(spec, image=probe.image)):
        return Reason.IMAGE_FOREIGN, refused
    if world.template is None:
        return Reason.TEMPLATE_MISSING, f"There is no SandboxTemplate {spec.template}."
    return None


def _of_pod(status: ProbeStatus, pod: Json, image: str) -> ProbeStatus:
    container = container_status(pod)
    state: Mapping[str, Any] = container.get("state", {})  # Any: JSON
    if (ended := state.get("terminated")) is not None:
        return _of_end(status, pod, ended)
    found = pod.get("status", {})
    if found.get("phase") in ("Failed", "Succeeded"):
        return _of_lost(status, found)
    if is_terminating(pod):
        return _told(status, ProbeState.UNDECIDED, Reason.POD_DELETED, "The probe's pod was deleted.")
    if "running" in state:
        return _told(status, ProbeState.RUNNING, Reason.STARTING)
    placed = pod_condition(pod, "PodScheduled")
    if placed.get("status") == "False":
        return _told(status, ProbeState.WAITING, Reason.UNSCHEDULABLE, str(placed.get("message", "")))
    waits = state.get("waiting", {})
    for other in found.get("initContainerStatuses", ()):
        waits = other.get("state", {}).get("waiting") or waits
    return _of_waiting(status, str(waits.get("reason", "")), str(waits.get("message", "")), image)


def _of_waiting(status: ProbeStatus, why: str, text: str, image: str) -> ProbeStatus:
    if why in _STARTING:
        return _told(status, ProbeState.WAITING, Reason.STARTING)
    told = f"{why}: {text}"
    if why in IMAGE_REASONS or why.startswith("ErrImage"):
        before = Reason(status.reason) if status.reason else Reason.NOT_CREATED
        reason = pull_reason(why, text, before=before)
        # Of the two images that the pod has, the message names the one that it is about.
        if image.rpartition("@")[2] in text and reason is not Reason.REGISTRY_UNAVAILABLE:
            which = BootStep.PULL if reason is Reason.IMAGE_MISSING else BootStep.UNPACK
            return _told(status, ProbeState.BROKEN, reason, told, step=which)
        return _told(status, ProbeState.WAITING, reason, told)
    step = None if why == "CreateContainerConfigError" else BootStep.CONTAINER
    return _told(status, ProbeState.WAITING, Reason.CONTAINER_FAILED, told, step=step)


def _of_end(status: ProbeStatus, pod: Json, ended: Mapping[str, Any]) -> ProbeStatus:
    """What the self test found, by its exit status; its words are the image's as much as its own."""
    code, said = ended.get("exitCode"), str(ended.get("message") or "")
    if code == 0:
        return _told(status, ProbeState.BOOTED, Reason.AS_DESIRED)
    if ended.get("reason") in NEVER_RAN:
        return _told(status, ProbeState.BROKEN, Reason.CONTAINER_FAILED, said, step=BootStep.CONTAINER)
    if code == BROKEN_STATUS:
        step, text = _report(said)
        return _told(status, ProbeState.BROKEN, Reason.IMAGE_BROKEN, text, step=step)
    found = pod.get("status", {})
    if ended.get("reason") == "OOMKilled":
        return _told(status, ProbeState.UNDECIDED, Reason.OUT_OF_MEMORY, "The self test had too little memory.")
    if found.get("reason"):
        return _of_lost(status, found)
    text = f"The self test ended with exit code {code}; an agent of an older version has none. {said}"
    return _told(status, ProbeState.UNDECIDED, Reason.CONTAINER_FAILED, text)


def _of_lost(status: ProbeStatus, found: Mapping[str, Any]) -> ProbeStatus:
    why = str(found.get("reason") or found.get("phase"))
    reason = Reason.POD_EVICTED if why == "Evicted" else Reason.POD_FAILED
    return _told(status, ProbeState.UNDECIDED, reason, f"The probe's pod ended ({why}). {found.get('message', '')}")


def _report(text: str) -> tuple[BootStep, str]:
    try:
        told = json.loads(text)
        return BootStep(told["step"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        return BootStep.AGENT, text  # somebody in the image has written over it


def _told(
    status: ProbeStatus, state: ProbeState, reason: Reason, message: str = "", *, step: BootStep | None = None
) -> ProbeStatus:
    text = legible(message, limit=MESSAGE_CHARACTERS)
    return replace(status, state=state, reason=reason.value, message=text, step=step)


def _delete(kind: Kind, obj: Json) -> Delete:
    metadata = obj["metadata"]
    return Delete(
        kind=kind,
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        grace_seconds=0 if kind is Kind.POD else None,
    )

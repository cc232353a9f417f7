"""From what is desired and what is there to the steps between. Pure: the same world gives the same plan.

The steps of one wave go out at the same time, waves one after the other. Every step is safe to repeat, and those that
change something name the version that they were planned for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.model.cluster import KEPT_LABEL, SANDBOX_FINALIZER, Mode, agent_secret_of
from sandboxd.model.cluster_status import PlacedState
from sandboxd.model.ids import IncarnationId
from sandboxd.model.quantity import parse_quantity
from sandboxd.operator.backup_shape import BackupMeans, SnapshotMeans
from sandboxd.operator.builders import Json, mark_of, stateful_set, wanted_of
from sandboxd.operator.comparing import merging, says
from sandboxd.operator.image_rules import is_foreign
from sandboxd.operator.kinds import Kind
from sandboxd.operator.losses import find_loss
from sandboxd.operator.observed import (
    Desired,
    Observed,
    container_resources,
    incarnation_of,
    is_ours,
    is_started,
    is_terminating,
    last_node_of,
)
from sandboxd.operator.pod_shape import resources_of
from sandboxd.operator.template import Template
from sandboxd.operator.tenancy import Network, namespace_objects

FORMER_GRACE_SECONDS: Final = 1
"""What a pod of a former incarnation still has to end: it was told before, or is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Make an object; one of ours that is there is success."""

    kind: Kind
    namespace: str
    name: str
    body: Json
    owner: str = ""
    """uid that an object of the same name must have as its owner to be ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Merge into an object of a known version."""

    kind: Kind
    namespace: str
    name: str
    body: Json
    resource_version: str
    why: str = ""
    """`drift` where somebody else had changed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Change what a living pod may use, in place."""

    namespace: str
    pod: str
    resources: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete this very object; absent is success."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    grace_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteIdentity:
    """Give the agent of an incarnation a fresh identity: make its Secret, or replace what is in it."""

    namespace: str
    name: str
    incarnation: IncarnationId
    resource_version: str = ""
    """Of the Secret that is there; empty to make it."""


Step = Create | Patch | Resize | Delete | WriteIdentity
Wave = Sequence[Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What is the same for all sandboxes of an installation."""

    instance: str
    network: Network
    prepull: bool = True
    """Whether templates' images are pulled to every node that fits them."""
    backups: BackupMeans | None = None
    """What backups of files are made with; None where there are none."""
    snapshots: SnapshotMeans | None = None
    """What VolumeSnapshots are made with; None where there are none."""
    own_pull_secret: str = ""
    """In each client's namespace: what its own images are pulled with; none if empty."""

    def read_template(self, spec: Mapping[str, Any]) -> Template:  # Any: JSON
        """Read the spec of a template as pods are made of it here."""
        return Template.from_mapping(spec, own_pull_secret=self.own_pull_secret)


def plan(desired: Desired, observed: Observed, settings: PlanSettings) -> Sequence[Wave]:
    """Say what to do. Nothing to do is no wave."""
    if desired.deleting:
        waves = _release(desired, observed, settings)
    elif not is_ours(observed.namespace, instance=settings.instance) or is_terminating(observed.namespace or {}):
        waves = []
    else:
        waves = [
            list(_prepare(desired, observed, settings)),
            [*_place(desired, observed, settings), *_grow(desired, observed)],
            list(_replace_pod(desired, observed)),
        ]
    return [wave for wave in waves if wave]


def wants_pod(desired: Desired, observed: Observed) -> bool:
    """Tell whether a pod is to run."""
    return desired.spec.mode is not Mode.STOPPED and find_loss(desired, observed) is None


def _prepare(desired: Desired, observed: Observed, settings: PlanSettings) -> Iterator[Step]:
    """What must be there before a pod can be: the finalizer, and the namespace's policies and quota."""
    if SANDBOX_FINALIZER not in desired.finalizers:
        yield _finalizers(desired, [*desired.finalizers, SANDBOX_FINALIZER])
    assert observed.namespace is not None
    if desired.spec.mode is Mode.STOPPED:
        return
    built = namespace_objects(observed.namespace, instance=settings.instance, network=settings.network)
    for kind, objects in built.items():
        for body in objects:
            if body["metadata"]["name"] not in observed.namespace_objects.get(kind, {}):
                yield Create(kind=kind, namespace=desired.namespace, name=body["metadata"]["name"], body=body)


def _place(desired: Desired, observed: Observed, settings: PlanSettings) -> Iterator[Step]:
    """Secret and StatefulSet, both at once: the kubelet needs the one long after the controller the other."""
    found, running = observed.stateful_set, wants_pod(desired, observed)
    if found is not None and (not _owned(found, desired, settings) or is_terminating(found)):
        return
    if not running:
        if found is not None and found["spec"].get("replicas") != 0:
            yield _patch(Kind.STATEFUL_SET, found, {"spec": {"replicas": 0}})
        return
    template = observed.template
    if template is None or is_foreign(desired.spec):
        return
    yield from _identity(desired, observed, settings)
    built = stateful_set(
        desired.sandbox,
        desired.spec,
        template,
        namespace=desired.namespace,
        uid=desired.uid,
        instance=settings.instance,
        replicas=1,
        last_node=last_node_of(desired),
    )
    if found is None:
        yield Create(
            kind=Kind.STATEFUL_SET, namespace=desired.namespace, name=desired.sandbox, body=built, owner=desired.uid
        )
    elif not says(found, wanted_of(built)):
        why = "drift" if _drifted(desired, found, built) else ""
        yield _patch(Kind.STATEFUL_SET, found, merging(found, wanted_of(built)), why=why)
    yield from _resize(desired, observed, template)


def _drifted(desired: Desired, found: Json, built: Json) -> bool:
    """Tell whether somebody else changed a StatefulSet: we want what we wanted, and it is something else."""
    if mark_of(found) != mark_of(built):
        return False
    scaled = {**found, "spec": {**found["spec"], "replicas": built["spec"]["replicas"]}}
    return not says(scaled, wanted_of(built)) or desired.status.state in (PlacedState.RUNNING, PlacedState.HIBERNATED)


def _identity(desired: Desired, observed: Observed, settings: PlanSettings) -> Iterator[Step]:
    found, name = observed.secret, agent_secret_of(desired.sandbox)
    if found is None:
        yield WriteIdentity(namespace=desired.namespace, name=name, incarnation=desired.spec.incarnation)
    elif (
        _owned(found, desired, settings)
        and not is_terminating(found)
        and incarnation_of(found) != desired.spec.incarnation
    ):
        yield WriteIdentity(
            namespace=desired.namespace,
            name=name,
            incarnation=desired.spec.incarnation,
            resource_version=found["metadata"]["resourceVersion"],
        )


def _resize(desired: Desired, observed: Observed, template: Template) -> Iterator[Step]:
    pod = observed.pod
    if pod is None or is_terminating(pod) or incarnation_of(pod) != desired.spec.incarnation or not is_started(pod):
        return
    wanted = sizes(desired, template)
    if not says(container_resources(pod), wanted):
        yield Resize(namespace=desired.namespace, pod=pod["metadata"]["name"], resources=wanted)


def sizes(desired: Desired, template: Template) -> Json:
    """What the container is to have of what can be changed in place: processors and memory."""
    wanted = resources_of(desired.spec.resources, template, mode=desired.spec.mode)
    return {part: {name: values[name] for name in ("cpu", "memory")} for part, values in wanted.items()}


def _grow(desired: Desired, observed: Observed) -> Iterator[Step]:
    """Volumes grow where their class can; a claim that lives again is no longer a kept one."""
    wanted = {"home": desired.spec.resources.home, "workspace": desired.spec.resources.workspace}
    for volume, claim in observed.claims.items():
        body: Json = {}
        given = claim["spec"]["resources"]["requests"]["storage"]
        if observed.expandable and parse_quantity(wanted[volume]) > parse_quantity(given):
            body["spec"] = {"resources": {"requests": {"storage": wanted[volume]}}}
        if KEPT_LABEL in claim["metadata"].get("labels", {}):
            body["metadata"] = {"labels": {KEPT_LABEL: None}}
        if body:
            yield _patch(Kind.CLAIM, claim, body)


def _replace_pod(desired: Desired, observed: Observed) -> Iterator[Step]:
    """A pod of a former incarnation goes; so does one that never started and is made from what is wanted no more."""
    pod, found = observed.pod, observed.stateful_set
    if pod is None or found is None or is_terminating(pod) or observed.template is None:
        return
    owners = {one["uid"] for one in pod["metadata"].get("ownerReferences", ())}
    if found["metadata"]["uid"] not in owners or not wants_pod(desired, observed) or is_foreign(desired.spec):
        return  # where the image is refused the StatefulSet is as it was, and would make the same pod again
    former = incarnation_of(pod) != desired.spec.incarnation
    outdated = not _has_started(pod) and _is_outdated(pod, found)
    if former or outdated:
        yield Delete(
            kind=Kind.POD,
            namespace=desired.namespace,
            name=pod["metadata"]["name"],
            uid=pod["metadata"]["uid"],
            grace_seconds=FORMER_GRACE_SECONDS,
        )


def _release(desired: Desired, observed: Observed, settings: PlanSettings) -> list[list[Step]]:
    """The end: claims are labelled as kept before anything else goes, and the finalizer goes last."""
    if SANDBOX_FINALIZER not in desired.finalizers:
        return []
    keep: list[Step] = [
        _patch(Kind.CLAIM, claim, {"metadata": {"labels": {KEPT_LABEL: "true"}}})
        for claim in observed.claims.values()
        if desired.spec.kept and claim["metadata"].get("labels", {}).get(KEPT_LABEL) != "true"
    ]
    ours = [
        (kind, obj)
        for kind, obj in ((Kind.STATEFUL_SET, observed.stateful_set), (Kind.SECRET, observed.secret))
        if obj is not None and _owned(obj, desired, settings)
    ]
    pods = [observed.pod] if observed.pod is not None and is_ours(observed.pod, instance=settings.instance) else []
    if not keep and not ours and not pods:
        return [[_finalizers(desired, [one for one in desired.finalizers if one != SANDBOX_FINALIZER])]]
    return [
        keep,
        [_delete(kind, obj) for kind, obj in ours if not is_terminating(obj)],
        [_delete(Kind.POD, pod) for pod in pods if not is_terminating(pod)],
    ]


def _owned(obj: Json, desired: Desired, settings: PlanSettings) -> bool:
    return is_ours(obj, instance=settings.instance, owner=desired.uid)


def _finalizers(desired: Desired, wanted: list[str]) -> Patch:
    return Patch(
        kind=Kind.SANDBOX,
        namespace=desired.namespace,
        name=desired.sandbox,
        body={"metadata": {"finalizers": wanted}},
        resource_version=desired.resource_version,
    )


def _patch(kind: Kind, obj: Json, body: Json, *, why: str = "") -> Patch:
    metadata = obj["metadata"]
    return Patch(
        kind=kind,
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        body=body,
        resource_version=metadata["resourceVersion"],
        why=why,
    )


def _delete(kind: Kind, obj: Json) -> Delete:
    metadata = obj["metadata"]
    return Delete(kind=kind, namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])


def _has_started(pod: Json) -> bool:
    statuses = pod.get("status", {}).get("containerStatuses", [])
    return any("waiting" not in one.get("state", {}) for one in statuses)


def _is_outdated(pod: Json, found: Json) -> bool:
    """Tell whether a pod was made from a template that is no longer the StatefulSet's."""
    status = found.get("status", {})
    if status.get("observedGeneration") != found["metadata"].get("generation"):
        return False
    made: str = pod["metadata"].get("labels", {}).get("controller-revision-hash", "")
    return bool(made) and made != status.get("updateRevision")

"""The objects of one sandbox: StatefulSet, Secret, and the Events about it. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sandboxd.model.cluster import (
    API_VERSION,
    CLIENT_ANNOTATION,
    FREELANCER_ANNOTATION,
    HOME_VOLUME,
    INCARNATION_ANNOTATION,
    INSTANCE_LABEL,
    OPERATOR_MANAGER,
    SANDBOX_LABEL,
    WORKSPACE_VOLUME,
    PlacedSpec,
    agent_secret_of,
)
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.operator.comparing import Whole
from sandboxd.operator.pod_shape import OPTIONAL_PARTS, agent_config, pod_template
from sandboxd.operator.ports import AgentIdentity
from sandboxd.operator.template import Template

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
AGENT_SECRET_TYPE: Final = "sandboxd.dev/agent"  # noqa: S105  a type of Secrets
WANTED_ANNOTATION: Final = "sandboxd.dev/wanted"
_CHANGEABLE: Final = ("updateStrategy", "persistentVolumeClaimRetentionPolicy", "template")
Json = dict[str, Any]
"""An object of the API. Any: JSON."""


def labels_of(sandbox: SandboxId, *, instance: str) -> dict[str, str]:
    """Labels of everything that belongs to a sandbox."""
    return {INSTANCE_LABEL: instance, SANDBOX_LABEL: sandbox, MANAGED_BY: OPERATOR_MANAGER}


def owner_of(sandbox: SandboxId, uid: str) -> Json:
    """The reference that makes an object the sandbox's: with it goes what it owns."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Sandbox",
        "name": sandbox,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def stateful_set(
    sandbox: SandboxId,
    spec: PlacedSpec,
    template: Template,
    *,
    namespace: str,
    uid: str,
    instance: str,
    replicas: int,
    last_node: str = "",
) -> Json:
    """The StatefulSet of one: it keeps the pod's name and its claims, and lets nothing replace a living pod."""
    labels = labels_of(sandbox, instance=instance)
    sizes = {HOME_VOLUME: spec.resources.home, WORKSPACE_VOLUME: spec.resources.workspace}
    made: Json = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {
            "name": sandbox,
            "namespace": namespace,
            "labels": labels,
            "annotations": {CLIENT_ANNOTATION: spec.client, FREELANCER_ANNOTATION: spec.freelancer},
            "ownerReferences": [owner_of(sandbox, uid)],
        },
        "spec": {
            "replicas": replicas,
            "serviceName": "",
            "selector": {"matchLabels": {SANDBOX_LABEL: sandbox}},
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "template": pod_template(sandbox, spec, template, labels=labels, last_node=last_node),
            "volumeClaimTemplates": [
                _claim_template(volume, size, template, labels=labels) for volume, size in sizes.items()
            ],
        },
    }
    text = json.dumps({name: made["spec"][name] for name in _CHANGEABLE}, sort_keys=True)
    made["metadata"]["annotations"][WANTED_ANNOTATION] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return made


def wanted_of(built: Mapping[str, Any]) -> Json:
    """What of a built StatefulSet can be changed later, to be compared and repaired."""
    metadata, spec = built["metadata"], built["spec"]
    wanted = {name: spec[name] for name in (*_CHANGEABLE, "replicas")}
    pod = pod_wanted(wanted["template"]["spec"], OPTIONAL_PARTS)
    if pod["affinity"]:
        pod["affinity"] = {**dict.fromkeys(("nodeAffinity", "podAffinity")), **pod["affinity"]}
    wanted["template"] = {**wanted["template"], "spec": pod}
    return {"metadata": {"labels": metadata["labels"], "annotations": metadata["annotations"]}, "spec": wanted}


def pod_wanted(pod: Json, optional: Sequence[str]) -> Json:
    """A pod's spec to compare with what is there: what it does not have of the optional parts is wanted away."""
    wanted = {**dict.fromkeys(optional), **pod}
    if wanted["nodeSelector"]:
        wanted["nodeSelector"] = Whole(wanted["nodeSelector"])
    return wanted


def mark_of(obj: Mapping[str, Any]) -> str:
    """What a StatefulSet was last wanted to be, as a hash: where it is the same, somebody else made the difference."""
    found: str = obj["metadata"].get("annotations", {}).get(WANTED_ANNOTATION, "")
    return found


def agent_secret(
    sandbox: SandboxId,
    incarnation: IncarnationId,
    identity: AgentIdentity,
    *,
    namespace: str,
    uid: str,
    instance: str,
) -> Json:
    """The Secret that one incarnation's agent reads once."""
    content = {
        "agent.json": agent_config(sandbox, incarnation).encode(),
        "tls.crt": identity.certificate,
        "tls.key": identity.key,
        "ca.crt": identity.authority,
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": AGENT_SECRET_TYPE,
        "metadata": {
            "name": agent_secret_of(sandbox),
            "namespace": namespace,
            "labels": labels_of(sandbox, instance=instance),
            "annotations": {INCARNATION_ANNOTATION: incarnation},
            "ownerReferences": [owner_of(sandbox, uid)],
        },
        "data": {name: base64.b64encode(value).decode() for name, value in content.items()},
    }


def api_time(moment: datetime) -> str:
    """A moment as the API server writes it (`metav1.Time`): RFC 3339 in UTC, in whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def resource_event(
    name: str,
    *,
    kind: str = "Sandbox",
    namespace: str,
    uid: str,
    reason: str,
    message: str,
    warning: bool,
    time: str,
    reporter: str,
) -> Json:
    """An Event on one of our resources, for `kubectl describe`."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{name}.", "namespace": namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": kind,
            "name": name,
            "namespace": namespace,
            "uid": uid,
        },
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "message": message[:1000],
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": OPERATOR_MANAGER},
        "reportingComponent": OPERATOR_MANAGER,
        "reportingInstance": reporter[:128],
    }


def claim_spec(size: str, template: Template) -> Json:
    """The spec of a volume's claim."""
    spec: Json = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    if template.storage_class:
        spec["storageClassName"] = template.storage_class
    return spec


def _claim_template(volume: str, size: str, template: Template, *, labels: Mapping[str, str]) -> Json:
    return {"metadata": {"name": volume, "labels": dict(labels)}, "spec": claim_spec(size, template)}

"""The pod of a `SandboxProbe`: made as a sandbox's, of the same image, but nobody's. Pure.

It has no volume of its owner's, no Secret, no token of any kind and no label that a policy would let through; it costs
next to nothing, and ends by itself.
"""

from __future__ import annotations

import json
from typing import Any, Final

from sandboxd.model.cluster import (
    AGENT_CONFIG_DIRECTORY,
    AGENT_ROOT,
    API_VERSION,
    CLI_ENTRY,
    CONTAINER,
    HOME_DIRECTORY,
    INSTANCE_LABEL,
    NODE_DIRECTORY,
    OPERATOR_MANAGER,
    PROBE_LABEL,
    RUN_DIRECTORY,
    WORKSPACE_DIRECTORY,
)
from sandboxd.model.cluster_probe import PlacedProbe
from sandboxd.operator.builders import MANAGED_BY, Json
from sandboxd.operator.pod_shape import (
    AGENT_ENVIRONMENT,
    AGENT_VOLUME,
    CONTAINER_SECURITY,
    IDENTITY_VOLUME,
    RUN_VOLUME,
    USER_ID,
    agent_python,
    agent_volume,
    pod_basis,
)
from sandboxd.operator.template import Template

USER: Final = "gemini"
RESOURCES: Final = {
    "limits": {"cpu": "1", "memory": "512M", "ephemeral-storage": "1G"},
    "requests": {"cpu": "10m", "memory": "64M", "ephemeral-storage": "100M"},
}
"""`gemini --version` takes 150 MB at most; the rest of the self test next to nothing."""


def self_test() -> tuple[str, ...]:
    """The command: the agent's own interpreter, and what a sandbox needs of its image."""
    expected = {
        "user": USER,
        "user_id": USER_ID,
        "group_id": USER_ID,
        "home": HOME_DIRECTORY,
        "directories": [HOME_DIRECTORY, WORKSPACE_DIRECTORY],
        "mounts": [AGENT_ROOT, AGENT_CONFIG_DIRECTORY, RUN_DIRECTORY],
        "cli": [f"{NODE_DIRECTORY}/node", CLI_ENTRY, "--version"],
    }
    return (*agent_python(AGENT_ROOT), "-m", "sandboxd.agent.selftest", json.dumps(expected, sort_keys=True))


def probe_pod(
    name: str, probe: PlacedProbe, template: Template, *, namespace: str, uid: str, instance: str, node: str
) -> Json:
    """The pod of a probe, which prefers the node where the image's sandbox is, or was last."""
    spec: dict[str, Any] = {
        **pod_basis(template, own_image=True, last_node=node),
        "restartPolicy": "Never",
        # Counts from its start on the node, the pull among it.
        "activeDeadlineSeconds": max(1, round(probe.deadline.total_seconds())),
        "terminationGracePeriodSeconds": 1,
        "containers": [_container(probe)],
        "volumes": [
            agent_volume(template),
            # In place of what a sandbox has there: where they cannot be mounted, nor can those.
            {"name": IDENTITY_VOLUME, "emptyDir": {}},
            {"name": RUN_VOLUME, "emptyDir": {}},
        ],
    }
    spec.pop("topologySpreadConstraints", None)  # it is gone in a moment, and no sandbox to be spread
    owner = {"apiVersion": API_VERSION, "kind": "SandboxProbe", "name": name, "uid": uid}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {INSTANCE_LABEL: instance, PROBE_LABEL: name, MANAGED_BY: OPERATOR_MANAGER},
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": False}],
        },
        "spec": spec,
    }


def _container(probe: PlacedProbe) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": probe.image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(self_test()),
        "env": [dict(one) for one in AGENT_ENVIRONMENT],
        "workingDir": "/",
        "resources": {part: dict(values) for part, values in RESOURCES.items()},
        "securityContext": dict(CONTAINER_SECURITY),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": AGENT_VOLUME, "mountPath": AGENT_ROOT, "readOnly": True},
            {"name": IDENTITY_VOLUME, "mountPath": AGENT_CONFIG_DIRECTORY},
            {"name": RUN_VOLUME, "mountPath": RUN_DIRECTORY},
        ],
    }

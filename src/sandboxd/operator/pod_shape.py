"""The pod of a sandbox: its containers, volumes and limits. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

from sandboxd.model.cluster import (
    AGENT_CONFIG_DIRECTORY,
    AGENT_PORT,
    AGENT_ROOT,
    CONTAINER,
    HOME_DIRECTORY,
    HOME_VOLUME,
    INCARNATION_ANNOTATION,
    MODEL_PORT,
    RUN_DIRECTORY,
    SANDBOX_LABEL,
    WORKSPACE_DIRECTORY,
    WORKSPACE_VOLUME,
    Mode,
    PlacedResources,
    PlacedSpec,
    agent_secret_of,
)
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.quantity import scale_bytes, scale_cpu
from sandboxd.operator.template import AgentDelivery, Packing, Template

AGENT_VOLUME: Final = "agent"
IDENTITY_VOLUME: Final = "identity"
RUN_VOLUME: Final = "run"
COPY_CONTAINER: Final = "agent-copy"
USER_ID: Final = 1000
"""User and group of what the freelancer runs: `gemini` of the sandbox image."""
TERMINATION_SECONDS: Final = 15
"""More than the agent takes to end what runs in the sandbox."""
LIBRARIES: Final = "/usr/lib/x86_64-linux-gnu"
"""Where the agent's image has its libraries."""
DEFAULT_SCHEDULER: Final = "default-scheduler"
"""Said in words, as the API server does: or a scheduler that was named before would stay."""
OPTIONAL_PARTS: Final = (
    "initContainers",
    "runtimeClassName",
    "nodeSelector",
    "tolerations",
    "priorityClassName",
    "affinity",
    "topologySpreadConstraints",
    "imagePullSecrets",
)
"""Parts of a pod that a template may leave out."""
CONTAINER_SECURITY: Final = {"runAsUser": 0, "allowPrivilegeEscalation": True, "privileged": False}
AGENT_ENVIRONMENT: Final = ({"name": "OPENSSL_CONF", "value": "/dev/null"},)
"""Or the agent's libraries would read the sandbox's own configuration of them."""
LAST_NODE_WEIGHT: Final = 100
"""The node that has image and volumes outweighs everything else that is preferred."""
PACKING_WEIGHT: Final = 50


def agent_python(root: str) -> tuple[str, ...]:
    """How the agent's own Python is run from where its file system is, so that nothing of the sandbox's is looked up.

    Its own loader and no cache of another's libraries; no environment and no `site` (docs/adr/0024). To be followed by
    `-m` and a module.
    """
    loader = f"{root}/lib64/ld-linux-x86-64.so.2"
    return (loader, "--inhibit-cache", "--library-path", f"{root}{LIBRARIES}", f"{root}/usr/bin/python3", "-I", "-S")


AGENT_COMMAND: Final = (
    *agent_python(AGENT_ROOT),
    "-m",
    "sandboxd.agent",
    "--config",
    f"{AGENT_CONFIG_DIRECTORY}/agent.json",
)


def agent_config(sandbox: SandboxId, incarnation: IncarnationId) -> str:
    """The agent's configuration file."""
    return json.dumps(
        {
            "sandbox": sandbox,
            "incarnation": incarnation,
            "home": HOME_DIRECTORY,
            "workspace": WORKSPACE_DIRECTORY,
            "spool_directory": f"{RUN_DIRECTORY}/spool",
            "ready_file": f"{RUN_DIRECTORY}/ready.json",
            "tls_certificate": f"{AGENT_CONFIG_DIRECTORY}/tls.crt",
            "tls_key": f"{AGENT_CONFIG_DIRECTORY}/tls.key",
            "tls_client_authority": f"{AGENT_CONFIG_DIRECTORY}/ca.crt",
            "listen": f"0.0.0.0:{AGENT_PORT}",
            "model_port": MODEL_PORT,
            "user_id": USER_ID,
            "group_id": USER_ID,
            "run_directory": RUN_DIRECTORY,
        },
        indent=1,
    )


def resources_of(resources: PlacedResources, template: Template, *, mode: Mode) -> dict[str, Any]:  # Any: JSON
    """Requests and limits of the container.

    Requests are a share of the limits, never all of them: a Guaranteed pod could not be shrunk in place. A hibernated
    one gives its requests back and keeps its limits, so that it can wake before it has grown again.
    """
    limits = {"cpu": resources.cpu, "memory": resources.memory}
    requests = {
        "cpu": scale_cpu(resources.cpu, template.cpu_factor),
        "memory": scale_bytes(resources.memory, template.memory_factor),
    }
    if mode is Mode.HIBERNATED:
        requests = {"cpu": template.hibernated_cpu, "memory": template.hibernated_memory}
    if resources.ephemeral_storage:
        limits["ephemeral-storage"] = resources.ephemeral_storage
        requests["ephemeral-storage"] = scale_bytes(resources.ephemeral_storage, template.memory_factor)
    if resources.gpu:
        limits[template.gpu_resource] = requests[template.gpu_resource] = str(resources.gpu)
    return {"limits": limits, "requests": requests}


def pod_template(
    sandbox: SandboxId, spec: PlacedSpec, template: Template, *, labels: dict[str, str], last_node: str = ""
) -> dict[str, Any]:  # Any: JSON
    """The pod template of one incarnation, which prefers the node of the one before it."""
    pod = {
        **pod_basis(template, own_image=bool(spec.image), last_node=last_node),
        "terminationGracePeriodSeconds": TERMINATION_SECONDS,
        "containers": [_container(spec, template)],
        "volumes": [
            agent_volume(template),
            {"name": IDENTITY_VOLUME, "secret": {"secretName": agent_secret_of(sandbox), "defaultMode": 0o400}},
            {"name": RUN_VOLUME, "emptyDir": {}},
        ],
    }
    return {
        "metadata": {"labels": labels, "annotations": {INCARNATION_ANNOTATION: spec.incarnation}},
        "spec": pod,
    }


def pod_basis(template: Template, *, own_image: bool, last_node: str) -> dict[str, Any]:
    """What every pod that is made of a sandbox's image has, be it a sandbox or a probe: where and as whom it runs."""
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostUsers": template.host_users,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
    }
    if template.agent_delivery is AgentDelivery.INIT_COPY:
        pod["initContainers"] = [_copy_container(template)]
    optional: dict[str, Any] = {
        "runtimeClassName": template.runtime_class,
        "nodeSelector": dict(template.node_selector),
        "tolerations": [dict(one) for one in template.tolerations],
        "priorityClassName": template.priority_class,
        "schedulerName": template.scheduler or DEFAULT_SCHEDULER,
        "affinity": _affinity(template, last_node),
        "topologySpreadConstraints": [dict(one) for one in template.topology_spread],
        "imagePullSecrets": [{"name": name} for name in pull_secrets(template, own=own_image)],
    }
    return pod | {name: value for name, value in optional.items() if value}


def next_image(spec: PlacedSpec, template: Template) -> str:
    """What a sandbox's next pod is made from."""
    return spec.image or template.image


def pull_secrets(template: Template, *, own: bool) -> tuple[str, ...]:
    """Names of the Secrets that a pod pulls with; the agent's image is the template's also where the other is not."""
    more = template.user_image_pull_secrets if own else ()
    return tuple(dict.fromkeys((*template.image_pull_secrets, *more)))


def _affinity(template: Template, last_node: str) -> dict[str, Any]:
    """What is preferred; nothing is required, so that a node that is full or gone keeps nobody from starting."""
    made: dict[str, Any] = {}
    if last_node:
        itself = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [last_node]}]}
        made["nodeAffinity"] = {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": LAST_NODE_WEIGHT, "preference": itself}]
        }
    match template.packing:
        case Packing.PACK:
            beside = {
                "topologyKey": "kubernetes.io/hostname",
                "namespaceSelector": {},
                "labelSelector": {"matchExpressions": [{"key": SANDBOX_LABEL, "operator": "Exists"}]},
            }
            made["podAffinity"] = {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": PACKING_WEIGHT, "podAffinityTerm": beside}
                ]
            }
        case Packing.DEFAULT:
            pass
    return made


def _container(spec: PlacedSpec, template: Template) -> dict[str, Any]:
    probe = {"tcpSocket": {"port": AGENT_PORT}}
    return {
        "name": CONTAINER,
        "image": next_image(spec, template),
        "imagePullPolicy": "IfNotPresent",
        "command": list(AGENT_COMMAND),
        "env": [dict(one) for one in AGENT_ENVIRONMENT],
        "workingDir": "/",
        "ports": [{"name": "agent", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        "resources": resources_of(spec.resources, template, mode=Mode.RUNNING),
        "resizePolicy": [
            {"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "NotRequired"},
        ],
        "securityContext": dict(CONTAINER_SECURITY),
        # Quick until it answers once, rare afterwards: a hundred sandboxes are on one node.
        "startupProbe": {**probe, "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {**probe, "periodSeconds": 15, "failureThreshold": 3},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": HOME_VOLUME, "mountPath": HOME_DIRECTORY},
            {"name": WORKSPACE_VOLUME, "mountPath": WORKSPACE_DIRECTORY},
            {"name": AGENT_VOLUME, "mountPath": AGENT_ROOT, "readOnly": True},
            {"name": IDENTITY_VOLUME, "mountPath": AGENT_CONFIG_DIRECTORY, "readOnly": True},
            {"name": RUN_VOLUME, "mountPath": RUN_DIRECTORY},
        ],
    }


def agent_volume(template: Template) -> dict[str, Any]:
    """The agent's file system."""
    match template.agent_delivery:
        case AgentDelivery.IMAGE_VOLUME:
            image = {"reference": template.agent_image, "pullPolicy": "IfNotPresent"}
            return {"name": AGENT_VOLUME, "image": image}
        case AgentDelivery.INIT_COPY:
            return {"name": AGENT_VOLUME, "emptyDir": {}}


def _copy_container(template: Template) -> dict[str, Any]:
    limits = {"cpu": "1", "memory": "256M"}
    return {
        "name": COPY_CONTAINER,
        "image": template.agent_image,
        "imagePullPolicy": "IfNotPresent",
        # Its image has no shell and no cp.
        "command": [*agent_python(""), "-m", "sandboxd.agent.deliver", "/copy"],
        "resources": {"limits": limits, "requests": {"cpu": "10m", "memory": "32M"}},
        "securityContext": {"runAsUser": 0, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": AGENT_VOLUME, "mountPath": "/copy"}],
    }

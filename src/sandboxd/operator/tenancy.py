"""What a client's namespace holds besides sandboxes: quota, limits, and network policies. Pure.

Everything is denied first. Sandboxes reach DNS, the gateway and the public internet; only sandboxd reaches them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.model.cluster import AGENT_PORT, INSTANCE_LABEL, OPERATOR_MANAGER, SANDBOX_LABEL
from sandboxd.model.cluster_backup import BACKUP_LABEL
from sandboxd.operator.builders import MANAGED_BY, Json
from sandboxd.operator.comparing import Whole
from sandboxd.operator.kinds import Kind

COMPONENT_LABEL: Final = "app.kubernetes.io/component"
SERVING_COMPONENTS: Final = ("serve", "sweep")
"""Those of our parts that talk to agents."""
GATEWAY_COMPONENT: Final = "gateway"
QUOTA_ANNOTATION: Final = "sandboxd.dev/quota"
"""On a namespace: numbers of its ResourceQuota that differ from the defaults, as `pods=20,requests.storage=1T`."""
PRIVATE_RANGES: Final = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
)
PRIVATE_RANGES_V6: Final = ("::1/128", "64:ff9b::/96", "fc00::/7", "fe80::/10", "ff00::/8")
DEFAULT_QUOTA: Final[Mapping[str, str]] = {
    "pods": "500",
    "persistentvolumeclaims": "2000",
    "secrets": "2000",
    "services.nodeports": "0",
    "services.loadbalancers": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """An address beside the usual ones that sandboxes may reach."""

    range: str
    """CIDR."""
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Where what is, for the policies."""

    own_namespace: str
    gateway_port: int
    blocked: Sequence[str] = ()
    """CIDRs of the cluster and its machines that are not private ones."""
    allowed: Sequence[Allowed] = ()
    storage: Sequence[Allowed] = ()
    """Where backups are kept; empty where there are none."""
    storage_named: bool = False
    """True: the storage is named and not numbered, and whoever goes there asks DNS."""


def namespace_objects(namespace: Mapping[str, Any], *, instance: str, network: Network) -> dict[Kind, list[Json]]:
    """The objects of a client's namespace, by kind."""
    name = namespace["metadata"]["name"]
    policies = {"sandboxd-deny": _deny(), "sandboxd-allow": _allow(network)}
    if network.storage:
        policies["sandboxd-backup"] = _backup(network)
    quota = {**DEFAULT_QUOTA, **read_quota(namespace["metadata"].get("annotations", {}).get(QUOTA_ANNOTATION, ""))}
    return {
        Kind.POLICY: [
            _object("networking.k8s.io/v1", "NetworkPolicy", name, policy, instance, spec)
            for policy, spec in policies.items()
        ],
        Kind.QUOTA: [_object("v1", "ResourceQuota", name, "sandboxd", instance, {"hard": Whole(quota)})],
        Kind.LIMITS: [_object("v1", "LimitRange", name, "sandboxd", instance, {"limits": [_container_limits()]})],
    }


def read_quota(text: str) -> dict[str, str]:
    """Read the annotation; what is no pair is left out."""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {name.strip(): value.strip() for name, _, value in pairs}


def read_allowed(text: str) -> tuple[Allowed, ...]:
    """Read a list such as `10.88.0.1/32:53, 10.0.0.0/24:8082`.

    Raises:
        ValueError: A part has no port.
    """
    found = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        cidr, _, port = part.rpartition(":")
        found.append(Allowed(range=cidr, port=int(port)))
    return tuple(found)


def _object(api: str, kind: str, namespace: str, name: str, instance: str, spec: Json) -> Json:
    labels = {INSTANCE_LABEL: instance, MANAGED_BY: OPERATOR_MANAGER}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


def _deny() -> Json:
    return {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def _allow(network: Network) -> Json:
    own = {"matchLabels": {"kubernetes.io/metadata.name": network.own_namespace}}
    internet = [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": [*PRIVATE_RANGES, *_of(network.blocked, v6=False)]}},
        {"ipBlock": {"cidr": "::/0", "except": [*PRIVATE_RANGES_V6, *_of(network.blocked, v6=True)]}},
    ]
    gateway = {"namespaceSelector": own, "podSelector": {"matchLabels": {COMPONENT_LABEL: GATEWAY_COMPONENT}}}
    speaking = {"key": COMPONENT_LABEL, "operator": "In", "values": [*SERVING_COMPONENTS]}
    serve = {"namespaceSelector": own, "podSelector": {"matchExpressions": [speaking]}}
    more = [
        {"to": [{"ipBlock": {"cidr": one.range}}], "ports": _ports(one.port, "TCP", "UDP")} for one in network.allowed
    ]
    return {
        "podSelector": {"matchExpressions": [{"key": SANDBOX_LABEL, "operator": "Exists"}]},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [serve], "ports": _ports(AGENT_PORT, "TCP")}],
        "egress": [
            _dns(),
            {"to": [gateway], "ports": _ports(network.gateway_port, "TCP")},
            {"to": internet},
            *more,
        ],
    }


def _backup(network: Network) -> Json:
    """Pods that work on backups reach the storage, and DNS where it has a name; nobody reaches them."""
    storage = [{"to": [{"ipBlock": {"cidr": one.range}}], "ports": _ports(one.port, "TCP")} for one in network.storage]
    return {
        "podSelector": {"matchExpressions": [{"key": BACKUP_LABEL, "operator": "Exists"}]},
        "policyTypes": ["Ingress", "Egress"],
        "egress": [*storage, *([_dns()] if network.storage_named else [])],
    }


def _dns() -> Json:
    kube_dns = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    return {"to": [kube_dns], "ports": _ports(53, "UDP", "TCP")}


def _of(ranges: Sequence[str], *, v6: bool) -> list[str]:
    return [one for one in ranges if (":" in one) == v6]


def _ports(port: int, *protocols: str) -> list[Json]:
    return [{"port": port, "protocol": protocol} for protocol in protocols]


def _container_limits() -> Json:
    return {
        "type": "Container",
        "default": {"cpu": "1", "memory": "2G", "ephemeral-storage": "10G"},
        "defaultRequest": {"cpu": "100m", "memory": "256M", "ephemeral-storage": "100M"},
    }

"""What lives in the cluster from its start: storage class, DNS, the way to the metrics, and images that need no hub."""

import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devcluster.components import PAUSE_IMAGE
from devcluster.places import DNS_SERVICE, METRICS_PORT, NODE_ADDRESS, REGISTRY, Places
from devcluster.trouble import ClusterError, say

SYSTEM = "kube-system"
DNS_LABELS = {"k8s-app": "kube-dns"}
"""As everywhere: policies that let sandboxes reach the DNS select these."""
COREFILE = """.:53 {
  errors
  health
  ready
  kubernetes cluster.local in-addr.arpa ip6.arpa
  forward . /etc/resolv.conf
  cache 5
  loop
}
"""
METRICS_API = "v1beta1.metrics.k8s.io"
Json = dict[str, Any]
"""An object of the API. Any: JSON."""


def push_images(places: Places) -> None:
    """Put the images of the pods' holder and of the DNS into the registry, unless they are there."""
    _push(places.bin / "pause", PAUSE_IMAGE.partition("/")[2])
    _push(places.bin / "coredns", _dns_image(places))


def _dns_image(places: Places) -> str:
    return f"coredns:{(places.bin / 'coredns').resolve().parent.name.rpartition('-')[2]}"


def _push(program: Path, image: str) -> None:
    there = ["skopeo", "inspect", "--tls-verify=false", f"docker://{REGISTRY}/{image}"]
    if subprocess.run(there, capture_output=True, check=False).returncode == 0:
        return
    with tempfile.TemporaryDirectory(prefix="devcluster-") as folder:
        root, layout = Path(folder) / "root", f"{folder}/oci"
        root.mkdir()
        shutil.copy(program.resolve(), root / program.name)
        for command in (
            ["tar", "-C", str(root), "-cf", f"{folder}/layer.tar", program.name],
            ["umoci", "init", "--layout", layout],
            ["umoci", "new", "--image", f"{layout}:1"],
            ["umoci", "raw", "add-layer", "--image", f"{layout}:1", f"{folder}/layer.tar"],
            ["umoci", "config", "--image", f"{layout}:1", f"--config.entrypoint=/{program.name}"],
            ["skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:1", f"docker://{REGISTRY}/{image}"],
        ):
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode != 0:
                raise ClusterError(f"{' '.join(command[:2])} failed:\n{done.stderr.decode(errors='replace')}")
    say(f"pushed {image}")


def apply(places: Places) -> None:
    """Make the storage class, the DNS and the way to the metrics, or make them so.

    Raises:
        ClusterError: The API server refused them.
    """
    items = {"apiVersion": "v1", "kind": "List", "items": [_storage(), *_dns(_dns_image(places)), *_metrics(places)]}
    command = [str(places.bin / "kubectl"), f"--kubeconfig={places.kubeconfig}", "apply", "-f", "-"]
    done = subprocess.run(command, input=json.dumps(items).encode(), capture_output=True, check=False, timeout=60)
    if done.returncode != 0:
        raise ClusterError(
            f"the API server did not take storage class, DNS and metrics:\n{done.stderr.decode(errors='replace')}"
        )


def _storage() -> Json:
    metadata = {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
    provisioner = {"provisioner": "kubernetes.io/host-path"}
    return {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": metadata, **provisioner}


def _metrics(places: Places) -> list[Json]:
    """The API of what pods use. Its server is a process of the node, so its Service selects nothing."""
    name = {"name": "metrics-server", "namespace": SYSTEM}
    port = {"name": "https", "port": METRICS_PORT, "protocol": "TCP"}
    authority = base64.b64encode((places.pki / "ca.crt").read_bytes()).decode()
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": name,
            "spec": {"ports": [{**port, "port": 443, "targetPort": METRICS_PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                **name,
                "labels": {
                    "kubernetes.io/service-name": "metrics-server",
                    "endpointslice.kubernetes.io/managed-by": "devcluster",
                },
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
            "ports": [port],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": METRICS_API},
            "spec": {
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "service": name,
                "caBundle": authority,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]


def _dns(image: str) -> list[Json]:
    name = {"name": "coredns", "namespace": SYSTEM}
    rights = [
        {
            "apiGroups": [""],
            "resources": ["endpoints", "services", "pods", "namespaces"],
            "verbs": ["list", "watch"],
        },
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"}
    authorization = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    subject = {"kind": "ServiceAccount", **name}
    ports = [{"name": protocol.lower(), "port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name},
        {**authorization, "kind": "ClusterRole", "metadata": {"name": "system:coredns"}, "rules": rights},
        {
            **authorization,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:coredns"},
            "roleRef": role,
            "subjects": [subject],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": {"Corefile": COREFILE}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": SYSTEM, "labels": DNS_LABELS},
            "spec": {"clusterIP": DNS_SERVICE, "selector": DNS_LABELS, "ports": ports},
        },
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": name, "spec": _dns_deployment(image)},
    ]


def _dns_deployment(image: str) -> Mapping[str, Any]:
    container = {
        "name": "coredns",
        "image": f"localhost:5000/{image}",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 2},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        },
    }
    return {
        "replicas": 1,
        "selector": {"matchLabels": DNS_LABELS},
        "template": {
            "metadata": {"labels": DNS_LABELS, "annotations": {"sandboxd.dev/corefile": str(len(COREFILE))}},
            "spec": {
                "serviceAccountName": "coredns",
                "dnsPolicy": "Default",
                "priorityClassName": "system-cluster-critical",
                "containers": [container],
                "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
            },
        },
    }

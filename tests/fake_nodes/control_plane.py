"""A real control plane whose nodes are fake: etcd, API server, controller manager, scheduler, and kwok for all nodes.

The programs and keys are the development cluster's, which need not run and is not touched. No kubelet, no proxy and
nothing that enforces NetworkPolicies: pods are objects, and an address of the loopback.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from devcluster.pki import kubeconfig
from devcluster.places import Places
from tests.chart.helm import render
from tests.eventually import eventually
from tests.kube import CRDS, Cluster

SERVER: Final = "https://127.0.0.1:6443"
ETCD: Final = "http://127.0.0.1:2379"
POD_RANGE: Final = "127.77.0.0/16"
"""Addresses of the loopback: whoever listens at all addresses answers for every pod."""
NAMESPACE: Final = "sandboxd-system"
RELEASE: Final = "sandboxd"
PARTS: Final = ("serve", "operator")
"""Of ours: each has the service account that the chart gives it, with the chart's rights."""
PODS_PER_NODE: Final = 250
NODE_SIZE: Final = {"cpu": "250", "memory": "1T", "ephemeral-storage": "10T", "pods": str(PODS_PER_NODE)}
STARTS_WITHIN: Final = 60.0
PROGRAM: Final = "fakelab"
"""The development cluster's program under another name: `devcluster` ends what it takes for its own."""
_RIGHTS: Final = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
_QUICK: Final = ("--kube-api-qps", "5000", "--kube-api-burst", "10000")
Json = dict[str, Any]
"""An object of the API. Any: JSON."""


def account(part: str) -> str:
    """Name by which the API server knows a part of ours."""
    return f"system:serviceaccount:{NAMESPACE}:{RELEASE}-{part}"


@dataclass(kw_only=True)
class ControlPlane:
    """Its processes, all of which end with it."""

    home: Path
    places: Places
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def cluster(self) -> Cluster:
        """The way in for its administrator."""
        return Cluster(
            kubeconfig=self.kubeconfig("admin"), kubectl_binary=str(self.places.bin / "kubectl"), places=None
        )

    @property
    def audit_log(self) -> Path:
        """One line for each request of a part of ours."""
        return self.home / "audit.log"

    def kubeconfig(self, user: str) -> Path:
        """Of one of our parts, or of one whose certificate the development cluster made."""
        return self.home / f"{user}.kubeconfig"

    async def start(self, *, nodes: int) -> None:
        """Start everything, and wait until so many nodes are ready and everything of the chart is known.

        Raises:
            AssertionError: It did not come up; the text names the log.
        """
        self._configure()
        lab = self.home / PROGRAM
        lab.symlink_to((self.places.bin / "kubelab").resolve())
        await self.run("etcd", str(lab), "etcd", *self._etcd())
        await self.run("kube-apiserver", str(lab), "kube-apiserver", *self._api_server())
        await eventually(self._api_is_ready, within=STARTS_WITHIN, every=0.1, what="the API server is ready")
        await self.run("kube-controller-manager", str(lab), "kube-controller-manager", *self._controllers())
        scheduler = ["--kubeconfig", str(self.kubeconfig("scheduler")), "--leader-elect=false", "--secure-port=0"]
        await self.run("kube-scheduler", str(lab), "kube-scheduler", *scheduler, *_QUICK)
        await self._furnish(nodes)
        kwok = ["--kubeconfig", str(self.kubeconfig("admin")), "--config", str(_KWOK)]
        kwok += ["--manage-all-nodes", "--cidr", POD_RANGE, "--node-ip", "127.0.0.1"]
        kwok += ["--node-lease-duration-seconds", "40", "--v", "WARN"]
        await self.run("kwok", str((self.places.bin / "kwok").resolve()), *kwok)

        async def ready() -> bool:
            self._check_lives()
            found = (await self.cluster.get("nodes"))["items"]
            conditions = [one for node in found for one in node["status"].get("conditions", ())]
            states = [one["status"] for one in conditions if one["type"] == "Ready"]
            return states == ["True"] * nodes

        await eventually(ready, within=STARTS_WITHIN, every=0.5, what="fake nodes are ready")

    async def run(self, name: str, *command: str, environment: Mapping[str, str] | None = None) -> None:
        """Start one more process of this run, with a log of its own."""
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                *command, env={**os.environ, **(environment or {})}, stdout=log, stderr=log
            )

    async def stop(self) -> None:
        """End everything. Nothing of it is to be kept, so nothing is asked to end in order."""
        for process in self.processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
        await asyncio.gather(*(process.wait() for process in self.processes.values()))

    async def requests(self) -> float:
        """How many requests of everybody the API server has answered; a watch counts when it ends."""
        counters = (await self.cluster.kubectl("get", "--raw", "/metrics")).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in counters if line.startswith("apiserver_request_total{"))

    def asked(self, *, since: int = 0) -> Counter[tuple[str, str, str]]:
        """Requests of our parts by part, verb and resource; `since` is a size that the audit log had."""
        parts, found = {account(part): part for part in PARTS}, Counter[tuple[str, str, str]]()
        with self.audit_log.open("rb") as log:
            log.seek(since)
            for line in log:
                event = json.loads(line)
                about = event.get("objectRef", {})
                resource = about.get("resource", event["requestURI"])
                within = f"/{about['subresource']}" if "subresource" in about else ""
                found[parts[event["user"]["username"]], event["verb"], resource + within] += 1
        return found

    def _configure(self) -> None:
        authority = self.places.pki / "ca.crt"
        for user in ("admin", "controller-manager", "scheduler"):
            keys = {name: str(self.places.pki / f"{user}.{end}") for name, end in _KEYS.items()}
            self.kubeconfig(user).write_text(kubeconfig(user, keys, server=SERVER, authority=authority))
        lines = []
        for part in PARTS:
            lines.append(f'{part}-token,{account(part)},{part},"system:serviceaccounts"')
            text = kubeconfig(part, {"token": f"{part}-token"}, server=SERVER, authority=authority)
            self.kubeconfig(part).write_text(text)
        (self.home / "tokens.csv").write_text("\n".join(lines))
        # One line at the arrival of a request: a watch counts when it is opened.
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["ResponseStarted", "ResponseComplete", "Panic"],
            "rules": [{"level": "Metadata", "users": [account(part) for part in PARTS]}, {"level": "None"}],
        }
        (self.home / "audit.json").write_text(json.dumps(policy))

    def _etcd(self) -> Sequence[str]:
        flags = ["--data-dir", str(self.home / "etcd"), "--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]
        flags += ["--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level", "warn"]
        return [*flags, "--quota-backend-bytes", str(8 << 30)]

    def _api_server(self) -> Sequence[str]:
        pki = self.places.pki
        flags = {
            "etcd-servers": ETCD,
            "bind-address": "127.0.0.1",
            "advertise-address": "10.0.0.1",  # told to nobody: there are no endpoints of it
            "endpoint-reconciler-type": "none",
            "secure-port": "6443",
            "tls-cert-file": pki / "apiserver.crt",
            "tls-private-key-file": pki / "apiserver.key",
            "client-ca-file": pki / "ca.crt",
            "token-auth-file": self.home / "tokens.csv",
            "service-account-key-file": pki / "sa.pub",
            "service-account-signing-key-file": pki / "sa.key",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-cluster-ip-range": "10.96.0.0/16",
            "authorization-mode": "RBAC",
            "audit-policy-file": self.home / "audit.json",
            "audit-log-path": self.audit_log,
            "audit-log-mode": "batch",
        }
        return [f"--{name}={value}" for name, value in flags.items()]

    def _controllers(self) -> Sequence[str]:
        flags = ["--kubeconfig", str(self.kubeconfig("controller-manager")), "--leader-elect=false", "--secure-port=0"]
        flags += ["--service-account-private-key-file", str(self.places.pki / "sa.key")]
        flags += ["--root-ca-file", str(self.places.pki / "ca.crt"), "--controllers", "*,-nodeipam"]
        flags += [
            "--enable-hostpath-provisioner",
            "--pvclaimbinder-sync-period",
            "1s",
            "--use-service-account-credentials",
        ]
        return [*flags, "--concurrent-statefulset-syncs", "20", *_QUICK]

    def _check_lives(self) -> None:
        for name, process in self.processes.items():
            if process.returncode is not None:
                text = (self.home / f"{name}.log").read_text(errors="replace")
                raise RuntimeError(f"{name} has ended:\n{text[-3000:]}")

    async def _api_is_ready(self) -> bool:
        self._check_lives()
        return await asyncio.to_thread(_answers, self.places)

    async def _furnish(self, nodes: int) -> None:
        """Make the definitions, the storage class, our namespace with the chart's rights, and the nodes."""
        await self.cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
        chart = [one for one in render(release=RELEASE, namespace=NAMESPACE) if one["kind"] in _RIGHTS]
        await self.cluster.apply([_own_namespace()])
        await self.cluster.apply([_STORAGE, *chart, *(_node(number) for number in range(nodes))])


_KWOK: Final = Path(__file__).with_name("kwok.yaml")
_KEYS: Final = {"client-certificate": "crt", "client-key": "key"}
_STORAGE: Final[Json] = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "kubernetes.io/host-path",
}


def _own_namespace() -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


def _node(number: int) -> Json:
    name = f"fake-{number}"
    labels = {"kubernetes.io/hostname": name, "type": "kwok"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"allocatable": NODE_SIZE, "capacity": NODE_SIZE},
    }


def _answers(places: Places) -> bool:
    context = ssl.create_default_context(cafile=str(places.pki / "ca.crt"))
    context.load_cert_chain(places.pki / "admin.crt", places.pki / "admin.key")
    try:
        with urllib.request.urlopen(f"{SERVER}/readyz", timeout=2, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@asynccontextmanager
async def a_control_plane(home: Path, *, nodes: int) -> AsyncIterator[ControlPlane]:
    """One that is up."""
    made = ControlPlane(home=home, places=Places.of_this_machine())
    try:
        await made.start(nodes=nodes)
        yield made
    finally:
        await made.stop()

"""An installation of sandboxd on the tests' cluster: template, namespace, and its operator as a process of the node.

One for all tests that take it as it is: each makes sandboxes of a client of its own, and a template of its own where it
wants another. Tests that change it, or end its operator, have one for their module. Images are built, where they have
changed.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.backends.certificates import CertificateAuthority
from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.objects import Installation as Names
from sandboxd.backends.kubernetes.pod_place import POD_PLACE
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.dev.cluster import make_certificate, own_address
from sandboxd.kubeapi.client import KubeClient
from sandboxd.model.cluster import API_VERSION, INSTANCE_LABEL
from tests.kube import Cluster

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 150.0


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@dataclass(kw_only=True)
class ClusterInstallation:
    """What the operator of one instance handles."""

    cluster: Cluster
    instance: str
    home: Path
    images: Mapping[str, str]
    operator: subprocess.Popen[bytes] | None = None
    operator_port: int = 0
    gateway_host: str = ""
    """Address of the node as its pods see it."""
    gateway_port: int = field(default_factory=free_port)
    extra: dict[str, str] = field(default_factory=dict)
    prepull: bool = False
    """Whether the operator pulls templates' images in advance: it costs most tests a pod that they do not need."""

    @property
    def environment(self) -> dict[str, str]:
        """Settings of every role of it."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SANDBOXD_")}
        if cache := os.environ.get("SANDBOXD_CACHE_DIR"):
            inherited["SANDBOXD_CACHE_DIR"] = cache
        return {
            **inherited,
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "SANDBOXD_DATA_DIR": str(self.home),
            "SANDBOXD_KUBERNETES_INSTANCE": self.instance,
            "SANDBOXD_KUBERNETES_NAMESPACE": f"{self.instance}-system",
            "SANDBOXD_KUBERNETES_NAMESPACE_PREFIX": f"{self.instance}-",
            "SANDBOXD_KUBERNETES_TEMPLATE": self.instance,
            **self.extra,
        }

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Run kubectl, and return what it printed."""
        ran = subprocess.run(
            [self.cluster.kubectl_binary, f"--kubeconfig={self.cluster.kubeconfig}", *arguments],
            input=stdin.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert not check or ran.returncode == 0, ran.stderr.decode()
        return ran.stdout.decode()

    def apply_template(self, name: str = "", owner: str = "", /, **changes: object) -> None:
        """Write a template; the installation's own if no name is given, for its operator if no other instance is."""
        spec = {"image": self.images["sandbox"], "agentImage": self.images["agent"], **changes}
        body = {
            "apiVersion": API_VERSION,
            "kind": "SandboxTemplate",
            "metadata": {"name": name or self.instance, "labels": {INSTANCE_LABEL: owner or self.instance}},
            "spec": spec,
        }
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(body))

    def prepare(self) -> None:
        """Make template and namespace, and a certificate for a gateway of the node."""
        self.gateway_host = asyncio.run(self._ask_own_address())
        make_certificate(self.home / "gateway.pem", self.home / "gateway.key", self.gateway_host)
        self.apply_template()
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": f"{self.instance}-system", "labels": {INSTANCE_LABEL: self.instance}},
        }
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(body))

    async def _ask_own_address(self) -> str:
        async with self.client() as client:
            return await own_address(client)

    def gateway_settings(self) -> dict[str, str]:
        """Settings of a `serve` and a gateway that are processes of the node."""
        address = f"{self.gateway_host}:{self.gateway_port}"
        certificate, key = str(self.home / "gateway.pem"), str(self.home / "gateway.key")
        return {
            "SANDBOXD_BACKEND": "kubernetes",
            "SANDBOXD_GATEWAY_LISTEN": address,
            "SANDBOXD_GATEWAY_URL": f"https://{address}",
            "SANDBOXD_GATEWAY_TLS_CERTIFICATE_FILE": certificate,
            "SANDBOXD_GATEWAY_TLS_KEY_FILE": key,
            "SANDBOXD_GATEWAY_AUTHORITY_FILE": certificate,
        }

    def forget(self, *namespaces: str, template: str = "") -> None:
        """Take clients' namespaces away with all that is in them, as a test leaves it behind, and its template."""
        self.kubectl("delete", "namespaces", *namespaces, "--ignore-not-found", "--wait=false")
        if template:
            self.kubectl("delete", "sbxt", template, "--ignore-not-found", "--wait=false")

    def forget_sandboxes(self) -> None:
        """Take away every sandbox of every client with its files."""
        mine = f"--selector={INSTANCE_LABEL}={self.instance}"
        namespaces = self.kubectl("get", "namespaces", mine, "-o", "name").split()
        for namespace in (name.removeprefix("namespace/") for name in namespaces):
            self.kubectl("delete", "sandboxes.sandboxd.dev", "--all", "-n", namespace, "--wait=false", check=False)
            self.kubectl("delete", "pvc", "--all", "-n", namespace, "--wait=false", check=False)

    def start_operator(self) -> None:
        """Start the operator, and wait until it is ready."""
        self.operator_port = self.operator_port or free_port()
        address = f"127.0.0.1:{self.operator_port}"
        host = self.gateway_host
        variables = {
            "SANDBOXD_OPERATOR_WEB_LISTEN": address,
            "SANDBOXD_KUBERNETES_PREPULL": str(self.prepull),
            "SANDBOXD_KUBERNETES_ALLOWED_ADDRESSES": f"{host}/32:{self.gateway_port},{host}/32:53",
        }
        with (self.home / "operator.log").open("ab") as log:
            self.operator = subprocess.Popen(
                [sys.executable, "-m", "sandboxd", "operator"],
                env={**self.environment, **variables},
                stdout=log,
                stderr=log,
            )
        await_ready(self.operator, f"http://{address}/readyz", self.home / "operator.log")

    def stop_operator(self) -> None:
        """End it."""
        if self.operator is not None and self.operator.poll() is None:
            self.operator.terminate()
            try:
                self.operator.wait(20)
            except subprocess.TimeoutExpired:
                self.operator.kill()
                self.operator.wait()
        self.operator = None

    def client(self) -> KubeClient:
        """Reaches the cluster."""
        return KubeClient(self.cluster.kubeconfig)

    def backend(self, api: KubeClient, *, template: str = "") -> tuple[KubernetesBackend, GrpcAgentConnector]:
        """A backend as a `serve` of this installation has it."""
        clock = SystemClock()
        authority = CertificateAuthority.open(self.home / "pki", clock=clock)
        service = authority.issue_service()
        connector = GrpcAgentConnector(
            certificate=service.certificate, key=service.key, agent_authority=authority.certificate
        )
        names = Names(instance=self.instance, namespace_prefix=f"{self.instance}-", template=template or self.instance)
        backend = KubernetesBackend(api=api, installation=names, place=POD_PLACE, connector=connector, clock=clock)
        return backend, connector

    def clean(self) -> None:
        """Remove everything that was made."""
        asyncio.run(self.cluster.clean(self.instance))


def built_images(cluster: Cluster, *more: str) -> Mapping[str, str]:
    """References of the images of sandbox and agent, and more, as this checkout has them, built where they are not."""
    if given := os.environ.get("TEST_POD_IMAGES"):
        named: dict[str, str] = json.loads(given)  # for clusters whose registry is not this machine's
        return named
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "images.json"
        command = [
            sys.executable,
            str(ROOT / "tools" / "images.py"),
            "agent",
            "sandbox",
            *more,
            "--output",
            str(output),
        ]
        command += ["--registry", cluster.registry]
        subprocess.run(command, check=True, timeout=1800)
        made = json.loads(output.read_text())["images"]
    return {name: str(image["reference"]) for name, image in made.items()}


@pytest.fixture(scope="session")
def pod_images(cluster: Cluster) -> Mapping[str, str]:
    """References of the images of sandbox and agent."""
    return built_images(cluster)


@pytest.fixture(scope="session")
def cluster_installation(
    cluster: Cluster, pod_images: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterInstallation]:
    """An installation with an operator that runs; no test changes it or takes its operator away."""
    with an_installation(cluster, pod_images, tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def own_installation(
    cluster: Cluster, pod_images: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterInstallation]:
    """One for this module alone, for tests that do something to it."""
    with an_installation(cluster, pod_images, tmp_path_factory) as made:
        yield made


@contextmanager
def an_installation(
    cluster: Cluster, images: Mapping[str, str], places: pytest.TempPathFactory
) -> Iterator[ClusterInstallation]:
    """An installation whose operator runs."""
    made = ClusterInstallation(
        cluster=cluster, instance=f"t-{secrets.token_hex(4)}", home=places.mktemp("installation"), images=images
    )
    try:
        made.prepare()
        made.start_operator()
        yield made
    finally:
        made.clean()
        made.stop_operator()


def await_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a role says that it is ready."""
    deadline = time.monotonic() + READY_SECONDS
    while not _answers(url):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False

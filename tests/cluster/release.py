"""sandboxd as the chart installs it, on the cluster of the tests: with a trial's PostgreSQL, and a practice model."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.ctl.backoff import RetryPolicy
from sandboxd.ctl.client import Client, connect
from sandboxd.ctl.target import TlsOptions
from sandboxd.dev.identity import DevIssuer
from sandboxd.model.cluster import INSTANCE_LABEL
from sandboxd.settings import load_settings
from tests.chart.helm import CHART, Object, run_helm
from tests.eventually import eventually
from tests.fault_proxy import FaultProxy
from tests.kube import Cluster, Json, KubectlError

PATIENT: Final = RetryPolicy(budget=timedelta(minutes=3), longest=timedelta(seconds=2))
PRACTICE: Final = """
import asyncio
from sandboxd.practice.server import PracticeServer

async def main():
    async with PracticeServer(host="0.0.0.0", port=8080, delay=0.3):
        await asyncio.Event().wait()

asyncio.run(main())
"""
"""The model of these tests: slow enough that something can happen in the middle of its answer."""
API_KEY: Final = "a-key-for-the-practice-model"
UP_SECONDS: Final = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """By digest."""

    server: str
    sandbox: str
    agent: str
    postgres: str


@dataclass(kw_only=True)
class Release:
    """One release in a namespace of its own."""

    cluster: Cluster
    instance: str
    images: Images
    home: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    """Values of the next upgrade that differ. Any: JSON."""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _address: str = ""

    @property
    def namespace(self) -> str:
        return f"{self.instance}-own"

    @property
    def full(self) -> str:
        """What the names of its objects begin with."""
        return f"{self.instance}-sandboxd"

    def values(self) -> Json:
        repository, _, digest = self.images.server.partition("@")
        small = {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"memory": "768Mi"}}
        practice = {"to": [{"podSelector": {"matchLabels": {"app": "practice"}}}], "ports": [{"port": 8080}]}
        made: Json = {
            "image": {"repository": repository, "digest": digest},
            "instance": self.instance,
            "namespacePrefix": f"{self.instance}-c-",
            "crds": {"upgrade": False},  # they are everybody's in this cluster
            "database": {
                "bundled": {
                    "enabled": True,
                    "image": self.images.postgres,
                    "resources": small,
                    "volumePermissions": True,  # the development cluster's volumes are host paths
                }
            },
            "gemini": {"url": f"http://practice.{self.namespace}.svc:8080"},
            "serve": {"replicas": 2, "resources": small, "drainSeconds": 15},
            "gateway": {"replicas": 1, "resources": small},
            "operator": {"replicas": 2, "resources": small},
            "jobs": {"resources": small},
            "sandboxTemplate": self.instance,
            "sandboxTemplates": {self.instance: {"image": self.images.sandbox, "agentImage": self.images.agent}},
            "networkPolicy": {"extraEgress": [practice]},
        }
        for name, value in self.overrides.items():
            made[name] = {**made[name], **value} if isinstance(made.get(name), dict) else value
        return made

    async def prepare_place(self) -> None:
        """The namespace, the model, and a key for it."""
        labels = {INSTANCE_LABEL: self.namespace, "pod-security.kubernetes.io/enforce": "baseline"}
        await self.cluster.apply(
            [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}}]
        )
        secret: Object = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{self.full}-api-keys", "namespace": self.namespace},
            "stringData": {"default": API_KEY},
        }
        await self.cluster.apply([secret, *_practice(self.namespace, self.images.server)])

    async def helm(self, verb: str, *arguments: str, values: Mapping[str, Any] | None = None) -> str:
        """Run helm on this release."""
        place = ("--namespace", self.namespace, "--kubeconfig", str(self.cluster.kubeconfig))
        done = await asyncio.to_thread(
            run_helm, verb, self.instance, *arguments, *place, values=values, timeout=UP_SECONDS + 60
        )
        assert done.returncode == 0, f"helm {verb}: {done.stderr}\n{await self.told()}"
        return done.stdout

    async def told(self) -> str:
        """What the cluster says of pods that are not ready."""
        told = [await self.cluster.kubectl("get", "pods,jobs", "-n", self.namespace, "-o", "wide")]
        for pod in (await self.get("pods"))["items"]:
            if not all(one["ready"] for one in pod["status"].get("containerStatuses", [])):
                place = ("-n", self.namespace, pod["metadata"]["name"])
                told.append(json.dumps(pod["status"].get("containerStatuses")))
                with suppress(KubectlError):
                    told.append(await self.cluster.kubectl("logs", *place, "--tail=30"))
        return "\n".join(told)

    async def install(self) -> None:
        await self.helm("install", str(CHART), "--wait", f"--timeout={UP_SECONDS}s", values=self.values())

    async def upgrade(self, **overrides: Any) -> None:
        self.overrides |= overrides
        await self.helm("upgrade", str(CHART), "--wait", f"--timeout={UP_SECONDS}s", values=self.values())

    async def rollback(self) -> None:
        await self.helm("rollback", "--wait", f"--timeout={UP_SECONDS}s")

    async def get(self, *arguments: str) -> Json:
        return await self.cluster.get(*arguments, "-n", self.namespace)

    async def pods(self, component: str) -> list[Json]:
        """Its pods that are not about to go."""
        selector = f"app.kubernetes.io/component={component},app.kubernetes.io/instance={self.instance}"
        found = (await self.get("pods", "-l", selector))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    async def secret(self, name: str) -> dict[str, bytes]:
        found = await self.get("secret", f"{self.full}-{name}")
        return {entry: base64.b64decode(value) for entry, value in found["data"].items()}

    async def run_in(self, component: str, script: str, *arguments: str) -> str:
        """Run Python in a pod of a component."""
        pod = (await self.pods(component))[0]["metadata"]["name"]
        python = ("/opt/sandboxd/bin/python", "-c", script)
        return await self.cluster.run_in(self.namespace, pod, *python, *arguments)

    async def open(self, *, authority: str = "") -> None:
        """Make ready what a caller needs: trust, a signing key, and a way to the Service from here.

        With a Secret of somebody's own certificate the signing key is somebody's own, too, and there already.
        """
        if not authority:
            keys = KeyFiles(home=self.home)
            keys.caller_signing_key.parent.mkdir(parents=True, exist_ok=True)
            keys.caller_signing_key.write_bytes((await self.secret("callers"))["callers.pem"])
        found = await self.get("secret", authority or f"{self.full}-serve-tls")
        (self.home / "ca.crt").write_bytes(base64.b64decode(found["data"]["ca.crt"]))
        service = await self.get("service", f"{self.full}-serve")
        # The certificate is for names, `localhost` among them; the cluster's names mean nothing to this machine.
        host, port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]
        proxy = await self._stack.enter_async_context(FaultProxy(lambda: asyncio.open_connection(host, port)).running())
        self._address = f"localhost:{proxy.port}"

    @asynccontextmanager
    async def client(self, name: str, *, role: str = "platform") -> AsyncIterator[Client]:
        issuer = DevIssuer.open(load_settings(data_dir=self.home))
        token = issuer.mint(client=name, subject="ada", role=role, seconds=3600)
        tls = TlsOptions(ca_file=self.home / "ca.crt")
        async with connect(self._address, token=token, tls=tls, retry=PATIENT, reconnect=PATIENT) as client:
            yield client

    async def holder(self) -> str:
        """Which operator leads."""
        lease = await self.get("lease", f"sandboxd-operator-{self.instance}")
        return str(lease["spec"].get("holderIdentity") or "")

    async def remove(self) -> None:
        """Leave nothing behind."""
        await self._stack.aclose()
        await self.helm("uninstall", "--ignore-not-found")
        await self.cluster.clean(self.instance)
        await self.cluster.clean(self.namespace)


async def settled(release: Release) -> None:
    """Wait until no pod of serve is about to go: what an upgrade replaced may still hand over."""
    selector = f"app.kubernetes.io/component=serve,app.kubernetes.io/instance={release.instance}"

    async def alone() -> bool:
        found = (await release.get("pods", "-l", selector))["items"]
        return all("deletionTimestamp" not in pod["metadata"] for pod in found)

    await eventually(alone, within=60, every=0.5)


def read_images(file: Path) -> Images:
    """Read what `make images` wrote."""
    found = json.loads(file.read_text())["images"]
    return Images(**{name: found[name]["reference"] for name in ("server", "sandbox", "agent", "postgres")})


def _practice(namespace: str, image: str) -> list[Object]:
    labels = {"app": "practice"}
    container: Object = {
        "name": "practice",
        "image": image,
        "command": ["python", "-c", PRACTICE],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "practice", "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [container], "automountServiceAccountToken": False},
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "practice", "namespace": namespace},
            "spec": {"selector": labels, "ports": [{"port": 8080}]},
        },
    ]

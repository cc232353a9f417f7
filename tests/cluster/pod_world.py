"""One pod of the shape that docs/adr/0024 proved, with its claims its Secret, and the service's client of its agent.

Made without the operator, so that the shape is tested by itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any

import yaml

from sandboxd.agent.client import GrpcAgentClient, GrpcAgentConnector
from sandboxd.model.cluster import AGENT_PORT, INSTANCE_LABEL
from sandboxd.model.errors import AgentUnavailableError
from sandboxd.model.processes import OutputChunk, OutputStream, ProcessId, ProcessSpec, TerminalSize
from sandboxd.model.sandbox import AgentEndpoint
from tests.contract.agent_process import AGENT_NAME, SERVICE_NAME, Authority
from tests.eventually import eventually
from tests.kube import Cluster, Json

REPOSITORY = Path(__file__).resolve().parents[2]
POD = REPOSITORY / "tests" / "cluster" / "data" / "pod.yaml"
DIGESTS = REPOSITORY / "build" / "images.json"
NAME = "sbx-shape"
SECONDS = timedelta(seconds=60)


def image(name: str) -> str:
    """Reference of an image that `make images` has built."""
    found: str = json.loads(DIGESTS.read_text())["images"][name]["reference"]
    return found


@dataclass(kw_only=True)
class PodWorld:
    """The pod and what a test does in it."""

    cluster: Cluster
    namespace: str
    authority: Authority
    name: str = NAME
    agent: GrpcAgentClient | None = None
    counter: int = 0

    @property
    def pod_name(self) -> str:
        """Its name."""
        return f"{self.name}-0"

    async def pod(self) -> Json:
        """Return the pod as it is."""
        return await self.cluster.get("pod", "-n", self.namespace, self.pod_name)

    async def exec(self, *command: str) -> str:
        """Run a command in the container by the kubelet, as root and beside the agent."""
        return await self.cluster.run_in(self.namespace, self.pod_name, *command)

    async def connect(self) -> GrpcAgentClient:
        """Wait until the agent answers, and return a client."""

        async def address() -> str:
            status: Json = (await self.pod())["status"]
            return str(status.get("podIP", "")) if status.get("phase") == "Running" else ""

        host = await eventually(address, within=90, every=0.2, what="the pod runs")
        service = self.authority.issue(SERVICE_NAME)
        connector = GrpcAgentConnector(
            certificate=service.certificate, key=service.key, agent_authority=self.authority.certificate
        )
        agent = await connector.connect(AgentEndpoint(host=host, port=AGENT_PORT, server_name=AGENT_NAME))

        async def answers() -> bool:
            try:
                return bool(await agent.describe(timeout=SECONDS))
            except AgentUnavailableError:
                return False

        await eventually(answers, within=60, every=0.05, what="the agent answers")
        self.agent = agent
        return agent

    async def start(
        self, *argv: str, terminal: TerminalSize | None = None, environment: dict[str, str] | None = None
    ) -> ProcessId:
        """Start a program through the agent."""
        assert self.agent is not None
        self.counter += 1
        process = ProcessId(f"p{self.counter}")
        spec = ProcessSpec(argv=argv, merge_stderr=True, terminal=terminal, environment=environment or {})
        await self.agent.start_process(process, spec)
        return process

    async def read(self, process: ProcessId) -> str:
        """Return what a process has printed until it ends."""
        assert self.agent is not None
        output = b""
        async for event in self.agent.attach(process, epoch=1, positions={OutputStream.STDOUT: 0}):
            if isinstance(event, OutputChunk):
                output += event.data
        return output.decode(errors="replace")

    async def run(self, script: str) -> str:
        """Run a script of bash through the agent, as the freelancer, and return what it printed."""
        return await self.read(await self.start("/bin/bash", "-c", script))


@asynccontextmanager
async def a_pod(
    cluster: Cluster,
    instance: str,
    *,
    config: dict[str, object] | None = None,
    spec: dict[str, Any] | None = None,
    copied: bool = False,
    sandbox: str = "",
) -> AsyncIterator[PodWorld]:
    """Make the pod in a namespace of its own; the fixture `instance` removes it.

    Args:
        cluster: Where.
        instance: Whose.
        config: Changes of the agent's configuration.
        spec: Changes of the pod's spec.
        copied: The agent is copied by an init container, not mounted.
        sandbox: Image in place of the one that `make images` has built.
    """
    namespace = f"{instance}-pod"
    authority = Authority()
    labels = {INSTANCE_LABEL: instance}
    values = {"NAME": NAME, "IMAGE": sandbox or image("sandbox"), "AGENT": image("agent")}
    pod = yaml.safe_load(Template(POD.read_text()).substitute(values))
    pod["metadata"] |= {"namespace": namespace, "labels": labels}
    pod["spec"] |= spec or {}
    if copied:
        _copy_agent(pod["spec"])
    await cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}])
    await cluster.apply(
        [*_claims(namespace, labels), _secret(namespace, labels, authority, config or {}), pod],
    )
    world = PodWorld(cluster=cluster, namespace=namespace, authority=authority)
    try:
        yield world
    finally:
        if world.agent is not None:
            await world.agent.close()


def _copy_agent(spec: Json) -> None:
    for volume in spec["volumes"]:
        if volume["name"] == "agent":
            del volume["image"]
            volume["emptyDir"] = {}
    loader = ["/lib64/ld-linux-x86-64.so.2", "--inhibit-cache", "--library-path", "/usr/lib/x86_64-linux-gnu"]
    spec["initContainers"] = [
        {
            "name": "agent-copy",
            "image": image("agent"),
            "command": [*loader, "/usr/bin/python3", "-I", "-S", "-m", "sandboxd.agent.deliver", "/copy"],
            "securityContext": {"capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": False},
            "volumeMounts": [{"name": "agent", "mountPath": "/copy"}],
        }
    ]


def _claims(namespace: str, labels: dict[str, str]) -> Sequence[Json]:
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": f"{volume}-{NAME}-0", "namespace": namespace, "labels": labels},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        for volume in ("home", "workspace")
    ]


def _secret(namespace: str, labels: dict[str, str], authority: Authority, config: dict[str, object]) -> Json:
    identity = authority.issue(AGENT_NAME)
    directory = "/etc/sandboxd/agent"
    settings = {
        "sandbox": NAME,
        "incarnation": "inc-test",
        "home": "/home/gemini",
        "workspace": "/workspace",
        "spool_directory": "/run/sandboxd/spool",
        "ready_file": "/run/sandboxd/ready.json",
        "tls_certificate": f"{directory}/tls.crt",
        "tls_key": f"{directory}/tls.key",
        "tls_client_authority": f"{directory}/ca.crt",
        "listen": f"0.0.0.0:{AGENT_PORT}",
        "model_port": 8787,
        "user_id": 1000,
        "group_id": 1000,
        "run_directory": "/run/sandboxd",
        "shutdown_grace_seconds": 5,
        **config,
    }
    data = {
        "agent.json": json.dumps(settings).encode(),
        "tls.crt": identity.certificate,
        "tls.key": identity.key,
        "ca.crt": authority.certificate,
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{NAME}-agent", "namespace": namespace, "labels": labels},
        "data": {name: base64.b64encode(content).decode() for name, content in data.items()},
    }

"""Sandboxes of two clients, stand-ins for our parts, and a node with a metadata address: what isolation is tried on.

The pods of sandboxes, their policies and quotas are what the operator's own functions make. Our parts are pods with
the labels of the chart, because traffic from the node itself is always allowed. Everything that listens tells an API
key to whoever connects: a connection that must not come about would give it away.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socketserver
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from typing_extensions import override

from devcluster.places import API_PORT, API_SERVICE, KUBELET_PORT, NODE_ADDRESS, REGISTRY_PORT
from sandboxd.backends.certificates import CertificateAuthority, make_authority
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.model.cluster import (
    AGENT_PORT,
    INSTANCE_LABEL,
    PlacedResources,
    PlacedSpec,
    namespace_of,
    namespace_resource,
    pod_of,
)
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, make_id
from sandboxd.model.sandbox import Tier
from sandboxd.operator.builders import agent_secret, stateful_set
from sandboxd.operator.ports import AgentIdentity
from sandboxd.operator.template import Template
from sandboxd.operator.tenancy import COMPONENT_LABEL, Network, namespace_objects
from tests.eventually import eventually
from tests.kube import Cluster

SANDBOX_IMAGE = "localhost:5000/sandboxd/sandbox:dev"
AGENT_IMAGE = "localhost:5000/sandboxd/agent:dev"
GATEWAY_PORT = 8443
ADMIN_PORT = 9090
METADATA_ADDRESS = "169.254.169.254"
PUBLIC_ADDRESS = "203.0.113.7"
"""Stands in for the internet: of the range for documentation, which nobody counts among the private ones."""
SOON = 120.0

PROBE = """
import concurrent.futures, json, socket, ssl, sys

def ask(target):
    name, host, port = target
    try:
        with socket.create_connection((host, port), timeout=4) as connection:
            connection.settimeout(1)
            try:
                return name, connection.recv(4096).decode(errors="replace")
            except OSError:
                return name, "open"
    except OSError:
        return name, None

targets = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(len(targets)) as pool:
    print(json.dumps(dict(pool.map(ask, targets))))
"""
LISTEN = """
import socketserver, sys, threading

class Tell(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(open("/keys/acme").read().encode())

socketserver.ThreadingTCPServer.allow_reuse_address = True
for port in sys.argv[1:]:
    threading.Thread(target=socketserver.ThreadingTCPServer(("", int(port)), Tell).serve_forever).start()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A pod of the neighbourhood."""

    namespace: str
    pod: str
    address: str = ""


Heard = Mapping[str, str | None]
"""What each target said to who connected; None where no connection came about."""


@dataclass(kw_only=True)
class Neighbourhood:
    """Who lives where, and who reached whom before and after the policies."""

    instance: str
    key: str
    """An API key that only the gateway must have."""
    homes: dict[str, Resident] = field(default_factory=dict)
    targets: dict[str, tuple[str, int]] = field(default_factory=dict)
    before: Heard = field(default_factory=dict)
    after: Heard = field(default_factory=dict)
    to_the_agent_before: Heard = field(default_factory=dict)
    to_the_agent_after: Heard = field(default_factory=dict)

    @property
    def system(self) -> str:
        """Our own namespace."""
        return f"{self.instance}-system"

    @property
    def prefix(self) -> str:
        """Of the clients' namespaces."""
        return f"{self.instance}-"


FORBIDDEN = (
    "a sandbox of the same client",
    "a sandbox of another client",
    "the API server by its service",
    "the API server at its node",
    "the kubelet",
    "the metadata address",
    "the registry",
    "the database",
    "the database by its service",
    "the gateway's administration",
    "the service",
    "a node port",
)
ALLOWED = ("the gateway by its name", "the internet")


@contextmanager
def a_neighbourhood(cluster: Cluster) -> Iterator[Neighbourhood]:
    """Build it, try everything without and with policies, and take it down at the end."""
    made = Neighbourhood(instance=f"t-{secrets.token_hex(4)}", key=f"AIza{secrets.token_hex(16)}")
    with ExitStack() as stack:
        stack.enter_context(_on_the_node(METADATA_ADDRESS, 80, made.key))
        stack.enter_context(_on_the_node(PUBLIC_ADDRESS, 443, "the internet"))
        stack.callback(lambda: asyncio.run(cluster.clean(made.instance)))
        asyncio.run(_build(cluster, made))
        yield made


@contextmanager
def _on_the_node(address: str, port: int, words: str) -> Iterator[None]:
    """Let somebody listen at an address of the node's loopback interface."""

    class Tell(socketserver.BaseRequestHandler):
        @override
        def handle(self) -> None:
            self.request.sendall(words.encode())

    subprocess.run(["ip", "addr", "replace", f"{address}/32", "dev", "lo"], check=True)
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    try:
        with socketserver.ThreadingTCPServer((address, port), Tell) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield
            server.shutdown()
    finally:
        subprocess.run(["ip", "addr", "delete", f"{address}/32", "dev", "lo"], check=False)


async def _build(cluster: Cluster, made: Neighbourhood) -> None:
    labels = {INSTANCE_LABEL: made.instance}
    system = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": made.system, "labels": labels}}
    clients = [
        namespace_resource(ClientId(one), prefix=made.prefix, instance=made.instance) for one in ("acme", "bolt")
    ]
    await cluster.apply([system, *clients])
    await cluster.apply([*_our_parts(made), *_sandboxes(made)])
    await asyncio.gather(*(_settle(cluster, made, name) for name in made.homes))
    await _name_targets(cluster, made)

    everything = {*FORBIDDEN, *ALLOWED}
    made.before = await _reaches(cluster, made, everything)
    made.to_the_agent_before = await _reach_the_agent(cluster, made)

    network = Network(own_namespace=made.system, gateway_port=GATEWAY_PORT)
    for client in clients:
        kinds = namespace_objects(client, instance=made.instance, network=network)
        await cluster.apply([one for objects in kinds.values() for one in objects])

    async def cut() -> bool:
        made.after = await heard(cluster, made, "first", made.targets)
        made.to_the_agent_after = await _reach_the_agent(cluster, made)
        return not any(made.after[name] for name in FORBIDDEN) and made.to_the_agent_after["gateway"] is None

    try:
        await eventually(cut, within=30, every=1)
    except AssertionError:
        return  # the tests say which


async def _reaches(cluster: Cluster, made: Neighbourhood, wanted: set[str]) -> Heard:
    found: Heard = {}

    async def all_of_them() -> bool:
        nonlocal found
        found = await heard(cluster, made, "first", made.targets)
        return all(found[name] is not None for name in wanted)

    try:
        await eventually(all_of_them, within=30, every=1)
    except AssertionError:
        return found  # the tests say which
    return found


async def heard(cluster: Cluster, made: Neighbourhood, who: str, targets: Mapping[str, tuple[str, int]]) -> Heard:
    """Let root in a pod connect to these, all at once; what it heard."""
    listed = json.dumps([(name, host, port) for name, (host, port) in targets.items()])
    home = made.homes[who]
    told: dict[str, str | None] = json.loads(
        await cluster.run_in(home.namespace, home.pod, "python3", "-c", PROBE, listed)
    )
    return told


async def _reach_the_agent(cluster: Cluster, made: Neighbourhood) -> Heard:
    target = {"agent": (made.homes["first"].address, AGENT_PORT)}
    askers = ("serve", "gateway", "database", "second", "stranger")
    told = await asyncio.gather(*(heard(cluster, made, who, target) for who in askers))
    return {who: one["agent"] for who, one in zip(askers, told, strict=True)}


async def _name_targets(cluster: Cluster, made: Neighbourhood) -> None:
    at = {name: home.address for name, home in made.homes.items()}
    ports = (await cluster.get("service", "serve", "-n", made.system))["spec"]["ports"]
    made.targets = {
        "a sandbox of the same client": (at["second"], AGENT_PORT),
        "a sandbox of another client": (at["stranger"], AGENT_PORT),
        "the API server by its service": (API_SERVICE, 443),
        "the API server at its node": (NODE_ADDRESS, API_PORT),
        "the kubelet": (NODE_ADDRESS, KUBELET_PORT),
        "the metadata address": (METADATA_ADDRESS, 80),
        "the registry": (NODE_ADDRESS, REGISTRY_PORT),
        "the database": (at["database"], 5432),
        "the database by its service": (f"database.{made.system}.svc.cluster.local", 5432),
        "the gateway's administration": (at["gateway"], ADMIN_PORT),
        "the service": (at["serve"], 50051),
        "a node port": (NODE_ADDRESS, ports[0]["nodePort"]),
        "the gateway by its name": (f"gateway.{made.system}.svc.cluster.local", GATEWAY_PORT),
        "the internet": (PUBLIC_ADDRESS, 443),
    }


async def _settle(cluster: Cluster, made: Neighbourhood, name: str) -> None:
    home = made.homes[name]

    async def ready() -> bool:
        pod = await cluster.get("pod", home.pod, "-n", home.namespace)
        conditions = pod["status"].get("conditions", [])
        assert any(one["type"] == "Ready" and one["status"] == "True" for one in conditions), pod["status"]
        address = pod["status"]["podIP"]
        made.homes[name] = Resident(namespace=home.namespace, pod=home.pod, address=address)
        return True

    await eventually(ready, within=SOON, every=0.5)


def _our_parts(made: Neighbourhood) -> Iterator[Mapping[str, Any]]:
    parts = {"gateway": (GATEWAY_PORT, ADMIN_PORT), "serve": (50051,), "database": (5432,)}
    secret = {"metadata": {"name": "api-keys", "namespace": made.system}, "stringData": {"acme": made.key}}
    yield {"apiVersion": "v1", "kind": "Secret", **secret}
    for name, ports in parts.items():
        made.homes[name] = Resident(namespace=made.system, pod=name)
        metadata = {"name": name, "namespace": made.system, "labels": {COMPONENT_LABEL: name}}
        container = {
            "name": name,
            "image": SANDBOX_IMAGE,
            "command": ["python3", "-c", LISTEN, *map(str, ports)],
            "readinessProbe": {"tcpSocket": {"port": ports[0]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "keys", "mountPath": "/keys"}],
        }
        pod = {
            "containers": [container],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "keys", "secret": {"secretName": "api-keys"}}],
        }
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}
        service = {
            "selector": {COMPONENT_LABEL: name},
            "ports": [{"port": ports[0]}],
            "type": "NodePort" if name == "serve" else "ClusterIP",
        }
        yield {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service}


def _sandboxes(made: Neighbourhood) -> Iterator[Mapping[str, Any]]:
    certificate, key = make_authority("tests", datetime.now(UTC) - timedelta(minutes=5))
    authority = CertificateAuthority.load(certificate=certificate, key=key, clock=SystemClock())
    template = Template(image=SANDBOX_IMAGE, agent_image=AGENT_IMAGE)
    for name, client in {"first": "acme", "second": "acme", "stranger": "bolt"}.items():
        sandbox = SandboxId(make_id("sbx", at=datetime.now(UTC), entropy=os.urandom(10)))
        incarnation = IncarnationId(make_id("inc", at=datetime.now(UTC), entropy=os.urandom(10)))
        namespace = namespace_of(ClientId(client), prefix=made.prefix)
        made.homes[name] = Resident(namespace=namespace, pod=pod_of(sandbox))
        issued = authority.issue_agent(incarnation)
        identity = AgentIdentity(certificate=issued.certificate, key=issued.key, authority=authority.certificate)
        spec = PlacedSpec(
            client=ClientId(client),
            freelancer=FreelancerId("ada"),
            incarnation=incarnation,
            tier=Tier.BASIC,
            resources=PlacedResources(cpu="500m", memory="512M", home="1G", workspace="1G"),
        )
        place = {"namespace": namespace, "uid": "", "instance": made.instance}
        objects: Sequence[dict[str, Any]] = (
            agent_secret(sandbox, incarnation, identity, **place),
            stateful_set(sandbox, spec, template, replicas=1, **place),
        )
        for one in objects:
            one["metadata"].pop("ownerReferences")  # there is no Sandbox resource that could own them
            yield one

"""`serve` and gateway as processes of the node, sandboxes as pods: what tests/e2e has for the local backend."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from typing_extensions import override

from sandboxd.ctl.client import Client
from sandboxd.dev.cluster import private_pem
from sandboxd.dev.node import cache_directory
from sandboxd.model.cluster import pod_of
from sandboxd.v1 import image_pb2
from sandboxd.v1 import sandbox_pb2 as pb
from tests.e2e.stack import Stack
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.installation import ClusterInstallation, await_ready
from tests.postgres import PostgresServer


def a_client() -> str:
    """A client that no other test has."""
    return f"dev-{secrets.token_hex(3)}"


@dataclass(kw_only=True)
class ClusterStack(Stack):
    """What a test drives."""

    installation: ClusterInstallation
    client_id: str = field(default_factory=a_client)
    """One of its own for each stack: an installation is many tests', and what one leaves is no other's."""
    more_clients: list[str] = field(default_factory=list)
    """Whose namespaces go with the stack, too."""
    template: str = ""
    """Of its own; empty where it takes the installation's."""

    @property
    def namespace(self) -> str:
        """Where the client's sandboxes are."""
        return self.namespace_of(self.client_id)

    def namespace_of(self, client: str) -> str:
        """Where a client's sandboxes are."""
        return f"{self.installation.instance}-{client}"

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """In the client's namespace."""
        return self.installation.kubectl("-n", self.namespace, *arguments, stdin=stdin, check=check)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object of the client's namespace; empty when there is none."""
        found = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        answer: dict[str, Any] = json.loads(found) if found else {}
        return answer

    def resource(self, sandbox: pb.Sandbox) -> dict[str, Any]:
        """The sandbox's resource."""
        return self.get("sandboxes.sandboxd.dev", sandbox_id(sandbox))

    def pod(self, sandbox: pb.Sandbox) -> dict[str, Any]:
        """The sandbox's pod."""
        return self.get("pod", pod_of(sandbox_id(sandbox)))

    def inside(self, sandbox: pb.Sandbox, *command: str, check: bool = True) -> str:
        """What a command prints that root runs in the pod."""
        return self.kubectl("exec", pod_of(sandbox_id(sandbox)), "-c", "sandbox", "--", *command, check=check)

    def delete_pod(self, sandbox: pb.Sandbox) -> None:
        """As somebody does by hand."""
        self.kubectl("delete", "pod", pod_of(sandbox_id(sandbox)), "--wait=false")

    def apply_template(self, **changes: object) -> None:
        """Write the stack's own template."""
        assert self.template, "the installation's is other tests', too"
        self.installation.apply_template(self.template, **changes)

    @override
    async def stop(self) -> None:
        for role in ("serve", "gateway"):
            if role in self.processes:
                await self.kill(role)
        namespaces = [self.namespace, *map(self.namespace_of, self.more_clients)]
        await asyncio.to_thread(self.installation.forget, *namespaces, template=self.template)

    async def reports(self, *words: str) -> None:
        """Wait until `serve` says this of what rows and cluster do not have in common; it looks when it is asked to."""
        async with self.client(role="platform") as client:

            async def said() -> bool:
                await client.admin.sweep(["orphans"])
                lines = (self.home / "serve.log").read_text().splitlines()
                return any(all(word in line for word in words) for line in lines)

            await eventually(said, within=90, every=0.5, what=" ".join(words))


def image_of(stack: ClusterStack, sandbox: pb.Sandbox) -> str:
    """What the sandbox's pod was made from."""
    containers = stack.pod(sandbox)["spec"]["containers"]
    return str(next(one["image"] for one in containers if one["name"] == "sandbox"))


def sandbox_id(sandbox: pb.Sandbox) -> Any:
    """The id in a sandbox's name."""
    return sandbox.name.rpartition("/")[2]


@contextmanager
def a_shared_stack(installation: ClusterInstallation, server: PostgresServer) -> Iterator[ClusterStack]:
    """A stack that is up for many tests, and no event loop's: each takes `one_tests` part of it and ends no role."""
    database = asyncio.run(server.clone())
    with FakeGemini(key=None) as model:
        made = ClusterStack(
            installation=installation,
            home=installation.home,
            database_url=server.url(database),
            model=model,
            settings=cluster_settings(installation),
        )
        running = dict[str, subprocess.Popen[bytes]]()
        try:
            for role in ("gateway", "serve"):
                with (made.home / f"{role}.log").open("ab") as log:
                    command = [sys.executable, "-m", "sandboxd", role]
                    running[role] = subprocess.Popen(
                        command, env=made.environment | made.settings, stdout=log, stderr=log
                    )
            for role, port in (("gateway", "gateway_web"), ("serve", "web")):
                await_ready(running[role], f"http://127.0.0.1:{made.ports[port]}/readyz", made.home / f"{role}.log")
            yield made
        finally:
            for process in running.values():
                process.kill()
                process.wait()
    asyncio.run(server.drop(database))


@asynccontextmanager
async def one_tests(shared: ClusterStack) -> AsyncIterator[ClusterStack]:
    """A client of its own at a stack that is up."""
    mine = replace(shared, client_id=a_client(), more_clients=[], processes={})
    try:
        yield mine
    finally:
        await mine.stop()


@asynccontextmanager
async def a_cluster_stack(
    installation: ClusterInstallation,
    database_url: str,
    *,
    failpoints: str = "",
    start: bool = True,
    own_template: bool = False,
) -> AsyncIterator[ClusterStack]:
    """A stack that is up. Of one installation one gateway runs at a time."""
    for role in ("serve", "gateway"):
        (installation.home / f"{role}.log").unlink(missing_ok=True)  # what an earlier one said
    with FakeGemini(key=None) as model:
        made = ClusterStack(
            installation=installation,
            home=installation.home,
            database_url=database_url,
            model=model,
            settings=cluster_settings(installation),
        )
        if own_template:
            made.template = f"{installation.instance}-{made.client_id}"
            made.settings["SANDBOXD_KUBERNETES_TEMPLATE"] = made.template
        try:
            if own_template:
                await asyncio.to_thread(made.apply_template)
            if start:
                await asyncio.gather(made.start("gateway"), made.start("serve", failpoints=failpoints))
            yield made
        finally:
            await made.stop()


@asynccontextmanager
async def a_keeping_stack(
    installation: ClusterInstallation,
    database_url: str,
    *,
    prefix: str = "",
    settings: Mapping[str, str] = MappingProxyType({}),
    own_template: bool = False,
) -> AsyncIterator[ClusterStack]:
    """A stack that is up and keeps images in the cluster's registry, signed, in repositories below the prefix."""
    address = installation.cluster.registry
    key = installation.home / "image-signing.pem"
    if not key.exists():
        key.write_text(private_pem(ec.generate_private_key(ec.SECP256R1())))
    async with a_cluster_stack(installation, database_url, start=False, own_template=own_template) as made:
        made.environment |= {
            "SANDBOXD_IMAGES_REGISTRY": f"localhost:{address.rpartition(':')[2]}",
            "SANDBOXD_IMAGES_REGISTRY_ADDRESS": address,
            "SANDBOXD_IMAGES_REGISTRY_PLAIN": "true",
            "SANDBOXD_IMAGES_REPOSITORY_PREFIX": prefix,
            "SANDBOXD_IMAGES_SIGNING_KEY_FILE": str(key),
            "SANDBOXD_IMAGES_SIGNATURES": "warn",
            # One for all installations and runs: reading the base takes longer than most commits.
            "SANDBOXD_IMAGES_CACHE_DIR": str(cache_directory() / "bases"),
        }
        made.settings |= settings
        await asyncio.gather(made.start("gateway"), made.start("serve"))
        yield made


async def committed(client: Client, sandbox: pb.Sandbox, *, dry_run: bool = False) -> image_pb2.Image:
    """Commit, and follow it to its end."""
    begun = await client.images.begin(sandbox.name, dry_run=dry_run)
    async with asyncio.timeout(240):
        return [image async for image in client.images.follow(begun.name)][-1]


def cluster_settings(installation: ClusterInstallation) -> dict[str, str]:
    """What both roles need to place sandboxes in this installation's cluster."""
    wanted = ("KUBECONFIG", "SANDBOXD_KUBERNETES_")
    of_instance = {name: value for name, value in installation.environment.items() if name.startswith(wanted)}
    return of_instance | installation.gateway_settings()

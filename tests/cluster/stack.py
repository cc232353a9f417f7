"""`serve` and gateway as processes of the node, sandboxes as pods: what tests/e2e has for the local backend."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
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
from tests.installation import ClusterInstallation

NAMESPACE_CLIENT = "dev"
"""The stack's token is this client's."""


@dataclass(kw_only=True)
class ClusterStack(Stack):
    """What a test drives."""

    installation: ClusterInstallation
    failpoints_first: str = field(default="")

    @property
    def namespace(self) -> str:
        """Where the client's sandboxes are."""
        return f"{self.installation.instance}-{NAMESPACE_CLIENT}"

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

    @override
    async def stop(self) -> None:
        for role in ("serve", "gateway"):
            if role in self.processes:
                await self.kill(role)
        await asyncio.to_thread(self.installation.forget_sandboxes)

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


@asynccontextmanager
async def a_cluster_stack(
    installation: ClusterInstallation, database_url: str, *, failpoints: str = "", start: bool = True
) -> AsyncIterator[ClusterStack]:
    """A stack that is up."""
    with FakeGemini(key=None) as model:
        made = ClusterStack(
            installation=installation,
            home=installation.home,
            database_url=database_url,
            model=model,
            settings=cluster_settings(installation),
        )
        try:
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
) -> AsyncIterator[ClusterStack]:
    """A stack that is up and keeps images in the cluster's registry, signed, in repositories below the prefix."""
    address = installation.cluster.registry
    key = installation.home / "image-signing.pem"
    if not key.exists():
        key.write_text(private_pem(ec.generate_private_key(ec.SECP256R1())))
    async with a_cluster_stack(installation, database_url, start=False) as made:
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
        await made.start("gateway")
        await made.start("serve")
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

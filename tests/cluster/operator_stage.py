"""A stage for the operator on a real cluster: an installation of one test, its namespaces, and sandboxes in it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from sandboxd.model.cluster import (
    SERVE_MANAGER,
    PlacedResources,
    PlacedSpec,
    namespace_resource,
    sandbox_resource,
)
from sandboxd.model.cluster_status import PlacedStatus
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, make_id
from sandboxd.model.sandbox import Tier
from tests.cluster.images import push_stand_in_agent
from tests.cluster.roles import Role, a_role
from tests.eventually import eventually
from tests.kube import Cluster, KubectlError
from tests.ports import a_free_port

Json = dict[str, Any]
SOON = 60.0
"""A pod on a busy machine takes its time."""


def an_incarnation() -> IncarnationId:
    return IncarnationId(make_id("inc", at=datetime.now(UTC), entropy=os.urandom(10)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The namespaces of one test's installation."""

    cluster: Cluster
    instance: str
    home: Path
    agent_image: str

    @property
    def namespace(self) -> str:
        """Of the one client."""
        return f"{self.instance}-acme"

    @asynccontextmanager
    async def operator(self, name: str = "one", **settings: str) -> AsyncIterator[Role]:
        """Run an operator of this installation."""
        port = a_free_port()
        home = self.home / name
        home.mkdir()
        given = {
            "SANDBOXD_DATA_DIR": str(self.home / "data"),
            "SANDBOXD_OPERATOR_WEB_LISTEN": f"127.0.0.1:{port}",
            "SANDBOXD_OPERATOR_LEASE_SECONDS": "3",
            "SANDBOXD_KUBERNETES_PREPULL": "false",
            **settings,
        }
        url = f"http://127.0.0.1:{port}"
        async with a_role(
            "operator",
            self.cluster,
            instance=self.instance,
            home=home,
            settings=given,
            ready_url=f"{url}/readyz",
        ) as role:
            yield role

    async def set_up(self) -> None:
        """Make namespaces and template."""
        labels = {"sandboxd.dev/instance": self.instance}
        own = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"{self.instance}-system"}}
        own["metadata"]["labels"] = labels  # type: ignore[index]  # it is a dict
        client = namespace_resource(ClientId("acme"), prefix=f"{self.instance}-", instance=self.instance)
        await self.cluster.apply([own, client])
        await self.template()

    async def template(self, **spec: Any) -> None:
        """Make the template, or change it."""
        content = {"image": "localhost:5000/pause:1", "agentImage": self.agent_image, **spec}
        metadata = {"name": self.instance, "labels": {"sandboxd.dev/instance": self.instance}}
        kind = {"apiVersion": "sandboxd.dev/v1alpha1", "kind": "SandboxTemplate"}
        await self.cluster.apply([{**kind, "metadata": metadata, "spec": content}])

    def a_sandbox(self, **changes: Any) -> tuple[SandboxId, PlacedSpec]:
        """Make up a sandbox; it is small."""
        spec = PlacedSpec(
            client=ClientId("acme"),
            freelancer=FreelancerId("ada"),
            incarnation=an_incarnation(),
            tier=Tier.BASIC,
            template=self.instance,
            resources=PlacedResources(cpu="500m", memory="64M", home="1G", workspace="2G", ephemeral_storage="1G"),
        )
        sandbox = SandboxId(make_id("sbx", at=datetime.now(UTC), entropy=os.urandom(10)))
        return sandbox, replace(spec, **changes)

    async def write(self, sandbox: SandboxId, spec: PlacedSpec, *account: str) -> None:
        """Write a sandbox as `serve` does; `account` are kubectl's words for whom to speak as."""
        made = sandbox_resource(sandbox, spec, namespace=self.namespace, instance=self.instance)
        await self.cluster.kubectl(
            "apply",
            "--server-side",
            "--force-conflicts",
            f"--field-manager={SERVE_MANAGER}",
            "-f",
            "-",
            *account,
            stdin=json.dumps(made),
        )

    async def status(self, sandbox: SandboxId) -> PlacedStatus:
        """What the operator says of a sandbox."""
        found = await self.cluster.get("sandboxes", sandbox, "-n", self.namespace)
        return PlacedStatus.from_mapping(found.get("status", {}))

    async def reaches(self, sandbox: SandboxId, *wanted: object, within: float = SOON) -> PlacedStatus:
        """Wait until a sandbox has this state, reason or incarnation; all of them."""

        async def there() -> PlacedStatus | None:
            status = await self.status(sandbox)
            has = {status.state, status.reason, status.incarnation}
            assert has >= set(wanted), f"{status}"
            return status

        found = await eventually(there, within=within, every=0.1)
        assert found is not None
        return found

    async def get(self, kind: str, name: str) -> Json:
        """An object of the client's namespace."""
        return await self.cluster.get(kind, name, "-n", self.namespace)

    async def exists(self, kind: str, name: str) -> bool:
        """Whether there is one."""
        try:
            await self.get(kind, name)
        except KubectlError as error:
            if "not found" in str(error) or "NotFound" in str(error):
                return False
            raise
        return True

    async def kubectl(self, *arguments: str) -> str:
        """In the client's namespace."""
        return await self.cluster.kubectl(*arguments, "-n", self.namespace)

    async def told(self, sandbox: SandboxId) -> set[str]:
        """Reasons of the Events on a sandbox."""
        found = await self.cluster.get(
            "events",
            "-n",
            self.namespace,
            f"--field-selector=involvedObject.name={sandbox},involvedObject.kind=Sandbox",
        )
        return {item["reason"] for item in found["items"]}

    async def tell_agent(self, status: PlacedStatus, word: bytes) -> None:
        """Say something to the stand-in agent. The node may always reach its pods."""
        _, writer = await asyncio.open_connection(status.pod_ip, status.agent_port)
        writer.write(word)
        await writer.drain()
        writer.close()


async def leads(role: Role) -> bool:
    """Whether an operator says of itself that it is the active one."""
    url = role.ready_url.replace("readyz", "metrics")
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return "sandboxd_operator_leader 1.0" in await answer.text()
    except aiohttp.ClientError:
        return False


async def a_stage(cluster: Cluster, instance: str, home: Path) -> Stage:
    """Make a stage that is ready for an operator."""
    image = await push_stand_in_agent(cluster.registry)
    stage = Stage(cluster=cluster, instance=instance, home=home, agent_image=image)
    await stage.set_up()
    return stage

"""The whole way of what was installed: from a real pod through a layer and a probe to the next pod, by the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sandboxd.ctl.client import Client
from sandboxd.ctl.errors import ApiError
from sandboxd.v1 import image_pb2, sandbox_pb2
from tests.cluster.stack import ClusterStack, a_cluster_stack
from tests.installation import ClusterInstallation

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
async def stack(cluster_installation: ClusterInstallation, postgres_url: str) -> AsyncIterator[ClusterStack]:
    address = cluster_installation.cluster.registry
    async with a_cluster_stack(cluster_installation, postgres_url, start=False) as made:
        made.environment |= {
            "SANDBOXD_IMAGES_REGISTRY": f"localhost:{address.rpartition(':')[2]}",
            "SANDBOXD_IMAGES_REGISTRY_ADDRESS": address,
            "SANDBOXD_IMAGES_REGISTRY_PLAIN": "true",
        }
        await made.start("gateway")
        await made.start("serve")
        yield made


async def committed(client: Client, sandbox: sandbox_pb2.Sandbox) -> image_pb2.Image:
    """Commit, and follow it to its end."""
    begun = await client.images.begin(sandbox.name)
    async with asyncio.timeout(240):
        return [image async for image in client.images.follow(begun.name)][-1]


async def test_what_was_installed_runs_in_the_next_pod_and_a_broken_root_is_never_started(stack: ClusterStack) -> None:
    script = "printf '#!/bin/sh\\necho mine\\n' > /usr/local/bin/mine && chmod 755 /usr/local/bin/mine"
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        base = stack.resource(sandbox)["status"]["image"]
        stack.inside(sandbox, "sh", "-c", script)
        uid = stack.pod(sandbox)["metadata"]["uid"]

        image = await committed(client, sandbox)

        assert image.status == image_pb2.IMAGE_STATUS_ACTIVE, image
        assert stack.pod(sandbox)["metadata"]["uid"] == uid
        status = stack.resource(sandbox)["status"]
        assert (status["image"], status["nextImage"].rpartition("@")[2]) == (base, image.digest)
        assert "/dev/gemini-cli-user-" in status["nextImage"]

        await client.pause(sandbox.name)
        await client.resume(sandbox.name)

        assert stack.inside(sandbox, "mine") == "mine\n"
        assert stack.resource(sandbox)["status"]["image"].endswith(image.digest)
        again = await committed(client, sandbox)
        assert (again.status, again.digest) == (image_pb2.IMAGE_STATUS_DISCARDED, image.digest)

        stack.inside(sandbox, "rm", "/usr/bin/dash")
        broken = await committed(client, sandbox)

        assert (broken.status, broken.failure.reason) == (image_pb2.IMAGE_STATUS_FAILED, "IMAGE_BROKEN"), broken
        assert "step shell" in broken.failure.message
        assert stack.resource(sandbox)["status"]["nextImage"].endswith(image.digest)
        with pytest.raises(ApiError):
            await client.pause(sandbox.name)  # it would lose what cannot be kept
        await client.pause(sandbox.name, force=True)
        await client.resume(sandbox.name)
        assert stack.inside(sandbox, "sh", "-c", "mine") == "mine\n"

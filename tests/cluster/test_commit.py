"""The whole way of what was installed: from a real pod through a layer and a probe to the next pod, by the service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import pytest

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.ctl.client import Client
from sandboxd.ctl.errors import ApiError
from sandboxd.model.errors import NotFoundError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.image_names import user_repository
from sandboxd.v1 import image_pb2
from tests.cluster.stack import ClusterStack, a_keeping_stack, committed
from tests.eventually import eventually
from tests.installation import ClusterInstallation

pytestmark = pytest.mark.timeout(400)
SOON = timedelta(seconds=20)
CHANGE = r"""set -e
printf '#!/bin/sh\necho it runs\n' > /usr/local/bin/kept
chmod 755 /usr/local/bin/kept
install -o 1000 -g 1000 -m 6755 /usr/local/bin/kept /usr/bin/kept-too
ln /usr/bin/kept-too /usr/bin/kept-three
chmod 700 /usr/share/misc
rm -r /usr/share/doc/bash
mkdir -p /var/log/kept
head -c 2000000 /dev/urandom > /opt/random
echo a-token-of-somebody > /root/.netrc
sha256sum /opt/random
"""
LOOK = r"""
kept; stat -c '%a %u %h' /usr/bin/kept-too; stat -c %a /usr/share/misc
test -e /usr/share/doc/bash || echo gone
test -d /var/log/kept && echo directory
test -e /root/.netrc || echo no secret
sha256sum /opt/random
"""


async def has_sbom(client: Client, image: str) -> bool:
    """Tell whether the registry has the list of an image's packages; not yet is no failure."""
    try:
        await client.images.sbom(image)
    except ApiError as error:
        if error.reason != "SBOM_PENDING":
            raise
        return False
    return True


@pytest.fixture
async def stack(cluster_installation: ClusterInstallation, postgres_url: str) -> AsyncIterator[ClusterStack]:
    async with a_keeping_stack(cluster_installation, postgres_url) as made:
        yield made


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
        assert f"/{stack.client_id}/gemini-cli-user-" in status["nextImage"]

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


async def test_everything_but_secrets_is_in_the_next_pod_and_the_registry_names_it(stack: ClusterStack) -> None:
    async with stack.client() as client, OciRegistry(stack.installation.cluster.registry, plain=True) as registry:
        sandbox = await client.create()
        digest = stack.inside(sandbox, "sh", "-c", CHANGE).split()[0]

        counted = await committed(client, sandbox, dry_run=True)
        image = await committed(client, sandbox)

        assert (counted.status, counted.digest) == (image_pb2.IMAGE_STATUS_DISCARDED, ""), counted
        assert image.status == image_pb2.IMAGE_STATUS_ACTIVE, image
        assert len(image.phases) == 5
        assert 2_000_000 < image.raw_bytes < 20_000_000
        assert counted.raw_bytes == image.raw_bytes
        assert any(path.endswith("root/.netrc") for each in image.left_out for path in each.paths), image.left_out
        repository = user_repository(ClientId(stack.client_id), FreelancerId(sandbox.freelancer))
        own = await registry.manifest(repository, image.name.rpartition("/")[2], timeout=SOON)
        assert own.digest == image.digest

        async def is_told() -> bool:  # after the commit has ended
            with suppress(NotFoundError):
                return (await registry.manifest(repository, "latest", timeout=SOON)).digest == image.digest
            return False

        await eventually(is_told, within=60, every=0.2, what="the tag latest is told")
        signature = f"sha256-{image.digest.removeprefix('sha256:')}.sig"
        assert signature in await registry.tags(repository, timeout=SOON)
        again = await committed(client, sandbox)
        assert (again.status, again.unchanged, again.digest) == (image_pb2.IMAGE_STATUS_DISCARDED, True, image.digest)

        await client.pause(sandbox.name)
        resumed = await client.resume(sandbox.name)
        there = stack.inside(sandbox, "sh", "-c", LOOK)

        assert resumed.image == image.name
        log = (stack.home / "serve.log").read_text()
        assert "image.not_trusted" not in log
        assert "image.signature_unknown" not in log
        await eventually(lambda: has_sbom(client, image.name), within=60)
        sbom, document = await client.images.sbom(image.name)
        purls = {one.get("purl", "").partition("@")[0] for one in json.loads(document)["components"]}
        assert {"pkg:deb/debian/bash", "pkg:deb/debian/base-files"} <= purls
        assert sbom.packages == len(json.loads(document)["components"]) > 50
        assert stack.pod(sandbox)["spec"]["containers"][0]["image"] == image.reference
        assert there.splitlines() == [
            "it runs",
            "6755 1000 2",
            "700",
            "gone",
            "directory",
            "no secret",
            f"{digest}  /opt/random",
        ]

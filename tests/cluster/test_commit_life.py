"""What is installed stays, whole: after a pause and a lost pod; and a rollback takes it away again."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.dev.cluster import by_digest
from sandboxd.v1 import image_pb2, sandbox_pb2
from tests.cluster.stack import ClusterStack, a_keeping_stack, committed, image_of
from tests.e2e.stack import Transcript
from tests.eventually import eventually
from tests.installation import ClusterInstallation

pytestmark = pytest.mark.timeout(600)
SOON = timedelta(seconds=20)
INSTALL = r"""set -e
cd "$(mktemp -d)"
mkdir -p kept/DEBIAN kept/usr/bin kept/var/log/kept
printf 'Package: kept\nVersion: 1\nArchitecture: all\nMaintainer: T <t@example.test>\nDescription: kept\n' \
  > kept/DEBIAN/control
printf '#!/bin/sh\necho kept\n' > kept/usr/bin/kept
chmod 4755 kept/usr/bin/kept
dpkg-deb --root-owner-group --build kept > /dev/null
dpkg --install kept.deb > /dev/null
install -d -o 1000 -g 1000 /opt/mine
ln /usr/bin/kept /opt/mine/twin
ln -s /usr/bin/kept /opt/mine/link
rm -r /usr/share/doc/bash
install -o 1000 -g 1000 -m 6755 /usr/bin/kept /opt/mine/two-bits
chmod 700 /usr/share/misc
head -c 2000000 /dev/urandom > /opt/random
printf 'PRIVATE' > /root/.netrc
sha256sum < /opt/random
"""
SEEN = r"""dpkg --status kept | grep Status; kept; stat -c '%a %U %h' /usr/bin/kept /opt/mine/twin /opt/mine
readlink /opt/mine/link; ls -d /var/log/kept; ls /usr/share/doc/bash 2>/dev/null | wc -l
ls -A /root/.netrc 2>/dev/null | wc -l
stat -c '%a %U' /opt/mine/two-bits /usr/share/misc; sha256sum < /opt/random
"""
FOUND = """Status: install ok installed
kept
4755 root 2
4755 root 2
755 gemini 2
/usr/bin/kept
/var/log/kept
0
0
6755 gemini
700 root
"""


@pytest.fixture
async def stack(cluster_installation: ClusterInstallation, postgres_url: str) -> AsyncIterator[ClusterStack]:
    async with a_keeping_stack(cluster_installation, postgres_url, prefix=f"kept-{uuid.uuid4().hex[:8]}") as made:
        yield made


def found(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox) -> str:
    return stack.inside(sandbox, "sh", "-c", SEEN)


async def test_what_is_installed_is_there_after_a_commit_a_pause_a_lost_pod_and_a_rollback_takes_it_away(
    stack: ClusterStack,
) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        nothing = await committed(client, sandbox)
        assert nothing.status == image_pb2.IMAGE_STATUS_DISCARDED, nothing
        everything = FOUND + stack.inside(sandbox, "sh", "-c", INSTALL)

        dry = await committed(client, sandbox, dry_run=True)
        made = await committed(client, sandbox)
        assert not (await client.get(sandbox.name)).HasField("unsaved")
        again = await committed(client, sandbox)

        assert (dry.status, dry.digest) == (image_pb2.IMAGE_STATUS_DISCARDED, ""), dry
        assert made.status == image_pb2.IMAGE_STATUS_ACTIVE, made
        assert made.digest.startswith("sha256:")
        assert len(made.phases) == 5
        assert 2_000_000 < made.raw_bytes < 20_000_000
        assert dry.raw_bytes == made.raw_bytes
        assert (again.status, again.unchanged, again.digest) == (image_pb2.IMAGE_STATUS_DISCARDED, True, made.digest)

        await client.pause(sandbox.name)
        resumed = await client.resume(sandbox.name)
        assert resumed.image == made.name
        assert image_of(stack, sandbox) == made.reference
        assert found(stack, sandbox) == everything
        unchanged = await committed(client, sandbox)
        assert unchanged.status == image_pb2.IMAGE_STATUS_DISCARDED, unchanged

        stack.delete_pod(sandbox)

        async def lost() -> bool:
            return (await client.get(sandbox.name)).state_reason != ""

        await eventually(lost, within=60, what="the loss is seen")
        async with client.stream(sandbox.name) as stream:  # a use brings it back
            seen = Transcript(stream=stream)
            await seen.turn("fake:say(text=back)")
        assert found(stack, sandbox) == everything

        repository = made.reference.partition("@")[0].partition("/")[2]
        async with OciRegistry(stack.installation.cluster.registry, plain=True) as registry:
            for tag in ("latest", made.name.rpartition("/")[2]):
                assert (await registry.manifest(repository, tag, timeout=SOON)).digest == made.digest
        (secrets,) = [one for one in made.left_out if one.reason == "secret"]
        assert "/root/.netrc" in secrets.paths

        listed = [one async for one in client.images.list(sandbox.name)]
        assert [one.digest for one in listed] == [made.digest]

        stack.inside(sandbox, "sh", "-c", "touch /opt/mine/second && rm /usr/bin/kept")
        second = await committed(client, sandbox)
        assert second.status == image_pb2.IMAGE_STATUS_ACTIVE, second
        await client.images.rollback(made.name)
        await client.pause(sandbox.name)
        await client.resume(sandbox.name)
        assert made.digest in image_of(stack, sandbox)
        assert found(stack, sandbox) == everything
        assert "second" not in stack.inside(sandbox, "ls", "/opt/mine")


async def test_a_development_stack_names_its_base_by_digest_so_that_it_can_be_committed(
    cluster_installation: ClusterInstallation,
) -> None:
    place, _, digest = cluster_installation.images["sandbox"].partition("@")
    address = cluster_installation.cluster.registry
    local = f"localhost:{address.rpartition(':')[2]}/{place.partition('/')[2].partition(':')[0]}"
    async with OciRegistry(address, plain=True) as registry:
        found = await registry.manifest(local.partition("/")[2], digest, timeout=timedelta(seconds=10))
        tag = f"dev-{uuid.uuid4().hex[:8]}"
        await registry.push(local.partition("/")[2], tag, found, timeout=timedelta(seconds=10))

    assert await by_digest(f"{local}:{tag}") == f"{local}@{digest}"
    assert await by_digest(f"{local}:not-there") == f"{local}:not-there"
    assert await by_digest("registry.test/sandbox:1") == "registry.test/sandbox:1"
    assert await by_digest(f"{local}@{digest}") == f"{local}@{digest}"

"""A sandbox moves to another base: its packages are made again from real indexes, and a rollback moves it back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import uuid
import zipfile
from collections.abc import AsyncIterator

import pytest

from sandboxd.ctl.client import ApiError, Client
from sandboxd.v1 import image_pb2, sandbox_pb2
from tests.cluster.images import push_on_top
from tests.cluster.stack import ClusterStack, a_keeping_stack, committed
from tests.eventually import eventually
from tests.installation import ClusterInstallation

pytestmark = pytest.mark.timeout(600)
BUILD = r"""set -e
cd "$(mktemp -d)"
mkdir -p kept/DEBIAN kept/usr/bin
printf 'Package: kept\nVersion: 1\nArchitecture: all\nMaintainer: T <t@example.test>\nDescription: kept\n' \
  > kept/DEBIAN/control
printf '#!/bin/sh\necho kept\n' > kept/usr/bin/kept
chmod 755 kept/usr/bin/kept
dpkg-deb --root-owner-group --build kept > /dev/null
dpkg --install kept.deb > /dev/null
base64 -w0 kept.deb
"""
BY_HAND = "opt/mine/tool"
SEEN = "kept; python3 -c 'import tiny; print(tiny.WORD)'; ls /opt/index 2>/dev/null | wc -l; ls /opt/mine 2>/dev/null"


@pytest.fixture
async def stack(cluster_installation: ClusterInstallation, postgres_url: str) -> AsyncIterator[ClusterStack]:
    prefix = f"moved-{uuid.uuid4().hex[:8]}"
    async with a_keeping_stack(cluster_installation, postgres_url, prefix=prefix, own_template=True) as made:
        yield made


def a_wheel() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as wheel:
        wheel.writestr("tiny.py", "WORD = 'tiny'\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\ntiny-1.0.dist-info/RECORD,,\n")
    return stream.getvalue()


def an_index(package: bytes, wheel: bytes) -> dict[str, bytes]:
    """What a base has for apt and pip that knows no network."""
    listed = f"""Package: kept
Version: 1
Architecture: all
Maintainer: T <t@example.test>
Filename: ./kept.deb
Size: {len(package)}
SHA256: {hashlib.sha256(package).hexdigest()}
Description: kept
"""
    return {
        "opt/index/kept.deb": package,
        "opt/index/Packages": listed.encode(),
        "opt/index/tiny-1.0-py3-none-any.whl": wheel,
        "etc/apt/sources.list.d/debian.sources": b"",
        "etc/apt/sources.list.d/index.list": b"deb [trusted=yes] file:/opt/index ./\n",
        "etc/pip.conf": b"[global]\nbreak-system-packages = true\nno-index = true\nfind-links = /opt/index\n",
    }


def found(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox) -> list[str]:
    return stack.inside(sandbox, "sh", "-c", SEEN, check=False).splitlines()


async def upgraded(client: Client, sandbox: sandbox_pb2.Sandbox, *, skip: bool) -> image_pb2.Image:
    begun = await client.images.begin_upgrade(sandbox.name, skip=skip)
    async with asyncio.timeout(240):
        return [image async for image in client.images.follow(begun.name)][-1]


async def test_packages_are_made_again_on_a_new_base_which_is_started_from_and_left_again_by_a_rollback(
    stack: ClusterStack,
) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        package = base64.b64decode(stack.inside(sandbox, "sh", "-c", BUILD))
        wheel = base64.b64encode(a_wheel()).decode()
        place = "/tmp/tiny-1.0-py3-none-any.whl"
        stack.inside(
            sandbox,
            "sh",
            "-ec",
            f"echo {wheel} | base64 -d > {place}; HOME=/root python3 -m pip install --quiet --no-index {place};"
            f"mkdir -p /opt/mine; touch /{BY_HAND}",
        )

        async def noticed() -> bool:
            listed = await client.packages.list(sandbox.name, unsaved=True)
            return {one.name for one in listed.packages} >= {"kept", "tiny"}

        await eventually(noticed, within=60, every=0.5, what="the agent sees both packages")
        first = await committed(client, sandbox)
        assert first.status == image_pb2.IMAGE_STATUS_ACTIVE, first
        assert found(stack, sandbox) == ["kept", "tiny", "0", "tool"]
        assert not (await client.images.plan_upgrade(sandbox.name)).needed
        base = await push_on_top(
            stack.installation.cluster.registry,
            stack.installation.images["sandbox"],
            an_index(package, a_wheel()),
        )
        stack.apply_template(image=base)
        with pytest.raises(ApiError) as running:
            await client.images.begin_upgrade(sandbox.name, skip=False)
        assert running.value.reason == "SANDBOX_NOT_RESTING"

        async def known() -> bool:
            return (await client.images.plan_upgrade(sandbox.name)).needed

        await eventually(known, within=60, every=0.5, what="the service knows the new base")
        await client.pause(sandbox.name)

        plan = await client.images.plan_upgrade(sandbox.name)
        strict = await upgraded(client, sandbox, skip=False)
        made = await upgraded(client, sandbox, skip=True)

        assert (plan.needed, plan.new_base) == (True, base)
        assert [(one.name, one.version, one.action) for one in plan.packages] == [
            ("kept", "1", image_pb2.REPLAY_ACTION_INSTALL),
            ("tiny", "1.0", image_pb2.REPLAY_ACTION_INSTALL),
        ]
        assert strict.failure.reason == "REPLAY_INCOMPLETE", strict
        assert BY_HAND in strict.failure.message
        assert (made.status, made.base) == (image_pb2.IMAGE_STATUS_ACTIVE, base), made
        left_out = {one.reason: list(one.paths) for one in made.left_out}
        assert left_out["by_hand"] == [BY_HAND]
        assert "package_failed" not in left_out
        assert "package_version" not in left_out
        assert "base was upgraded" in (await client.get(sandbox.name)).state_reason
        names = stack.kubectl("get", "sandboxes.sandboxd.dev", "-o", "name").split()
        assert [name.rpartition("/")[2] for name in names] == [sandbox.name.rpartition("/")[2]]

        await client.resume(sandbox.name)
        assert found(stack, sandbox) == ["kept", "tiny", "3"]
        assert "ok installed" in stack.inside(sandbox, "dpkg", "--status", "kept")
        unchanged = await committed(client, sandbox)
        assert unchanged.status == image_pb2.IMAGE_STATUS_DISCARDED, unchanged

        await client.images.rollback(first.name)
        await client.pause(sandbox.name)
        await client.resume(sandbox.name)
        assert found(stack, sandbox) == ["kept", "tiny", "0", "tool"]

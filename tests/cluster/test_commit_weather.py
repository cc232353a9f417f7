"""Commits in bad weather, on real pods: what fails is told and changes nothing, and the next commit works.

One service for all tests of this file. It reaches the cluster's registry through a front that spoils exchanges, and
writes layers on a disk of some megabytes.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from sandboxd.ctl.client import Client
from sandboxd.model.cluster import pod_of
from sandboxd.v1 import image_pb2 as pb
from sandboxd.v1 import sandbox_pb2
from tests.cluster.installs import an_install
from tests.cluster.stack import ClusterStack, a_keeping_stack, committed, image_of, sandbox_id
from tests.eventually import eventually
from tests.installation import ClusterInstallation
from tests.postgres import PostgresServer
from tests.registry_front import Front, RealRegistry, a_front
from tests.small_disk import SmallDisk, small_disk

pytestmark = [pytest.mark.timeout(400), pytest.mark.asyncio(loop_scope="module")]
SPOOL_MEGABYTES = 48
LARGE = f"head -c {(SPOOL_MEGABYTES + 32) << 20} /dev/urandom > /opt/large"
"""More than the service has room for, and far more than what lies between an agent and a writer that stands still."""
ACTIVE, FAILED = pb.IMAGE_STATUS_ACTIVE, pb.IMAGE_STATUS_FAILED


@dataclass(kw_only=True)
class Weather:
    """The service, and what is around it."""

    stack: ClusterStack
    front: Front
    disk: SmallDisk

    def clear_up(self) -> None:
        """Let everything pass again."""
        self.front.before = self.front.after = lambda _: None

    async def registry_goes(self) -> None:
        """No connection is taken, and those that are open break."""
        await self.front.cut()
        self.front.before = cut_off

    async def registry_comes_back(self) -> None:
        self.clear_up()
        await self.front.restore()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def weather(
    cluster_installation: ClusterInstallation, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Weather]:
    database = await postgres_server.clone()
    registry = RealRegistry(address=cluster_installation.cluster.registry, root=Path("/nonexistent"))
    place = tmp_path_factory.mktemp("spool")
    with small_disk(place / "disk", megabytes=SPOOL_MEGABYTES) as disk:
        async with (
            a_front(registry) as front,
            a_keeping_stack(
                cluster_installation,
                postgres_server.url(database),
                prefix=f"weather-{cluster_installation.instance}",
                settings={
                    "SANDBOXD_IMAGES_REGISTRY_ADDRESS": front.address,
                    "SANDBOXD_IMAGES_SPOOL_DIR": str(disk.path / "spool"),
                    "SANDBOXD_IMAGES_SPOOL_FREE_BYTES": str(4 << 20),
                },
            ) as stack,
        ):
            yield Weather(stack=stack, front=front, disk=disk)
    await postgres_server.drop(database)


def cut_off(request: web.Request) -> web.Response:
    """Break the connection instead of answering."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def is_last_byte(request: web.Request) -> bool:
    """An upload of a blob ends with this request."""
    return request.method == "PUT" and "/blobs/uploads/" in request.path


async def refused(client: Client, sandbox: sandbox_pb2.Sandbox) -> pb.CommitFailure:
    """Commit, which fails and leaves what was active."""
    before = (await client.get(sandbox.name)).image
    image = await committed(client, sandbox)
    assert image.status == FAILED, image
    assert (await client.get(sandbox.name)).image == before
    return image.failure


async def test_a_registry_that_is_away_or_breaks_at_the_last_byte_and_a_full_spool_fail_one_commit_each(
    weather: Weather,
) -> None:
    stack, front = weather.stack, weather.front
    async with stack.client() as client:
        sandbox = await client.create()
        an_install(stack, sandbox, "kept")

        await weather.registry_goes()
        away = await refused(client, sandbox)
        await weather.registry_comes_back()

        assert (away.reason, "cannot be reached" in away.message) == ("UNAVAILABLE", True), away

        front.before = lambda request: web.Response(status=500) if is_last_byte(request) else None
        broken = await refused(client, sandbox)
        weather.clear_up()

        assert (broken.reason, "answers 500 to PUT" in broken.message) == ("UNAVAILABLE", True), broken

        stack.inside(sandbox, "sh", "-c", LARGE)
        full = await refused(client, sandbox)
        stack.inside(sandbox, "rm", "/opt/large")

        assert full.reason in ("SPOOL_FULL", "LAYER_WRITER_FAILED"), full
        assert "room" in full.message or "full" in full.message
        assert [*(weather.disk.path / "spool").glob("build-*")] == []

        spoiled = list[str]()

        def once(request: web.Request) -> web.Response | None:
            """The first last byte is answered with 500 before the registry has it, the second is lost unanswered."""
            if not is_last_byte(request) or len(spoiled) == 2:
                return None
            spoiled.append(request.path)
            return web.Response(status=500) if len(spoiled) == 1 else cut_off(request)

        front.before = once
        made = await committed(client, sandbox)
        weather.clear_up()

        assert len(spoiled) == 2
        assert made.status == ACTIVE, made
        assert not (await client.get(sandbox.name)).HasField("unsaved")
        await client.pause(sandbox.name)
        await client.resume(sandbox.name)
        assert stack.inside(sandbox, "kept") == "kept\n"
        assert image_of(stack, sandbox) == made.reference


def writer_of(stack: ClusterStack) -> psutil.Process:
    """The process that writes a layer for the service."""
    for child in psutil.Process(stack.processes["serve"].pid).children():
        with suppress(psutil.Error):
            if any("layer_worker" in word for word in child.cmdline()):
                return child
    raise AssertionError("nobody writes a layer")


async def test_a_pod_that_is_lost_under_its_capture_is_told_with_what_is_lost_and_the_last_image_is_started(
    weather: Weather,
) -> None:
    stack = weather.stack
    async with stack.client() as client:
        sandbox = await client.create()
        an_install(stack, sandbox, "kept")
        made = await committed(client, sandbox)
        assert made.status == ACTIVE, made

        an_install(stack, sandbox, "lost")

        async def is_noticed() -> bool:
            return (await client.get(sandbox.name)).unsaved.packages == 1

        await eventually(is_noticed, within=60, every=0.2)
        stack.inside(sandbox, "sh", "-c", LARGE)
        begun = await client.images.begin(sandbox.name)
        writer = await eventually(lambda: writer_of(stack), within=60)
        writer.send_signal(signal.SIGSTOP)  # so the capture is in its middle, however fast this machine is
        try:
            pod = pod_of(sandbox_id(sandbox))
            await asyncio.to_thread(stack.kubectl, "delete", "pod", pod, "--grace-period=1", "--wait=true")
        finally:
            with suppress(psutil.NoSuchProcess):
                writer.send_signal(signal.SIGCONT)
        async with asyncio.timeout(120):
            overtaken = [image async for image in client.images.follow(begun.name)][-1]

        assert (overtaken.status, overtaken.failure.reason) == (FAILED, "COMMIT_OVERTAKEN"), overtaken
        lost = await client.get(sandbox.name)
        assert lost.state_reason in overtaken.failure.message
        assert "1 package(s) among it" in lost.state_reason
        assert "is lost" in lost.state_reason

        await client.pause(sandbox.name)
        resumed = await client.resume(sandbox.name)

        assert (resumed.image, image_of(stack, sandbox)) == (made.name, made.reference)
        assert stack.inside(sandbox, "kept") == "kept\n"
        assert stack.inside(sandbox, "sh", "-c", "command -v lost || echo gone") == "gone\n"

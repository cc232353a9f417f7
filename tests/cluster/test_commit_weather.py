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
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.ctl.client import Client, connect
from sandboxd.dev.identity import DevIssuer
from sandboxd.model.cluster import pod_of
from sandboxd.persistence.engine import plain_url
from sandboxd.settings import Settings
from sandboxd.v1 import image_pb2 as pb
from sandboxd.v1 import sandbox_pb2
from tests.cluster.images import own_image
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
SOON = timedelta(seconds=20)
ACTIVE, FAILED = pb.IMAGE_STATUS_ACTIVE, pb.IMAGE_STATUS_FAILED


@dataclass(kw_only=True)
class Weather:
    """The service, and what is around it."""

    stack: ClusterStack
    front: Front
    disk: SmallDisk
    platform_token: str

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
            issuer = DevIssuer.open(Settings(data_dir=stack.home))
            token = issuer.mint(client="ops", subject="ops", role="platform", seconds=3600)
            yield Weather(stack=stack, front=front, disk=disk, platform_token=token)
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
        assert "1 package among it" in lost.state_reason
        assert "is lost" in lost.state_reason

        await client.pause(sandbox.name)
        resumed = await client.resume(sandbox.name)

        assert (resumed.image, image_of(stack, sandbox)) == (made.name, made.reference)
        assert stack.inside(sandbox, "kept") == "kept\n"
        assert stack.inside(sandbox, "sh", "-c", "command -v lost || echo gone") == "gone\n"


async def pretend(stack: ClusterStack, image: pb.Image, reference: str) -> None:
    """Let the next start take something else for an image: a probe has let that pass, and it does not boot."""
    connection = await asyncpg.connect(plain_url(stack.database_url))
    try:
        changed = await connection.execute(
            "UPDATE sandboxes SET image_reference = split_part(image_reference, '@', 1) || '@' || $1::text"
            " WHERE image_reference LIKE '%@' || $2::text",
            reference.rpartition("@")[2],
            image.digest,
        )
    finally:
        await connection.close()
    assert changed == "UPDATE 1"


async def test_an_image_that_does_not_boot_or_is_lost_is_not_started_and_that_is_told(weather: Weather) -> None:
    stack, registry = weather.stack, weather.stack.installation.cluster.registry
    async with (
        stack.client() as client,
        OciRegistry(registry, plain=True) as clear,
        connect(f"127.0.0.1:{stack.ports['grpc']}", token=weather.platform_token) as platform,
    ):
        sandbox = await client.create()
        an_install(stack, sandbox, "first")
        first = await committed(client, sandbox)
        an_install(stack, sandbox, "second")
        second = await committed(client, sandbox)
        assert [first.status, second.status] == [ACTIVE] * 2, (first, second)

        broken = await own_image(
            registry,
            stack.installation.images["sandbox"],
            {"workspace": b"no directory"},
            repository=second.reference.partition("@")[0].partition("/")[2],
        )
        await client.pause(sandbox.name)
        await pretend(stack, second, broken)
        resumed = await client.resume(sandbox.name)

        assert resumed.image == first.name
        assert "does not boot" in resumed.state_reason
        assert stack.inside(sandbox, "first") == "first\n"
        assert image_of(stack, sandbox) == first.reference

        repository, digest = first.reference.partition("/")[2].split("@")
        await clear.delete(repository, digest, timeout=SOON)
        swept = await platform.admin.sweep(["images"])
        assert [one.failure for one in swept.results] == [""], swept

        told = await client.get(sandbox.name)
        assert (told.image, "is lost; the next start takes the base" in told.state_reason) == ("", True), told
        assert stack.inside(sandbox, "first") == "first\n", "what runs goes on"


async def test_an_install_is_committed_when_it_is_quiet_and_a_stop_only_when_that_is_kept(weather: Weather) -> None:
    stack = weather.stack
    stack.settings |= {
        "SANDBOXD_SWEEP_SECONDS": "0.5",
        "SANDBOXD_ANNOUNCE_SECONDS": "0",
        "SANDBOXD_IMAGES_INSTALL_SECONDS": "2",
        "SANDBOXD_HIBERNATE_AFTER_SECONDS": "2",
        "SANDBOXD_STOP_AFTER_SECONDS": "2",
    }
    async with stack.client() as client:
        sandbox = await client.create()
        await awake(client, sandbox, timedelta(hours=1))
    await stack.restart("serve")
    async with stack.client() as client:
        an_install(stack, sandbox, "quiet")

        async def is_committed() -> bool:
            return (await newest(client, sandbox)).status == ACTIVE

        await eventually(is_committed, within=120, every=0.2, what="the install is committed")
        installed = await newest(client, sandbox)
        assert installed.trigger == pb.COMMIT_TRIGGER_INSTALL
        assert not (await client.get(sandbox.name)).HasField("unsaved")

        stack.inside(sandbox, "touch", "/opt/later")
        await weather.registry_goes()
        await awake(client, sandbox, timedelta(seconds=1))

        async def is_frozen() -> bool:
            return (await client.get(sandbox.name)).state == sandbox_pb2.SANDBOX_STATE_HIBERNATED

        await eventually(is_frozen, within=120, every=0.2, what="what cannot be kept hibernates")
        tried = [one async for one in client.images.list(sandbox.name, everything=True)]
        assert pb.COMMIT_TRIGGER_STOP in {one.trigger for one in tried if one.status == FAILED}
        assert pod_of(sandbox_id(sandbox)) in stack.kubectl("get", "pods", "-o", "name")

        await weather.registry_comes_back()

        async def is_stopped() -> bool:
            return (await client.get(sandbox.name)).state == sandbox_pb2.SANDBOX_STATE_STOPPED

        await eventually(is_stopped, within=180, every=0.2, what="what is kept is stopped")
        kept = await newest(client, sandbox)
        assert (kept.status, kept.trigger) == (ACTIVE, pb.COMMIT_TRIGGER_STOP)
        assert stack.pod(sandbox) == {}
        assert stack.resource(sandbox)["spec"]["image"] == kept.reference


async def awake(client: Client, sandbox: sandbox_pb2.Sandbox, span: timedelta) -> None:
    """Let a sandbox count as used for so long."""
    changed = await client.get(sandbox.name)
    changed.keep_awake_until.FromDatetime(datetime.now(UTC) + span)
    await client.update(changed, ["keep_awake_until"])


async def newest(client: Client, sandbox: sandbox_pb2.Sandbox) -> pb.Image:
    """The latest commit; an empty one where there is none."""
    return next(iter([one async for one in client.images.list(sandbox.name, everything=True)]), pb.Image())

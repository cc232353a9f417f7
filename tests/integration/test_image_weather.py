"""Images built on a real registry in bad weather: what ends well, what is refused in words, and that nothing stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.model.errors import DeadlineError, ExhaustedError, UnavailableError
from tests.build_world import REPOSITORY, BuildWorld
from tests.oci_images import SOON
from tests.registry_front import Front, a_front, a_registry

pytestmark = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="needs docker-registry (Debian: apt-get install docker-registry)"
)
CHUNK = 64 << 10
BASE_FILES = {b"bin/sh", b"etc/passwd", b"usr/share/doc/old"}


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with a_registry(tmp_path) as real, a_front(real) as front:
        yield front


@pytest.fixture
async def world(front: Front, tmp_path: Path) -> AsyncIterator[BuildWorld]:
    async with OciRegistry(front.address, plain=True, chunk_bytes=CHUNK) as client:
        world = await BuildWorld.make(client, tmp_path)
        world.capture.put(b"opt/a", os.urandom(3 * CHUNK))
        front.seen.clear()
        yield world
        assert front.registry.open_uploads() == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "PUT"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_every_exchange_may_fail_once(world: BuildWorld, front: Front, method: str, when: str) -> None:
    """`after`: the registry has done it and its answer was lost, as of a manifest that it took."""
    failed: set[str] = set()

    def fail(request: web.Request) -> web.Response | None:
        what = "/".join(request.path.partition(REPOSITORY)[2].split("/")[:3])  # every kind of it once
        if request.method != method or what in failed:
            return None
        failed.add(what)
        return web.Response(status=500)

    setattr(front, when, fail)

    built = await world.build()

    assert failed
    if (method, when) == ("PATCH", "after"):
        # docker-registry ends such a session with the next request, but keeps its mark until it sweeps uploads itself.
        for mark in front.registry.open_uploads():
            mark.unlink()
    front.before = front.after = lambda _: None
    assert (await world.files_of(built)).keys() == BASE_FILES | {b"opt/a"}
    assert await world.registry.tags(REPOSITORY, timeout=SOON) == ["g000001"]


async def test_the_last_byte_that_is_always_refused_leaves_no_image(world: BuildWorld, front: Front) -> None:
    front.before = lambda request: web.Response(status=500) if request.method == "PUT" else None

    with pytest.raises(UnavailableError, match="answers 500 to PUT"):
        await world.build()

    front.before = lambda _: None
    assert await world.registry.tags(REPOSITORY, timeout=SOON) == []
    assert not (await world.build()).unchanged


@pytest.mark.parametrize("path", ["blobs/uploads", "manifests"])
async def test_a_full_quota_is_told_and_nothing_is_tried_again(world: BuildWorld, front: Front, path: str) -> None:
    errors = {"errors": [{"code": "DENIED", "message": "adding 200 KiB will exceed the quota of project client-a"}]}
    refused: list[str] = []

    def refuse(request: web.Request) -> web.Response | None:
        if request.method == "PUT" and path in request.path:
            refused.append(request.path)
            return web.json_response(errors, status=403)
        return None

    front.before = refuse

    with pytest.raises(ExhaustedError, match="quota of project client-a"):
        await world.build()

    assert len(refused) == 1
    front.before = lambda _: None
    assert await world.registry.tags(REPOSITORY, timeout=SOON) == []


async def test_a_registry_that_is_away_is_told_and_one_that_hangs_costs_no_more_than_the_time(
    world: BuildWorld, front: Front
) -> None:
    front.before = lambda _: web.Response(status=503)
    with pytest.raises(UnavailableError, match="answers 503"):
        await world.build()
    assert world.capture.captures == 0, "nothing is captured that cannot be pushed"

    front.before = lambda _: None
    front.slow["PATCH"] = 2.0
    with pytest.raises(DeadlineError):
        await world.build(timeout=timedelta(seconds=3))


async def test_a_registry_that_took_the_image_and_lost_a_blob_is_found_out(world: BuildWorld, front: Front) -> None:
    pushed: list[str] = []

    def lose(request: web.Request) -> web.Response | None:
        if request.method == "PUT" and "manifests" in request.path:
            pushed.append(request.path)
        lost = request.method == "HEAD" and pushed
        return web.Response(status=404) if lost else None

    front.before = lose

    with pytest.raises(UnavailableError, match="has no blob"):
        await world.build()

"""What every registry promises: the fake one, a real docker-registry, and a fake of Harbor before a real one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.backends.registry.harbor_api import HarborApi
from sandboxd.backends.registry.harbor_registry import HarborRegistry
from sandboxd.images.attaching import attach_sbom
from sandboxd.images.ports import ImageReference
from sandboxd.images.referrers import tag_of_subject
from sandboxd.images.registry import OCI_MANIFEST, Manifest, Registry, digest_of
from sandboxd.model.errors import NotFoundError, UnavailableError
from tests.fakes.registry import FakeRegistry
from tests.harbor import Harbor, a_harbor
from tests.harbor_state import SYSTEM
from tests.registry_front import a_registry

SOON = timedelta(seconds=20)
CHUNK = 64 << 10


@pytest.fixture(params=["fake", "real", "harbor"])
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Registry]:
    if request.param == "fake":
        yield FakeRegistry()
        return
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry (Debian: apt-get install docker-registry)")
    if request.param == "harbor":
        async with a_harbor(tmp_path) as harbor, harbor_client(harbor) as client:
            harbor.state.given_project("a")
            harbor.state.given_project("base")
            yield client
        assert harbor.registry.open_uploads() == []
        return
    async with a_registry(tmp_path) as real, OciRegistry(real.address, plain=True, chunk_bytes=CHUNK) as client:
        yield client
    assert real.open_uploads() == []


@asynccontextmanager
async def harbor_client(harbor: Harbor) -> AsyncIterator[HarborRegistry]:
    api = HarborApi(harbor.address, plain=True, authority=None, account=SYSTEM)
    client = HarborRegistry(harbor.address, api=api, plain=True, account=SYSTEM, chunk_bytes=CHUNK)
    async with client:
        yield client
    await api.close()


async def fetched(registry: Registry, content: bytes) -> bytes:
    digest = digest_of(content)
    return b"".join([x async for x in registry.blob("a/b", digest, size=len(content), timeout=SOON)])


async def test_what_is_pushed_is_pulled_byte_for_byte_until_it_is_deleted(registry: Registry, tmp_path: Path) -> None:
    layer, config = os.urandom(5 * CHUNK + 17), b"{}"
    (tmp_path / "layer").write_bytes(layer)
    blobs = [
        {"mediaType": "application/octet-stream", "digest": digest_of(one), "size": len(one)} for one in (config, layer)
    ]
    text = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blobs[0], "layers": blobs[1:]}
    manifest = Manifest(media_type=OCI_MANIFEST, content=json.dumps(text).encode())

    sent: list[int] = []
    await registry.upload("a/b", tmp_path / "layer", digest=digest_of(layer), timeout=SOON, sent=sent.append)
    await registry.upload("a/b", config, digest=digest_of(config), timeout=SOON)
    await registry.push("a/b", manifest.digest, manifest, timeout=SOON)
    for number in range(3):
        await registry.push("a/b", f"g{number:06}", manifest, timeout=SOON)

    assert sent == sorted(sent)
    assert sent[-1] == len(layer)
    assert await registry.manifest("a/b", "g000001", timeout=SOON) == manifest
    assert await registry.manifest("a/b", manifest.digest, timeout=SOON) == manifest
    assert await fetched(registry, layer) == layer
    assert sorted(await registry.tags("a/b", timeout=SOON)) == ["g000000", "g000001", "g000002"]
    assert await registry.tags("a/none", timeout=SOON) == []
    for _ in range(2):
        await registry.delete("a/b", manifest.digest, timeout=SOON)
    with pytest.raises(NotFoundError):
        await registry.manifest("a/b", "g000001", timeout=SOON)


async def an_image(registry: Registry, text: str) -> Manifest:
    await registry.upload("a/b", text.encode(), digest=digest_of(text.encode()), timeout=SOON)
    blob = {"mediaType": "application/octet-stream", "digest": digest_of(text.encode()), "size": len(text)}
    content = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": [blob]}
    manifest = Manifest(media_type=OCI_MANIFEST, content=json.dumps(content).encode())
    await registry.push("a/b", text, manifest, timeout=SOON)
    return manifest


async def test_what_is_attached_to_an_image_is_listed_there_and_goes_by_itself(registry: Registry) -> None:
    image, other = await an_image(registry, "g000001"), await an_image(registry, "g000002")
    reference = ImageReference(registry="registry.test", repository="a/b", digest=image.digest)
    assert await registry.attached("a/b", image.digest, timeout=SOON) == []

    made = [await attach_sbom(registry, reference, text, timeout=SOON) for text in (b"one", b"other", b"one")]

    assert made[0] == made[2]
    found = await registry.attached("a/b", image.digest, timeout=SOON)
    assert {one.digest for one in found} == {made[0].manifest.digest, made[1].manifest.digest}
    assert await registry.attached("a/b", other.digest, timeout=SOON) == []
    tag = tag_of_subject(image.digest, "sbom")
    assert (await registry.manifest("a/b", tag, timeout=SOON)).digest == made[0].manifest.digest, "the last one"
    assert await fetched(registry, b"one") == b"one"

    assert await registry.detach("a/b", image.digest, timeout=SOON) == 2
    assert await registry.detach("a/b", image.digest, timeout=SOON) == 0

    assert await registry.attached("a/b", image.digest, timeout=SOON) == []
    assert sorted(await registry.tags("a/b", timeout=SOON)) == ["g000001", "g000002"]
    assert await registry.manifest("a/b", "g000001", timeout=SOON) == image


async def test_a_blob_is_mounted_from_another_repository_and_a_refusal_leaves_no_upload(registry: Registry) -> None:
    await registry.upload("base/image", b"layer", digest=digest_of(b"layer"), timeout=SOON)

    assert await registry.mount("a/b", digest_of(b"layer"), source="base/image", timeout=SOON)
    assert not await registry.mount("a/b", digest_of(b"other"), source="base/image", timeout=SOON)

    assert await registry.has_blob("a/b", digest_of(b"layer"), timeout=SOON)
    assert not await registry.has_blob("a/b", digest_of(b"other"), timeout=SOON)


async def test_a_blob_of_another_size_is_refused_before_more_than_that_is_given(registry: Registry) -> None:
    content = os.urandom(1 << 20)
    await registry.upload("a/b", content, digest=digest_of(content), timeout=SOON)
    given = bytearray()

    async def take() -> None:
        async for piece in registry.blob("a/b", digest_of(content), size=1000, timeout=SOON):
            given.extend(piece)

    with pytest.raises(UnavailableError, match="other content"):
        await take()
    assert len(given) <= 1000


async def test_content_with_another_digest_is_refused_and_its_upload_taken_back(registry: Registry) -> None:
    with pytest.raises(UnavailableError, match="DIGEST_INVALID"):
        await registry.upload("a/b", b"one", digest=digest_of(b"other"), timeout=SOON)

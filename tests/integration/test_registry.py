"""The client of the OCI distribution API against a real docker-registry, also in bad weather."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web

from sandboxd.backends.registry.access import RegistryAccount
from sandboxd.backends.registry.client import OciRegistry
from sandboxd.images.attaching import attach_sbom
from sandboxd.images.ports import ImageReference
from sandboxd.images.referrers import Referrer, describe, make_index, tag_of_subject
from sandboxd.images.registry import OCI_INDEX, OCI_MANIFEST, Manifest, choose_platform, digest_of
from sandboxd.images.signing import Verdict
from sandboxd.model.errors import DeadlineError, ExhaustedError, NotFoundError, UnavailableError
from tests.eventually import eventually
from tests.fakes.image_keys import new_signatures
from tests.registry_front import Front, RealRegistry, a_front, a_registry

pytestmark = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="needs docker-registry (Debian: apt-get install docker-registry)"
)

SOON = timedelta(seconds=20)
CHUNK = 64 << 10
PASSWORDS = "us:$2b$04$ogU9zi.fFm/eDTs1bdAS1uQ9pd.o2p57Tv3Ycd4IARNhFESCW/mYG\n"


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[RealRegistry]:
    async with a_registry(tmp_path) as registry:
        yield registry


@pytest.fixture
async def front(real: RealRegistry) -> AsyncIterator[Front]:
    async with a_front(real) as front:
        yield front


def at(address: str, account: RegistryAccount | None = None) -> OciRegistry:
    return OciRegistry(address, plain=True, account=account, chunk_bytes=CHUNK)


async def fetched(registry: OciRegistry, content: bytes) -> bytes:
    digest = digest_of(content)
    return b"".join([x async for x in registry.blob("a/b", digest, size=len(content), timeout=SOON)])


async def given_image(registry: OciRegistry, tag: str) -> Manifest:
    await registry.upload("a/b", tag.encode(), digest=digest_of(tag.encode()), timeout=SOON)
    blob = {"mediaType": "application/octet-stream", "digest": digest_of(tag.encode()), "size": len(tag)}
    content = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": [blob]}
    manifest = Manifest(media_type=OCI_MANIFEST, content=json.dumps(content).encode())
    await registry.push("a/b", tag, manifest, timeout=SOON)
    return manifest


def named(image: Manifest) -> ImageReference:
    return ImageReference(registry="registry.test", repository="a/b", digest=image.digest)


async def test_a_registry_that_lists_what_is_attached_is_asked_and_gets_no_list(front: Front) -> None:
    listed = list[dict[str, object]]()

    def lists(request: web.Request) -> web.Response | None:
        if "/referrers/" in request.path:
            return web.json_response({"schemaVersion": 2, "manifests": listed}, content_type=OCI_INDEX)
        return None

    def takes(request: web.Request) -> web.Response | None:
        if request.method == "PUT" and request.path.endswith(".sbom"):
            return web.Response(status=201, headers={"OCI-Subject": image.digest})
        return None

    front.before, front.after = lists, takes
    async with at(front.address) as registry:
        image = await given_image(registry, "g000001")
        made = await attach_sbom(registry, named(image), b"{}", timeout=SOON)
        listed.append(describe(made.manifest)[1].to_json())

        found = await registry.attached("a/b", image.digest, timeout=SOON)

        assert found == [made.manifest]
        assert set(await registry.tags("a/b", timeout=SOON)) == {"g000001", tag_of_subject(image.digest, "sbom")}


async def test_a_list_that_names_what_is_not_attached_deletes_nothing(real: RealRegistry) -> None:
    async with at(real.address) as registry:
        image, other = await given_image(registry, "g000001"), await given_image(registry, "g000002")
        forged = make_index([Referrer(digest=other.digest, media_type=OCI_MANIFEST, size=len(other.content))])
        await registry.push("a/b", tag_of_subject(image.digest), forged, timeout=SOON)

        assert await registry.attached("a/b", image.digest, timeout=SOON) == []
        await registry.detach("a/b", image.digest, timeout=SOON)

        assert sorted(await registry.tags("a/b", timeout=SOON)) == ["g000001", "g000002"]


async def test_a_list_that_is_none_is_no_empty_one(real: RealRegistry) -> None:
    async with at(real.address) as registry:
        image = await given_image(registry, "g000001")
        await registry.push("a/b", tag_of_subject(image.digest), image, timeout=SOON)

        # An image where the list should be: it lists nothing, and is not deleted with what is attached to it.
        assert await registry.detach("a/b", image.digest, timeout=SOON) == 0
        assert await registry.manifest("a/b", "g000001", timeout=SOON) == image


async def test_signatures_of_two_keys_are_found_on_a_real_registry_and_go_with_their_image(real: RealRegistry) -> None:
    async with at(real.address) as registry:
        image = await given_image(registry, "g000001")
        await attach_sbom(registry, named(image), b"{}", timeout=SOON)
        first, second = new_signatures(registry), new_signatures(registry)

        assert await first.look(named(image)) is Verdict.MISSING
        assert await first.sign(named(image))
        assert await second.look(named(image)) is Verdict.BAD
        assert await second.sign(named(image))

        assert [await one.look(named(image)) for one in (first, second)] == [Verdict.GOOD, Verdict.GOOD]
        assert not await first.sign(named(image))
        assert set(await registry.tags("a/b", timeout=SOON)) == {
            "g000001",
            *(tag_of_subject(image.digest, kind) for kind in ("", "sbom", "sig")),
        }
        await registry.detach("a/b", image.digest, timeout=SOON)
        assert await registry.tags("a/b", timeout=SOON) == ["g000001"]


async def test_a_password_lets_in_where_it_is_asked_for(tmp_path: Path) -> None:
    async with a_registry(tmp_path, passwords=PASSWORDS) as real:
        async with at(real.address) as registry:
            with pytest.raises(UnavailableError, match="Look at the registry's account"):
                await registry.upload("a/b", b"one", digest=digest_of(b"one"), timeout=SOON)
        async with at(real.address, RegistryAccount(name="us", password="secret")) as registry:
            await registry.upload("a/b", b"one", digest=digest_of(b"one"), timeout=SOON)
            assert await fetched(registry, b"one") == b"one"


async def test_a_token_that_ends_in_the_middle_of_an_upload_is_renewed(front: Front) -> None:
    given: list[list[str]] = []
    patches = 0

    def guard(request: web.Request) -> web.Response | None:
        nonlocal patches
        if request.path == "/token":
            given.append(request.query.getall("scope"))
            return web.json_response({"token": f"token-{len(given)}"})
        patches += request.method == "PATCH"
        current = "token-2" if patches >= 2 else "token-1"
        if request.headers.get("Authorization") == f"Bearer {current}":
            return None
        realm = f'Bearer realm="http://{front.address}/token",service="test"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    front.before = guard
    content = os.urandom(3 * CHUNK)

    async with at(front.address) as registry:
        await registry.upload("a/b", content, digest=digest_of(content), timeout=SOON)

    assert given == [["repository:a/b:pull,push"]] * 2
    async with at(front.registry.address) as registry:
        assert await fetched(registry, content) == content


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
async def test_an_answer_lost_after_the_work_was_done_loses_no_byte(front: Front, method: str) -> None:
    lost = 0

    def lose(request: web.Request) -> web.Response | None:
        nonlocal lost
        lost += request.method == method
        return web.Response(status=500) if request.method == method and lost == 1 else None

    front.after = lose
    content = os.urandom(3 * CHUNK)

    async with at(front.address) as registry:
        await registry.upload("a/b", content, digest=digest_of(content), timeout=SOON)

        assert await fetched(registry, content) == content
    assert lost >= 1


@pytest.mark.parametrize("status", [416, 429, 503])
async def test_a_chunk_that_is_refused_for_now_is_sent_again(front: Front, status: int) -> None:
    refused = 0

    def refuse(request: web.Request) -> web.Response | None:
        nonlocal refused
        refused += request.method == "PATCH"
        return web.Response(status=status) if request.method == "PATCH" and refused == 2 else None

    front.before = refuse
    content = os.urandom(3 * CHUNK)

    async with at(front.address) as registry:
        await registry.upload("a/b", content, digest=digest_of(content), timeout=SOON)

        assert await fetched(registry, content) == content
    assert refused == 4


async def test_a_blob_that_is_refused_for_now_is_asked_for_again(front: Front) -> None:
    front.before = lambda _: web.Response(status=503) if front.seen.count("GET") < 3 else None
    async with at(front.registry.address) as registry:
        await registry.upload("a/b", b"one", digest=digest_of(b"one"), timeout=SOON)

    async with at(front.address) as registry:
        assert await fetched(registry, b"one") == b"one"

    assert front.seen == ["GET"] * 3


async def test_a_quota_that_is_full_is_told_and_not_tried_again(front: Front) -> None:
    errors = {"errors": [{"code": "DENIED", "message": "adding 3 bytes will exceed the quota of project a"}]}
    front.before = lambda request: web.json_response(errors, status=403) if request.method == "PUT" else None

    async with at(front.address) as registry:
        with pytest.raises(ExhaustedError, match="quota of project a"):
            await registry.upload("a/b", b"one", digest=digest_of(b"one"), timeout=SOON)

    assert front.seen.count("PUT") == 1
    assert front.registry.open_uploads() == []


async def test_a_cancelled_and_a_late_upload_are_taken_back(front: Front) -> None:
    content = os.urandom(3 * CHUNK)
    front.before = lambda request: web.Response(status=503) if request.method == "PUT" else None

    async with at(front.address) as registry:
        upload = registry.upload("a/b", content, digest=digest_of(content), timeout=SOON)
        task = asyncio.create_task(upload)
        await eventually(lambda: "PUT" in front.seen)
        assert front.registry.open_uploads() != []
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(DeadlineError):
            await registry.upload("a/b", content, digest=digest_of(content), timeout=timedelta(seconds=0.5))

    assert front.registry.open_uploads() == []


async def test_who_leaves_while_an_upload_is_opened_leaves_none_open(front: Front) -> None:
    front.slow["POST"] = 0.7
    async with at(front.registry.address) as registry:
        await registry.upload("base", b"one", digest=digest_of(b"one"), timeout=SOON)

    async with at(front.address) as registry:
        task = asyncio.create_task(registry.upload("a/b", b"two", digest=digest_of(b"two"), timeout=SOON))
        await eventually(lambda: front.registry.open_uploads() != [])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(DeadlineError):
            await registry.mount("a/b", digest_of(b"none"), source="base", timeout=timedelta(seconds=0.3))

    assert front.registry.open_uploads() == []


async def test_who_leaves_in_the_middle_of_a_chunk_leaves_no_upload_open(front: Front) -> None:
    content = os.urandom(4 * CHUNK)
    front.slow["PATCH"] = 0.5
    async with at(front.address) as registry:
        task = asyncio.create_task(registry.upload("a/b", content, digest=digest_of(content), timeout=SOON))
        await eventually(lambda: front.seen.count("PATCH") == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert "DELETE" in front.seen
    assert front.registry.open_uploads() == []


async def test_a_mount_that_is_refused_closes_what_was_opened_instead(front: Front) -> None:
    def no_mounts(request: web.Request) -> web.Response | None:
        return web.Response(status=503) if request.method == "DELETE" and front.seen.count("DELETE") == 1 else None

    front.before = no_mounts

    async with at(front.address) as registry:
        assert not await registry.mount("a/b", digest_of(b"none"), source="base", timeout=SOON)

    assert front.seen == ["POST", "DELETE", "DELETE"]
    assert front.registry.open_uploads() == []


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "GET"])
async def test_a_copy_through_us_survives_a_lost_answer_and_holds_a_chunk_at_a_time(front: Front, method: str) -> None:
    content = os.urandom(5 * CHUNK + 17)
    async with at(front.registry.address) as registry:
        await registry.upload("base", content, digest=digest_of(content), timeout=SOON)
    longest = 0

    def lose(request: web.Request) -> web.Response | None:
        nonlocal longest
        longest = max(longest, request.content_length or 0)
        return web.Response(status=500) if request.method == method and front.seen.count(method) == 2 else None

    front.after = lose
    async with at(front.address) as registry:
        await registry.copy("a/b", digest_of(content), size=len(content), source="base", timeout=SOON)

        assert await fetched(registry, content) == content
    assert longest == CHUNK
    # docker-registry ends a session whose chunk's answer was lost, but keeps its mark until it sweeps uploads itself.
    assert front.registry.open_uploads() == [] or method == "PATCH"


async def test_a_copy_of_what_is_nowhere_or_cut_opens_no_upload_that_stays(front: Front) -> None:
    content = os.urandom(3 * CHUNK)
    async with at(front.registry.address) as registry:
        await registry.upload("base", content, digest=digest_of(content), timeout=SOON)

    async with at(front.address) as registry:
        with pytest.raises(NotFoundError):
            await registry.copy("a/b", digest_of(b"none"), size=4, source="base", timeout=SOON)
        assert "POST" not in front.seen
        front.after = lambda request: web.Response(body=content[:-1]) if request.method == "GET" else None
        with pytest.raises(UnavailableError, match="other content"):
            await registry.copy("a/b", digest_of(content), size=len(content), source="base", timeout=SOON)

    assert front.registry.open_uploads() == []


async def test_a_registry_that_is_away_is_named() -> None:
    async with at("127.0.0.1:1") as registry:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 cannot be reached"):
            await registry.manifest("a/b", "latest", timeout=SOON)


def test_of_an_index_the_variant_of_the_machine_is_taken() -> None:
    listed = [
        {"digest": f"sha256:{name}", "platform": {"os": "linux", "architecture": name}} for name in ("amd64", "arm64")
    ]
    index = Manifest(media_type=OCI_INDEX, content=json.dumps({"manifests": listed}).encode())

    assert choose_platform(index, architecture="arm64") == "sha256:arm64"
    with pytest.raises(NotFoundError, match="linux/s390x"):
        choose_platform(index, architecture="s390x")
    with pytest.raises(UnavailableError):
        choose_platform(Manifest(media_type=OCI_INDEX, content=b"[]"), architecture="amd64")

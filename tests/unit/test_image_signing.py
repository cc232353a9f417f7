"""Signatures of images: what others verify by the published format, and what a start and a commit make of them.

`verified_by_the_book` knows nothing of our code: it reads the registry as cosign's specification says.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from typing_extensions import override

from sandboxd.backends.image_keys import KeyFileError, PemSigningKey, PemTrustedKeys
from sandboxd.images.manifests import Descriptor
from sandboxd.images.ports import ImageReference
from sandboxd.images.referrers import tag_of_subject
from sandboxd.images.registry import Manifest, digest_of
from sandboxd.images.signatures import SIGNATURES, carried, make_signature_manifest
from sandboxd.images.signing import ImageSignatures, SignaturePolicy, Verdict
from sandboxd.model.commit_errors import ImageUntrustedError
from sandboxd.model.errors import DeadlineError, UnavailableError
from sandboxd.model.image import Generation, GenerationStatus
from sandboxd.model.image_keeping import digest_of as image_digest
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.fakes.registry import FakeRegistry
from tests.image_care_world import REPOSITORY, ImageCareWorld
from tests.manager_world import SOON, a_request

TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"


def verified_by_the_book(registry: FakeRegistry, image: ImageReference, public: object) -> bool:
    manifests = registry.manifests[image.repository]
    signature_manifest = manifests.get(f"sha256-{image.digest.removeprefix('sha256:')}.sig")
    for layer in [] if signature_manifest is None else json.loads(signature_manifest.content)["layers"]:
        payload = registry.blobs[image.repository][layer["digest"]]
        signature = base64.b64decode(layer["annotations"][ANNOTATION])
        try:
            if isinstance(public, ec.EllipticCurvePublicKey):
                public.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
            else:
                assert isinstance(public, ed25519.Ed25519PublicKey)
                public.verify(signature, payload)
        except InvalidSignature:
            continue
        critical = json.loads(payload)["critical"]
        if (
            layer["mediaType"] == TYPE
            and critical["type"] == "cosign container image signature"
            and critical["image"]["docker-manifest-digest"] == image.digest
        ):
            return True
    return False


def signing(registry: FakeRegistry, key: PemSigningKey, *others: PemSigningKey) -> ImageSignatures:
    trusted = PemTrustedKeys([key.public, *(one.public for one in others)])
    return ImageSignatures(registry=registry, trusted=trusted, key=key)


def a_key() -> PemSigningKey:
    return PemSigningKey(ec.generate_private_key(ec.SECP256R1()))


async def given_image(registry: FakeRegistry, text: str = "one", *, repository: str = REPOSITORY) -> ImageReference:
    manifest = Manifest(media_type="application/vnd.oci.image.manifest.v1+json", content=f'"{text}"'.encode())
    await registry.push(repository, "g000001", manifest, timeout=SOON)
    return ImageReference(registry="registry.test:5000", repository=repository, digest=manifest.digest)


@pytest.mark.parametrize("kind", ["ecdsa", "ed25519"])
async def test_what_we_sign_others_verify_by_the_published_format(kind: str) -> None:
    registry = FakeRegistry()
    key = a_key() if kind == "ecdsa" else PemSigningKey(ed25519.Ed25519PrivateKey.generate())
    image = await given_image(registry)

    assert await signing(registry, key).sign(image)

    assert verified_by_the_book(registry, image, key.public)
    assert not verified_by_the_book(registry, image, a_key().public)
    assert await signing(registry, key).look(image) is Verdict.GOOD
    assert not await signing(registry, key).sign(image), "once is enough: the same bytes"
    (manifest,) = await registry.attached(REPOSITORY, image.digest, timeout=SOON)
    assert json.loads(manifest.content)["subject"]["digest"] == image.digest


async def test_a_new_key_adds_its_signature_and_leaves_the_old_one() -> None:
    registry, old, new = FakeRegistry(), a_key(), a_key()
    image = await given_image(registry)

    await signing(registry, old).sign(image)
    assert await signing(registry, new).look(image) is Verdict.BAD
    assert await signing(registry, new, old).look(image) is Verdict.GOOD
    await signing(registry, new).sign(image)

    for key in (old, new):
        assert verified_by_the_book(registry, image, key.public)
        assert await signing(registry, key).look(image) is Verdict.GOOD


async def test_a_signature_that_was_moved_to_another_image_is_none_of_it() -> None:
    registry, key = FakeRegistry(), a_key()
    image, other = await given_image(registry, "one"), await given_image(registry, "two")
    await signing(registry, key).sign(image)
    signature = registry.manifests[REPOSITORY][tag_of_subject(image.digest, "sig")]

    await registry.push(REPOSITORY, tag_of_subject(other.digest, "sig"), signature, timeout=SOON)

    assert await signing(registry, key).look(other) is Verdict.BAD
    assert not verified_by_the_book(registry, other, key.public)


async def test_a_signature_of_the_same_image_in_another_clients_repository_does_not_count() -> None:
    registry, key = FakeRegistry(), a_key()
    image = await given_image(registry)
    twin = await given_image(registry, repository="other/gemini-cli-user-eve")
    await signing(registry, key).sign(image)
    registry.manifests[twin.repository] |= registry.manifests[image.repository]
    registry.blobs[twin.repository] |= registry.blobs[image.repository]

    assert await signing(registry, key).look(twin) is Verdict.BAD


@pytest.mark.parametrize("tampered", ["payload", "signature", "lost", "garbage", "no_annotation", "other_type", "many"])
async def test_what_was_tampered_with_is_no_signature(tampered: str) -> None:
    registry, key = FakeRegistry(), a_key()
    image = await given_image(registry)
    await signing(registry, key).sign(image)
    tag = tag_of_subject(image.digest, "sig")
    said = json.loads(registry.manifests[REPOSITORY][tag].content)
    layer = said["layers"][0]
    payload = registry.blobs[REPOSITORY][layer["digest"]]
    if tampered == "payload":
        changed = payload.replace(image.digest.encode(), b"sha256:" + b"0" * 64)
        registry.blobs[REPOSITORY][digest_of(changed)] = changed
        layer |= {"digest": digest_of(changed), "size": len(changed)}
    elif tampered == "signature":
        signature = bytearray(base64.b64decode(layer["annotations"][ANNOTATION]))
        signature[-1] ^= 1
        layer["annotations"][ANNOTATION] = base64.b64encode(signature).decode()
    elif tampered == "lost":
        del registry.blobs[REPOSITORY][layer["digest"]]
    elif tampered == "garbage":
        layer["annotations"][ANNOTATION] = "§"
    elif tampered == "no_annotation":
        del layer["annotations"]
    elif tampered == "other_type":
        layer["mediaType"] = "application/octet-stream"
    else:
        bad = {**layer, "annotations": {ANNOTATION: base64.b64encode(b"x").decode()}}
        said["layers"] = [bad] * SIGNATURES + [layer]
    registry.manifests[REPOSITORY] = {
        name: one for name, one in registry.manifests[REPOSITORY].items() if name == image.digest
    }
    forged = Manifest(media_type=said["mediaType"], content=json.dumps(said).encode())
    await registry.push(REPOSITORY, tag, forged, timeout=SOON)

    assert await signing(registry, key).look(image) in (Verdict.BAD, Verdict.MISSING)


async def test_signatures_that_cannot_be_read_hide_no_good_one() -> None:
    registry, key = FakeRegistry(), a_key()
    image = await given_image(registry)
    subject = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=image.digest, size=5)
    for number in range(9):
        spoiled = carried(b"%d" % number, b"signature")
        registry.blobs[REPOSITORY][spoiled.document.digest] = b"of another length"
        manifest = make_signature_manifest([spoiled], subject=subject)
        await registry.attach(REPOSITORY, f"of-somebody-{number}", manifest, timeout=SOON)
    with pytest.raises(UnavailableError):
        await signing(registry, key).look(image)

    await signing(registry, key).sign(image)

    assert await signing(registry, key).look(image) is Verdict.GOOD


async def test_however_many_have_signed_before_ours_counts() -> None:
    registry, key = FakeRegistry(), a_key()
    image = await given_image(registry)
    for _ in range(SIGNATURES + 1):
        await signing(registry, a_key()).sign(image)

    await signing(registry, key).sign(image)

    assert await signing(registry, key).look(image) is Verdict.GOOD
    assert not await signing(registry, key).sign(image)


async def test_a_look_at_signatures_has_an_end() -> None:
    registry, key = FakeRegistry(), a_key()
    image = await given_image(registry)
    await signing(registry, key).sign(image)

    class Slow(FakeRegistry):
        @override
        async def attached(self, repository: str, subject: str, *, timeout: timedelta) -> Sequence[Manifest]:
            await asyncio.sleep(timeout.total_seconds())
            return []

    looking = replace(signing(Slow(), key), look_timeout=timedelta(milliseconds=20))

    with pytest.raises(DeadlineError):
        await looking.look(image)


async def test_an_image_that_nobody_has_signed_has_no_signature() -> None:
    registry = FakeRegistry()

    assert await signing(registry, a_key()).look(await given_image(registry)) is Verdict.MISSING


# ---------------------------------------------------------------------------------------------------------------- keys


def pem_of(key: object, *, password: bytes | None = None) -> bytes:
    assert isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey)
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def test_keys_are_read_from_files_and_the_former_ones_count(tmp_path: Path) -> None:
    own, former = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "own").write_bytes(pem_of(own))
    public = former.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "former.pem").write_bytes(public)
    (tmp_path / "README").write_text("no key")

    key = PemSigningKey.read(tmp_path / "own")
    trusted = PemTrustedKeys.read(tmp_path, own=key)

    assert len(trusted) == 2
    assert trusted.verifies(b"text", key.sign(b"text"))
    assert trusted.verifies(b"text", former.sign(b"text"))
    assert not trusted.verifies(b"other", key.sign(b"text"))
    assert key.sign(b"text") == key.sign(b"text")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        pem_of(ec.generate_private_key(ec.SECP384R1())),
        pem_of(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        pem_of(ec.generate_private_key(ec.SECP256R1()), password=b"secret"),
    ],
)
def test_what_is_no_key_of_ours_is_refused_by_its_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key.pem").write_bytes(content)

    with pytest.raises(KeyFileError, match=r"key\.pem must hold an ECDSA key"):
        PemSigningKey.read(tmp_path / "key.pem")
    with pytest.raises(KeyFileError, match=r"key\.pem must hold the public half"):
        PemTrustedKeys.read(tmp_path)
    with pytest.raises(KeyFileError, match="must be a directory"):
        PemTrustedKeys.read(tmp_path / "none")


# ------------------------------------------------------------------------------------------------- commits and starts


def a_world(policy: SignaturePolicy) -> ImageCareWorld:
    return ImageCareWorld(signing=True, policy=policy)


async def given_committed(world: ImageCareWorld) -> tuple[Sandbox, Generation]:
    sandbox = await world.given_active()
    return sandbox, await world.committed(sandbox, "with package 1")


async def started_again(world: ImageCareWorld, sandbox: Sandbox) -> Sandbox:
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    return await world.manager.resume(a_request(), sandbox.id, timeout=SOON)


def unsign(world: ImageCareWorld, image: Generation) -> None:
    there = world.registry.manifests[REPOSITORY]
    signature = there[tag_of_subject(image_digest(image), "sig")]
    world.registry.manifests[REPOSITORY] = {name: one for name, one in there.items() if one != signature}


async def test_a_commit_signs_its_image_before_anything_starts_from_it() -> None:
    world = a_world(SignaturePolicy.REQUIRE)

    sandbox, image = await given_committed(world)
    resumed = await started_again(world, sandbox)

    assert resumed.state is SandboxState.ACTIVE
    assert world.image_tools.signatures is not None
    key = world.image_tools.signatures.key
    assert isinstance(key, PemSigningKey)
    assert verified_by_the_book(world.registry, ImageReference.parse(image.reference), key.public)


async def test_an_image_without_a_signature_is_not_started_and_nothing_else_is_instead() -> None:
    world = a_world(SignaturePolicy.REQUIRE)
    sandbox, image = await given_committed(world)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    unsign(world, image)

    with pytest.raises(ImageUntrustedError, match="has no signature"):
        await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    failed = world.row(sandbox.id)
    assert failed.state is SandboxState.FAILED
    assert "g000001" in failed.state_reason
    assert failed.image == image.image, "it is not taken for a broken one"
    assert world.statuses() == ["active"]

    await world.care().run()
    resumed = await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    assert resumed.state is SandboxState.ACTIVE


@pytest.mark.parametrize("policy", [SignaturePolicy.WARN, SignaturePolicy.NEVER])
async def test_a_policy_that_does_not_demand_it_starts_what_is_not_signed(policy: SignaturePolicy) -> None:
    world = a_world(policy)
    sandbox, image = await given_committed(world)
    unsign(world, image)

    assert (await started_again(world, sandbox)).state is SandboxState.ACTIVE


async def test_where_the_registry_is_away_only_what_was_seen_to_be_signed_starts() -> None:
    world = a_world(SignaturePolicy.REQUIRE)
    sandbox, _ = await given_committed(world)
    await started_again(world, sandbox)
    world.registry.unreadable = UnavailableError("The registry cannot be reached.")

    assert (await started_again(world, sandbox)).state is SandboxState.ACTIVE, "this process has seen it"

    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    world.crash("first")
    _, other = world.replica("second")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await other.resume(a_request(), sandbox.id, timeout=SOON)


async def test_a_commit_whose_image_cannot_be_signed_fails_where_no_start_would_take_it() -> None:
    world = a_world(SignaturePolicy.REQUIRE)
    sandbox = await world.given_active()
    world.registry.error = UnavailableError("The registry answers 503.")

    with pytest.raises(UnavailableError, match="503"):
        await world.committed(sandbox, "with package 1")

    assert world.statuses() == ["failed"]
    assert world.row(sandbox.id).image is None


async def test_where_no_start_demands_it_the_care_signs_what_a_commit_could_not() -> None:
    world = a_world(SignaturePolicy.WARN)
    world.registry.error = UnavailableError("The registry answers 503.")
    _, image = await given_committed(world)
    assert image.status is GenerationStatus.ACTIVE
    world.registry.error = None

    dry = await world.care().run(dry_run=True)
    report = await world.care().run()

    assert [one.tag for one in dry.findings.unsigned] == ["g000001"]
    assert (report.signed, report.failed) == (1, 0)
    assert world.image_tools.signatures is not None
    assert await world.image_tools.signatures.look(ImageReference.parse(image.reference)) is Verdict.GOOD
    assert (await world.care().run()).signed == 0


async def test_without_a_key_nothing_is_signed() -> None:
    world = a_world(SignaturePolicy.NEVER)
    assert world.image_tools.signatures is not None
    world.image_tools = replace(world.image_tools, signatures=replace(world.image_tools.signatures, key=None))
    world.core, world.manager = world.replica("third")

    _, image = await given_committed(world)
    report = await world.care().run()

    assert report.signed == 0
    assert await world.registry.attached(REPOSITORY, image_digest(image), timeout=SOON) == []

"""Signs images with the service's key, and says of images whether somebody signed them who is trusted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final, Protocol

from sandboxd.images.attaching import upload_missing
from sandboxd.images.manifests import Descriptor
from sandboxd.images.ports import ImageReference
from sandboxd.images.referrers import tag_of_subject
from sandboxd.images.registry import Registry
from sandboxd.images.signatures import (
    SIGNATURE_TAG,
    SIGNATURES,
    CarriedSignature,
    carried,
    document_of,
    make_configuration,
    make_signature_manifest,
    names_image,
    read_signatures,
)
from sandboxd.model.errors import DeadlineError, NotFoundError, UnavailableError

SIGN_TIMEOUT: Final = timedelta(seconds=20)
"""For each call of the registry."""
LOOK_TIMEOUT: Final = timedelta(seconds=60)
"""For all of a look: whoever may push can attach more than anybody wants to read while a start waits."""


class SigningKey(Protocol):
    """The private half of the service's key."""

    def sign(self, document: bytes) -> bytes:
        """Sign, the same document by the same bytes."""
        ...


class TrustedKeys(Protocol):
    """The public halves of all keys whose signatures count."""

    def verifies(self, document: bytes, signature: bytes) -> bool:
        """Tell whether one of them made the signature."""
        ...


class SignaturePolicy(StrEnum):
    """What a start does about the signature of a sandbox's own image."""

    NEVER = "never"
    """It does not look."""
    WARN = "warn"
    """It looks, logs and counts what it finds, and goes on."""
    REQUIRE = "require"
    """It starts no image that is not signed, and a commit whose image cannot be signed fails."""


class Verdict(StrEnum):
    """What was found out about an image's signatures."""

    GOOD = "good"
    """A trusted key has signed it, by digest and repository."""
    MISSING = "missing"
    """Nobody has signed it."""
    BAD = "bad"
    """There are signatures, and none of them is of a trusted key for this image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSignatures:
    """Reads signatures from the registry, believing none, and writes ours."""

    registry: Registry
    trusted: TrustedKeys
    key: SigningKey | None = None
    """None where this installation only verifies."""
    look_timeout: timedelta = LOOK_TIMEOUT

    async def sign(self, image: ImageReference) -> bool:
        """Sign an image; False where our signature is there already. Signatures of others stay.

        Raises:
            NotFoundError: The registry has no such image.
            ExhaustedError, UnavailableError, DeadlineError: It does not take the signature now.
        """
        if self.key is None:
            return False
        registry, repository = self.registry, image.repository
        subject = await registry.manifest(repository, image.digest, timeout=SIGN_TIMEOUT)
        document = document_of(image)
        ours = carried(document, self.key.sign(document))
        tag = tag_of_subject(image.digest, SIGNATURE_TAG)
        try:
            present = read_signatures(await registry.manifest(repository, tag, timeout=SIGN_TIMEOUT))
        except NotFoundError:
            present = []
        if any((one.document, one.signature) == (ours.document, ours.signature) for one in present):
            return False
        signatures = [ours, *present[: SIGNATURES - 1]]  # ours first, or enough others would hide it
        for blob in (document, make_configuration(signatures)):
            await upload_missing(registry, repository, blob, timeout=SIGN_TIMEOUT)
        described = Descriptor(media_type=subject.media_type, digest=subject.digest, size=len(subject.content))
        manifest = make_signature_manifest(signatures, subject=described)
        await registry.attach(repository, tag, manifest, timeout=SIGN_TIMEOUT)
        return True

    async def look(self, image: ImageReference) -> Verdict:
        """Say whether an image is signed by a trusted key. One signature that cannot be read hides no other.

        Raises:
            UnavailableError, DeadlineError: The registry cannot be asked now.
        """
        try:
            async with asyncio.timeout(self.look_timeout.total_seconds()):
                return await self._look(image)
        except TimeoutError as error:
            raise DeadlineError(
                f"The signatures of {image} were not read within {self.look_timeout.total_seconds():.0f} s. Try again.",
                image=str(image),
            ) from error

    async def _look(self, image: ImageReference) -> Verdict:
        found, trouble = False, None
        attached = await self.registry.attached(image.repository, image.digest, timeout=SIGN_TIMEOUT)
        for one in (each for manifest in attached for each in read_signatures(manifest)):
            try:
                document = await self._document(image, one)
            except UnavailableError as error:
                trouble = error
                continue
            found = True
            if self.trusted.verifies(document, one.signature) and names_image(document, image):
                return Verdict.GOOD
        if trouble is not None:
            raise trouble
        return Verdict.BAD if found else Verdict.MISSING

    async def _document(self, image: ImageReference, one: CarriedSignature) -> bytes:
        """Read what was signed; what the registry has lost of it is as good as nothing."""
        pieces = self.registry.blob(image.repository, one.document.digest, size=one.document.size, timeout=SIGN_TIMEOUT)
        try:
            return b"".join([piece async for piece in pieces])
        except NotFoundError:
            return b""

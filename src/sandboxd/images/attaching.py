"""Attaches one document to an image: its blob, then the manifest that names the image. Safe to repeat."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sandboxd.images.manifests import Descriptor
from sandboxd.images.ports import ImageReference
from sandboxd.images.referrers import EMPTY, make_artifact, tag_of_subject
from sandboxd.images.registry import NO_COMMIT, Manifest, Registry, digest_of
from sandboxd.images.sbom import CYCLONEDX
from sandboxd.model.image import GenerationId

SBOM_TAG: Final = "sbom"
"""Kind of the tag: where `cosign download sbom` looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """Where a document is now."""

    manifest: Manifest
    document: Descriptor


async def attach_sbom(
    registry: Registry,
    image: ImageReference,
    document: bytes,
    *,
    timeout: timedelta,
    commit: GenerationId = NO_COMMIT,
) -> Attached:
    """Attach a list of packages to an image; the same document to the same image has the same digests.

    Args:
        registry: Where the image is.
        image: Which.
        document: In CycloneDX's JSON.
        timeout: For each call.
        commit: That the image is of.

    Raises:
        NotFoundError: The registry has no such image.
        ExhaustedError, UnavailableError, DeadlineError: It does not take it now.
    """
    subject = await registry.manifest(image.repository, image.digest, timeout=timeout)
    described = Descriptor(media_type=CYCLONEDX, digest=digest_of(document), size=len(document))
    manifest = make_artifact(
        described,
        artifact_type=CYCLONEDX,
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=len(subject.content)),
    )
    for blob in (document, EMPTY):
        await upload_missing(registry, image.repository, blob, timeout=timeout, commit=commit)
    await registry.attach(image.repository, tag_of_subject(image.digest, SBOM_TAG), manifest, timeout=timeout)
    return Attached(manifest=manifest, document=described)


async def upload_missing(
    registry: Registry, repository: str, blob: bytes, *, timeout: timedelta, commit: GenerationId = NO_COMMIT
) -> None:
    """Upload a blob where the repository does not have it. Raises as `Registry`."""
    digest = digest_of(blob)
    if not await registry.has_blob(repository, digest, timeout=timeout):
        await registry.upload(repository, blob, digest=digest, timeout=timeout, commit=commit)

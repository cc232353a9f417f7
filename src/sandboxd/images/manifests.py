"""Manifests and configurations of images: read, chosen by platform, and bounded. Nothing in them is believed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sandboxd.images.registry import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Manifest,
    Registry,
    choose_platform,
)
from sandboxd.model.image_errors import ImageInvalidError

CONFIG_BYTES: Final = 4 << 20
"""Longest configuration that is read: as a manifest's."""
LAYERS: Final = 127
"""Most layers: an overlay takes no more."""
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A blob as a manifest names it."""

    media_type: str
    digest: str
    size: int
    """Bytes."""

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """As it stands in a manifest."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageManifest:
    """What an image for one platform is made of."""

    manifest: Manifest
    config: Descriptor
    layers: tuple[Descriptor, ...]
    """The base's first."""

    @property
    def is_oci(self) -> bool:
        """Whether its media types are those of OCI, else Docker's."""
        return self.manifest.media_type == OCI_MANIFEST

    @property
    def size(self) -> int:
        """Bytes of all layers, compressed, and the configuration."""
        return sum(layer.size for layer in self.layers) + self.config.size


async def find_image(
    registry: Registry, repository: str, digest: str, *, architecture: str, timeout: timedelta
) -> ImageManifest:
    """Return the image of a digest, or of the index's entry for Linux on this architecture.

    Raises:
        NotFoundError: The registry has none, or the index none for it.
        ImageInvalidError: It is neither, or says what cannot be.
    """
    found = await registry.manifest(repository, digest, timeout=timeout)
    if found.media_type in {OCI_INDEX, DOCKER_INDEX}:
        chosen = choose_platform(found, architecture=architecture)
        found = await registry.manifest(repository, chosen, timeout=timeout)
    return read_manifest(found)


def read_manifest(manifest: Manifest) -> ImageManifest:
    """Read the manifest of an image for one platform.

    Raises:
        ImageInvalidError: It is none.
    """
    if manifest.media_type not in {OCI_MANIFEST, DOCKER_MANIFEST}:
        raise ImageInvalidError(
            f"{manifest.digest} is no image but of the type {manifest.media_type!r}.", digest=manifest.digest
        )
    try:
        said = json.loads(manifest.content)
        config = _descriptor(said["config"])
        layers = tuple(_descriptor(one) for one in said["layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise ImageInvalidError(f"The manifest {manifest.digest} cannot be read.", digest=manifest.digest) from error
    if not 0 < len(layers) <= LAYERS or config.size > CONFIG_BYTES:
        raise ImageInvalidError(
            f"The image {manifest.digest} has {len(layers)} layers and a configuration of {config.size} bytes.",
            digest=manifest.digest,
        )
    return ImageManifest(manifest=manifest, config=config, layers=layers)


async def read_config(
    registry: Registry, repository: str, image: ImageManifest, *, timeout: timedelta
) -> Mapping[str, Any]:  # Any: JSON
    """Return an image's configuration, which names as many layers as its manifest.

    Raises:
        ImageInvalidError: It does not.
    """
    pieces = [
        piece async for piece in registry.blob(repository, image.config.digest, size=image.config.size, timeout=timeout)
    ]
    try:
        said = json.loads(b"".join(pieces))
        ids = said["rootfs"]["diff_ids"]
        fits = len(ids) == len(image.layers) and all(_DIGEST.fullmatch(one) for one in ids)
    except (ValueError, KeyError, TypeError) as error:
        raise _bad_config(image) from error
    if not fits or not isinstance(said.get("config", {}), dict | None):
        raise _bad_config(image)
    return dict(said)


def diff_ids_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The digests of the layers' tars, the base's first."""
    return tuple(config["rootfs"]["diff_ids"])


def _bad_config(image: ImageManifest) -> ImageInvalidError:
    return ImageInvalidError(
        f"The configuration of {image.manifest.digest} does not fit its layers.", digest=image.manifest.digest
    )


def _descriptor(said: Any) -> Descriptor:
    digest, size = said["digest"], said["size"]
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or not isinstance(size, int) or size < 0:
        raise ValueError("no descriptor")
    return Descriptor(media_type=str(said["mediaType"]), digest=digest, size=size)

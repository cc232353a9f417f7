"""What an image of a base and one layer says: configuration and manifest, as bytes. Pure.

The same base, layer and labels give the same bytes, so a build that is repeated ends in the same digest. Everything is
told in OCI's media types: a base with Docker's has the same blobs, and both kinds in one manifest are not allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.images.manifests import Descriptor, ImageManifest, diff_ids_of
from sandboxd.images.ports import ImageReference, WrittenLayer
from sandboxd.images.registry import OCI_MANIFEST, Manifest, digest_of
from sandboxd.model.image_errors import ImageInvalidError

OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_LAYERS: Final = {
    _OCI_LAYER: _OCI_LAYER,
    f"{_OCI_LAYER}+gzip": f"{_OCI_LAYER}+gzip",
    f"{_OCI_LAYER}+zstd": f"{_OCI_LAYER}+zstd",
    "application/vnd.docker.image.rootfs.diff.tar": _OCI_LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{_OCI_LAYER}+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": f"{_OCI_LAYER}+zstd",
}
"""Layers that can be kept, as OCI calls them. Foreign ones, which a registry must not pass on, are none."""
_LABEL: Final = "dev.sandboxd."
LAYER_DIFF_ID: Final = f"{_LABEL}layer-diff-id"
"""Label that says which difference an image has, as our writer's layer of it; empty where it has none."""
_CREATED_BY: Final = "sandboxd commit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """An image, ready to be pushed."""

    config: bytes
    manifest: Manifest
    layers: tuple[Descriptor, ...]
    """Of the manifest, the base's first."""

    @property
    def config_digest(self) -> str:
        """`sha256:…` of the configuration."""
        return digest_of(self.config)

    @property
    def size(self) -> int:
        """Bytes of all layers, compressed, and the configuration."""
        return sum(layer.size for layer in self.layers) + len(self.config)


def assemble(
    *,
    base: ImageReference,
    image: ImageManifest,
    config: Mapping[str, Any],  # Any: JSON
    layer: WrittenLayer | None,
    labels: Mapping[str, str],
    generation: int,
) -> Assembled:
    """Put a base and a layer together.

    Args:
        base: How the base is named.
        image: Its manifest.
        config: Its configuration: all that the new one has, but for the layer and labels. Nothing of a sandbox's
            environment gets into it.
        layer: None where nothing differs from the base.
        labels: Of the configuration, beside the base's own and ours.
        generation: Number of the image.

    Raises:
        ImageInvalidError: The base has layers that cannot be passed on.
    """
    own = {
        f"{_LABEL}generation": str(generation),
        f"{_LABEL}base": base.digest,
        LAYER_DIFF_ID: "" if layer is None else layer.diff_id,
    }
    made = _configured(config, layer, {**labels, **own})
    layers = tuple(_as_oci(one, image) for one in image.layers)
    if layer is not None:
        layers += (Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.compressed_bytes),)
    described = Descriptor(media_type=OCI_CONFIG, digest=digest_of(made), size=len(made))
    content = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described.to_json(),
        "layers": [one.to_json() for one in layers],
        "annotations": {
            "org.opencontainers.image.base.digest": base.digest,
            "org.opencontainers.image.base.name": f"{base.registry}/{base.repository}",
        },
    }
    return Assembled(config=made, manifest=Manifest(media_type=OCI_MANIFEST, content=_bytes(content)), layers=layers)


def user_layers(config: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the `diff_id`s that an image has above a base, or None where it does not lie on that base."""
    ids, below = diff_ids_of(config), diff_ids_of(base)
    return ids[len(below) :] if ids[: len(below)] == below else None


def _configured(config: Mapping[str, Any], layer: WrittenLayer | None, labels: Mapping[str, str]) -> bytes:
    # The base's `created` stays: a moment of ours would give each repetition another digest.
    made = dict(config)
    inner = dict(made.get("config") or {})
    inner["Labels"] = {**(inner.get("Labels") or {}), **labels}
    made["config"] = inner
    if layer is not None:
        made["rootfs"] = {"type": "layers", "diff_ids": [*diff_ids_of(config), layer.diff_id]}
        history = made.get("history") or []
        filled = [one for one in history if not (isinstance(one, dict) and one.get("empty_layer"))]
        if len(filled) == len(diff_ids_of(config)):
            made["history"] = [*history, {"created_by": _CREATED_BY}]
        else:
            made.pop("history", None)  # none is allowed, one that counts wrong is not
    return _bytes(made)


def _as_oci(layer: Descriptor, image: ImageManifest) -> Descriptor:
    media_type = _LAYERS.get(layer.media_type)
    if media_type is None:
        raise ImageInvalidError(
            f"The base {image.manifest.digest} has a layer of the type {layer.media_type!r}, which cannot be kept.",
            digest=image.manifest.digest,
        )
    return Descriptor(media_type=media_type, digest=layer.digest, size=layer.size)


def _bytes(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

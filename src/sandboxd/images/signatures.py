"""Signatures of images in cosign's form: what is signed, and the manifest that carries it. Pure.

What is signed is a document that names the image's digest ("simple signing":
https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md); the signature stands in base64 in an annotation
of the layer that holds the document. The manifest lies under the tag `sha256-….sig` and names the image as subject.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.images.manifests import Descriptor
from sandboxd.images.ports import ImageReference
from sandboxd.images.registry import OCI_MANIFEST, Manifest, digest_of

SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ARTIFACT: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
"""Artifact type by which cosign looks for signatures among referrers."""
SIGNATURE_TAG: Final = "sig"
ANNOTATION: Final = "dev.cosignproject.cosign/signature"
PAYLOAD_BYTES: Final = 16 << 10
"""Longest document that is read; ours have 300 bytes."""
SIGNATURES: Final = 50
"""Most signatures of one manifest that are looked at."""
_TYPE: Final = "cosign container image signature"
_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedSignature:
    """One signature of a manifest."""

    document: Descriptor
    """The blob that is signed."""
    signature: bytes
    annotations: tuple[tuple[str, str], ...]
    """All of its layer's, the signature's among them."""

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """As it stands in a manifest."""
        return {**self.document.to_json(), "annotations": dict(self.annotations)}


def document_of(image: ImageReference) -> bytes:
    """Write what is signed of an image."""
    said = {
        "critical": {
            "identity": {"docker-reference": f"{image.registry}/{image.repository}"},
            "image": {"docker-manifest-digest": image.digest},
            "type": _TYPE,
        },
        "optional": None,
    }
    return json.dumps(said, separators=(",", ":")).encode()


def names_image(document: bytes, image: ImageReference) -> bool:
    """Tell whether a signed document is of this image, in this repository."""
    try:
        critical = json.loads(document)["critical"]
        named = critical["identity"]["docker-reference"], critical["image"]["docker-manifest-digest"], critical["type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return named == (f"{image.registry}/{image.repository}", image.digest, _TYPE)


def carried(document: bytes, signature: bytes) -> CarriedSignature:
    """Put a signature where a manifest carries it."""
    described = Descriptor(media_type=SIMPLE_SIGNING, digest=digest_of(document), size=len(document))
    text = base64.b64encode(signature).decode()
    return CarriedSignature(document=described, signature=signature, annotations=((ANNOTATION, text),))


def read_signatures(manifest: Manifest) -> Sequence[CarriedSignature]:
    """Return the signatures that a manifest carries, at most `SIGNATURES`; none of a manifest of another kind."""
    try:
        layers = json.loads(manifest.content).get("layers") or []
    except (ValueError, AttributeError, RecursionError):
        return []
    found = []
    for layer in layers[:SIGNATURES] if isinstance(layers, list) else []:
        try:
            if layer["mediaType"] != SIMPLE_SIGNING or not 0 < int(layer["size"]) <= PAYLOAD_BYTES:
                continue
            annotations = {str(name): str(text) for name, text in layer["annotations"].items()}
            document = Descriptor(media_type=SIMPLE_SIGNING, digest=str(layer["digest"]), size=int(layer["size"]))
            signature = base64.b64decode(annotations[ANNOTATION], validate=True)
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
            continue
        found.append(
            CarriedSignature(document=document, signature=signature, annotations=tuple(sorted(annotations.items())))
        )
    return found


def make_configuration(signatures: Sequence[CarriedSignature]) -> bytes:
    """Write the configuration that tools want to see with layers."""
    rootfs = {"type": "layers", "diff_ids": [one.document.digest for one in signatures]}
    return _bytes({"architecture": "", "os": "", "config": {}, "rootfs": rootfs})


def make_signature_manifest(signatures: Sequence[CarriedSignature], *, subject: Descriptor) -> Manifest:
    """Make the manifest that carries signatures of an image."""
    config = make_configuration(signatures)
    content = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": SIGNATURE_ARTIFACT,
        "config": Descriptor(media_type=_CONFIG_TYPE, digest=digest_of(config), size=len(config)).to_json(),
        "layers": [one.to_json() for one in signatures],
        "subject": subject.to_json(),
    }
    return Manifest(media_type=OCI_MANIFEST, content=_bytes(content))


def _bytes(content: dict[str, Any]) -> bytes:  # Any: JSON
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

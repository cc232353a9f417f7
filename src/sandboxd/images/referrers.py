"""What is attached to an image: manifests that name it as their `subject` (OCI image specification 1.1). Pure.

Each also gets a tag that the image's digest says (`sha256-….sbom`), by which older tools find it, and without which a
registry's garbage collection of untagged manifests would take it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sandboxd.images.manifests import Descriptor
from sandboxd.images.registry import OCI_INDEX, OCI_MANIFEST, Manifest, digest_of
from sandboxd.model.errors import UnavailableError

EMPTY: Final = b"{}"
"""Content of a configuration that says nothing."""
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_TAG: Final = re.compile(r"sha256-([0-9a-f]{64})(?:\.[a-z0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """A manifest that is attached, as a registry lists it."""

    digest: str
    media_type: str
    size: int
    """Bytes of the manifest."""
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """As it stands in an index."""
        said: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}  # Any: JSON
        if self.artifact_type:
            said["artifactType"] = self.artifact_type
        return {**said, "annotations": dict(self.annotations)} if self.annotations else said


def tag_of_subject(digest: str, kind: str = "") -> str:
    """Return the tag of what is attached to a digest: `sha256-….sbom`; without a kind that of the list of it all."""
    algorithm, _, hexadecimal = digest.partition(":")
    return f"{algorithm}-{hexadecimal}{f'.{kind}' if kind else ''}"


def subject_of_tag(tag: str) -> str | None:
    """Return the digest that a tag of something attached names, or None of other tags."""
    found = _TAG.fullmatch(tag)
    return f"sha256:{found[1]}" if found else None


def make_artifact(
    layer: Descriptor, *, artifact_type: str, subject: Descriptor, annotations: Mapping[str, str] | None = None
) -> Manifest:
    """Make the manifest of one blob that is attached to an image; its configuration is `EMPTY`."""
    content: dict[str, Any] = {  # Any: JSON
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": Descriptor(media_type=EMPTY_TYPE, digest=digest_of(EMPTY), size=len(EMPTY)).to_json(),
        "layers": [layer.to_json()],
        "subject": subject.to_json(),
    }
    if annotations:
        content["annotations"] = dict(annotations)
    return Manifest(media_type=OCI_MANIFEST, content=_bytes(content))


def describe(manifest: Manifest) -> tuple[str, Referrer]:
    """Return the digest of an attached manifest's subject, and how the manifest is listed there.

    Raises:
        ValueError: It has no subject.
    """
    try:
        said = json.loads(manifest.content)
        config = said.get("config") or {}
        return str(said["subject"]["digest"]), Referrer(
            digest=manifest.digest,
            media_type=manifest.media_type,
            size=len(manifest.content),
            artifact_type=str(said.get("artifactType") or config.get("mediaType") or ""),
            annotations={str(key): str(value) for key, value in (said.get("annotations") or {}).items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{manifest.digest} has no subject") from error


def make_index(referrers: Sequence[Referrer]) -> Manifest:
    """Make the list of what is attached, as registries without an API for it have it under a tag."""
    listed = [one.to_json() for one in sorted(referrers, key=lambda one: one.digest)]
    return Manifest(
        media_type=OCI_INDEX, content=_bytes({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})
    )


def read_index(content: bytes) -> Sequence[Referrer]:
    """Read such a list.

    Raises:
        UnavailableError: It is none.
    """
    try:
        return [
            Referrer(
                digest=str(one["digest"]),
                media_type=str(one["mediaType"]),
                size=int(one["size"]),
                artifact_type=str(one.get("artifactType") or ""),
                annotations={str(key): str(value) for key, value in (one.get("annotations") or {}).items()},
            )
            for one in json.loads(content).get("manifests") or []
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnavailableError("The registry's list of what is attached to an image cannot be read.") from error


def _bytes(content: Mapping[str, Any]) -> bytes:  # Any: JSON
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

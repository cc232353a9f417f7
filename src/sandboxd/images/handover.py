"""What is handed to a build by kaniko: an image of one layer with the difference in it, as a file. Blocks.

Nodes pull it by its digest and mount it into the build, so the difference needs no other way into a pod, no credentials
in it, and nobody can put another one in its place. Beside it lie the Dockerfile and the program that applies it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.images import applying
from sandboxd.images.assembling import OCI_CONFIG
from sandboxd.images.ports import WrittenLayer
from sandboxd.images.registry import OCI_MANIFEST, Manifest, digest_of
from sandboxd.images.tar_entries import END, entry_header, padding
from sandboxd.model.rootfs import EntryKind

LAYER: Final = "layer.tar.gz"
APPLYING: Final = "applying.py"
DOCKERFILE: Final = "Dockerfile"
_PLAIN: Final = "application/vnd.oci.image.layer.v1.tar"
_FILE: Final = "handover.tar"
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """An image that is mounted and never run."""

    file: Path
    """Its layer, a plain tar in the build's directory."""
    layer_digest: str
    config: bytes
    manifest: Manifest

    @property
    def config_digest(self) -> str:
        """`sha256:…` of the configuration."""
        return digest_of(self.config)


def pack(directory: Path, layer: WrittenLayer, dockerfile: str, *, architecture: str) -> Handover:
    """Write the hand-over of a layer into its build's directory.

    Args:
        directory: Of the build, with a name that no other one has; there is room for the layer once more.
        layer: Compressed by gzip, which Python reads without a library.
        dockerfile: What the build does.
        architecture: Of the nodes.
    """
    file, hashed, size = directory / _FILE, hashlib.sha256(), 0
    with file.open("xb") as out:

        def put(data: bytes) -> None:
            nonlocal size
            out.write(data)
            hashed.update(data)
            size += len(data)

        for name, content in ((DOCKERFILE, dockerfile.encode()), (APPLYING, Path(applying.__file__).read_bytes())):
            put(_header(name, len(content)) + content + padding(len(content)))
        put(_header(LAYER, layer.compressed_bytes))
        with layer.file.open("rb") as source:
            while data := source.read(_BLOCK):
                put(data)
        put(padding(layer.compressed_bytes) + END)
    digest = f"sha256:{hashed.hexdigest()}"
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            # Or two builds of the same difference would have one hand-over, and the first to end would take it away.
            "config": {"Labels": {"dev.sandboxd.build": directory.name}},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
    )
    described = {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)}
    said = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described,
        "layers": [{"mediaType": _PLAIN, "digest": digest, "size": size}],
    }
    manifest = Manifest(media_type=OCI_MANIFEST, content=_json(said))
    return Handover(file=file, layer_digest=digest, config=config, manifest=manifest)


def _header(name: str, size: int) -> bytes:
    return entry_header(name.encode(), EntryKind.FILE, mode=0o444, uid=0, gid=0, mtime=0, size=size)


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

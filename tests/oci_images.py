"""Images for tests: layers as tars of any shape, pushed to a registry or laid out for umoci."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import zstandard

from sandboxd.images.ports import ImageReference
from sandboxd.images.registry import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Manifest,
    Registry,
    digest_of,
)

Json = dict[str, Any]  # Any: JSON
SOON = timedelta(seconds=30)
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
PLAIN = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def entry(
    name: str | bytes,
    content: bytes | None = None,
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: float = 1_700_000_000,
    link: str | bytes = "",
    xattrs: Mapping[str, bytes] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a layer: a file where there is content, else what `kind` says, or a directory."""
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name)
    info.type = kind if content is not None or kind != tarfile.REGTYPE else tarfile.DIRTYPE
    info.mode = mode if info.type != tarfile.DIRTYPE or mode != 0o644 else 0o755
    info.uid, info.gid, info.mtime, info.size = uid, gid, mtime, len(content or b"")
    info.linkname = link.decode("utf-8", "surrogateescape") if isinstance(link, bytes) else link
    info.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in (xattrs or {}).items()
    }
    return info, content or b""


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def hardlink(name: str | bytes, target: str | bytes) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.LNKTYPE, link=target)


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A layer's tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def tar_of_tree(root: Path) -> bytes:
    """A layer that has a real tree, with owners, times in fractions of a second, attributes and links."""
    made = subprocess.run(
        ["tar", "--create", "--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name", "."],
        cwd=root,
        capture_output=True,
        check=True,
    )
    return made.stdout


def compressed(layer: bytes, media_type: str) -> bytes:
    if media_type in {GZIP, DOCKER_LAYER}:
        return gzip.compress(layer, compresslevel=1, mtime=0)
    if media_type == ZSTD:
        return zstandard.ZstdCompressor(level=1).compress(layer)
    return layer


@dataclass(slots=True, kw_only=True)
class Image:
    """An image's parts, before anybody has them."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    layers: list[bytes]
    """As they are pushed, compressed."""
    manifest: Manifest
    config: Json

    def reference(self, repository: str) -> ImageReference:
        return ImageReference(registry="registry.test", repository=repository, digest=self.manifest.digest)

    async def push(self, registry: Registry, repository: str) -> ImageReference:
        """Push it, and name it."""
        for digest, blob in self.blobs.items():
            await registry.upload(repository, blob, digest=digest, timeout=SOON)
        await registry.push(repository, self.manifest.digest, self.manifest, timeout=SOON)
        return self.reference(repository)

    def lay_out(self, directory: Path) -> None:
        """Write it as an OCI layout with the tag `latest`."""
        (directory / "blobs/sha256").mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        for digest, blob in (*self.blobs.items(), (self.manifest.digest, self.manifest.content)):
            (directory / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(blob)
        described = _descriptor(self.manifest.media_type, self.manifest.content)
        described["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))


def an_image(
    *layers: bytes,
    media_types: Sequence[str] = (),
    architecture: str = "amd64",
    docker: bool = False,
    user: str = "",
    diff_ids: Sequence[str] = (),
    blobs: Sequence[bytes] = (),
) -> Image:
    """Make an image of tars.

    Args:
        layers: Their tars, the lowest first.
        media_types: Of each; gzip where there are none.
        architecture: What the configuration says.
        docker: With Docker's media types, not OCI's.
        user: Whom it runs as.
        diff_ids: In place of the tars' own.
        blobs: In place of the compressed tars.
    """
    kinds = list(media_types) or [DOCKER_LAYER if docker else GZIP] * len(layers)
    packed = list(blobs) or [compressed(layer, kind) for layer, kind in zip(layers, kinds, strict=True)]
    config: Json = {
        "architecture": architecture,
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/usr/bin"], "Cmd": ["/bin/sh"], "Labels": {"of": "base"}}
        | ({"User": user} if user else {}),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids) or [digest_of(layer) for layer in layers]},
        "history": [{"created_by": "test"} for _ in layers],
    }
    configured = json.dumps(config).encode()
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    config_type = (
        "application/vnd.docker.container.image.v1+json" if docker else "application/vnd.oci.image.config.v1+json"
    )
    content = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _descriptor(config_type, configured),
        "layers": [_descriptor(kind, blob) for kind, blob in zip(kinds, packed, strict=True)],
    }
    manifest = Manifest(media_type=media_type, content=json.dumps(content).encode())
    blobs_by_digest = {digest_of(blob): blob for blob in (configured, *packed)}
    return Image(blobs=blobs_by_digest, layers=packed, manifest=manifest, config=config)


def an_index(images: Mapping[str, Image], *, docker: bool = False) -> Manifest:
    """An index of images by architecture."""
    media_type = DOCKER_INDEX if docker else OCI_INDEX
    listed = [
        {**_descriptor(image.manifest.media_type, image.manifest.content), "platform": _platform(architecture)}
        for architecture, image in images.items()
    ]
    content = {"schemaVersion": 2, "mediaType": media_type, "manifests": listed}
    return Manifest(media_type=media_type, content=json.dumps(content).encode())


def _platform(architecture: str) -> Json:
    return {"os": "linux", "architecture": architecture}


def _descriptor(media_type: str, content: bytes) -> Json:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def chunks(data: bytes, size: int) -> Iterable[bytes]:
    """A blob as it may come."""
    return (data[at : at + size] for at in range(0, len(data), size))

"""Builds by kaniko without kaniko: the hand-over is read from the registry, and what comes of it is pushed."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from typing_extensions import override

from sandboxd.images.assembling import OCI_CONFIG
from sandboxd.images.kaniko import KanikoBuilds, KanikoOrder
from sandboxd.images.manifests import read_config, read_manifest
from sandboxd.images.registry import DOCKER_MANIFEST, Manifest, Registry, digest_of

_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@dataclass(kw_only=True)
class FakeKanikoBuilds(KanikoBuilds):
    """Makes what kaniko makes, as far as the registry shows it: its own layer and moment, the base's media types."""

    registry: Registry
    failure: Exception | None = None
    """Raised in place of the push."""
    wrong: dict[str, Any] = field(default_factory=dict)  # Any: of a configuration
    """What its configuration has beside the base's."""
    forgets: set[str] = field(default_factory=set)
    """Paths that it leaves out."""
    names: str = ""
    """The digest that it says, in place of the one that it pushed."""
    hangs: bool = False
    """It does not end."""
    runs: list[KanikoOrder] = field(default_factory=list)

    @override
    async def run(self, order: KanikoOrder, *, timeout: timedelta) -> str:
        self.runs.append(order)
        if self.failure is not None:
            raise self.failure
        if self.hangs:
            await asyncio.sleep(60)
        context = await self._context(order, timeout)
        assert context["Dockerfile"].startswith(f"FROM {order.base}\n".encode())
        base = read_manifest(await self.registry.manifest(order.base.repository, order.base.digest, timeout=timeout))
        config = dict(await read_config(self.registry, order.base.repository, base, timeout=timeout))
        layer = self._layer(gzip.decompress(context["layer.tar.gz"]))
        for blob in base.layers:
            if not await self.registry.has_blob(order.repository, blob.digest, timeout=timeout):
                await self.registry.copy(
                    order.repository, blob.digest, size=blob.size, source=order.base.repository, timeout=timeout
                )
        packed = gzip.compress(layer, mtime=0)
        config["config"] = {**config.get("config", {}), "Labels": dict(order.labels), **self.wrong}
        config["created"] = f"2026-01-01T00:00:{len(self.runs):02}Z"
        config["rootfs"] = {"type": "layers", "diff_ids": [*config["rootfs"]["diff_ids"], digest_of(layer)]}
        config["history"] = [*config.get("history", []), {"created_by": "RUN …", "author": "kaniko"}]
        made = json.dumps(config).encode()
        for content in (packed, made):
            await self.registry.upload(order.repository, content, digest=digest_of(content), timeout=timeout)
        kinds = (OCI_CONFIG, _OCI_LAYER) if base.is_oci else (_DOCKER_CONFIG, _DOCKER_LAYER)
        above = {"mediaType": kinds[1], "digest": digest_of(packed), "size": len(packed)}
        said = {
            "schemaVersion": 2,
            "mediaType": base.manifest.media_type if base.is_oci else DOCKER_MANIFEST,
            "config": {"mediaType": kinds[0], "digest": digest_of(made), "size": len(made)},
            "layers": [*(one.to_json() for one in base.layers), above],
        }
        manifest = Manifest(media_type=str(said["mediaType"]), content=json.dumps(said).encode())
        await self.registry.push(order.repository, order.tag, manifest, timeout=timeout)
        return self.names or manifest.digest

    async def _context(self, order: KanikoOrder, timeout: timedelta) -> dict[str, bytes]:
        handed = order.handover
        image = read_manifest(await self.registry.manifest(handed.repository, handed.digest, timeout=timeout))
        (blob,) = image.layers
        pieces = [
            piece async for piece in self.registry.blob(handed.repository, blob.digest, size=blob.size, timeout=timeout)
        ]
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
            found = {one.name: archive.extractfile(one) for one in archive}
            return {name: content.read() for name, content in found.items() if content is not None}

    def _layer(self, tar: bytes) -> bytes:
        """The same entries as another tar, and the root before them."""
        out = io.BytesIO()
        with (
            tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as given,
            tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            root = tarfile.TarInfo("/")
            root.type, root.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(root)
            for member in given:
                if member.name in self.forgets:
                    continue
                member.pax_headers = {
                    key: value for key, value in member.pax_headers.items() if not key.startswith("SCHILY.xattr.user.")
                }
                archive.addfile(member, given.extractfile(member) if member.isreg() else None)
        assert hashlib.sha256(out.getvalue()).digest() != hashlib.sha256(tar).digest()
        return out.getvalue()

"""A builder of images with everything it needs: a base in a registry, a sandbox of it in memory, and a real spool."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from typing_extensions import override

from sandboxd.images.baseline_file import read_records
from sandboxd.images.baselines import RegistryBaselines
from sandboxd.images.building import BuildRules, RegistryImageBuilder
from sandboxd.images.kaniko import KanikoBuilds, KanikoImageBuilder
from sandboxd.images.ports import BuildOrder, BuildProgress, BuiltImage, ImageLimits, ImageReference, LayerWriter
from sandboxd.images.registry import NO_COMMIT, Manifest, Registry, Sent
from sandboxd.images.spool import Spool
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.image import GenerationId
from sandboxd.model.rootfs import BaselineRecord
from tests.fakes.layer import FakeLayerWriter
from tests.fakes.rootfs import FakeRootfsCapture
from tests.oci_images import SOON, Image, an_image, entry, tar

REPOSITORY = "client-a/gemini-cli-user-b"
INCARNATION = IncarnationId("inc-1")
LIMITS = ImageLimits(raw_bytes=1 << 30, compressed_bytes=1 << 30)
LOWER = tar(entry("bin/sh", b"shell", mode=0o755, mtime=0), entry("etc/passwd", b"root", mtime=0))
UPPER = tar(entry("usr/share/doc/old", b"old", mtime=0))


class Loss(Enum):
    """What a builder may declare that it does not keep (docs/images-kept.md)."""

    SAME_BYTES = "same bytes"
    """The same tree is the same digest each time, and the layer above the base the very one that we have written."""
    MEDIA_TYPES = "media types"
    """OCI's throughout, whatever the base has."""
    HISTORY = "history"
    """One line, which says that it is a commit."""


class Interfering(Registry):
    """Passes everything on, after a test was asked."""

    def __init__(self, registry: Registry) -> None:
        self.inner = registry
        self.calls: list[str] = []
        self.before: Callable[[str], Awaitable[None]] | None = None
        self.mounts = True

    async def _ask(self, call: str) -> None:
        self.calls.append(call)
        if self.before is not None:
            await self.before(call)

    @override
    async def manifest(self, repository: str, reference: str, *, timeout: timedelta) -> Manifest:
        await self._ask("manifest")
        return await self.inner.manifest(repository, reference, timeout=timeout)

    @override
    async def blob(self, repository: str, digest: str, *, size: int, timeout: timedelta) -> AsyncGenerator[bytes, None]:
        await self._ask("blob")
        async for piece in self.inner.blob(repository, digest, size=size, timeout=timeout):
            yield piece

    @override
    async def has_blob(self, repository: str, digest: str, *, timeout: timedelta) -> bool:
        await self._ask("has_blob")
        return await self.inner.has_blob(repository, digest, timeout=timeout)

    @override
    async def mount(self, repository: str, digest: str, *, source: str, timeout: timedelta) -> bool:
        await self._ask("mount")
        return self.mounts and await self.inner.mount(repository, digest, source=source, timeout=timeout)

    @override
    async def copy(
        self,
        repository: str,
        digest: str,
        *,
        size: int,
        source: str,
        timeout: timedelta,
        commit: GenerationId = NO_COMMIT,
    ) -> None:
        await self._ask("copy")
        await self.inner.copy(repository, digest, size=size, source=source, timeout=timeout, commit=commit)

    @override
    async def upload(
        self,
        repository: str,
        content: Path | bytes,
        *,
        digest: str,
        timeout: timedelta,
        sent: Sent | None = None,
        commit: GenerationId = NO_COMMIT,
    ) -> None:
        await self._ask("upload")
        await self.inner.upload(repository, content, digest=digest, timeout=timeout, sent=sent, commit=commit)

    @override
    async def cancel_upload(self, repository: str, location: str, *, timeout: timedelta) -> None:
        await self._ask("cancel_upload")
        await self.inner.cancel_upload(repository, location, timeout=timeout)

    @override
    async def find_upload(self, repository: str, location: str, *, timeout: timedelta) -> int | None:
        await self._ask("find_upload")
        return await self.inner.find_upload(repository, location, timeout=timeout)

    @override
    async def push(self, repository: str, reference: str, manifest: Manifest, *, timeout: timedelta) -> None:
        await self._ask("push")
        await self.inner.push(repository, reference, manifest, timeout=timeout)

    @override
    async def tags(self, repository: str, *, timeout: timedelta) -> Sequence[str]:
        return await self.inner.tags(repository, timeout=timeout)

    @override
    async def delete(self, repository: str, digest: str, *, timeout: timedelta) -> None:
        await self.inner.delete(repository, digest, timeout=timeout)

    @override
    async def attach(self, repository: str, tag: str, manifest: Manifest, *, timeout: timedelta) -> None:
        await self.inner.attach(repository, tag, manifest, timeout=timeout)

    @override
    async def attached(self, repository: str, subject: str, *, timeout: timedelta) -> Sequence[Manifest]:
        return await self.inner.attached(repository, subject, timeout=timeout)

    @override
    async def detach(self, repository: str, subject: str, *, timeout: timedelta) -> int:
        return await self.inner.detach(repository, subject, timeout=timeout)


@dataclass(slots=True, kw_only=True)
class BuildWorld:
    """One sandbox and what builds its images."""

    registry: Interfering
    base: ImageReference
    capture: FakeRootfsCapture
    spool: Spool
    baselines: RegistryBaselines
    builder: RegistryImageBuilder
    losses: frozenset[Loss] = frozenset()
    """What the builder declares."""
    progress: list[BuildProgress] = field(default_factory=list)

    @classmethod
    async def make(
        cls,
        registry: Registry,
        directory: Path,
        *,
        image: Image | None = None,
        base: ImageReference | None = None,
        writer: LayerWriter | None = None,
        architecture: str = "amd64",
        zstd: bool = True,
        builds: KanikoBuilds | None = None,
    ) -> BuildWorld:
        """Push a base, and let a sandbox have what is in it; with `builds`, images are made by those."""
        pushed = await (image or an_image(LOWER, UPPER)).push(registry, "base/sandbox")
        wrapped = Interfering(registry)
        baselines = RegistryBaselines(
            registry=wrapped, directory=directory / "cache", size_bytes=1 << 30, architecture=architecture
        )
        capture = FakeRootfsCapture(incarnation=INCARNATION)
        spool = Spool(directory=directory / "spool", size_bytes=1 << 30, least_free_bytes=0, watch_seconds=0.05)
        rules = BuildRules(registry="registry.test", architecture=architecture, zstd=zstd)
        chosen = writer or FakeLayerWriter()
        builder = RegistryImageBuilder(
            registry=wrapped, baselines=baselines, capture=capture, writer=chosen, spool=spool, rules=rules
        )
        if builds is not None:
            builder = KanikoImageBuilder(
                registry=wrapped,
                baselines=baselines,
                capture=capture,
                writer=chosen,
                spool=spool,
                rules=rules,
                builds=builds,
                python=("/kaniko/agent/python",),
                build_registry="builds.test",
            )
        world = cls(
            registry=wrapped,
            base=base or pushed,
            capture=capture,
            spool=spool,
            baselines=baselines,
            builder=builder,
            losses=frozenset() if builds is None else frozenset(Loss),
        )
        made = await baselines.baseline(world.base, timeout=SOON)
        capture.entries = {one.entry.path: one.entry for one in read_records(made.file) if one.entry.path}
        capture.contents = dict.fromkeys(capture.entries, b"")
        wrapped.calls.clear()
        return world

    def order(self, **changes: Any) -> BuildOrder:  # Any: fields of the order
        """A first generation."""
        order = BuildOrder(
            sandbox=SandboxId("sbx-1"),
            incarnation=INCARNATION,
            base=self.base,
            repository=REPOSITORY,
            generation=1,
            limits=LIMITS,
            labels={"dev.sandboxd.client": "client-a"},
        )
        return replace(order, **changes)

    async def build(self, *, timeout: timedelta = SOON, **changes: Any) -> BuiltImage:  # Any: as above
        """Build it; whatever comes of it, the spool is empty afterwards."""
        self.progress.clear()
        try:
            return await self.builder.build(self.order(**changes), timeout=timeout, progress=self.progress.append)
        finally:
            assert await asyncio.to_thread(lambda: [*self.spool.directory.glob("*")]) == []

    async def config_of(self, built: BuiltImage) -> dict[str, Any]:  # Any: JSON
        """The configuration of what was pushed."""
        described = (await self.manifest_of(built))["config"]
        pieces = [
            piece
            async for piece in self.registry.inner.blob(
                REPOSITORY, described["digest"], size=described["size"], timeout=SOON
            )
        ]
        return dict(json.loads(b"".join(pieces)))

    async def manifest_of(self, built: BuiltImage) -> dict[str, Any]:  # Any: JSON
        """The manifest of what was pushed."""
        assert built.image is not None
        found = await self.registry.inner.manifest(built.image.repository, built.image.digest, timeout=SOON)
        return dict(json.loads(found.content))

    async def files_of(self, built: BuiltImage) -> dict[bytes, BaselineRecord]:
        """What an image has, as an independent reader of ours finds it: everything but directories."""
        assert built.image is not None
        made = await self.baselines.baseline(built.image, timeout=SOON)
        return {one.entry.path: one for one in read_records(made.file) if one.entry.kind.value != "directory"}

"""Brings an assembled image into its repository, and sees that it is there: blobs, manifest, tag, in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from sandboxd.images.assembling import Assembled
from sandboxd.images.manifests import Descriptor
from sandboxd.images.ports import BuildProgress, WrittenLayer
from sandboxd.images.registry import NO_COMMIT, Registry, Sent
from sandboxd.model.errors import UnavailableError
from sandboxd.model.image import GenerationId

Left = Callable[[], timedelta]
"""How much time there is yet."""


class ImagePush:
    """One push into one repository. Safe to repeat; whatever fails, no tag names what is not whole."""

    def __init__(
        self, *, registry: Registry, repository: str, tag: str, left: Left, commit: GenerationId = NO_COMMIT
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._tag = tag
        self._left = left
        self._commit = commit

    async def push(
        self,
        made: Assembled,
        layer: WrittenLayer | None,
        *,
        base: Sequence[Descriptor],
        source: str,
        progress: Callable[[BuildProgress], None],
    ) -> None:
        """Push what is missing.

        Args:
            made: The image.
            layer: Its own layer, in a file.
            base: The base's layers.
            source: Where those are.
            progress: Told how much of the layer has arrived.
        """
        total = layer.compressed_bytes if layer else 0
        progress(BuildProgress(phase="push", total_bytes=total))
        for blob in base:
            await self._take_over(blob, source)
        if layer is not None:
            await self._upload(
                layer.digest,
                layer.file,
                sent=lambda count: progress(BuildProgress(phase="push", bytes=count, total_bytes=total)),
            )
        await self._upload(made.config_digest, made.config)
        progress(BuildProgress(phase="push", bytes=total, total_bytes=total))
        for reference in (made.manifest.digest, self._tag):
            await self._registry.push(self._repository, reference, made.manifest, timeout=self._left())

    async def verify(self, made: Assembled) -> None:
        """See that the registry has all of it, also after the answers that said so.

        Raises:
            UnavailableError: It has not.
        """
        for reference in (made.manifest.digest, self._tag):
            found = await self._registry.manifest(self._repository, reference, timeout=self._left())
            if found.content != made.manifest.content:
                raise UnavailableError(
                    f"The registry has other content as {reference}. Try again.", reference=reference
                )
        for digest in (made.config_digest, *(layer.digest for layer in made.layers)):
            if not await self._registry.has_blob(self._repository, digest, timeout=self._left()):
                raise UnavailableError(
                    f"The registry took the image and has no blob {digest} of it. Try again.", digest=digest
                )

    async def _upload(self, digest: str, content: Path | bytes, *, sent: Sent | None = None) -> None:
        if not await self._registry.has_blob(self._repository, digest, timeout=self._left()):
            await self._registry.upload(
                self._repository, content, digest=digest, timeout=self._left(), sent=sent, commit=self._commit
            )

    async def _take_over(self, blob: Descriptor, source: str) -> None:
        """Let the repository have a blob of the base: mounted, where the registry does that, else through us."""
        if source == self._repository:
            return
        if await self._registry.has_blob(self._repository, blob.digest, timeout=self._left()):
            return
        if not await self._registry.mount(self._repository, blob.digest, source=source, timeout=self._left()):
            await self._registry.copy(
                self._repository,
                blob.digest,
                size=blob.size,
                source=source,
                timeout=self._left(),
                commit=self._commit,
            )

"""A registry in memory."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import timedelta
from pathlib import Path

from typing_extensions import override

from sandboxd.images.referrers import describe, subject_of_tag
from sandboxd.images.registry import NO_COMMIT, Manifest, Registry, Sent, digest_of
from sandboxd.model.errors import NotFoundError, SandboxdError, UnavailableError
from sandboxd.model.image import GenerationId


class FakeRegistry(Registry):
    """Keeps what it is given, by repository."""

    def __init__(self) -> None:
        self.blobs: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        self.manifests: defaultdict[str, dict[str, Manifest]] = defaultdict(dict)
        """By digest and by tag."""
        self.open_uploads: dict[str, int] = {}
        """Bytes of uploads that broke off, by location."""
        self.error: SandboxdError | None = None
        """What attaching fails with."""
        self.unreadable: SandboxdError | None = None
        """What a look at what is attached fails with."""
        self.attaching: Callable[[], None] = lambda: None
        """Called before something is attached."""

    @override
    async def manifest(self, repository: str, reference: str, *, timeout: timedelta) -> Manifest:
        try:
            return self.manifests[repository][reference]
        except KeyError:
            raise NotFoundError(f"There is no {reference}.") from None

    @override
    async def blob(self, repository: str, digest: str, *, size: int, timeout: timedelta) -> AsyncGenerator[bytes, None]:
        content = self.blobs[repository].get(digest)
        if content is None:
            raise NotFoundError(f"There is no {digest}.")
        if len(content) != size:
            raise UnavailableError(f"The registry gives other content for blob {digest}.")
        for start in range(0, size, 64 << 10):
            yield content[start : start + (64 << 10)]

    @override
    async def has_blob(self, repository: str, digest: str, *, timeout: timedelta) -> bool:
        return digest in self.blobs[repository]

    @override
    async def mount(self, repository: str, digest: str, *, source: str, timeout: timedelta) -> bool:
        if digest in self.blobs[source]:
            self.blobs[repository][digest] = self.blobs[source][digest]
        return digest in self.blobs[source]

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
        content = b"".join([piece async for piece in self.blob(source, digest, size=size, timeout=timeout)])
        self.blobs[repository][digest] = content

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
        whole = content if isinstance(content, bytes) else await asyncio.to_thread(content.read_bytes)
        if digest_of(whole) != digest:
            raise UnavailableError("DIGEST_INVALID")
        self.blobs[repository][digest] = whole
        if sent is not None:
            sent(len(whole))

    @override
    async def cancel_upload(self, repository: str, location: str, *, timeout: timedelta) -> None:
        if self.error is not None:
            raise self.error
        self.open_uploads.pop(location, None)

    @override
    async def find_upload(self, repository: str, location: str, *, timeout: timedelta) -> int | None:
        return self.open_uploads.get(location)

    @override
    async def push(self, repository: str, reference: str, manifest: Manifest, *, timeout: timedelta) -> None:
        self.manifests[repository] |= {reference: manifest, manifest.digest: manifest}

    @override
    async def tags(self, repository: str, *, timeout: timedelta) -> Sequence[str]:
        return [name for name in self.manifests[repository] if ":" not in name]

    @override
    async def delete(self, repository: str, digest: str, *, timeout: timedelta) -> None:
        kept = {name: one for name, one in self.manifests[repository].items() if one.digest != digest}
        self.manifests[repository] = kept

    @override
    async def attach(self, repository: str, tag: str, manifest: Manifest, *, timeout: timedelta) -> None:
        describe(manifest)
        self.attaching()
        if self.error is not None:
            raise self.error
        await self.push(repository, tag, manifest, timeout=timeout)

    @override
    async def attached(self, repository: str, subject: str, *, timeout: timedelta) -> Sequence[Manifest]:
        if self.unreadable is not None:
            raise self.unreadable
        found = {
            one.digest: one
            for name, one in self.manifests[repository].items()
            if subject_of_tag(name) == subject or _subject(one) == subject
        }
        return [found[digest] for digest in sorted(found)]

    @override
    async def detach(self, repository: str, subject: str, *, timeout: timedelta) -> int:
        found = await self.attached(repository, subject, timeout=timeout)
        for one in found:
            await self.delete(repository, one.digest, timeout=timeout)
        return len(found)


def _subject(manifest: Manifest) -> str:
    try:
        return describe(manifest)[0]
    except ValueError:
        return ""

"""The registry that images are pushed to and pulled from, as keeping an image needs it: the nouns of OCI distribution.

Content is addressed by digest and checked against it on the way in and on the way out; what a registry says of itself
is never believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Protocol

from sandboxd.model.errors import NotFoundError, UnavailableError, WrongStateError
from sandboxd.model.image import GenerationId

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"

MANIFEST_BYTES: Final = 4 << 20
"""Longest manifest that is read: what registries accept at most."""
NO_COMMIT: Final = GenerationId("")
"""Of what is uploaded for no commit."""
ATTACHED: Final = 100
"""Manifests of those that are attached to one image that are looked at."""


Sent = Callable[[int], None]
"""Told how many bytes of a blob have arrived."""


class UploadStuckError(WrongStateError):
    """A piece of it was cut: no address closes it any more, and the registry's own purging of uploads takes it."""

    reason = "UPLOAD_STUCK"

    def __init__(self) -> None:
        super().__init__(
            "The upload was cut within a piece: no address closes it any more. The registry's own purging of uploads "
            "takes it away."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or an index, byte for byte: its digest is that of these bytes."""

    media_type: str
    content: bytes

    @property
    def digest(self) -> str:
        """`sha256:…` of the content."""
        return digest_of(self.content)


class Registry(Protocol):
    """One registry. Every call is safe to repeat.

    All raise `UnavailableError` where the registry cannot be reached, answers nonsense or refuses our account,
    `DeadlineError` where `timeout` is over, and `ExhaustedError` where it has no room for us.
    """

    async def manifest(self, repository: str, reference: str, *, timeout: timedelta) -> Manifest:
        """Return what a tag or a digest names; of a digest, only content that has it.

        Raises:
            NotFoundError: There is none.
        """
        ...

    def blob(self, repository: str, digest: str, *, size: int, timeout: timedelta) -> AsyncGenerator[bytes, None]:
        """Stream a blob of this size; it fails at the end where size or digest are not those, and never yields more.

        Raises:
            NotFoundError: There is none.
        """
        ...

    async def has_blob(self, repository: str, digest: str, *, timeout: timedelta) -> bool:
        """Whether the repository has the blob."""
        ...

    async def mount(self, repository: str, digest: str, *, source: str, timeout: timedelta) -> bool:
        """Take a blob over from another repository; False where the registry refuses, and then nothing is left open."""
        ...

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
        """Take a blob over from another repository through us, a chunk at a time. Else as `upload`.

        Raises:
            NotFoundError: The source has none.
        """
        ...

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
        """Upload a blob in chunks, going on where a cut left it. A failed or cancelled upload is taken back.

        Args:
            repository: Which.
            content: A file, which is read as it goes, or all of it.
            digest: Of it.
            timeout: For all of it.
            sent: Told how many bytes the registry has, after each chunk; fewer again where it lost some.
            commit: What it is for: whoever dies in the middle leaves it to those who look after that.
        """
        ...

    async def cancel_upload(self, repository: str, location: str, *, timeout: timedelta) -> None:
        """Close an upload that broke off, with all that had arrived; one that is gone already is no error.

        Raises:
            UploadStuckError: The registry has it, and cannot be told to close it.
        """
        ...

    async def find_upload(self, repository: str, location: str, *, timeout: timedelta) -> int | None:
        """Say how many bytes there are of an upload that is open; None where it is no more.

        Raises:
            UploadStuckError: The registry has it, and cannot be told to close it.
        """
        ...

    async def push(self, repository: str, reference: str, manifest: Manifest, *, timeout: timedelta) -> None:
        """Put a manifest under its digest or a tag, and see that the registry has it byte for byte."""
        ...

    async def tags(self, repository: str, *, timeout: timedelta) -> Sequence[str]:
        """Return all tags, none of a repository that does not exist."""
        ...

    async def delete(self, repository: str, digest: str, *, timeout: timedelta) -> None:
        """Delete a manifest with all its tags; one that is gone already is no error.

        Raises:
            RegistryKeepsError: The registry deletes nothing.
        """
        ...

    async def attach(self, repository: str, tag: str, manifest: Manifest, *, timeout: timedelta) -> None:
        """Put a manifest with a `subject` under a tag of its own, and see that it is listed at that subject.

        One that is attached already is no error, under another tag as well.
        """
        ...

    async def attached(self, repository: str, subject: str, *, timeout: timedelta) -> Sequence[Manifest]:
        """Return what is attached to a digest and listed there, or has a tag of it, at most `ATTACHED` of them."""
        ...

    async def detach(self, repository: str, subject: str, *, timeout: timedelta) -> int:
        """Delete all that is attached to a digest, the list of it too; answers how many manifests. Else as `delete`."""
        ...


def digest_of(content: bytes) -> str:
    """Return `sha256:…` of the content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def choose_platform(index: Manifest, *, architecture: str) -> str:
    """Return the digest of the manifest for Linux on this architecture (`amd64`, `arm64`).

    Raises:
        NotFoundError: The index has none.
        UnavailableError: It is no index.
    """
    try:
        listed = json.loads(index.content)["manifests"]
        for one in listed:
            platform = one.get("platform", {})
            if (platform.get("os"), platform.get("architecture")) == ("linux", architecture):
                return str(one["digest"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnavailableError(f"The image index {index.digest} cannot be read.", digest=index.digest) from error
    raise NotFoundError(
        f"The image {index.digest} has no variant for linux/{architecture}.",
        digest=index.digest,
        architecture=architecture,
    )

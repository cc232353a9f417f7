"""What is known of the packages in an image, from its capture until the registry has a list of them. Pure.

It is what the package databases of a sandbox said when the capture was asked for, and nothing is allowed by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sandboxd.model.errors import NotFoundError, UnavailableError
from sandboxd.model.image import GenerationId
from sandboxd.model.packages import Package, PackagePlace

FIRST_WAIT: Final = timedelta(seconds=5)
LONGEST_WAIT: Final = timedelta(minutes=10)
"""Between attempts to attach one; doubled each time from the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedSbom:
    """Where the registry has the document."""

    manifest: str
    """Digest of the manifest that names the image as its subject, `sha256:…`."""
    document: str
    """Digest of the document itself, `sha256:…`."""
    size: int
    """Bytes of the document."""
    attach_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSbom:
    """The packages of one generation, and what became of their list."""

    generation: GenerationId
    packages: Sequence[Package]
    """Of its root file system, by key. Empty where only the state is wanted."""
    complete: bool
    """False where a package database could not be read."""
    attached: AttachedSbom | None = None
    attempts: int = 0
    """How often it was tried to attach it."""
    failure: str = ""
    """What the last attempt failed with, for people."""
    next_time: datetime
    """When it is tried next, unless it is attached; while somebody tries, when others may."""

    def failed(self, why: str, *, at: datetime) -> ImageSbom:
        """Return it after an attempt that failed: the next one comes later each time."""
        wait = min(FIRST_WAIT * 2 ** min(max(self.attempts - 1, 0), 20), LONGEST_WAIT)
        return replace(self, failure=why, next_time=at + wait)


def in_image(packages: Iterable[Package]) -> tuple[Package, ...]:
    """Return those that a commit keeps, by key: what lies on the home volume is in no image."""
    return tuple(sorted((one for one in packages if one.place is PackagePlace.ROOT), key=lambda one: one.key))


class SbomPendingError(UnavailableError):
    """The registry does not have the list of an image's packages yet; it is tried again until it has."""

    reason = "SBOM_PENDING"


class SbomUnknownError(NotFoundError):
    """Nobody knew the packages of the image when it was made, or it is no image (any more)."""

    reason = "SBOM_UNKNOWN"

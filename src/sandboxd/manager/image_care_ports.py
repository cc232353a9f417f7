"""What the care of kept images needs beside rows and registry: who names images, and when each was seen in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol


class ImageUses(Protocol):
    """One place that may name images: a cluster's objects, backup sets. What it names is never deleted."""

    @property
    def place(self) -> str:
        """What is asked, in a word or two, for logs."""
        ...

    async def named(self, *, timeout: timedelta) -> Mapping[str, str]:
        """Return each digest (`sha256:…`) that is named now, with who names it, for people.

        More than what is really in use does no harm; an answer that may lack something must be an error.

        Raises:
            UnavailableError, DeadlineError: It cannot be asked now: nothing is deleted.
        """
        ...


class ImageSightings(Protocol):
    """When images were seen in use last, and since when the registry has what no row knows of.

    Contract suite: `tests/contract/test_image_sightings.py`. Every method may raise DatabaseUnavailableError.
    """

    async def note_used(self, repository: str, digests: Sequence[str], *, at: datetime) -> None:
        """Note that these are in use."""
        ...

    async def last_used(self, repository: str) -> Mapping[str, datetime]:
        """Return when each digest of a repository was noted as used last."""
        ...

    async def note_orphans(self, repository: str, digests: Sequence[str], *, at: datetime) -> Mapping[str, datetime]:
        """Note that no row knows of these, and return since when that is so of each; others of it are no orphans."""
        ...

    async def forget(self, repository: str, digest: str) -> None:
        """Forget what is gone."""
        ...

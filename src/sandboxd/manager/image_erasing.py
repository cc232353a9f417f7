"""Removes what a freelancer's root file systems were kept as from the registry, when the person is erased."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.images.referrers import subject_of_tag
from sandboxd.manager.commit_steps import PROJECT_TIMEOUT, ImageTools
from sandboxd.model.errors import NotFoundError
from sandboxd.model.ids import ClientId, FreelancerId

TIMEOUT: Final = timedelta(seconds=30)
"""Of each call of the registry."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageErasing:
    """Works on the whole repository of a freelancer: also what no row knows of any more."""

    images: ImageTools

    async def erase(self, client: ClientId, freelancer: FreelancerId) -> int:
        """Delete every image that a tag names, and what is attached; answers how many images there were.

        Safe to repeat.

        The registry's own garbage collection frees the space.

        Raises:
            WrongStateError: The registry deletes nothing; whoever runs it has to allow that.
            UnavailableError, DeadlineError: It does not answer.
        """
        registry, repository = self.images.registry, self.images.repository_of(client, freelancer)
        digests, subjects = set[str](), set[str]()
        for tag in await registry.tags(repository, timeout=TIMEOUT):
            if (subject := subject_of_tag(tag)) is not None:
                subjects.add(subject)  # an image has its tag, and what is attached to it another one
                continue
            try:
                digests.add((await registry.manifest(repository, tag, timeout=TIMEOUT)).digest)
            except NotFoundError:
                continue  # deleted with another tag of the same image
        for digest in sorted(digests | subjects):
            await registry.detach(repository, digest, timeout=TIMEOUT)
        for digest in sorted(digests):
            await registry.delete(repository, digest, timeout=TIMEOUT)
        if self.images.projects is not None:
            await self.images.projects.remove_repository(client, repository, timeout=TIMEOUT)
        if digests:
            log.info("images.erased", client=client, images=len(digests))
        return len(digests)

    async def erase_project(self, client: ClientId) -> None:
        """Remove what the registry has of a client beside images. Safe to repeat.

        Raises:
            UnavailableError, DeadlineError: The registry does not answer, or our account lacks a right.
        """
        if self.images.projects is not None:
            await self.images.projects.remove(client, timeout=PROJECT_TIMEOUT)

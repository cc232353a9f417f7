"""Where clients' images lie on a registry that keeps clients apart by itself: a project, a quota and an account each.

OCI distribution has nothing of that: there a client is a part of a path, and nobody implements this port.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from sandboxd.model.ids import ClientId


@dataclass(frozen=True, slots=True, kw_only=True)
class PullAccount:
    """An account that may pull the images of one client, and nothing else."""

    name: str
    password: str = field(repr=False)


class PullAccounts(Protocol):
    """Where those accounts are kept, for whoever lets nodes pull with them. Every call is safe to repeat.

    All raise `UnavailableError` where that place cannot be reached or changed.
    """

    async def get(self, client: ClientId) -> PullAccount | None:
        """Return the client's account, None where there is none."""
        ...

    async def put(self, client: ClientId, account: PullAccount) -> None:
        """Keep the client's account in place of the one before."""
        ...

    async def remove(self, client: ClientId) -> None:
        """Keep none any more; none being there is no error."""
        ...


class ImageProjects(Protocol):
    """The projects of one registry. Every call is safe to repeat.

    All raise `UnavailableError` where the registry cannot be reached or our account lacks a right, `DeadlineError`
    where `timeout` is over, and those that make something `ProjectForeignError` where the project is somebody else's.
    """

    async def prepare(self, client: ClientId, *, timeout: timedelta) -> None:
        """See that the client has a project with its quota, its rules and an account to pull with."""
        ...

    async def renew(self, client: ClientId, *, timeout: timedelta) -> bool:
        """Do the same where there is a project; False where there is none: none is made."""
        ...

    async def schedule_collection(self, *, timeout: timedelta) -> None:
        """See that the registry collects its garbage by schedule, where somebody wishes that; another one is left."""
        ...

    async def remove_repository(self, client: ClientId, repository: str, *, timeout: timedelta) -> None:
        """Remove a repository, whatever is in it; one that is gone is no error."""
        ...

    async def remove(self, client: ClientId, *, timeout: timedelta) -> bool:
        """Remove the client's project with its images, and its account; False where there was none.

        A project that holds something else, too, stays with that.
        """
        ...

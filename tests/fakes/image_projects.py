"""Clients' projects in memory."""

from __future__ import annotations

from datetime import timedelta

from typing_extensions import override

from sandboxd.images.projects import ImageProjects
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import ClientId


class FakeImageProjects(ImageProjects):
    """Remembers which there are."""

    def __init__(self) -> None:
        self.there: dict[ClientId, int] = {}
        """With how often each was looked at."""
        self.removed_repositories: list[str] = []
        self.errors: dict[ClientId, SandboxdError] = {}
        """What everything about a client fails with."""
        self.scheduled = 0
        self.collection_error: SandboxdError | None = None

    @override
    async def prepare(self, client: ClientId, *, timeout: timedelta) -> None:
        self._look(client)
        self.there[client] = self.there.get(client, 0) + 1

    @override
    async def renew(self, client: ClientId, *, timeout: timedelta) -> bool:
        self._look(client)
        if client in self.there:
            self.there[client] += 1
        return client in self.there

    @override
    async def schedule_collection(self, *, timeout: timedelta) -> None:
        if self.collection_error is not None:
            raise self.collection_error
        self.scheduled += 1

    @override
    async def remove_repository(self, client: ClientId, repository: str, *, timeout: timedelta) -> None:
        self._look(client)
        self.removed_repositories.append(repository)

    @override
    async def remove(self, client: ClientId, *, timeout: timedelta) -> bool:
        self._look(client)
        return self.there.pop(client, None) is not None

    def _look(self, client: ClientId) -> None:
        if client in self.errors:
            raise self.errors[client]

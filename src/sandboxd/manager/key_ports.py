"""What the use cases of API keys need from outside: where keys are kept, the rows about them, and hashes of them.

A key's text goes from the caller's request to the store and to nowhere else. It is no part of a row, a log, an error or
a request's remembered body.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from sandboxd.model.api_key import ApiKey
from sandboxd.model.ids import ClientId


class KeyStore(Protocol):
    """The one place where keys are; the gateway reads it, and nobody else. Every method is safe to repeat.

    Raises (every method):
        UnavailableError: The place cannot be written now.
        StaleOwnerError: A later generation is there already.
    """

    async def put(
        self, client: ClientId, key: str, *, generation: int, keep_previous_until: datetime | None = None
    ) -> None:
        """Make a key the client's. The key before stands in until the moment that is named; None drops it at once."""
        ...

    async def remove(self, client: ClientId, *, generation: int) -> int:
        """Remove the client's keys, also one that stands in; answers how many there were."""
        ...


class KeyHashes(Protocol):
    """Keyed hashes of keys: without the service's secret nothing can be tried against them."""

    def digest(self, key: str) -> bytes:
        """The whole hash, for comparing two requests."""
        ...

    def fingerprint(self, key: str) -> str:
        """The beginning of another hash, for people who compare two keys."""
        ...


class KeyRepository(Protocol):
    """The rows about keys. Part of the unit of work."""

    async def find(self, client: ClientId, *, for_update: bool = False) -> ApiKey | None:
        """What is known of the client's key, with its last use; None where it never had one."""
        ...

    async def save(self, key: ApiKey) -> None:
        """Insert or overwrite."""
        ...

"""What is written down of uploads that our own pushes begin: no registry tells which sessions it has open.

A push that dies leaves its session, with all bytes that had arrived, at an address that nobody else knows. Whoever
looks after such finds it here, and closes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from sandboxd.model.image import GenerationId

LOCATION_BYTES: Final = 8192
"""Of an address; of one that is longer nothing is noted."""
NOTES: Final = 10_000
"""Uploads that are known at most: of more the oldest are forgotten, and are the registry's own purging's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadNote:
    """One upload session that is open, as far as is known."""

    id: str
    repository: str
    location: str
    """Where it goes on, or is closed: the registry's own word, another one after each piece."""
    commit: GenerationId
    """Of which commit it is."""
    begin_time: datetime
    update_time: datetime
    """When a piece arrived last."""
    sent_bytes: int = 0
    total_bytes: int = 0


class UploadNotes(Protocol):
    """Notes on uploads. Every method may raise DatabaseUnavailableError."""

    async def begun(self, name: str, *, repository: str, location: str, commit: GenerationId, total_bytes: int) -> None:
        """Note that a session was opened."""
        ...

    async def moved(self, name: str, *, location: str, sent_bytes: int) -> None:
        """Note how far it is."""
        ...

    async def ended(self, name: str) -> None:
        """Forget it: the registry has it no more. One that is not known is no error."""
        ...

    async def quiet(self, *, for_: timedelta, limit: int) -> Sequence[UploadNote]:
        """Return those of which nothing has arrived for so long, the oldest first."""
        ...

    async def get(self, name: str) -> UploadNote | None:
        """Return one."""
        ...

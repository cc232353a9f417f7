"""Writes down which upload session is open and how far it is. A note that cannot be written holds up no upload."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from typing import Final

import structlog
from yarl import URL

from sandboxd.images.upload_notes import LOCATION_BYTES, UploadNotes
from sandboxd.model.errors import SandboxdError
from sandboxd.model.image import GenerationId

NOTE_SECONDS: Final = 2.0
"""For one note."""

log = structlog.get_logger(__name__)


class SessionNote:
    """The note on one session."""

    def __init__(self, notes: UploadNotes | None, *, repository: str, commit: GenerationId) -> None:
        """Keep where it is written, nowhere where that is None."""
        self._notes = notes
        self._repository = repository
        self._commit = commit
        self._name = secrets.token_hex(16)
        self._there = False

    async def begun(self, location: URL, *, total_bytes: int) -> None:
        """The session is open."""
        if self._notes is None or len(str(location)) > LOCATION_BYTES:
            return
        self._there = True  # also where it is not known whether the note arrived
        await self._written(
            self._notes.begun(
                self._name,
                repository=self._repository,
                location=str(location),
                commit=self._commit,
                total_bytes=total_bytes,
            )
        )

    async def moved(self, location: URL, sent_bytes: int) -> None:
        """The registry has so many bytes."""
        if self._notes is not None and self._there and len(str(location)) <= LOCATION_BYTES:
            await self._written(self._notes.moved(self._name, location=str(location), sent_bytes=sent_bytes))

    async def ended(self) -> None:
        """The session is closed."""
        if self._notes is not None and self._there:
            await self._written(self._notes.ended(self._name))

    async def _written(self, note: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(NOTE_SECONDS):
                await note
        except (SandboxdError, TimeoutError) as error:
            log.warning("registry.upload_not_noted", repository=self._repository, error=str(error))

"""Uploads to the registry that our own pushes began and nobody finished: known by their notes, closed at the registry.

What others push there, kaniko among them, is no note's: that goes with the registry's own purging of uploads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.images.registry import Registry, UploadStuckError
from sandboxd.images.upload_notes import UploadNote, UploadNotes
from sandboxd.manager.abandoned_ports import AbandonedPlace
from sandboxd.model.abandoned import AbandonedKind, AbandonedReason, Thing
from sandboxd.model.errors import DeadlineError

QUIET: Final = timedelta(hours=1)
"""An upload of which nothing has arrived for so long has nobody who sends it: no call of a push takes longer."""
ASK_TIMEOUT: Final = timedelta(seconds=10)
"""For what the registry says of one of them."""
AT_ONCE: Final = 1000
"""Notes that one look takes, the oldest first."""


class BrokenUploads(AbandonedPlace):
    """Sessions by their notes."""

    def __init__(self, notes: UploadNotes, registry: Registry, *, quiet: timedelta = QUIET) -> None:
        self._notes = notes
        self._registry = registry
        self._quiet = quiet

    @property
    @override
    def place(self) -> str:
        return "uploads to the registry"

    @override
    async def look(self, *, timeout: timedelta) -> Sequence[Thing]:
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                found = [await self._seen(one) for one in await self._notes.quiet(for_=self._quiet, limit=AT_ONCE)]
        except TimeoutError as error:
            raise DeadlineError("The registry did not tell in time what became of all uploads.") from error
        return [one for one in found if one is not None]

    async def _seen(self, note: UploadNote) -> Thing | None:
        """Ask the registry; None where it has no such upload any more."""
        size, stuck = note.sent_bytes, False
        try:
            there = await self._registry.find_upload(note.repository, note.location, timeout=ASK_TIMEOUT)
            if there is None:
                await self._notes.ended(note.id)
                return None
            size = there
        except UploadStuckError:
            stuck = True
        return Thing(
            kind=AbandonedKind.UPLOAD,
            name=f"{note.repository}/{note.id}",
            identity=note.id,
            size_bytes=size,
            storage="registry",
            commit=note.commit,
            said=None if note.commit else AbandonedReason.EXPIRED,
            removable=not stuck,
        )

    @override
    async def remove(self, thing: Thing, *, timeout: timedelta) -> None:
        note = await self._notes.get(thing.identity)
        if note is not None:
            await self._registry.cancel_upload(note.repository, note.location, timeout=timeout)
            await self._notes.ended(note.id)

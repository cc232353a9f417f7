"""Notes on uploads to the registry, in the table `image_uploads`. Short transactions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Row, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from typing_extensions import override

from sandboxd.images.upload_notes import NOTES, UploadNote, UploadNotes
from sandboxd.model.image import GenerationId
from sandboxd.model.sources import Clock
from sandboxd.persistence.engine import Database
from sandboxd.persistence.tables import ImageUploadRow
from sandboxd.persistence.tables.base import table

_UPLOADS: Final = table(ImageUploadRow)


class PostgresUploadNotes(UploadNotes):
    """Notes in PostgreSQL."""

    def __init__(self, database: Database, *, clock: Clock, most: int = NOTES) -> None:
        self._database = database
        self._clock = clock
        self._most = most

    @override
    async def begun(self, name: str, *, repository: str, location: str, commit: GenerationId, total_bytes: int) -> None:
        c, now = _UPLOADS.c, self._clock.now()
        row = {
            "id": name,
            "repository": repository,
            "location": location,
            "generation": commit,
            "begin_time": now,
            "update_time": now,
            "sent_bytes": 0,
            "total_bytes": total_bytes,
        }
        beyond = select(c.id).order_by(c.update_time.desc()).offset(self._most)
        async with self._database.begin() as connection:
            await connection.execute(insert(_UPLOADS).values(row).on_conflict_do_nothing())
            await connection.execute(delete(_UPLOADS).where(c.id.in_(beyond)))

    @override
    async def moved(self, name: str, *, location: str, sent_bytes: int) -> None:
        moved = {"location": location, "sent_bytes": sent_bytes, "update_time": self._clock.now()}
        async with self._database.begin() as connection:
            await connection.execute(update(_UPLOADS).where(_UPLOADS.c.id == name).values(moved))

    @override
    async def ended(self, name: str) -> None:
        async with self._database.begin() as connection:
            await connection.execute(delete(_UPLOADS).where(_UPLOADS.c.id == name))

    @override
    async def quiet(self, *, for_: timedelta, limit: int) -> Sequence[UploadNote]:
        c = _UPLOADS.c
        wanted = select(_UPLOADS).where(c.update_time < self._clock.now() - for_).order_by(c.update_time, c.id)
        async with self._database.begin() as connection:
            return [_note(row) for row in await connection.execute(wanted.limit(limit))]

    @override
    async def get(self, name: str) -> UploadNote | None:
        async with self._database.begin() as connection:
            row = (await connection.execute(select(_UPLOADS).where(_UPLOADS.c.id == name))).one_or_none()
        return None if row is None else _note(row)


def _note(row: Row[Any]) -> UploadNote:  # Any: the columns are the table's
    return UploadNote(
        id=row.id,
        repository=row.repository,
        location=row.location,
        commit=GenerationId(row.generation),
        begin_time=row.begin_time,
        update_time=row.update_time,
        sent_bytes=row.sent_bytes,
        total_bytes=row.total_bytes,
    )

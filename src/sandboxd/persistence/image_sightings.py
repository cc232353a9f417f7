"""When images were seen in use last, and since when the registry has what no row knows of. Short transactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from typing_extensions import override

from sandboxd.manager.image_care_ports import ImageSightings
from sandboxd.persistence.engine import Database
from sandboxd.persistence.tables import ImageSightingRow
from sandboxd.persistence.tables.base import table

_SIGHTINGS: Final = table(ImageSightingRow)


class PostgresImageSightings(ImageSightings):
    """Sightings in the table `image_sightings`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def note_used(self, repository: str, digests: Sequence[str], *, at: datetime) -> None:
        if not digests:
            return
        c = _SIGHTINGS.c
        statement = insert(_SIGHTINGS).values(
            [{"repository": repository, "digest": digest, "use_time": at} for digest in sorted({*digests})]
        )
        statement = statement.on_conflict_do_update(
            index_elements=[c.repository, c.digest], set_={"use_time": statement.excluded.use_time}
        )
        async with self._database.begin() as connection:
            await connection.execute(statement)

    @override
    async def last_used(self, repository: str) -> Mapping[str, datetime]:
        c = _SIGHTINGS.c
        statement = select(c.digest, c.use_time).where(c.repository == repository, c.use_time.is_not(None))
        async with self._database.begin() as connection:
            return {row.digest: row.use_time for row in await connection.execute(statement)}

    @override
    async def note_orphans(self, repository: str, digests: Sequence[str], *, at: datetime) -> Mapping[str, datetime]:
        c = _SIGHTINGS.c
        found = sorted({*digests})
        others = and_(c.repository == repository, c.orphan_time.is_not(None), c.digest != func.all(found))
        async with self._database.begin() as connection:
            await connection.execute(delete(_SIGHTINGS).where(others, c.use_time.is_(None)))
            await connection.execute(update(_SIGHTINGS).values(orphan_time=None).where(others))
            if not found:
                return {}
            statement = insert(_SIGHTINGS).values(
                [{"repository": repository, "digest": digest, "orphan_time": at} for digest in found]
            )
            noted = statement.on_conflict_do_update(
                index_elements=[c.repository, c.digest],
                set_={"orphan_time": func.coalesce(c.orphan_time, statement.excluded.orphan_time)},
            ).returning(c.digest, c.orphan_time)
            return {row.digest: row.orphan_time for row in await connection.execute(noted)}

    @override
    async def forget(self, repository: str, digest: str) -> None:
        c = _SIGHTINGS.c
        statement = delete(_SIGHTINGS).where(c.repository == repository, c.digest == digest)
        async with self._database.begin() as connection:
            await connection.execute(statement)

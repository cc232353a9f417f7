"""Sightings of abandoned things, in the table `abandoned_sightings`. Short transactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from typing_extensions import override

from sandboxd.manager.abandoned_ports import AbandonedSightings
from sandboxd.model.abandoned import Sighting
from sandboxd.persistence.engine import Database
from sandboxd.persistence.tables import AbandonedSightingRow
from sandboxd.persistence.tables.base import table

_SEEN: Final = table(AbandonedSightingRow)
_PAGE: Final = 1000


class PostgresAbandonedSightings(AbandonedSightings):
    """Sightings in PostgreSQL. Two looks at once count a little more than one, and never less than nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def note(self, place: str, names: Sequence[str], *, at: datetime, pause: timedelta) -> Mapping[str, Sighting]:
        c, found = _SEEN.c, sorted({*names})
        noted = dict[str, Sighting]()
        async with self._database.begin() as connection:
            await connection.execute(delete(_SEEN).where(c.place == place, c.name != func.all(found)))
            known = {
                row.name: Sighting(
                    first_time=row.first_time,
                    last_time=row.last_time,
                    looks=row.looks,
                    seen=timedelta(seconds=row.seen_seconds),
                )
                for row in await connection.execute(select(_SEEN).where(c.place == place).with_for_update())
            }
            for name in found:
                before = known.get(name)
                noted[name] = (
                    Sighting(first_time=at, last_time=at) if before is None else before.again(at=at, pause=pause)
                )
            for start in range(0, len(found), _PAGE):
                rows = [
                    {
                        "place": place,
                        "name": name,
                        "first_time": noted[name].first_time,
                        "last_time": noted[name].last_time,
                        "looks": noted[name].looks,
                        "seen_seconds": noted[name].seen.total_seconds(),
                    }
                    for name in found[start : start + _PAGE]
                ]
                statement = insert(_SEEN).values(rows)
                await connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=[c.place, c.name],
                        set_={name: statement.excluded[name] for name in ("last_time", "looks", "seen_seconds")},
                    )
                )
        return noted

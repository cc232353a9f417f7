"""Sightings of abandoned things and looks at places (`abandoned_sightings`, `abandoned_looks`). Short transactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from typing_extensions import override

from sandboxd.manager.abandoned_ports import AbandonedSightings
from sandboxd.model.abandoned import AbandonedKind, AbandonedReason, PlaceLook, Sighting, Thing
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.image import GenerationId
from sandboxd.persistence.engine import Database
from sandboxd.persistence.tables import AbandonedLookRow, AbandonedSightingRow
from sandboxd.persistence.tables.base import table

_SEEN: Final = table(AbandonedSightingRow)
_LOOKS: Final = table(AbandonedLookRow)
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
                row.name: _sighting(row)
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

    @override
    async def known(self, place: str) -> Mapping[str, Sighting]:
        async with self._database.begin() as connection:
            rows = await connection.execute(select(_SEEN).where(_SEEN.c.place == place))
            return {row.name: _sighting(row) for row in rows}

    @override
    async def looks(self) -> Mapping[str, PlaceLook]:
        async with self._database.begin() as connection:
            return {
                row.place: PlaceLook(
                    tried_time=row.tried_time, look_time=row.look_time, things=[_thing(one) for one in row.things]
                )
                for row in await connection.execute(select(_LOOKS))
            }

    @override
    async def try_(self, place: str, *, at: datetime) -> None:
        made = insert(_LOOKS).values(place=place, tried_time=at, look_time=None, things=[])
        async with self._database.begin() as connection:
            await connection.execute(
                made.on_conflict_do_update(index_elements=[_LOOKS.c.place], set_={"tried_time": at})
            )

    @override
    async def keep(self, place: str, things: Sequence[Thing], *, at: datetime) -> None:
        kept = {"look_time": at, "things": [_as_json(one) for one in things]}
        made = insert(_LOOKS).values(place=place, tried_time=at, **kept)
        async with self._database.begin() as connection:
            await connection.execute(made.on_conflict_do_update(index_elements=[_LOOKS.c.place], set_=kept))

    @override
    async def forget(self, places: Sequence[str]) -> None:
        async with self._database.begin() as connection:
            for rows in (_SEEN, _LOOKS):
                await connection.execute(delete(rows).where(rows.c.place == func.any(list(places))))


def _sighting(row: Row[Any]) -> Sighting:  # Any: the columns are the table's
    return Sighting(
        first_time=row.first_time,
        last_time=row.last_time,
        looks=row.looks,
        seen=timedelta(seconds=row.seen_seconds),
    )


def _as_json(thing: Thing) -> dict[str, Any]:  # Any: JSON
    return {
        "kind": thing.kind.value,
        "name": thing.name,
        "identity": thing.identity,
        "size_bytes": thing.size_bytes,
        "storage": thing.storage,
        "sandbox": thing.sandbox,
        "client": thing.client,
        "backup": thing.backup,
        "commit": thing.commit,
        "said": thing.said.value if thing.said else None,
        "removable": thing.removable,
    }


def _thing(given: Mapping[str, Any]) -> Thing:  # Any: JSON
    return Thing(
        kind=AbandonedKind(given["kind"]),
        name=given["name"],
        identity=given["identity"],
        size_bytes=given["size_bytes"],
        storage=given["storage"],
        sandbox=SandboxId(given["sandbox"]) if given["sandbox"] else None,
        client=ClientId(given["client"]) if given["client"] else None,
        backup=given["backup"],
        commit=GenerationId(given["commit"]),
        said=AbandonedReason(given["said"]) if given["said"] else None,
        removable=given["removable"],
    )

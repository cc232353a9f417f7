"""Places of abandoned things, and since when they are seen, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from typing_extensions import override

from sandboxd.manager.abandoned_ports import AbandonedPlace, AbandonedPlaces, AbandonedSightings
from sandboxd.model.abandoned import PlaceLook, Sighting, Thing
from sandboxd.model.errors import SandboxdError


@dataclass(kw_only=True)
class FakePlace(AbandonedPlace):
    things: list[Thing] = field(default_factory=list)
    trouble: SandboxdError | None = None
    """Raised by whatever is called."""
    removed: list[str] = field(default_factory=list)
    called: str = "the world"
    rarely: timedelta = timedelta(0)
    looks: int = 0
    looking: Callable[[], None] = lambda: None
    """Called at the beginning of a look."""

    @property
    @override
    def place(self) -> str:
        return self.called

    @property
    @override
    def every(self) -> timedelta:
        return self.rarely

    @override
    async def look(self, *, timeout: timedelta) -> Sequence[Thing]:
        self.looks += 1
        self.looking()
        if self.trouble is not None:
            raise self.trouble
        return [*self.things]

    @override
    async def remove(self, thing: Thing, *, timeout: timedelta) -> None:
        if self.trouble is not None:
            raise self.trouble
        if thing in self.things:
            self.things.remove(thing)
            self.removed.append(thing.name)


@dataclass(kw_only=True)
class FakePlaces(AbandonedPlaces):
    some: list[FakePlace] = field(default_factory=list)

    @override
    async def places(self) -> Sequence[AbandonedPlace]:
        return [*self.some]


@dataclass(kw_only=True)
class FakeSightings(AbandonedSightings):
    rows: dict[tuple[str, str], Sighting] = field(default_factory=dict)
    seen: dict[str, PlaceLook] = field(default_factory=dict)

    @override
    async def note(self, place: str, names: Sequence[str], *, at: datetime, pause: timedelta) -> Mapping[str, Sighting]:
        for key in [one for one in self.rows if one[0] == place and one[1] not in names]:
            del self.rows[key]
        for name in names:
            before = self.rows.get((place, name))
            self.rows[place, name] = (
                Sighting(first_time=at, last_time=at) if before is None else before.again(at=at, pause=pause)
            )
        return {name: self.rows[place, name] for name in names}

    @override
    async def known(self, place: str) -> Mapping[str, Sighting]:
        return {name: one for (where, name), one in self.rows.items() if where == place}

    @override
    async def looks(self) -> Mapping[str, PlaceLook]:
        return dict(self.seen)

    @override
    async def try_(self, place: str, *, at: datetime) -> None:
        before = self.seen.get(place)
        self.seen[place] = PlaceLook(tried_time=at) if before is None else replace(before, tried_time=at)

    @override
    async def keep(self, place: str, things: Sequence[Thing], *, at: datetime) -> None:
        tried = self.seen[place].tried_time if place in self.seen else at
        self.seen[place] = PlaceLook(tried_time=tried, look_time=at, things=[*things])

    @override
    async def forget(self, places: Sequence[str]) -> None:
        self.seen = {name: one for name, one in self.seen.items() if name not in places}
        self.rows = {key: one for key, one in self.rows.items() if key[0] not in places}

"""Places of abandoned things, and since when they are seen, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from typing_extensions import override

from sandboxd.manager.abandoned_ports import AbandonedPlace, AbandonedSightings
from sandboxd.model.abandoned import Sighting, Thing
from sandboxd.model.errors import SandboxdError


@dataclass(kw_only=True)
class FakePlace(AbandonedPlace):
    things: list[Thing] = field(default_factory=list)
    trouble: SandboxdError | None = None
    """Raised by whatever is called."""
    removed: list[str] = field(default_factory=list)

    @property
    @override
    def place(self) -> str:
        return "the world"

    @override
    async def look(self, *, timeout: timedelta) -> Sequence[Thing]:
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
class FakeSightings(AbandonedSightings):
    rows: dict[tuple[str, str], Sighting] = field(default_factory=dict)

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

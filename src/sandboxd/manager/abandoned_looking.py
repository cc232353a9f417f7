"""One look at all places: those first that waited longest, until its time is over; the next one goes on from there.

What was found is kept by place: a place that costs something is looked at rarely, and one that was not reached is told
as it was seen last. The rows are asked anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

import structlog

from sandboxd.manager.abandoned_ports import AbandonedPlace, AbandonedPlaces, AbandonedSightings
from sandboxd.manager.abandoned_rows import reason_of
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.abandoned import Abandoned, AbandonedPolicy, AbandonedReason, PlaceLook, Thing
from sandboxd.model.errors import DeadlineError, SandboxdError
from sandboxd.model.sources import Clock

LOOK_TIMEOUT: Final = timedelta(minutes=2)
"""For one place."""
SHORTEST: Final = timedelta(seconds=1)
"""With less time than that no place is begun."""
JUDGING: Final = timedelta(seconds=30)
"""Beside a look's own time, to hold what was found against the rows."""
PLACES: Final = 10_000
"""That are looked at in turn."""
JUDGED: Final = 200
"""Things that are held against the rows in one transaction."""
KEPT: Final = 1000
"""Abandoned things of one place that are told, and kept for the next look."""
NAMED: Final = 5
"""Places that a message names."""
OTHERS: Final = "the next look"
"""In place of a place: what this look did not come to."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Looked:
    """What a look found."""

    found: list[Abandoned] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)
    """Places that did not answer or were not reached, with why."""


@dataclass(slots=True, kw_only=True)
class AbandonedLooking:
    """Looks."""

    units: UnitsOfWork
    fixed: Sequence[AbandonedPlace]
    changing: Sequence[AbandonedPlaces] = ()
    sightings: AbandonedSightings
    policy: AbandonedPolicy
    clock: Clock

    async def look(self, *, timeout: timedelta) -> Looked:
        """Look at as many places as there is time for."""
        end = self.clock.monotonic() + timeout.total_seconds()
        looked = Looked()
        known = await self.sightings.looks()
        places = await self.places(looked)
        late = list[str]()
        for place in sorted(places, key=lambda one: _tried(known, one)):
            left = timedelta(seconds=end - self.clock.monotonic())
            last = known.get(place.place)
            try:
                if last is not None and self._is_recent(place, last):
                    looked.found += await self._judge(place, last.things, end=end)
                elif left < SHORTEST:
                    late.append(place.place)
                    looked.found += await self._known(place, last)
                else:
                    looked.found += await self._fresh(place, timeout=min(left, LOOK_TIMEOUT), end=end)
            except SandboxdError as error:
                looked.unasked[place.place] = error.message
                looked.found += await self._known(place, last)
                log.info("abandoned.place_unasked", place=place.place, error=error.message)
        if late:
            named = ", ".join(late[:NAMED]) + (" and others" if len(late) > NAMED else "")
            looked.unasked[OTHERS] = f"{len(late)} places were not reached in time and come first in it: {named}."
        if not looked.unasked:
            gone = known.keys() - {one.place for one in places}
            await self.sightings.forget(sorted(gone))
        return looked

    async def places(self, looked: Looked | None = None) -> Sequence[AbandonedPlace]:
        """Return all places that there are."""
        found = [*self.fixed]
        for some in self.changing:
            try:
                found += await some.places()
            except SandboxdError as error:
                if looked is None:
                    raise
                looked.unasked["places"] = error.message
        if len(found) > PLACES and looked is not None:
            looked.unasked["places"] = f"There are {len(found)}; the first {PLACES} are looked at."
        return found[:PLACES]

    async def reason(self, thing: Thing) -> AbandonedReason | None:
        """Say what the rows say now."""
        async with self.units.begin() as work:
            return await reason_of(work, thing)

    async def removed(self, gone: Abandoned) -> None:
        """Take a thing out of what is known of its place."""
        last = (await self.sightings.looks()).get(gone.place)
        if last is not None and last.look_time is not None:
            left = [one for one in last.things if one != gone.thing]
            await self.sightings.keep(gone.place, left, at=last.look_time)

    async def _fresh(self, place: AbandonedPlace, *, timeout: timedelta, end: float) -> Sequence[Abandoned]:
        now = self.clock.now()
        await self.sightings.try_(place.place, at=now)
        found = await self._judge(place, await place.look(timeout=timeout), end=end)
        await self.sightings.keep(place.place, [one.thing for one in found], at=now)
        return found

    async def _known(self, place: AbandonedPlace, last: PlaceLook | None) -> Sequence[Abandoned]:
        """Tell what the last look knew. It is no sighting: grace stands still."""
        if last is None or not last.things:
            return []
        reasons = await self._reasons(last.things, end=None)
        seen = await self.sightings.known(place.place)
        told = [
            self.policy.judged(thing, reason, seen[key], place=place.place)
            for key, (thing, reason) in sorted(reasons.items())
            if key in seen
        ]
        return [replace(one, remove_time=None, current=False) for one in told]

    async def _judge(self, place: AbandonedPlace, things: Sequence[Thing], *, end: float) -> Sequence[Abandoned]:
        """Hold things against the rows, which are read after the things were: what is new has its row by now."""
        reasons = await self._reasons(things, end=end)
        if len(reasons) > KEPT:
            log.warning("abandoned.too_many", place=place.place, found=len(reasons), told=KEPT)
            reasons = {key: reasons[key] for key in sorted(reasons)[:KEPT]}
        seen = await self.sightings.note(
            place.place, [*reasons], at=self.clock.now(), pause=self.policy.pause or timedelta(hours=1)
        )
        return [
            self.policy.judged(thing, reason, seen[key], place=place.place)
            for key, (thing, reason) in sorted(reasons.items())
        ]

    async def _reasons(self, things: Sequence[Thing], *, end: float | None) -> dict[str, tuple[Thing, AbandonedReason]]:
        reasons, left = dict[str, tuple[Thing, AbandonedReason]](), iter(things)
        while some := list(islice(left, JUDGED)):
            if end is not None and self.clock.monotonic() > end + JUDGING.total_seconds():
                raise DeadlineError("There was no time to hold all that is there against the rows.")
            async with self.units.begin() as work:
                for thing in some:
                    reason = await reason_of(work, thing)
                    if reason is not None:
                        reasons[key_of(thing)] = (thing, reason)
        return reasons

    def _is_recent(self, place: AbandonedPlace, last: PlaceLook) -> bool:
        if last.look_time is None or not place.every:
            return False
        return timedelta(0) <= self.clock.now() - last.look_time < place.every


def key_of(thing: Thing) -> str:
    """Name of a thing within its place."""
    return f"{thing.kind.value}/{thing.name}"


def _tried(known: Mapping[str, PlaceLook], place: AbandonedPlace) -> tuple[datetime, str]:
    last = known.get(place.place)
    return (_NEVER if last is None else last.tried_time, place.place)

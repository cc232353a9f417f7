"""What the care of abandoned things needs: places that have them, and since when each was seen.

Who adds a kind of things implements `AbandonedPlace` and gives it to the care: nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from sandboxd.model.abandoned import PlaceLook, Sighting, Thing


class AbandonedPlace(Protocol):
    """One place that may have things which nobody needs."""

    @property
    def place(self) -> str:
        """What is asked, in a word or two, for people; constant, and no other place's."""
        ...

    @property
    def every(self) -> timedelta:
        """How often it is looked at, where a look costs something; zero: at each look."""
        return timedelta(0)

    async def look(self, *, timeout: timedelta) -> Sequence[Thing]:
        """Return everything of ours that there is, needed or not: rows decide. What is not ours is not in it.

        An answer that may lack something must be an error.

        Raises:
            UnavailableError, DeadlineError: It cannot be asked now.
        """
        ...

    async def remove(self, thing: Thing, *, timeout: timedelta) -> None:
        """Remove that very thing. Absent is success, and so is another one in its place: of that nothing is touched.

        Raises:
            SandboxdError: It is still there.
        """
        ...


class AbandonedPlaces(Protocol):
    """Places that come and go, as each client's repository of backups."""

    async def places(self) -> Sequence[AbandonedPlace]:
        """Return those that there are now.

        Raises:
            SandboxdError: That is not known now.
        """
        ...


class AbandonedSightings(Protocol):
    """Since when things are seen abandoned, and where looks have been. May raise DatabaseUnavailableError."""

    async def known(self, place: str) -> Mapping[str, Sighting]:
        """Return the sightings of a place as they are."""
        ...

    async def looks(self) -> Mapping[str, PlaceLook]:
        """Return what is known of each place."""
        ...

    async def try_(self, place: str, *, at: datetime) -> None:
        """Note that a look at a place begins: it is the last in the row for the next one, whatever it comes to."""
        ...

    async def keep(self, place: str, things: Sequence[Thing], *, at: datetime) -> None:
        """Note what a look has found abandoned, in place of what was known."""
        ...

    async def forget(self, places: Sequence[str]) -> None:
        """Forget all of these places: they are no more."""
        ...

    async def note(self, place: str, names: Sequence[str], *, at: datetime, pause: timedelta) -> Mapping[str, Sighting]:
        """Note that these, and no others of the place, are abandoned; returns the sighting of each."""
        ...

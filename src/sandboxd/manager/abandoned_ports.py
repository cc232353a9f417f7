"""What the care of abandoned things needs: places that have them, and since when each was seen.

Who adds a kind of things implements `AbandonedPlace` and gives it to the care: nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from sandboxd.model.abandoned import Sighting, Thing


class AbandonedPlace(Protocol):
    """One place that may have things which nobody needs."""

    @property
    def place(self) -> str:
        """What is asked, in a word or two, for people; constant, and no other place's."""
        ...

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


class AbandonedSightings(Protocol):
    """Since when things are seen abandoned. Every method may raise DatabaseUnavailableError."""

    async def note(self, place: str, names: Sequence[str], *, at: datetime, pause: timedelta) -> Mapping[str, Sighting]:
        """Note that these, and no others of the place, are abandoned; returns the sighting of each."""
        ...

"""What nobody needs any more and still costs: what it is, who says so, since when, and whether it goes by itself.

Grace is counted in time that was looked at, not in moments: a clock that jumps adds two pauses at most.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.image import GenerationId


class AbandonedKind(enum.Enum):
    """What is abandoned."""

    VOLUME = "volume"
    """Of a sandbox: a directory, a claim, a PersistentVolume."""
    IMAGE = "image"
    """In the registry."""
    SNAPSHOT = "snapshot"
    """In a repository of backups."""
    NAMESPACE = "namespace"
    """Of a client."""
    WORK = "work"
    """Resources of work that has ended."""
    LEFTOVER = "leftover"
    """What work that broke off has put somewhere."""
    UPLOAD = "upload"
    """To the registry: one that was never finished."""


class AbandonedReason(enum.Enum):
    """Who says that it is abandoned."""

    NO_ROW = "no_row"
    """No row knows whose it is. **The row may be what is wrong**: a database that was restored knows nothing of what
    came after its backup."""
    ERASED = "erased"
    """Its row says that all of it was erased."""
    RELEASED = "released"
    """Its row says that its volumes were released: a backup has all of it."""
    CLIENT_DELETED = "client_deleted"
    """Its client's row says that the client is deleted."""
    SET_ENDED = "set_ended"
    """Its backup set's row says that it failed or is deleted."""
    EXPIRED = "expired"
    """It is of work whose time is over."""
    COMMIT_ENDED = "commit_ended"
    """The commit that it is of is over."""
    RETAINED = "retained"
    """Its claim is gone, and its reclaim policy keeps it."""


_NO_COMMIT: Final = GenerationId("")
CERTAIN: Final = frozenset(
    {
        AbandonedReason.ERASED,
        AbandonedReason.RELEASED,
        AbandonedReason.CLIENT_DELETED,
        AbandonedReason.SET_ENDED,
        AbandonedReason.EXPIRED,
        AbandonedReason.COMMIT_ENDED,
    }
)
"""Something says so: these go by themselves. Of the others only the absence of a word is known: a person decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """Something that a place has, of whom it cannot tell whether it is needed."""

    kind: AbandonedKind
    name: str
    """Unique within its kind, for people too."""
    identity: str = ""
    """Of this very one: what has its name later has another."""
    size_bytes: int | None = None
    """None where nobody knows."""
    storage: str = ""
    """The storage class, or another word that a price may be for."""
    sandbox: SandboxId | None = None
    client: ClientId | None = None
    backup: str = ""
    """The set that it is of."""
    commit: GenerationId = _NO_COMMIT
    """The commit that it is of."""
    said: AbandonedReason | None = None
    """Where the place itself knows that it is abandoned."""
    removable: bool = True
    """False: sandboxd cannot, or must not, remove it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """How often, and for how long, something was seen abandoned without a break."""

    first_time: datetime
    last_time: datetime
    looks: int = 1
    seen: timedelta = timedelta(0)
    """Of grace that is over."""

    def again(self, *, at: datetime, pause: timedelta) -> Sighting:
        """Return it after one more look."""
        passed = min(max(at - self.last_time, timedelta(0)), 2 * pause)
        return replace(self, last_time=at, looks=self.looks + 1, seen=self.seen + passed)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceLook:
    """What is known of a place, whoever looked there."""

    tried_time: datetime
    """When a look at it began last."""
    look_time: datetime | None = None
    """When one came to its end last; None: none has."""
    things: Sequence[Thing] = ()
    """What was abandoned then, and was not removed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """Something that is abandoned."""

    thing: Thing
    reason: AbandonedReason
    sighting: Sighting
    place: str = ""
    """Which place has it."""
    cost_micros: int | None = None
    """A month, in millionths of the price settings' currency; None: there is no price, or nobody knows the size."""
    current: bool = True
    """False: the look that tells of it was not there; an earlier one was."""
    remove_time: datetime | None = None
    """When it goes by itself, if nothing changes; None: it does not."""

    @property
    def automatic(self) -> bool:
        """Tell whether it goes by itself."""
        return self.thing.removable and self.reason in CERTAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonedPolicy:
    """When abandoned things go, and what they cost."""

    grace: timedelta = timedelta(days=7)
    """Looked at for so long, and at least twice."""
    pause: timedelta = timedelta(hours=1)
    """Between two looks; zero: none by itself."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """For a GB a month, by storage; `*` for all others."""

    def ripe(self, sighting: Sighting) -> bool:
        """Tell whether grace is over."""
        return sighting.looks >= 2 and sighting.seen >= self.grace

    def judged(self, thing: Thing, reason: AbandonedReason, sighting: Sighting, *, place: str = "") -> Abandoned:
        """Say of a thing what it costs, and when it goes."""
        price = self.prices.get(thing.storage, self.prices.get("*"))
        cost = None
        if price is not None and thing.size_bytes is not None:
            cost = round(thing.size_bytes / 1e9 * price * 1e6)
        found = Abandoned(thing=thing, reason=reason, sighting=sighting, place=place, cost_micros=cost)
        if not found.automatic:
            return found
        left = max(self.grace - sighting.seen, timedelta(0) if sighting.looks > 1 else self.pause)
        return replace(found, remove_time=sighting.last_time + left)

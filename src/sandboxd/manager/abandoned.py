"""What is abandoned: looked for at every place, held against the rows, told with its cost, and removed after grace.

By itself goes only what a row or the thing itself says is needed no more. What no row knows of is told, and removed by
a person alone: after a database was restored the rows may be what is wrong. Each step is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol

import structlog
from typing_extensions import override

from sandboxd.manager.abandoned_metrics import AbandonedMetrics
from sandboxd.manager.abandoned_ports import AbandonedPlace, AbandonedSightings
from sandboxd.manager.abandoned_rows import reason_of
from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.manager.on_duty import pass_on_duty
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.abandoned import (
    Abandoned,
    AbandonedKind,
    AbandonedPolicy,
    AbandonedReason,
    Thing,
)
from sandboxd.model.errors import NotFoundError, SandboxdError, WrongStateError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.sources import Clock

DUTY: Final = "abandoned"
LOOK_TIMEOUT: Final = timedelta(minutes=2)
"""For one place."""
REMOVE_TIMEOUT: Final = timedelta(minutes=5)
BATCH: Final = 50
"""Things that one pass removes at most."""

log = structlog.get_logger(__name__)


class NotAbandonedError(NotFoundError):
    """Nothing abandoned has this name."""

    reason = "NOT_ABANDONED"


class NotRemovableError(WrongStateError):
    """sandboxd does not remove this; the message says who does."""

    reason = "NOT_REMOVABLE"


@dataclass(slots=True, kw_only=True)
class AbandonedReport:
    """What a look found, and what a pass did."""

    found: list[Abandoned] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)
    """Places that did not answer, with why."""
    removed: list[Abandoned] = field(default_factory=list)
    failed: int = 0


class AbandonedLooks(Protocol):
    """What operators ask of the care."""

    async def look(self) -> AbandonedReport:
        """See `AbandonedCare.look`."""
        ...

    async def remove(self, kind: AbandonedKind, name: str) -> Abandoned:
        """See `AbandonedCare.remove`."""
        ...


@dataclass(slots=True, kw_only=True)
class AbandonedCare(AbandonedLooks):
    """One look after the other, by whoever has the duty or is told to."""

    units: UnitsOfWork
    places: Sequence[AbandonedPlace]
    sightings: AbandonedSightings
    policy: AbandonedPolicy
    duties: Duties
    clock: Clock
    metrics: AbandonedMetrics
    deeds: OwnDeeds = UNRECORDED
    batch: int = BATCH

    async def run(self) -> None:
        """Pass again and again where this replica has the duty, until cancelled."""
        await pass_on_duty(self.duties, DUTY, self.care, pause=self.policy.pause, name="abandoned.care")

    async def care(self) -> AbandonedReport:
        """Look, and remove what goes by itself and whose grace is over."""
        report = await self.look()
        for one in report.found:
            if len(report.removed) + report.failed >= self.batch:
                break
            if one.automatic and self.policy.ripe(one.sighting):
                try:
                    await self._remove(one)
                    report.removed.append(one)
                except SandboxdError as error:
                    report.failed += 1
                    log.warning("abandoned.not_removed", thing=one.thing.name, error=error.message)
        return report

    @override
    async def look(self) -> AbandonedReport:
        """Look at every place. Nothing is removed; since when each thing is seen is noted."""
        report = AbandonedReport()
        for place in self.places:
            try:
                things = await place.look(timeout=LOOK_TIMEOUT)
                report.found += await self._judge(place, things)
            except SandboxdError as error:
                report.unasked[place.place] = error.message
                log.info("abandoned.place_unasked", place=place.place, error=error.message)
        self.metrics.found(report.found, unasked=len(report.unasked))
        return report

    @override
    async def remove(self, kind: AbandonedKind, name: str) -> Abandoned:
        """Remove one thing because a person says so, whatever its grace.

        Raises:
            NotAbandonedError: Nothing abandoned has this kind and name now.
            NotRemovableError: It is not sandboxd's to remove.
            SandboxdError: It is still there.
        """
        report = await self.look()
        found = next((one for one in report.found if (one.thing.kind, one.thing.name) == (kind, name)), None)
        if found is None:
            why = "; ".join(f"{place} did not answer: {text}" for place, text in report.unasked.items())
            raise NotAbandonedError(f"No {kind.value} {name!r} is abandoned. {why}".rstrip(), kind=kind.value)
        if not found.thing.removable:
            raise NotRemovableError(
                f"The {kind.value} {name!r} is not removed here: {found.reason.value}. See docs/abandoned.md.",
                kind=kind.value,
            )
        await self._remove(found)
        return found

    async def _judge(self, place: AbandonedPlace, things: Sequence[Thing]) -> Sequence[Abandoned]:
        """Hold things against the rows, which are read after the things were: what is new has its row by now."""
        reasons = dict[str, tuple[Thing, AbandonedReason]]()
        for thing in things:
            reason = await self._reason(thing)
            if reason is not None:
                reasons[_key(thing)] = (thing, reason)
        seen = await self.sightings.note(
            place.place, [*reasons], at=self.clock.now(), pause=self.policy.pause or timedelta(hours=1)
        )
        return [
            self.policy.judged(thing, reason, seen[key], place=place.place)
            for key, (thing, reason) in sorted(reasons.items())
        ]

    async def _reason(self, thing: Thing) -> AbandonedReason | None:
        async with self.units.begin() as work:
            return await reason_of(work, thing)

    async def _remove(self, found: Abandoned) -> None:
        """Remove it, if that is still so."""
        thing = found.thing
        place = next(one for one in self.places if one.place == found.place)
        async with self.deeds.recorded(
            "Abandoned/Remove",
            client=await self._chain(thing),
            sandbox=thing.sandbox or SandboxId(""),
            target=f"{thing.kind.value}s/{thing.name}",
        ):
            if await self._reason(thing) != found.reason:
                raise NotAbandonedError(f"{thing.name!r} is needed again.", kind=thing.kind.value)
            failpoint("abandoned.before_remove")
            await place.remove(thing, timeout=REMOVE_TIMEOUT)
        self.metrics.removed(thing)
        log.info("abandoned.removed", kind=thing.kind.value, thing=thing.name, reason=found.reason.value)

    async def _chain(self, thing: Thing) -> ClientId:
        """In whose audit it is recorded; the system's where the client is not known."""
        if thing.client is None:
            return ClientId("")
        async with self.units.begin() as work:
            return thing.client if await work.clients.find(thing.client) is not None else ClientId("")


def _key(thing: Thing) -> str:
    return f"{thing.kind.value}/{thing.name}"

"""What is abandoned: looked for at every place, held against the rows, told with its cost, and removed after grace.

By itself goes only what a row or the thing itself says is needed no more. What no row knows of is told, and removed by
a person alone: after a database was restored the rows may be what is wrong. Each step is safe to repeat.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol

import structlog
from typing_extensions import override

from sandboxd.manager.abandoned_looking import AbandonedLooking
from sandboxd.manager.abandoned_metrics import AbandonedMetrics
from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.manager.on_duty import pass_on_duty
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.abandoned import Abandoned, AbandonedKind, AbandonedPolicy, Thing
from sandboxd.model.errors import NotFoundError, SandboxdError, WrongStateError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.sources import Clock

DUTY: Final = "abandoned"
LOOK_DEADLINE: Final = timedelta(minutes=10)
"""For a look of its own at all places; what it does not come to is first in the next one."""
REMOVALS_DEADLINE: Final = timedelta(minutes=10)
"""For all removals of one pass; what it does not come to is the next one's."""
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
    """Places that did not answer or were not reached, with why."""
    removed: list[Abandoned] = field(default_factory=list)
    failed: int = 0


class AbandonedLooks(Protocol):
    """What operators ask of the care."""

    async def look(self, *, timeout: timedelta) -> AbandonedReport:
        """See `AbandonedCare.look`."""
        ...

    async def remove(self, kind: AbandonedKind, name: str, *, timeout: timedelta) -> Abandoned:
        """See `AbandonedCare.remove`."""
        ...


@dataclass(slots=True, kw_only=True)
class AbandonedCare(AbandonedLooks):
    """One look after the other, by whoever has the duty or is told to."""

    units: UnitsOfWork
    looking: AbandonedLooking
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
        report = await self.look(timeout=LOOK_DEADLINE)
        end = self.clock.monotonic() + REMOVALS_DEADLINE.total_seconds()
        for one in report.found:
            left = timedelta(seconds=end - self.clock.monotonic())
            if len(report.removed) + report.failed >= self.batch or left <= timedelta(0):
                break
            if one.current and one.automatic and self.policy.ripe(one.sighting):
                try:
                    await self._remove(one, timeout=min(REMOVE_TIMEOUT, left))
                    report.removed.append(one)
                except SandboxdError as error:
                    report.failed += 1
                    log.warning("abandoned.not_removed", thing=one.thing.name, error=error.message)
        return report

    @override
    async def look(self, *, timeout: timedelta) -> AbandonedReport:
        """Look at as many places as there is time for. Nothing is removed; since when each thing is seen is noted."""
        looked = await self.looking.look(timeout=timeout)
        self.metrics.found(looked.found, unasked=len(looked.unasked))
        return AbandonedReport(found=looked.found, unasked=looked.unasked)

    @override
    async def remove(self, kind: AbandonedKind, name: str, *, timeout: timedelta) -> Abandoned:
        """Remove one thing because a person says so, whatever its grace.

        Raises:
            NotAbandonedError: Nothing abandoned has this kind and name now.
            NotRemovableError: It is not sandboxd's to remove.
            SandboxdError: It is still there.
        """
        end = self.clock.monotonic() + timeout.total_seconds()
        report = await self.look(timeout=timeout / 2)
        found = next((one for one in report.found if (one.thing.kind, one.thing.name) == (kind, name)), None)
        if found is None:
            why = "; ".join(f"{place} did not answer: {text}" for place, text in report.unasked.items())
            raise NotAbandonedError(f"No {kind.value} {name!r} is abandoned. {why}".rstrip(), kind=kind.value)
        if not found.thing.removable:
            raise NotRemovableError(
                f"The {kind.value} {name!r} is not removed here: {found.reason.value}. See docs/abandoned.md.",
                kind=kind.value,
            )
        left = timedelta(seconds=end - self.clock.monotonic())
        await self._remove(found, timeout=min(REMOVE_TIMEOUT, left))
        return found

    async def _remove(self, found: Abandoned, *, timeout: timedelta) -> None:
        """Remove it, if that is still so."""
        thing = found.thing
        place = next((one for one in await self.looking.places() if one.place == found.place), None)
        if place is None:
            raise NotAbandonedError(f"{found.place} is no more.", kind=thing.kind.value)
        async with self.deeds.recorded(
            "Abandoned/Remove",
            client=await self._chain(thing),
            sandbox=thing.sandbox or SandboxId(""),
            target=f"{thing.kind.value}s/{thing.name}",
        ):
            if await self.looking.reason(thing) != found.reason:
                raise NotAbandonedError(f"{thing.name!r} is needed again.", kind=thing.kind.value)
            failpoint("abandoned.before_remove")
            await place.remove(thing, timeout=timeout)
            await self.looking.removed(found)
        self.metrics.removed(thing)
        log.info("abandoned.removed", kind=thing.kind.value, thing=thing.name, reason=found.reason.value)

    async def _chain(self, thing: Thing) -> ClientId:
        """In whose audit it is recorded; the system's where the client is not known."""
        if thing.client is None:
            return ClientId("")
        async with self.units.begin() as work:
            return thing.client if await work.clients.find(thing.client) is not None else ClientId("")

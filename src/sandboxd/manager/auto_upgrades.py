"""Moves images of resting sandboxes to the template's base by itself, where the installation wants that: few at a time.

One replica at a time looks, a page of sandboxes with each pass, so that a fleet of any size costs the same; what it
begins is an upgrade like one that somebody asks for. It tries no base twice that failed for good, unless the sandbox
has another image since, or has lived where that was what lacked; and it never undoes a rollback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import structlog

from sandboxd.images.ports import ImageReference
from sandboxd.manager.base_building import upgrade_of
from sandboxd.manager.commit_rules import RESTING
from sandboxd.manager.commits import Commits
from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.manager.on_duty import pass_on_duty
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.manager.rowless import upgrades_in_flight
from sandboxd.manager.tools import ManagerTools
from sandboxd.model.commit_errors import BaseCurrentError, PackagesUnknownError, SandboxNotRestingError
from sandboxd.model.errors import (
    ConflictError,
    DatabaseUnavailableError,
    ErrorKind,
    SandboxdError,
    SandboxNotFoundError,
)
from sandboxd.model.ids import SandboxId
from sandboxd.model.image import CommitTrigger, Generation, GenerationId, GenerationStatus
from sandboxd.model.replay import ReplayPolicy
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.sources import Clock, IdSource

DUTY: Final = "base-upgrades"
EVERY: Final = timedelta(minutes=1)
PAGE: Final = 100
"""Sandboxes that are looked at with each pass."""
AT_ONCE: Final = 2
"""Upgrades that go on at the same time in the whole installation, asked-for ones included."""
QUIET: Final = timedelta(minutes=10)
"""So long a sandbox rests before it is upgraded: whoever pauses for a moment is not held up."""
RETRY: Final = timedelta(hours=6)
"""After a failure that may pass."""
HISTORY: Final = 50
"""Of a sandbox's images, so many are looked through for earlier attempts."""
_PASSING: Final = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.TOO_SLOW, ErrorKind.CONFLICT, ErrorKind.EXHAUSTED})

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class AutoUpgrades:
    """Begins upgrades."""

    units: UnitsOfWork
    commits: Commits
    duties: Duties
    policy: ReplayPolicy
    clock: Clock
    ids: IdSource
    every: timedelta = EVERY
    _after: SandboxId | None = field(default=None, init=False)

    @classmethod
    def of(cls, tools: ManagerTools, commits: Commits, policy: ReplayPolicy) -> AutoUpgrades:
        """Make it of what the manager works with."""
        return cls(
            units=tools.units, commits=commits, duties=tools.duties, policy=policy, clock=tools.clock, ids=tools.ids
        )

    async def run(self) -> None:
        """Pass again and again where this replica has the duty, until cancelled."""
        await pass_on_duty(self.duties, DUTY, self.once, pause=self.every, name="upgrades.pass")

    async def once(self) -> int:
        """Look at one page of sandboxes; answers how many upgrades were begun."""
        base = await self.commits.images.running.base()
        async with self.units.begin() as work:
            flying = len(await upgrades_in_flight(work))
            page = await work.sandboxes.in_states(RESTING, limit=PAGE, after=self._after)
        room = AT_ONCE - flying
        begun = 0
        for sandbox in page:
            if begun >= room:
                break  # the rest of the page is looked at when there is room
            begun += await self._tried(sandbox, base)
            self._after = sandbox.id
        else:
            self._after = page[-1].id if len(page) == PAGE else None
        return begun

    async def _tried(self, sandbox: Sandbox, base: ImageReference) -> bool:
        try:
            return await self._begin(sandbox.id, base)
        except (BaseCurrentError, SandboxNotRestingError, SandboxNotFoundError, ConflictError):
            return False  # by now
        except DatabaseUnavailableError:
            raise
        except SandboxdError as error:  # one that cannot be looked at must not keep those behind it from their turn
            log.warning("upgrades.not_begun", sandbox=sandbox.id, error=error.message)
            return False

    async def _begin(self, name: SandboxId, base: ImageReference) -> bool:
        now = self.clock.now()
        async with self.units.begin() as work:
            sandbox = await work.sandboxes.get(name, for_update=True)
            if sandbox.image is None or (sandbox.state_time or sandbox.create_time) > now - QUIET:
                return False
            active = await work.generations.get(sandbox.image.generation)
            wanted = upgrade_of(
                sandbox,
                active,
                name=GenerationId(self.ids.new("gen")),
                base=base,
                policy=self.policy,
                at=now,
            )
            earlier = await work.generations.list(name, everything=True, page_size=HISTORY, page_token="")
            if not _may_begin(earlier.items, wanted, at=now):
                return False
            held = await self.commits.hold(work, wanted)
            await work.commit()
        log.info("upgrades.begun", sandbox=name, image=held.generation.tag, base=str(base))
        self.commits.start(held)
        return True


def _may_begin(earlier: Sequence[Generation], wanted: Generation, *, at: datetime) -> bool:
    """Tell whether an upgrade is to be tried: not where its base was, unless that failed by something that passes."""
    tried = [one for one in earlier if one.trigger is CommitTrigger.UPGRADE and one.base == wanted.base]
    return all(_mended(one, wanted) or (_passing(one) and (one.end_time or at) <= at - RETRY) for one in tried)


def _mended(tried: Generation, wanted: Generation) -> bool:
    """Whether what an attempt failed by was of something that is another one by now."""
    if tried.status is not GenerationStatus.FAILED or tried.failure is None:
        return False
    unknown = tried.failure.reason == PackagesUnknownError.reason
    return tried.parent != wanted.parent or (unknown and tried.incarnation != wanted.incarnation)


def _passing(one: Generation) -> bool:
    overtaken = one.status is GenerationStatus.SUPERSEDED and one.activate_time is None
    failed = one.status is GenerationStatus.FAILED and one.failure is not None and one.failure.kind in _PASSING
    return overtaken or failed

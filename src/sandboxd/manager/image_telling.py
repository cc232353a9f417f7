"""Tells the backend and the tag `latest` which image is active: last of all, and again until they know."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from sandboxd.images.ports import ImageReference
from sandboxd.manager.changes import Changes
from sandboxd.manager.commit_metrics import CommitMetrics
from sandboxd.manager.commit_steps import ImageTools
from sandboxd.manager.patience import Patience
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.errors import SandboxdError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.image import LATEST, Generation, GenerationId, GenerationStatus
from sandboxd.model.sources import Clock

TELL_TIMEOUT: Final = timedelta(seconds=30)
FIRST_DELAY: Final = 2.0
LONGEST_DELAY: Final = 300.0
"""Seconds between attempts to tell of one image; doubled each time."""
PAGE: Final = 100
_G = GenerationStatus

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class ImageTelling:
    """Moves what is beside the database; safe to repeat, whoever was faster."""

    units: UnitsOfWork
    images: ImageTools
    changes: Changes
    metrics: CommitMetrics
    clock: Clock
    _patience: Patience[GenerationId] = field(init=False)

    def __post_init__(self) -> None:
        """Begin without a failure."""
        self._patience = Patience(self.clock, first=FIRST_DELAY, longest=LONGEST_DELAY)

    async def tell_untold(self) -> int:
        """Tell the backend and the tag of every active image that they do not know of; answers how many were told."""
        told, left, after, seen = 0, 0, None, set[GenerationId]()
        while True:
            async with self.units.begin() as work:
                page = await work.generations.untold(limit=PAGE, after=after)
            if not page:
                break
            seen.update(one.id for one in page)
            for generation in page:
                done = await self.tell(generation)
                told, left = told + done, left + (not done)
            after = page[-1].id
        self._patience.keep(seen)
        self.metrics.untold(left)
        return told

    async def tell(self, generation: Generation) -> bool:
        """Tell of one that is active; False where it could not be told now, or another one is active by now."""
        if self._patience.waits(generation.id):
            return False
        try:
            return await self._say(generation)
        except SandboxdError as error:
            log.warning("commit.not_told", sandbox=generation.sandbox, image=generation.tag, error=error.message)
        except Exception:  # a task guard: one that cannot be told must not keep the others from it
            log.exception("commit.telling_broken", sandbox=generation.sandbox, image=generation.tag)
        self._patience.failed(generation.id)
        return False

    async def _say(self, generation: Generation) -> bool:
        """Tell the backend and the tag `latest` that a generation is active; safe to repeat, whoever was faster.

        False where another one is active by now, which has to be told, too.

        Raises:
            UnavailableError, DeadlineError: One of them does not answer now.
        """
        image = ImageReference.parse(generation.reference)
        await self.images.running.set_image(generation.sandbox, image, timeout=TELL_TIMEOUT)
        failpoint("commit.after_backend")
        async with self.units.begin() as work:
            newest = await work.generations.newest(generation.client, generation.freelancer)
        tagged = newest is not None and newest.id == generation.id
        if tagged:
            manifest = await self.images.registry.manifest(image.repository, image.digest, timeout=TELL_TIMEOUT)
            await self.images.registry.push(image.repository, LATEST, manifest, timeout=TELL_TIMEOUT)
        failpoint("commit.after_tag")
        return await self._told(generation, tagged=tagged)

    async def _told(self, generation: Generation, *, tagged: bool) -> bool:
        """Note that it was told. Backend and tag have no compare-and-set: who was late has the others tell again."""
        async with self.units.begin() as work:
            sandbox = await work.sandboxes.get(generation.sandbox, for_update=True)
            found = await work.generations.get(generation.id, for_update=True)
            now = self.clock.now()
            still = found.status is _G.ACTIVE and found.activate_time == generation.activate_time
            if still:
                await work.generations.save(replace(found, told_time=now, update_time=now, version=found.version + 1))
            again = set[GenerationId]()
            if not still and sandbox.image is not None:
                again.add(sandbox.image.generation)
            newest = await work.generations.newest(generation.client, generation.freelancer)
            if tagged and newest is not None and newest.id != generation.id:
                again.add(newest.id)
            for name in sorted(again):
                await tell_again(work, name, at=now)
            await work.commit()
        await self.changes.announce(generation.sandbox)
        return still


async def tell_again(work: UnitOfWork, generation: GenerationId, *, at: datetime) -> None:
    """Have backend and tag told once more of an image, if it is active: they may know of another one by now."""
    found = await work.generations.get(generation, for_update=True)
    if found.status is _G.ACTIVE and found.told_time is not None:
        await work.generations.save(replace(found, told_time=None, update_time=at, version=found.version + 1))

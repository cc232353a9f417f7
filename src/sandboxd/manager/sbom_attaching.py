"""Attaches the lists of packages to images, beside everything else: no commit waits for that, and none fails by it.

What fails is told (log, metric, `GetImageSbom`) and tried again, ever later, as long as the image is kept.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.images.attaching import attach_sbom
from sandboxd.images.ports import ImageReference
from sandboxd.images.registry import Registry
from sandboxd.images.sbom import write_sbom
from sandboxd.manager.commit_metrics import CommitMetrics
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.manager.push_gate import FREE, PushGate
from sandboxd.model.errors import DatabaseUnavailableError, NotFoundError, SandboxdError
from sandboxd.model.image import GenerationStatus
from sandboxd.model.image_sbom import AttachedSbom, ImageSbom
from sandboxd.model.sources import Clock

LOOK_EVERY: Final = timedelta(seconds=10)
"""How often images without their list are looked for, unless a commit of this replica has just ended."""
AT_ONCE: Final = 10
"""Lists that one look takes."""
HELD: Final = timedelta(minutes=5)
"""So long others leave a list alone that was taken."""
CALL_TIMEOUT: Final = timedelta(seconds=20)
"""For each call of the registry; all of a list have `HELD`."""
_GOING: Final = frozenset({GenerationStatus.DELETING, GenerationStatus.DELETED})

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class SbomAttaching:
    """Attaches what is due. Two replicas at once do no harm: the same packages make the same document."""

    units: UnitsOfWork
    registry: Registry
    metrics: CommitMetrics
    clock: Clock
    pushes: PushGate = FREE
    _asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def wake(self) -> None:
        """Look soon: a commit has ended."""
        self._asked.set()

    async def run(self) -> None:
        """Attach until cancelled."""
        while True:
            self._asked.clear()
            try:
                while await self.attach_due() == AT_ONCE:
                    await asyncio.sleep(0)
            except SandboxdError as error:
                log.warning("sboms.look_failed", error=error.message)
            except Exception:  # a loop: one bad pass must not end all that follow
                log.exception("sboms.look_broken")
            try:
                async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def attach_due(self) -> int:
        """Attach those whose time has come; answers how many were tried."""
        now = self.clock.now()
        async with self.units.begin() as work:
            due = await work.sboms.claim(at=now, until=now + HELD, limit=AT_ONCE)
            await work.commit()
        for one in due:
            await self._try(one)
        async with self.units.begin() as work:
            self.metrics.sboms_waiting(await work.sboms.pending())
        return len(due)

    async def _try(self, sbom: ImageSbom) -> None:
        try:
            async with asyncio.timeout(HELD.total_seconds()):
                await self._attach(sbom)
        except (DatabaseUnavailableError, TimeoutError) as error:
            self.metrics.sbom_tried("failed")
            log.warning("sbom.left", generation=sbom.generation, error=str(error))  # its time comes again
        except SandboxdError as error:
            await self._failed(sbom, error.message)
        except Exception as error:  # a task guard: the others must not wait for one that cannot be written
            log.exception("sbom.broken", generation=sbom.generation)
            await self._failed(sbom, f"It could not be written ({type(error).__name__}); the service's log says why.")

    async def _attach(self, sbom: ImageSbom) -> None:
        async with self.units.begin() as work:
            generation = await work.generations.get(sbom.generation)
            known = await work.sboms.get(sbom.generation)
        if known is None or generation.status in _GOING:
            return
        image = ImageReference.parse(generation.reference)
        document = await asyncio.to_thread(write_sbom, known.packages, complete=known.complete)
        async with self.pushes.together(timeout=HELD):
            attached = await attach_sbom(self.registry, image, document, timeout=CALL_TIMEOUT, commit=sbom.generation)
        told = AttachedSbom(
            manifest=attached.manifest.digest,
            document=attached.document.digest,
            size=attached.document.size,
            attach_time=self.clock.now(),
        )
        async with self.units.begin() as work:
            await work.sboms.note(replace(sbom, attached=told, failure=""))
            await work.commit()
        self.metrics.sbom_tried("attached")
        log.info(
            "sbom.attached",
            sandbox=generation.sandbox,
            image=generation.tag,
            packages=len(known.packages),
            digest=told.manifest,
        )
        await self._take_back_where_it_went(sbom, image)

    async def _take_back_where_it_went(self, sbom: ImageSbom, image: ImageReference) -> None:
        """Leave nothing attached to an image that was removed meanwhile."""
        try:
            async with self.units.begin() as work:
                gone = (await work.generations.get(sbom.generation)).status in _GOING
        except NotFoundError:  # erased
            gone = True
        if gone:
            await self.registry.detach(image.repository, image.digest, timeout=CALL_TIMEOUT)

    async def _failed(self, sbom: ImageSbom, why: str) -> None:
        failed = sbom.failed(why, at=self.clock.now())
        self.metrics.sbom_tried("failed")
        log.warning("sbom.not_attached", generation=sbom.generation, attempts=sbom.attempts, error=why)
        try:
            async with self.units.begin() as work:
                await work.sboms.note(failed)
                await work.commit()
        except SandboxdError as error:
            log.warning("sbom.failure_not_written", generation=sbom.generation, error=error.message)

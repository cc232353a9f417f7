"""What becomes of a sandbox whose image the registry has no more: it starts from the one before, else from the base."""

from __future__ import annotations

from dataclasses import replace

import structlog

from sandboxd.images.ports import RunningImages
from sandboxd.manager.changes import Changes
from sandboxd.manager.image_care_metrics import ImageCareMetrics, LostTarget
from sandboxd.manager.image_telling import TELL_TIMEOUT, tell_again
from sandboxd.manager.own_deeds import OwnDeeds
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.errors import ConflictError, ErrorKind, NotFoundError, SandboxdError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.model.image import Failure, Generation, GenerationStatus, SandboxImage
from sandboxd.model.image_keeping import LOST
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.sources import Clock

_G = GenerationStatus

log = structlog.get_logger(__name__)


class ImageLosses:
    """Marks lost images. Safe to repeat; what a step left undone is found again by the next pass."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        running: RunningImages,
        changes: Changes,
        deeds: OwnDeeds,
        metrics: ImageCareMetrics,
        clock: Clock,
    ) -> None:
        self._units = units
        self._running = running
        self._changes = changes
        self._deeds = deeds
        self._metrics = metrics
        self._clock = clock

    async def mark(self, lost: Generation) -> bool:
        """Let no start take a lost image any more; False where it is another thing by now, or could not be told."""
        target = SandboxId(f"{lost.sandbox}/images/{lost.tag}")
        try:
            async with self._deeds.recorded("Images/Lost", client=lost.client, sandbox=target):
                told = lost.status is _G.ACTIVE and await self._tell_base(lost)
                done = await self._write(lost, told_base=told)
        except (NotFoundError, ConflictError):  # erased, or changed by somebody who was faster
            return False
        except SandboxdError as error:
            log.warning("image.loss_not_marked", sandbox=lost.sandbox, image=lost.tag, error=error.message)
            return False
        if done is None:
            return False
        failpoint("reap.after_lost")
        self._metrics.lost(done)
        log.error("image.lost", sandbox=lost.sandbox, image=lost.tag, instead=done)
        await self._changes.announce(lost.sandbox)
        return True

    async def _tell_base(self, lost: Generation) -> bool:
        """Let the backend's next start take the base, where there is nothing else.

        Before the rows say so: of another image the rows know that the backend has to be told, of the base they do not.
        """
        async with self._units.begin() as work:
            if await work.generations.fallback(lost.sandbox) is not None:
                return False
        await self._running.set_image(lost.sandbox, None, timeout=TELL_TIMEOUT)
        failpoint("reap.after_base")
        return True

    async def _write(self, lost: Generation, *, told_base: bool) -> LostTarget | None:
        async with self._units.begin() as work:
            sandbox = await work.sandboxes.get(lost.sandbox, for_update=True)
            found = await work.generations.get(lost.id, for_update=True)
            target: LostTarget | None = None
            if found.version == lost.version:
                target = await self._replaced(work, sandbox, found)
            elif told_base and sandbox.image is not None:  # it got another one while it was told to take the base
                await tell_again(work, sandbox.image.generation, at=self._clock.now())
            await work.commit()
        return target

    async def _replaced(self, work: UnitOfWork, sandbox: Sandbox, found: Generation) -> LostTarget:
        now = self._clock.now()
        failure = Failure(
            kind=ErrorKind.ABSENT,
            reason=LOST,
            message=f"The registry has the image {found.tag} of sandbox {found.sandbox} no more.",
            metadata={"image": found.tag, "sandbox": found.sandbox},
        )
        await work.generations.save(found.fail(failure, at=now))
        if sandbox.image is None or sandbox.image.generation != found.id:
            return "none"
        image: SandboxImage | None = None
        target: LostTarget = "base"
        before = await work.generations.fallback(sandbox.id)
        if before is not None:
            active = (await work.generations.get(before.id, for_update=True)).enter(_G.ACTIVE, at=now)
            await work.generations.save(active)  # the backend is told like of any other that becomes active
            image, target = active.image, "previous"
        instead = "the base: what was installed is not there" if before is None else before.tag
        earlier = f"{sandbox.state_reason} " if sandbox.state_reason else ""
        changed = replace(
            sandbox,
            image=image,
            state_reason=f"{earlier}Image {found.tag} is lost; the next start takes {instead}.",
            update_time=now,
            version=sandbox.version + 1,
        )
        await work.sandboxes.save(changed)
        return target

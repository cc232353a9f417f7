"""The care of kept images: what policy keeps no more goes, what no row knows of goes, what is missing is told.

Everything is looked at before anything is done, and nothing is done where one of the places that may name images
cannot be asked. Each step is safe to repeat, and two at once do no harm: rows decide.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from sandboxd.images.ports import ImageReference
from sandboxd.images.registry import Registry
from sandboxd.images.signing import ImageSignatures
from sandboxd.manager.image_care_metrics import CareOutcome, ImageCareMetrics
from sandboxd.manager.image_care_ports import ImageSightings, ImageUses
from sandboxd.manager.image_losses import ImageLosses
from sandboxd.manager.image_survey import ASK_TIMEOUT, ImageFindings, ImageSurvey, Orphan
from sandboxd.manager.own_deeds import OwnDeeds
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.manager.push_gate import FREE, PushGate
from sandboxd.model.errors import ConflictError, NotFoundError, SandboxdError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.image import Generation, GenerationStatus, number_of
from sandboxd.model.image_errors import ImageUsesUnknownError, ManyImagesLostError, RegistryKeepsError
from sandboxd.model.image_keeping import digest_of, has_image
from sandboxd.model.push_hold import PushesHeldError
from sandboxd.model.sources import Clock

BATCH: Final = 100
"""Images, and orphans, that one pass removes at most."""
USES_TIMEOUT: Final = timedelta(seconds=60)
DELETE_TIMEOUT: Final = timedelta(seconds=4)
"""For one deletion: so long no commit of the same freelancer begins. Who waits for the lock is given 5 s."""
SIGN_TIMEOUT: Final = timedelta(minutes=2)
FEW: Final = 3
"""So many missing images may be an accident of theirs, even where there are no others."""
_G = GenerationStatus

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class CareReport:
    """What a pass found and did."""

    findings: ImageFindings = field(default_factory=ImageFindings)
    reaped: int = 0
    orphans: int = 0
    """Removed."""
    retagged: int = 0
    lost: int = 0
    """Marked as lost."""
    signed: int = 0
    """Images that were signed now."""
    failed: int = 0
    """Deletions and signatures that failed; they are tried again by the next pass."""


class ImageCare:
    """One pass after the other, by whoever has the duty or is told to."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        registry: Registry,
        survey: ImageSurvey,
        pushes: PushGate = FREE,
        uses: Sequence[ImageUses],
        sightings: ImageSightings,
        losses: ImageLosses,
        signatures: ImageSignatures | None = None,
        deeds: OwnDeeds,
        metrics: ImageCareMetrics,
        clock: Clock,
        batch: int = BATCH,
    ) -> None:
        self._units = units
        self._registry = registry
        self._survey = survey
        self._pushes = pushes
        self._uses = uses
        self._sightings = sightings
        self._losses = losses
        self._signatures = signatures
        self._deeds = deeds
        self._metrics = metrics
        self._clock = clock
        self._batch = batch

    async def run(self, *, dry_run: bool = False) -> CareReport:
        """Pass once.

        Args:
            dry_run: Look, and do nothing; when images were seen in use is noted all the same.

        Raises:
            ImageUsesUnknownError: A place that may name images does not answer; nothing was deleted.
            RegistryKeepsError: The registry refuses to delete.
            ManyImagesLostError: The registry is not the one that it was; nothing was done.
            PushesHeldError: Pushes are held; what was not done by then is left to the next pass.
            UnavailableError, DeadlineError: The registry or the database does not answer.
        """
        outcome: CareOutcome = "failed"
        try:
            report = await self._pass(dry_run=dry_run)
            outcome = "done"
        except ImageUsesUnknownError:
            outcome = "uses_unknown"
            raise
        except RegistryKeepsError:
            outcome = "registry_refuses"
            raise
        except ManyImagesLostError:
            outcome = "images_missing"
            raise
        except PushesHeldError:
            outcome = "held"
            raise
        finally:
            if not dry_run:
                self._metrics.passed(outcome)
        return report

    async def _pass(self, *, dry_run: bool) -> CareReport:
        if not dry_run:
            await self._pushes.require_open()
        names = await self._named()
        found = await self._survey.look(names, limit=self._batch)
        report = CareReport(findings=found)
        if dry_run:
            return report
        self._metrics.found(kept=found.kept, orphans=len(found.orphans), waiting=found.waiting)
        if len(found.lost) >= FEW and 2 * len(found.lost) > found.checked:
            raise ManyImagesLostError(
                f"The registry misses {len(found.lost)} of {found.checked} images that were asked for: it is another "
                "one, or has lost its storage. Nothing was done. Look at SANDBOXD_IMAGES_REGISTRY, and bring the "
                "registry's storage back.",
                missing=str(len(found.lost)),
                checked=str(found.checked),
            )
        for one in found.untagged:
            report.retagged += await self._retag(one)
        if self._signatures is not None and self._signatures.key is not None:
            for one in found.unsigned:
                report.signed += await self._tried(report, partial(self._sign, self._signatures, one))
        # Older ones first: what an active one falls back to must not be a lost one.
        for one in sorted(found.lost, key=lambda one: one.status is _G.ACTIVE):
            report.lost += await self._losses.mark(one)
        await self._remove_all(report)
        for repository, subject in found.left_over:
            await self._tried(report, partial(self._detach, repository, subject))
        log.info(
            "images.cared_for",
            kept=found.kept,
            reaped=report.reaped,
            orphans=report.orphans,
            lost=report.lost,
            retagged=report.retagged,
            signed=report.signed,
            failed=report.failed,
            waiting=found.waiting,
        )
        return report

    async def _named(self) -> Mapping[str, str]:
        named: dict[str, str] = {}
        for place in self._uses:
            try:
                named |= await place.named(timeout=USES_TIMEOUT)
            except SandboxdError as error:
                raise ImageUsesUnknownError(
                    f"Which images {place.place} names cannot be told now, so none is deleted: {error.message}",
                    place=place.place,
                ) from error
        return named

    async def _retag(self, one: Generation) -> bool:
        """Give an image its tag back: without it the registry's garbage collection may take it."""
        async with self._pushes.together(timeout=2 * ASK_TIMEOUT):
            try:
                manifest = await self._registry.manifest(one.repository, digest_of(one), timeout=ASK_TIMEOUT)
            except NotFoundError:
                return False
            await self._registry.push(one.repository, one.tag, manifest, timeout=ASK_TIMEOUT)
        log.info("image.tagged_again", sandbox=one.sandbox, image=one.tag)
        return True

    async def _sign(self, signatures: ImageSignatures, one: Generation) -> bool:
        """Sign what has no signature: it was made before there was a key, or the registry took none."""
        async with self._pushes.together(timeout=SIGN_TIMEOUT):
            done = await signatures.sign(ImageReference.parse(one.reference))
        log.info("image.signed_later", sandbox=one.sandbox, image=one.tag)
        return done

    async def _remove_all(self, report: CareReport) -> None:
        marked = [done for one in report.findings.going if (done := await self._mark(one.generation)) is not None]
        orphans = [one for one in report.findings.orphans if one.stay is None]
        if not marked and not orphans:
            return
        failpoint("reap.after_mark")
        # Once more, now that no start and no rollback takes them any more.
        named = await self._named()
        for image in marked:
            if digest_of(image) in named:
                log.warning("image.named_after_all", image=image.tag, by=named[digest_of(image)])
            elif await self._tried(report, partial(self._reap, image)):
                report.reaped += 1
        for orphan in orphans:
            if orphan.digest not in named and await self._tried(report, partial(self._remove_orphan, orphan)):
                report.orphans += 1

    async def _tried(self, report: CareReport, remove: Callable[[], Awaitable[bool]]) -> bool:
        """Try a deletion; one that fails does not keep the others from it, unless the registry deletes nothing."""
        try:
            return await remove()
        except (RegistryKeepsError, PushesHeldError):
            raise
        except SandboxdError as error:
            report.failed += 1
            log.warning("image.not_removed", error=error.message)
            return False

    async def _detach(self, repository: str, subject: str) -> bool:
        """Remove what is attached to an image that is gone."""
        removed = await self._registry.detach(repository, subject, timeout=ASK_TIMEOUT)
        log.info("image.attachments_removed", repository=repository, digest=subject, manifests=removed)
        return True

    async def _mark(self, one: Generation) -> Generation | None:
        """Write down that an image goes; None where it is another thing by now."""
        if one.status is _G.DELETING:
            return one
        try:
            async with self._units.begin() as work:
                sandbox = await work.sandboxes.get(one.sandbox, for_update=True)
                found = await work.generations.get(one.id, for_update=True)
                named = sandbox.image is not None and sandbox.image.generation == one.id
                if found.version != one.version or named:
                    return None
                marked = found.enter(_G.DELETING, at=self._clock.now())
                await work.generations.save(marked)
                await work.commit()
        except (NotFoundError, ConflictError):  # erased, or changed by somebody who was faster
            return None
        return marked

    async def _reap(self, image: Generation) -> bool:
        """Delete the image of a row that says so; False where it has to wait, or somebody else was faster."""
        digest = digest_of(image)
        target = SandboxId(f"{image.sandbox}/images/{image.tag}")
        async with self._deeds.recorded("Images/Reap", client=image.client, sandbox=target):
            async with self._held(image.client, image.freelancer, digest, image.repository) as (work, rows):
                there = {row.id: row for row in rows}.get(image.id)
                if there is None or there.status is not _G.DELETING or work is None:
                    return False
                await self._delete(image.repository, digest)
                failpoint("reap.after_delete")
                await work.generations.save(there.enter(_G.DELETED, at=self._clock.now()))
                await work.commit()
            failpoint("reap.after_row")
            await self._sightings.forget(image.repository, digest)
        self._metrics.reaped(0 if image.content is None else image.content.compressed_bytes)
        log.info("image.reaped", sandbox=image.sandbox, image=image.tag, digest=digest)
        return True

    async def _remove_orphan(self, orphan: Orphan) -> bool:
        target = SandboxId(f"-/images/{orphan.tags[0]}")
        numbers = [number for tag in orphan.tags if (number := number_of(tag)) is not None]
        async with self._deeds.recorded("Images/RemoveOrphan", client=orphan.client, sandbox=target):
            async with self._held(
                orphan.client, orphan.freelancer, orphan.digest, orphan.repository, numbers=numbers
            ) as (work, rows):
                if work is None or any(has_image(row) and row.number in numbers for row in rows):
                    return False
                await self._delete(orphan.repository, orphan.digest)
            await self._sightings.forget(orphan.repository, orphan.digest)
        self._metrics.removed()
        log.info("image.orphan_removed", repository=orphan.repository, tags=orphan.tags, digest=orphan.digest)
        return True

    async def _delete(self, repository: str, digest: str) -> None:
        """Delete an image, and before it what is attached to it: then a crash leaves nothing that nobody looks for."""
        end = self._clock.monotonic() + DELETE_TIMEOUT.total_seconds()
        await self._registry.detach(repository, digest, timeout=DELETE_TIMEOUT)
        left = timedelta(seconds=max(end - self._clock.monotonic(), 0.001))
        await self._registry.delete(repository, digest, timeout=left)

    @asynccontextmanager
    async def _held(
        self,
        client: ClientId,
        freelancer: FreelancerId,
        digest: str,
        repository: str,
        *,
        numbers: Sequence[int] = (),
    ) -> AsyncIterator[tuple[UnitOfWork | None, Sequence[Generation]]]:
        """Keep commits from beginning in a repository; no unit of work where the digest must not be deleted now.

        A commit that is in flight may come to the very digest that is deleted, and would find its image gone.
        """
        async with self._units.begin() as work:
            await work.generations.hold_owner(client, freelancer)
            rows = await work.generations.of_owner(client, freelancer, numbers=numbers)
            flying = any(row.status.in_flight for row in rows)
            shared = any(
                has_image(row)
                and row.status is not _G.DELETING
                and (row.repository, digest_of(row)) == (repository, digest)
                for row in rows
            )
            yield (None if flying or shared else work), rows

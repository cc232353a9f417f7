"""The care of kept images, as `serve` builds it: by the replica that has the duty, and when an operator asks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sandboxd.backends.kubernetes.image_uses import KubernetesImageUses
from sandboxd.bootstrap.observing import Observation
from sandboxd.bootstrap.places import Placement
from sandboxd.manager.administration import ImagePlan, Swept
from sandboxd.manager.backup_uses import BackupImageUses
from sandboxd.manager.image_care import ImageCare
from sandboxd.manager.image_losses import ImageLosses
from sandboxd.manager.image_survey import ImageFindings, ImageSurvey, Orphan
from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.manager.on_duty import pass_on_duty
from sandboxd.manager.project_care import ProjectCare
from sandboxd.manager.sandboxes import ManagerCore
from sandboxd.model.image_keeping import Verdict, digest_of
from sandboxd.persistence.engine import Database
from sandboxd.persistence.image_sightings import PostgresImageSightings
from sandboxd.settings import Settings

DUTY: Final = "images"
"""A pass may take as long; two at once do no harm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCareRoom:
    """The care, and when it is taken."""

    care: ImageCare
    projects: ProjectCare | None
    """Where the registry has a project for each client."""
    duties: Duties
    pause: timedelta
    """Between passes; zero: only when somebody asks."""

    async def run(self) -> None:
        """Care until cancelled, where this replica has the duty."""
        await pass_on_duty(self.duties, DUTY, self.run_once, pause=self.pause, name="images.care")

    async def run_once(self) -> None:
        """Pass once over images and projects."""
        try:
            await self.care.run()
        finally:  # an account that ends must not wait for whatever an image waits for
            if self.projects is not None:
                await self.projects.run()


def make_image_care(
    settings: Settings, core: ManagerCore, placement: Placement, *, database: Database, seen: Observation
) -> ImageCareRoom | None:
    """Make it; None where this installation keeps no images."""
    tools, images = core.tools, core.tools.images
    if images is None:
        return None
    sightings = PostgresImageSightings(database)
    cluster = [] if placement.cluster is None else [KubernetesImageUses(placement.cluster)]
    care = ImageCare(
        units=tools.units,
        registry=images.registry,
        pushes=images.pushes,
        survey=ImageSurvey(
            units=tools.units,
            registry=images.registry,
            registry_name=settings.images_registry,
            repository_of=images.repository_of,
            sightings=sightings,
            policy=settings.image_keeping,
            clock=tools.clock,
        ),
        uses=[*cluster, BackupImageUses(tools.units)],
        sightings=sightings,
        losses=ImageLosses(
            units=tools.units,
            running=images.running,
            changes=core.changes,
            deeds=tools.deeds,
            metrics=seen.image_care,
            clock=tools.clock,
        ),
        signatures=images.signatures,
        deeds=tools.deeds,
        metrics=seen.image_care,
        clock=tools.clock,
    )
    return ImageCareRoom(
        care=care,
        projects=None
        if images.projects is None
        else ProjectCare(units=tools.units, projects=images.projects, metrics=seen.image_care),
        duties=tools.duties,
        pause=timedelta(seconds=settings.images_care_seconds),
    )


async def sweep_images(room: ImageCareRoom | None, *, dry_run: bool = False) -> Swept:
    """Pass once and tell it as operators see it."""
    if room is None:
        return Swept()
    report = await room.care.run(dry_run=dry_run)
    if room.projects is not None and not dry_run:
        await room.projects.run()
    found = report.findings
    if dry_run:
        return Swept(images=_plans(found))
    return Swept(
        done=report.reaped + report.orphans + report.retagged + report.lost + report.signed,
        names=[f"image_lost {one.repository}:{one.tag}" for one in found.lost],
    )


def _plans(found: ImageFindings) -> list[ImagePlan]:
    orphans = sorted(found.orphans, key=lambda one: one.stay is not None)
    goes = [*map(_of_row, found.going), *(_of_orphan(one) for one in orphans if one.stay is None)]
    return [*goes, *(_of_orphan(one) for one in orphans if one.stay is not None), *map(_of_row, found.staying)]


def _of_row(verdict: Verdict) -> ImagePlan:
    one = verdict.generation
    return ImagePlan(
        sandbox=one.sandbox,
        repository=one.repository,
        tags=[one.tag],
        digest=digest_of(one),
        size=0 if one.content is None else one.content.compressed_bytes,
        stays="" if verdict.stay is None else verdict.stay.value,
        by=verdict.by,
    )


def _of_orphan(orphan: Orphan) -> ImagePlan:
    return ImagePlan(
        repository=orphan.repository,
        tags=orphan.tags,
        digest=orphan.digest,
        stays="" if orphan.stay is None else orphan.stay.value,
        by=orphan.by,
    )

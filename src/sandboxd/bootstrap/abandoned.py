"""The care of what nobody needs any more, as `serve` builds it: the places that this installation has."""

from __future__ import annotations

from datetime import timedelta

from sandboxd.backends.kubernetes.abandoned import ClusterObjects
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.volume_backups import KubernetesVolumeBackups
from sandboxd.backends.local.abandoned import LocalDirectories
from sandboxd.backends.local.backups import LocalVolumeBackups
from sandboxd.bootstrap.image_care import ImageCareRoom
from sandboxd.bootstrap.observing import Observation
from sandboxd.bootstrap.places import Placement
from sandboxd.images.upload_notes import UploadNotes
from sandboxd.manager.abandoned import AbandonedCare
from sandboxd.manager.abandoned_looking import AbandonedLooking
from sandboxd.manager.abandoned_places import KeepsBackups, OrphanImages, RepositoriesOfBackups
from sandboxd.manager.abandoned_ports import AbandonedPlace, AbandonedPlaces
from sandboxd.manager.abandoned_uploads import BrokenUploads
from sandboxd.manager.sandboxes import ManagerCore
from sandboxd.model.backup import BackupMethod
from sandboxd.persistence.abandoned import PostgresAbandonedSightings
from sandboxd.persistence.engine import Database
from sandboxd.settings import Settings


def make_abandoned_care(
    settings: Settings,
    core: ManagerCore,
    placement: Placement,
    *,
    database: Database,
    images: ImageCareRoom | None,
    uploads: UploadNotes,
    seen: Observation,
) -> AbandonedCare:
    """Make it."""
    tools = core.tools
    places: list[AbandonedPlace] = []
    if placement.cluster is None:
        places.append(LocalDirectories(data=settings.home))
    else:
        installation = Installation(
            instance=settings.kubernetes_instance,
            namespace_prefix=settings.kubernetes_namespace_prefix,
            template=settings.kubernetes_template,
        )
        places.append(ClusterObjects(placement.cluster, installation=installation, clock=tools.clock))
    if images is not None:
        places.append(OrphanImages(images.care))
    if tools.images is not None:
        places.append(BrokenUploads(uploads, tools.images.registry))
    changing: list[AbandonedPlaces] = []
    every = timedelta(seconds=settings.abandoned_survey_seconds if placement.cluster is not None else 0)
    if tools.backups is not None and (placement.cluster is None or every):
        methods = {tools.backups.method: tools.backups.volumes, **tools.backups.others}
        keeping: dict[BackupMethod, KeepsBackups] = {
            method: one
            for method, one in methods.items()
            if isinstance(one, LocalVolumeBackups | KubernetesVolumeBackups)
        }
        changing.append(RepositoriesOfBackups(units=tools.units, backups=keeping, every=every))
    return AbandonedCare(
        units=tools.units,
        looking=AbandonedLooking(
            units=tools.units,
            fixed=places,
            changing=changing,
            sightings=PostgresAbandonedSightings(database),
            policy=settings.abandoned_policy,
            clock=tools.clock,
        ),
        policy=settings.abandoned_policy,
        duties=tools.duties,
        clock=tools.clock,
        metrics=seen.abandoned,
        deeds=tools.deeds,
    )

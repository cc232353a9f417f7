"""Places whose things other rooms know: images without a row, and snapshots of backups that belong to no set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final, Protocol

import structlog
from typing_extensions import override

from sandboxd.manager.abandoned_ports import AbandonedPlace, AbandonedPlaces
from sandboxd.manager.abandoned_rows import SETS_OVER
from sandboxd.manager.account_ports import AccountFilter
from sandboxd.manager.image_care import ImageCare
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.abandoned import AbandonedKind, AbandonedReason, Thing
from sandboxd.model.backup import BackupMethod, BackupSetId
from sandboxd.model.cluster_backup import SETS_NAMED
from sandboxd.model.errors import ConflictError
from sandboxd.model.ids import ClientId
from sandboxd.volumes.listing import StrayListing
from sandboxd.volumes.ports import VolumeBackups

PAGE: Final = 500
"""Rows that are read at once."""

log = structlog.get_logger(__name__)


class OrphanImages(AbandonedPlace):
    """What the care of kept images finds without a row, and removes itself after its own grace."""

    def __init__(self, care: ImageCare) -> None:
        self._care = care

    @property
    @override
    def place(self) -> str:
        return "the registry"

    @override
    async def look(self, *, timeout: timedelta) -> Sequence[Thing]:
        report = await self._care.run(dry_run=True)
        return [
            Thing(
                kind=AbandonedKind.IMAGE,
                name=f"{one.repository}@{one.digest}",
                identity=one.digest,
                storage="registry",
                client=one.client,
                said=AbandonedReason.NO_ROW,
                removable=False,
            )
            for one in report.findings.orphans
        ]

    @override
    async def remove(self, thing: Thing, *, timeout: timedelta) -> None:
        raise ConflictError("Images are removed by their own care: sandboxctl admin sweep images.")


class KeepsBackups(VolumeBackups, StrayListing, Protocol):
    """Works on a client's backups, and tells what nobody knows of."""


class StraySnapshots(AbandonedPlace):
    """One client's: by the set that they say they are of; a set has its row before it has any."""

    def __init__(
        self, client: ClientId, backups: KeepsBackups, *, units: UnitsOfWork, every: timedelta, method: BackupMethod
    ) -> None:
        self._client = client
        self._backups = backups
        self._units = units
        self._every = every
        self._method = method

    @property
    @override
    def place(self) -> str:
        return f"backups of {self._client} ({self._method.value})"

    @property
    @override
    def every(self) -> timedelta:
        return self._every

    @override
    async def look(self, *, timeout: timedelta) -> Sequence[Thing]:
        known, ever = await self._known()
        if not ever:
            return []  # nor would a namespace be made for this
        found = await self._backups.strays(self._client, known, timeout=timeout)
        if found.more:
            log.warning("abandoned.sets_untold", client=self._client, told=len(found.sizes), more=found.more)
        return [
            Thing(
                kind=AbandonedKind.SNAPSHOT,
                name=f"{self._client}/{backup}",
                identity=self._method.value,
                size_bytes=size,
                storage="backups" if self._method is BackupMethod.FILES else "snapshots",
                client=self._client,
                backup=backup,
            )
            for backup, size in found.sizes.items()
        ]

    @override
    async def remove(self, thing: Thing, *, timeout: timedelta) -> None:
        await self._backups.forget(self._client, [BackupSetId(thing.backup)], prune=True, timeout=timeout)

    async def _known(self) -> tuple[Sequence[BackupSetId], bool]:
        """The newest sets that are not over, and whether there ever was one."""
        found, ever, token = list[BackupSetId](), False, ""
        while True:
            async with self._units.begin() as work:
                page = await work.backup_sets.list(self._client, deleted=True, page_size=PAGE, page_token=token)
            ever |= bool(page.items)
            found += [one.id for one in page.items if one.status not in SETS_OVER]
            token = page.next_token
            if not token or len(found) >= SETS_NAMED:
                return found[:SETS_NAMED], ever


class RepositoriesOfBackups(AbandonedPlaces):
    """Each client's, by each method."""

    def __init__(
        self, *, units: UnitsOfWork, backups: Mapping[BackupMethod, KeepsBackups], every: timedelta = timedelta(0)
    ) -> None:
        """Take what keeps backups, and how often each client's are looked at; zero: at each look."""
        self._units = units
        self._backups = backups
        self._every = every

    @override
    async def places(self) -> Sequence[AbandonedPlace]:
        found, token = list[AbandonedPlace](), ""
        while True:
            async with self._units.begin() as work:
                page = await work.clients.list(AccountFilter(), page_size=PAGE, page_token=token)
            for method, backups in self._backups.items():
                found += [
                    StraySnapshots(one.id, backups, units=self._units, every=self._every, method=method)
                    for one in page.items
                ]
            token = page.next_token
            if not token:
                return found

"""Places whose things other rooms know: images without a row, and snapshots of backups that belong to no set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.manager.abandoned_ports import AbandonedPlace
from sandboxd.manager.account_ports import AccountFilter
from sandboxd.manager.image_care import ImageCare
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.abandoned import AbandonedKind, AbandonedReason, Thing
from sandboxd.model.backup import BackupSetId
from sandboxd.model.errors import ConflictError
from sandboxd.model.ids import ClientId
from sandboxd.volumes.listing import SnapshotListing
from sandboxd.volumes.ports import TreeSnapshot, VolumeBackups

PAGE: Final = 500
"""Clients that are read at once."""


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


class StraySnapshots(AbandonedPlace):
    """Snapshots by the set that they say they are of; a set has its row before it has any."""

    def __init__(self, *, units: UnitsOfWork, listing: SnapshotListing, backups: VolumeBackups) -> None:
        self._units = units
        self._listing = listing
        self._backups = backups

    @property
    @override
    def place(self) -> str:
        return "the repositories of backups"

    @override
    async def look(self, *, timeout: timedelta) -> Sequence[Thing]:
        things = list[Thing]()
        for client in await self._clients():
            of_set = defaultdict[str, list[TreeSnapshot]](list)
            for one in await self._listing.snapshots(client, timeout=timeout):
                if one.tags.get("set", "").startswith("bak-"):  # others are not ours
                    of_set[one.tags["set"]].append(one)
            things += [
                Thing(
                    kind=AbandonedKind.SNAPSHOT,
                    name=f"{client}/{backup}",
                    identity=",".join(sorted(one.id for one in those)),
                    size_bytes=sum(one.added_bytes for one in those),
                    storage="backups",
                    client=client,
                    backup=backup,
                )
                for backup, those in of_set.items()
            ]
        return things

    @override
    async def remove(self, thing: Thing, *, timeout: timedelta) -> None:
        if thing.client is not None:
            await self._backups.forget(thing.client, [BackupSetId(thing.backup)], prune=True, timeout=timeout)

    async def _clients(self) -> Sequence[ClientId]:
        found, token = list[ClientId](), ""
        while True:
            async with self._units.begin() as work:
                page = await work.clients.list(AccountFilter(), page_size=PAGE, page_token=token)
            found += [one.id for one in page.items]
            token = page.next_token
            if not token:
                return found

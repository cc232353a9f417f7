"""What backups work with: who keeps volumes, by which method, and what holds for the sets of a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from sandboxd.manager.ports import UnitOfWork
from sandboxd.manager.release_ports import KeptVolumes
from sandboxd.model.backup import BackupMethod, BackupSet, BackupSetId, RestoreId, Restoring
from sandboxd.model.backup_errors import BackupMethodOffError, BackupPathsUnsupportedError
from sandboxd.model.backup_retention import BackupPolicy, BackupRetention
from sandboxd.model.client import ClientPolicy
from sandboxd.model.ids import ClientId
from sandboxd.model.sandbox import TIER_RESOURCES, Sandbox
from sandboxd.volumes.ports import VolumeBackups, VolumesOf


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupTools:
    """What backups work with."""

    volumes: VolumeBackups
    """What makes new sets."""
    method: BackupMethod = BackupMethod.FILES
    """How it makes them."""
    others: Mapping[BackupMethod, VolumeBackups] = field(default_factory=dict)
    """What knows sets of other methods, from before the installation changed: it restores and deletes them."""
    retention: BackupRetention = field(default_factory=BackupRetention)
    """Of clients that wish nothing else."""
    take_timeout: timedelta = timedelta(hours=6)
    restore_timeout: timedelta = timedelta(hours=6)
    delete_timeout: timedelta = timedelta(hours=6)
    shortest: timedelta = timedelta(seconds=15)
    """No work on volumes is asked for with less time."""
    every: timedelta = timedelta(0)
    """How old the newest set of a sandbox that is used may become, where its client wishes nothing else; zero: nothing
    by schedule."""
    after_terminate: bool = True
    """Back up what terminated sandboxes leave."""
    kept: KeptVolumes | None = None
    """Where removed sandboxes' volumes are; None: none of them are released."""
    release_after: timedelta = timedelta(0)
    """How long after its end a sandbox's volumes are released where a set has them; zero: they are not."""
    at_once: int = 2
    """Sets that policy lets this replica make at the same time."""
    drill_every: timedelta = timedelta(0)
    """How often a set is restored as a drill; zero: never by schedule."""
    drill_bytes: int = 10 << 30
    """Of files in a set that is drilled with, at most."""
    pause: timedelta = timedelta(minutes=1)
    """Between two looks at what policy wants; zero: none."""

    def of(self, method: BackupMethod) -> VolumeBackups:
        """Return what works on sets of this method.

        Raises:
            BackupMethodOffError: The installation has nothing for it any more.
        """
        found = self.volumes if method is self.method else self.others.get(method)
        if found is None:
            raise BackupMethodOffError(method.value)
        return found

    def require_doable(self, backup: BackupSet, restoring: Restoring) -> None:
        """Refuse what the set's method cannot do. One that is only taken now may still be such, and says so then.

        Raises:
            BackupMethodOffError: The installation has nothing for it any more.
            BackupPathsUnsupportedError: Paths are wanted of whole volumes.
        """
        self.of(backup.method)
        if restoring.paths and backup.method is BackupMethod.SNAPSHOTS:
            raise BackupPathsUnsupportedError

    async def end(self, name: BackupSetId | RestoreId, *, timeout: timedelta) -> None:
        """End the work on a set or on a restore, whoever does it. Raises as `VolumeBackups.end`."""
        for one in (self.volumes, *self.others.values()):
            await one.end(name, timeout=timeout)

    async def policy_of(self, work: UnitOfWork, client: ClientId) -> BackupPolicy:
        """Say what holds for a client now: its own wishes, and where it has none the installation's."""
        found = await work.clients.find(client)
        wishes = ClientPolicy() if found is None else found.policy
        return BackupPolicy(
            every=self.every if wishes.backup_every is None else wishes.backup_every,
            after_terminate=self.after_terminate,
            retention=self.retention.under(wishes.backup_retention),
        )


def volumes_of(sandbox: Sandbox) -> VolumesOf:
    """Say whose volumes they are, as the port asks."""
    return VolumesOf(
        sandbox=sandbox.id,
        client=sandbox.client,
        freelancer=sandbox.freelancer,
        tier=sandbox.tier,
        resources=TIER_RESOURCES[sandbox.tier],
    )

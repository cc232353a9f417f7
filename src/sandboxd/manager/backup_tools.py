"""What backups work with, and what holds for those of a client."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from sandboxd.manager.ports import UnitOfWork
from sandboxd.manager.release_ports import KeptVolumes
from sandboxd.model.backup_retention import BackupPolicy, BackupRetention
from sandboxd.model.client import ClientPolicy
from sandboxd.model.ids import ClientId
from sandboxd.model.sandbox import TIER_RESOURCES, Sandbox
from sandboxd.volumes.ports import VolumeBackups, VolumesOf


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupTools:
    """What backups work with."""

    volumes: VolumeBackups
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
    pause: timedelta = timedelta(minutes=1)
    """Between two looks at what policy wants; zero: none."""

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

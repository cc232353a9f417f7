"""An operator and a service's side of backups on a cluster in memory whose pods work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from typing_extensions import override

from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.volume_backups import KubernetesVolumeBackups
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.model.backup import BackupMethod
from sandboxd.operator.backup_shape import BackupMeans, SnapshotMeans
from sandboxd.operator.metrics import OperatorMetrics
from sandboxd.operator.ports import AgentIdentities, AgentIdentity
from sandboxd.operator.room import Operator, OperatorSettings
from tests.fakes.backup_pods import LOCATION, BackupCluster
from tests.fakes.snapshot_cluster import SnapshotCluster
from tests.operator_world import INSTANCE, SETTINGS

MEANS = BackupMeans(image="registry.example/server@sha256:3", location=LOCATION, credentials=lambda: b"keys")
SNAPSHOTS = SnapshotMeans(image="registry.example/server@sha256:3")
_numbers = count(1)


class NoIdentities(AgentIdentities):
    """No agent is started here."""

    @override
    def issue(self, incarnation: Any) -> AgentIdentity:
        raise AssertionError("no agent is started here")


@asynccontextmanager
async def a_backup_operator(cluster: BackupCluster, *, api: KubeApi | None = None) -> AsyncIterator[Operator]:
    """One life of an operator that knows where backups are kept; the Lease of the one before has run out."""
    await cluster.drop("leases", "own", f"sandboxd-operator-{INSTANCE}")
    settings = OperatorSettings(
        plan=replace(SETTINGS, backups=MEANS, snapshots=SNAPSHOTS),
        namespace="own",
        identity="one",
        lease=timedelta(seconds=60),
    )
    made = Operator(
        api or cluster,
        settings=settings,
        identities=NoIdentities(),
        clock=SystemClock(),
        metrics=OperatorMetrics(CollectorRegistry()),
    )
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def a_backing_cluster(directory: Path, restic: Path | None = None) -> AsyncIterator[BackupCluster]:
    """A cluster whose pods work, with an operator; with restic, or with repositories that copy trees."""
    cluster = BackupCluster(directory, restic=restic)
    await cluster.furnish()
    async with cluster.running(), a_backup_operator(cluster):
        yield cluster


@asynccontextmanager
async def a_snapshotting_cluster(directory: Path) -> AsyncIterator[SnapshotCluster]:
    """A cluster whose storage makes snapshots, with an operator."""
    cluster = SnapshotCluster(directory)
    await cluster.furnish()
    async with cluster.running(), a_backup_operator(cluster):
        yield cluster


def its_backups(cluster: BackupCluster, *, method: BackupMethod = BackupMethod.FILES) -> KubernetesVolumeBackups:
    """What a service has of it."""
    return KubernetesVolumeBackups(
        cluster,
        installation=Installation(instance=INSTANCE, namespace_prefix="client-", template="default"),
        clock=SystemClock(),
        name=lambda: f"work{next(_numbers)}",
        method=method,
    )

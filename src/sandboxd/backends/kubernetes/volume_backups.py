"""Backs up volumes of sandboxes in a cluster, by a `SandboxBackup` for each piece of work: this service makes no pods.

By one method: as files, whose repository's key is not here, or by CSI VolumeSnapshots, which have whole volumes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.backends.kubernetes.backup_work import BackupWork, all_of, read
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.model.backup import (
    BackupMethod,
    BackupSetId,
    RestoreId,
    SnapshotId,
    TreeComparison,
    Volume,
    VolumeSnapshot,
)
from sandboxd.model.backup_errors import BackupPathsUnsupportedError, BackupSnapshotNotFoundError, BackupUnreadError
from sandboxd.model.cluster_backup import SETS_NAMED, BackupAction, RestorePart
from sandboxd.model.errors import InvalidRequestError
from sandboxd.model.ids import ClientId
from sandboxd.model.sources import Clock
from sandboxd.volumes.listing import StrayListing, StraySets
from sandboxd.volumes.outcomes import (
    compared_from_mapping,
    forgotten_from_mapping,
    proved_from_mapping,
    restored_from_mapping,
    strays_from_mapping,
    taken_from_mapping,
)
from sandboxd.volumes.ports import (
    ForgottenSnapshots,
    RestoredTree,
    RestoreOrder,
    TakenVolumes,
    VolumeBackups,
    VolumesOf,
    VolumesProgress,
)
from sandboxd.volumes.trees import compare_trees

SETS_AT_ONCE: Final = 25
"""Their snapshots fit into what a kubelet passes on of a worker's last words (4096 bytes)."""
PATH_BYTES: Final = 300_000
"""Of all paths of a restore: they are in one object of the API, which has about a megabyte."""


class KubernetesVolumeBackups(VolumeBackups, StrayListing):
    """Asks the operator.

    By snapshots a client's "repository" is what VolumeSnapshots of backups its namespace has. There is nothing to
    prune, and `verify` learns no more than that the storage has each and calls it whole.
    """

    def __init__(
        self,
        api: KubeApi,
        *,
        installation: Installation,
        clock: Clock,
        name: Callable[[], str],
        method: BackupMethod = BackupMethod.FILES,
    ) -> None:
        """Take what it works with, as `BackupWork`."""
        self._work = BackupWork(api, installation=installation, clock=clock, name=name, method=method)
        self._method = method
        self._clock = clock

    @override
    async def take(
        self,
        backup: BackupSetId,
        of: VolumesOf,
        *,
        timeout: timedelta,
        progress: Callable[[VolumesProgress], None],
        reading: int = 1,
    ) -> TakenVolumes:
        said = await self._work.take(backup, of, timeout=timeout, reading=reading, progress=progress)
        taken = read(taken_from_mapping, said)
        for one in taken.volumes:
            progress(all_of(one.volume, files=one.files, size=one.bytes))
        return taken

    @override
    async def restore(
        self, order: RestoreOrder, *, timeout: timedelta, progress: Callable[[VolumesProgress], None]
    ) -> RestoredTree:
        """Bring volumes back.

        Raises:
            BackupPathsUnsupportedError: Paths are named of snapshots.
        """
        self._require_doable(order)
        restored = read(restored_from_mapping, await self._work.restore(order, timeout=timeout, progress=progress))
        for volume in order.snapshots:
            progress(all_of(volume, files=restored.entries, size=restored.bytes))
        return restored

    @override
    async def stage(
        self, order: RestoreOrder, *, timeout: timedelta, progress: Callable[[VolumesProgress], None]
    ) -> None:
        self._require_doable(order)
        if self._method is BackupMethod.FILES:
            await self._work.restore(order, part=RestorePart.STAGE, timeout=timeout, progress=progress)

    @override
    async def discard(self, order: RestoreOrder, *, timeout: timedelta) -> None:
        if self._method is BackupMethod.FILES:
            await self._work.discard(order, timeout=timeout)

    def _require_doable(self, order: RestoreOrder) -> None:
        if self._method is BackupMethod.SNAPSHOTS and any(order.paths.values()):
            raise BackupPathsUnsupportedError
        if sum(len(path) for paths in order.paths.values() for path in paths) > PATH_BYTES:
            raise InvalidRequestError("So many paths are not restored at once: name directories, or all of it.")

    @override
    async def forget(
        self, client: ClientId, backups: Sequence[BackupSetId], *, prune: bool, timeout: timedelta
    ) -> ForgottenSnapshots:
        deadline = self._clock.monotonic() + timeout.total_seconds()
        gone: list[SnapshotId] = []
        left = 0
        for start in range(0, max(1, len(backups)), SETS_AT_ONCE):
            rest = timedelta(seconds=deadline - self._clock.monotonic())
            last = start + SETS_AT_ONCE >= len(backups)
            sets = tuple(backups[start : start + SETS_AT_ONCE])
            work = self._work.ordered(BackupAction.FORGET, timeout=rest, sets=sets, prune=prune and last)
            forgotten = read(forgotten_from_mapping, await self._work.do_once(client, work, timeout=rest))
            gone, left = [*gone, *forgotten.snapshots], forgotten.left
        return ForgottenSnapshots(snapshots=gone, left=left)

    @override
    async def verify(self, client: ClientId, *, content: bool, timeout: timedelta) -> None:
        work = self._work.ordered(BackupAction.VERIFY, timeout=timeout, content=content)
        await self._work.do_once(client, work, timeout=timeout)

    @override
    async def strays(self, client: ClientId, known: Sequence[BackupSetId], *, timeout: timedelta) -> StraySets:
        work = self._work.ordered(BackupAction.SURVEY, timeout=timeout, sets=tuple(known[:SETS_NAMED]))
        return read(strays_from_mapping, await self._work.do_once(client, work, timeout=timeout))

    @override
    async def compare(
        self,
        name: RestoreId,
        of: VolumesOf,
        snapshots: Mapping[Volume, SnapshotId],
        *,
        timeout: timedelta,
        progress: Callable[[VolumesProgress], None],
    ) -> Mapping[Volume, TreeComparison]:
        """Compare volumes with what is kept.

        Raises:
            BackupUnreadError: That is the storage's: nobody reads it but who restores it.
        """
        if self._method is BackupMethod.SNAPSHOTS:
            raise BackupUnreadError
        said = await self._work.compare(name, of, snapshots, timeout=timeout, progress=progress)
        compared = read(compared_from_mapping, said)
        for volume, one in compared.items():
            progress(all_of(volume, files=one.entries, size=one.bytes))
        return compared

    @override
    async def prove(self, client: ClientId, volumes: Sequence[VolumeSnapshot], *, timeout: timedelta) -> None:
        """Read every byte of a set's snapshots.

        Raises:
            BackupUnreadError: They are the storage's: nobody reads them but who restores them.
        """
        if self._method is BackupMethod.SNAPSHOTS:
            raise BackupUnreadError
        wanted = {one.volume: one.snapshot for one in volumes}
        work = self._work.ordered(BackupAction.VERIFY, timeout=timeout, content=True, snapshots=wanted)
        trees = read(proved_from_mapping, await self._work.do_once(client, work, timeout=timeout))
        if not trees:
            raise BackupSnapshotNotFoundError(
                "Nobody has read the snapshots: the client has no repository.", client=client
            )
        compare_trees(volumes, trees)

    @override
    async def destroy(self, client: ClientId, *, timeout: timedelta) -> None:
        await self._work.do_once(client, self._work.ordered(BackupAction.DESTROY, timeout=timeout), timeout=timeout)

    @override
    async def end(self, name: BackupSetId | RestoreId, *, timeout: timedelta) -> None:
        """Remove the resource wherever it is, and wait for its pods; a restore of snapshots puts back what was."""
        await self._work.end(name, timeout=timeout)

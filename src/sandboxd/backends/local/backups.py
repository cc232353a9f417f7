"""Backs up the volumes of local sandboxes: directories of this machine, read and written by this very process.

The work dies with whoever asked for it; what it had stored by then is taken up by the next. Which repository is a
client's, and what opens it, others know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from sandboxd.backends.local import processes
from sandboxd.backends.local.layout import Layout, SandboxFiles
from sandboxd.model.backup import BackupSetId, RestoreId, SnapshotId, TreeComparison, Volume, VolumeSnapshot
from sandboxd.model.backup_errors import BackupIncompleteError, BackupSnapshotNotFoundError
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.volumes.listing import StrayListing, StraySets
from sandboxd.volumes.ports import (
    BackupRepository,
    ForgottenSnapshots,
    RestoredTree,
    RestoreOrder,
    TakenVolumes,
    VolumeBackups,
    VolumesOf,
    VolumesProgress,
)
from sandboxd.volumes.trees import (
    compare_trees,
    compare_volumes,
    discard_trees,
    forget_sets,
    prove_trees,
    restore_trees,
    stage_trees,
    survey_sets,
    take_trees,
    within,
)
from sandboxd.volumes.volume_errors import VolumesInUseError, VolumesNotFoundError


class ClientRepositories(Protocol):
    """The repositories of backups, one for each client."""

    async def open(self, client: ClientId, *, timeout: timedelta) -> BackupRepository:
        """A client's repository; made, and what opens it, where it is not there. Raises as `prepare`."""
        ...

    async def reopen(self, client: ClientId, *, timeout: timedelta) -> BackupRepository:
        """A client's repository, which has something. Raises as `prepare`.

        Raises:
            BackupPasswordLostError: There is no password for it.
        """
        ...

    async def find(self, client: ClientId, *, timeout: timedelta) -> BackupRepository | None:
        """A client's repository, or None where it never had one. Raises as `prepare`."""
        ...

    async def destroy(self, client: ClientId, *, timeout: timedelta) -> None:
        """Destroy it with what opens it. Absent is success."""
        ...


class LocalVolumeBackups(VolumeBackups, StrayListing):
    """Knows where the volumes are."""

    def __init__(self, *, data: Path, repositories: ClientRepositories) -> None:
        self._layout = Layout(data=data.absolute())
        self._repositories = repositories

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
        async with within(timeout) as left:
            files = next((one for one in self._places(of.sandbox) if one.present), None)
            if files is None:
                raise VolumesNotFoundError(of.sandbox)
            repository = await self._repositories.open(of.client, timeout=left())
            try:
                return await take_trees(
                    repository, backup, of.sandbox, _trees(files), timeout=left(), progress=progress, reading=reading
                )
            except SandboxdError as error:
                if files.present:
                    raise
                raise BackupIncompleteError(
                    f"The volumes of sandbox {of.sandbox} were moved while they were read: it was terminated or "
                    "restored. Try again.",
                    sandbox=of.sandbox,
                ) from error

    @override
    async def restore(
        self, order: RestoreOrder, *, timeout: timedelta, progress: Callable[[VolumesProgress], None]
    ) -> RestoredTree:
        sandbox = order.into.sandbox
        async with within(timeout) as left:
            await self._refuse_running(sandbox)
            repository = await self._repositories.reopen(order.into.client, timeout=left())
            await asyncio.to_thread(self._layout.bring_back, sandbox)
            return await restore_trees(
                repository, order, _trees(self._layout.sandbox(sandbox)), timeout=left(), progress=progress
            )

    @override
    async def stage(
        self, order: RestoreOrder, *, timeout: timedelta, progress: Callable[[VolumesProgress], None]
    ) -> None:
        sandbox = order.into.sandbox
        async with within(timeout) as left:
            await self._refuse_running(sandbox)
            repository = await self._repositories.reopen(order.into.client, timeout=left())
            await asyncio.to_thread(self._layout.bring_back, sandbox)
            await stage_trees(
                repository, order, _trees(self._layout.sandbox(sandbox)), timeout=left(), progress=progress
            )

    @override
    async def discard(self, order: RestoreOrder, *, timeout: timedelta) -> None:
        await self._refuse_running(order.into.sandbox)
        for files in self._places(order.into.sandbox):
            if files.present:
                await discard_trees(_trees(files))

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
        async with within(timeout) as left:
            files = next((one for one in self._places(of.sandbox) if one.present), None)
            if files is None:
                raise VolumesNotFoundError(of.sandbox)
            await self._refuse_running(of.sandbox)
            repository = await self._repositories.reopen(of.client, timeout=left())
            return await compare_volumes(repository, snapshots, _trees(files), timeout=left(), progress=progress)

    @override
    async def forget(
        self, client: ClientId, backups: Sequence[BackupSetId], *, prune: bool, timeout: timedelta
    ) -> ForgottenSnapshots:
        async with within(timeout) as left:
            repository = await self._repositories.find(client, timeout=left())
            if repository is None:
                return ForgottenSnapshots(snapshots=(), left=0)
            return await forget_sets(repository, backups, prune=prune, timeout=left())

    @override
    async def verify(self, client: ClientId, *, content: bool, timeout: timedelta) -> None:
        async with within(timeout) as left:
            repository = await self._repositories.find(client, timeout=left())
            if repository is not None:
                await repository.verify(content=content, timeout=left())

    @override
    async def prove(self, client: ClientId, volumes: Sequence[VolumeSnapshot], *, timeout: timedelta) -> None:
        async with within(timeout) as left:
            repository = await self._repositories.find(client, timeout=left())
            if repository is None:
                raise BackupSnapshotNotFoundError("The client has no repository of backups.", client=client)
            compare_trees(volumes, await prove_trees(repository, [one.snapshot for one in volumes], timeout=left()))

    @override
    async def strays(self, client: ClientId, known: Sequence[BackupSetId], *, timeout: timedelta) -> StraySets:
        async with within(timeout) as left:
            repository = await self._repositories.find(client, timeout=left())
            if repository is None:
                return StraySets(sizes={})
            return await survey_sets(repository, known, timeout=left())

    @override
    async def end(self, name: BackupSetId | RestoreId, *, timeout: timedelta) -> None:
        """Do nothing: who was cancelled has ended the work."""

    @override
    async def destroy(self, client: ClientId, *, timeout: timedelta) -> None:
        await self._repositories.destroy(client, timeout=timeout)

    def _places(self, sandbox: SandboxId) -> Sequence[SandboxFiles]:
        return self._layout.sandbox(sandbox), SandboxFiles(directory=self._layout.kept / sandbox)

    async def _refuse_running(self, sandbox: SandboxId) -> None:
        agents = await asyncio.to_thread(processes.find_agents, self._layout)
        if any(agent.sandbox == sandbox for agent in agents):
            raise VolumesInUseError(sandbox)


def _trees(files: SandboxFiles) -> Mapping[Volume, Path]:
    return {Volume.HOME: files.home, Volume.WORKSPACE: files.workspace}

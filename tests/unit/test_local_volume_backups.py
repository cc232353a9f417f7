"""Backups of local volumes while the sandbox is terminated: its directories are moved to another place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from typing_extensions import override

from sandboxd.backends.local.backups import ClientRepositories, LocalVolumeBackups
from sandboxd.backends.local.layout import Layout
from sandboxd.model.backup import BackupSetId
from sandboxd.model.backup_errors import BackupIncompleteError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.sandbox import TIER_RESOURCES, Tier
from sandboxd.volumes.ports import BackupProgress, BackupRepository, TreeSnapshot, VolumesOf
from tests.fakes.backups import FakeBackupRepository

SOON = timedelta(seconds=10)
OF = VolumesOf(
    sandbox=SandboxId("sbx-1"),
    client=ClientId("acme"),
    freelancer=FreelancerId("ada"),
    tier=Tier.BASIC,
    resources=TIER_RESOURCES[Tier.BASIC],
)


@dataclass(kw_only=True)
class MovingRepository(FakeBackupRepository):
    """Terminates the sandbox when the first volume was read."""

    layout: Layout
    moved: bool = False

    @override
    async def snapshot(
        self,
        tree: Path,
        *,
        source: str,
        tags: Mapping[str, str],
        timeout: timedelta,
        progress: Callable[[BackupProgress], None],
    ) -> TreeSnapshot:
        made = await super().snapshot(tree, source=source, tags=tags, timeout=timeout, progress=progress)
        if not self.moved:
            self.layout.keep(OF.sandbox)
            self.moved = True
        return made


@dataclass(kw_only=True)
class OneRepository(ClientRepositories):
    repository: BackupRepository

    @override
    async def open(self, client: ClientId, *, timeout: timedelta) -> BackupRepository:
        await self.repository.prepare(timeout=timeout)
        return self.repository

    @override
    async def reopen(self, client: ClientId, *, timeout: timedelta) -> BackupRepository:
        return await self.open(client, timeout=timeout)

    @override
    async def find(self, client: ClientId, *, timeout: timedelta) -> BackupRepository | None:
        return self.repository

    @override
    async def destroy(self, client: ClientId, *, timeout: timedelta) -> None:
        raise NotImplementedError


async def test_one_that_is_terminated_meanwhile_says_so_and_the_next_attempt_has_all(tmp_path: Path) -> None:
    layout = Layout(data=tmp_path / "data")
    layout.sandbox(OF.sandbox).make()
    repository = MovingRepository(directory=tmp_path / "kept", layout=layout)
    backups = LocalVolumeBackups(data=layout.data, repositories=OneRepository(repository=repository))

    with pytest.raises(BackupIncompleteError, match="terminated or restored. Try again"):
        await backups.take(BackupSetId("bak-1"), OF, timeout=SOON, progress=lambda _: None)
    again = await backups.take(BackupSetId("bak-2"), OF, timeout=SOON, progress=lambda _: None)

    assert len(again.volumes) == 2

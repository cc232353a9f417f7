"""Volumes that removed sandboxes have left, in memory: those of a `FakeVolumeBackups`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from typing_extensions import override

from sandboxd.manager.release_ports import KeptVolume, KeptVolumes
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import SandboxId
from sandboxd.model.volume_release import VolumesStayError
from tests.fakes.volume_backups import FakeVolumeBackups


@dataclass(kw_only=True)
class FakeKeptVolumes(KeptVolumes):
    volumes: FakeVolumeBackups
    runs: Callable[[SandboxId], bool] = lambda _: False
    """Whether a sandbox is in its place."""
    hindrance: str = ""
    trouble: SandboxdError | None = None
    """Raised by `release`."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Releases wait for it; open from the beginning."""
    released: list[SandboxId] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    @override
    async def find(self, sandbox: SandboxId, *, timeout: timedelta) -> Sequence[KeptVolume]:
        there = self.volumes.volumes.get(sandbox)
        if there is None or self.runs(sandbox):
            return []
        size = sum(len(content) for files in there.values() for content in files.values())
        identity = f"{id(there)}"
        return [KeptVolume(name=f"/kept/{sandbox}", identity=identity, size_bytes=size, hindrance=self.hindrance)]

    @override
    async def release(self, sandbox: SandboxId, volumes: Sequence[KeptVolume], *, timeout: timedelta) -> None:
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        there = self.volumes.volumes.get(sandbox)
        if there is not None and f"{id(there)}" in {one.identity for one in volumes}:
            if self.hindrance:
                raise VolumesStayError(self.hindrance, sandbox=sandbox)
            del self.volumes.volumes[sandbox]
            self.released.append(sandbox)

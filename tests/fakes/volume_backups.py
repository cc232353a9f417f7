"""Volumes in memory, and the repositories that they are backed up to: for tests of what asks for backups."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from typing_extensions import override

from sandboxd.model.backup import BackupSetId, RestoreId, SnapshotId, TreeComparison, Volume, VolumeSnapshot
from sandboxd.model.backup_errors import BackupDamagedError, BackupSnapshotNotFoundError
from sandboxd.model.errors import InvalidRequestError, SandboxdError
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.volumes.listing import StrayListing, StraySets
from sandboxd.volumes.ports import (
    STAGING,
    BackupProgress,
    ForgottenSnapshots,
    RestoredTree,
    RestoreOrder,
    TakenVolumes,
    VolumeBackups,
    VolumesOf,
    VolumesProgress,
)
from sandboxd.volumes.trees import stray_sets
from sandboxd.volumes.volume_errors import VolumesInUseError, VolumesNotFoundError

Files = dict[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFiles:
    client: ClientId
    backup: BackupSetId
    reading: int
    sandbox: SandboxId
    taken: VolumeSnapshot
    take_time: datetime
    files: Mapping[bytes, bytes]


@dataclass(kw_only=True)
class FakeVolumeBackups(VolumeBackups, StrayListing):
    """A volume is its files by path; its directories are those that files lie in."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    volumes: dict[SandboxId, dict[Volume, Files]] = field(default_factory=dict)
    kept: dict[SnapshotId, KeptFiles] = field(default_factory=dict)
    runs: Callable[[SandboxId], bool] = lambda _: False
    """Whether a sandbox has compute."""
    trouble: SandboxdError | None = None
    """Raised by whatever is called."""
    take_trouble: SandboxdError | None = None
    """Raised by `take` alone."""
    staged: set[SandboxId] = field(default_factory=set)
    """What has something beside what it has."""
    restore_told: list[VolumesProgress] = field(default_factory=list)
    """Progress that a restore tells before it does anything, and is taken away then."""
    restore_held: asyncio.Event | None = None
    """A restore that has told of it waits for this."""
    restore_trouble: SandboxdError | None = None
    """Raised by `restore` alone."""
    prove_trouble: SandboxdError | None = None
    """Raised by `prove` alone."""
    proving: asyncio.Event = field(default_factory=asyncio.Event)
    """Proofs wait for it; open from the beginning."""
    proved: list[SnapshotId] = field(default_factory=list)
    spoil: Files = field(default_factory=dict)
    """What each restore puts into the workspace beside what it should."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Work waits for it; open from the beginning."""
    frozen_gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Readings of even numbers, of sandboxes that stand still, wait for this one too; open from the beginning."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """What is kept is cut at once, and whole when this is set; open from the beginning."""
    working: set[str] = field(default_factory=set)
    ended: list[str] = field(default_factory=list)
    pruned: list[ClientId] = field(default_factory=list)
    destroyed: set[ClientId] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.gate.set()
        self.proving.set()
        self.frozen_gate.set()
        self.ready.set()

    def given(self, sandbox: SandboxId, *, home: Files | None = None, workspace: Files | None = None) -> None:
        self.volumes[sandbox] = {Volume.HOME: dict(home or {}), Volume.WORKSPACE: dict(workspace or {})}

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
        await self._work(backup if reading == 1 else f"{backup}/{reading}")
        if self.take_trouble is not None:
            raise self.take_trouble
        mine = (of.client, backup, reading)
        of_set = [one for one in self.kept.values() if (one.client, one.backup, one.reading) == mine]
        if {one.taken.volume for one in of_set} != set(Volume):
            if of.sandbox not in self.volumes:
                raise VolumesNotFoundError(of.sandbox)
            of_set = [self._keep(backup, of, volume, progress, reading) for volume in Volume]
        if not self.ready.is_set():
            nothing = BackupProgress(files=0, total_files=0, bytes=0, total_bytes=0)
            progress(VolumesProgress(volume=Volume.HOME, trees=nothing, cut=True))
            await self.ready.wait()
        return TakenVolumes(
            take_time=min(one.take_time for one in of_set),
            volumes=sorted((one.taken for one in of_set), key=lambda one: one.volume.value),
        )

    def _keep(
        self,
        backup: BackupSetId,
        of: VolumesOf,
        volume: Volume,
        progress: Callable[[VolumesProgress], None],
        reading: int,
    ) -> KeptFiles:
        files = _without_staging(self.volumes[of.sandbox][volume])
        size = sum(map(len, files.values()))
        said = json.dumps(sorted((path.hex(), content.hex()) for path, content in files.items()))
        tree = hashlib.sha256(said.encode()).hexdigest()
        known = any(one.taken.tree == tree and one.client == of.client for one in self.kept.values())
        one = KeptFiles(
            client=of.client,
            backup=backup,
            reading=reading,
            sandbox=of.sandbox,
            taken=VolumeSnapshot(
                volume=volume,
                snapshot=SnapshotId(hashlib.sha256(f"{backup} {volume.value} {reading}".encode()).hexdigest()),
                tree=tree,
                files=len(files),
                bytes=size,
                added_bytes=0 if known else size,
            ),
            take_time=self.now(),
            files=dict(files),
        )
        self.kept[one.taken.snapshot] = one
        done = BackupProgress(files=len(files), total_files=len(files), bytes=size, total_bytes=size)
        progress(VolumesProgress(volume=volume, trees=done))
        return one

    @override
    async def restore(
        self, order: RestoreOrder, *, timeout: timedelta, progress: Callable[[VolumesProgress], None]
    ) -> RestoredTree:
        await self._work(order.id)
        self.staged.discard(order.into.sandbox)
        if self.restore_trouble is not None:
            raise self.restore_trouble
        if self.runs(order.into.sandbox):
            raise VolumesInUseError(order.into.sandbox)
        back: dict[Volume, Files] = {}
        for volume, snapshot in order.snapshots.items():
            kept = self.kept.get(snapshot)
            if kept is None or kept.client != order.into.client:
                raise BackupSnapshotNotFoundError("There is no such snapshot.", snapshot=snapshot)
            paths = order.paths.get(volume, ())
            back[volume] = {path: content for path, content in kept.files.items() if not paths or _below(path, paths)}
            for path in paths:
                if not path or path.startswith(b"/") or b".." in path.split(b"/"):
                    raise InvalidRequestError(f"{os.fsdecode(path)!r} is no path below the root of a volume.")
                if not any(_below(one, [path]) for one in back[volume]):
                    raise BackupSnapshotNotFoundError(f"The backup has no {os.fsdecode(path)!r}.", snapshot=snapshot)
        there = self.volumes.setdefault(order.into.sandbox, {volume: {} for volume in Volume})
        for volume, files in there.items():
            there[volume] = _without_staging(files)
        for volume, files in back.items():
            paths = order.paths.get(volume, ())
            stays = {path: content for path, content in there[volume].items() if paths and not _below(path, paths)}
            there[volume] = {**stays, **files}
            done = BackupProgress(files=len(files), total_files=len(files), bytes=0, total_bytes=0)
            progress(VolumesProgress(volume=volume, trees=done))
        there[Volume.WORKSPACE] |= self.spoil
        return RestoredTree(
            entries=sum(map(len, back.values())),
            bytes=sum(len(content) for files in back.values() for content in files.values()),
        )

    @override
    async def stage(
        self, order: RestoreOrder, *, timeout: timedelta, progress: Callable[[VolumesProgress], None]
    ) -> None:
        await self._work(order.id)
        while self.restore_told:
            progress(self.restore_told.pop(0))
        if self.restore_held is not None:
            await self.restore_held.wait()
        self.staged.add(order.into.sandbox)

    @override
    async def discard(self, order: RestoreOrder, *, timeout: timedelta) -> None:
        self._meet_trouble()
        self.staged.discard(order.into.sandbox)

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
        await self._work(name)
        if of.sandbox not in self.volumes:
            raise VolumesNotFoundError(of.sandbox)
        if self.runs(of.sandbox):
            raise VolumesInUseError(of.sandbox)
        return {volume: self._compared(of, volume, snapshot) for volume, snapshot in snapshots.items()}

    def _compared(self, of: VolumesOf, volume: Volume, snapshot: SnapshotId) -> TreeComparison:
        kept = self.kept.get(snapshot)
        if kept is None or kept.client != of.client:
            raise BackupSnapshotNotFoundError("There is no such snapshot.", snapshot=snapshot)
        there = self.volumes[of.sandbox][volume]
        odd = sorted(path for path in {*kept.files, *there} if kept.files.get(path) != there.get(path))
        return TreeComparison(
            entries=len(kept.files),
            bytes=sum(map(len, kept.files.values())),
            expected=_sum(kept.files),
            found=_sum(there),
            differences=[f"{path.decode(errors='backslashreplace')} differs" for path in odd],
            difference_count=len(odd),
        )

    @override
    async def forget(
        self, client: ClientId, backups: Sequence[BackupSetId], *, prune: bool, timeout: timedelta
    ) -> ForgottenSnapshots:
        self._meet_trouble()
        gone = [name for name, one in self.kept.items() if one.client == client and one.backup in backups]
        for name in gone:
            del self.kept[name]
        if prune:
            self.pruned.append(client)
        return ForgottenSnapshots(snapshots=gone, left=sum(one.client == client for one in self.kept.values()))

    @override
    async def strays(self, client: ClientId, known: Sequence[BackupSetId], *, timeout: timedelta) -> StraySets:
        self._meet_trouble()
        sizes = defaultdict[str, int](int)
        for one in self.kept.values():
            if one.client == client:
                sizes[one.backup] += one.taken.added_bytes
        return stray_sets(sizes, known)

    @override
    async def verify(self, client: ClientId, *, content: bool, timeout: timedelta) -> None:
        self._meet_trouble()

    @override
    async def prove(self, client: ClientId, volumes: Sequence[VolumeSnapshot], *, timeout: timedelta) -> None:
        self._meet_trouble()
        await self.proving.wait()
        if self.prove_trouble is not None:
            raise self.prove_trouble
        for one in volumes:
            kept = self.kept.get(one.snapshot)
            if kept is None or kept.client != client:
                raise BackupSnapshotNotFoundError("There is no such snapshot.", snapshot=one.snapshot)
            if kept.taken.tree != one.tree:
                raise BackupDamagedError("Another tree.", snapshot=one.snapshot)
        self.proved += [one.snapshot for one in volumes]

    @override
    async def end(self, name: BackupSetId | RestoreId, *, timeout: timedelta) -> None:
        self._meet_trouble()
        self.ended.append(name)

    @override
    async def destroy(self, client: ClientId, *, timeout: timedelta) -> None:
        self._meet_trouble()
        self.kept = {name: one for name, one in self.kept.items() if one.client != client}
        self.destroyed.add(client)

    async def _work(self, name: str) -> None:
        self._meet_trouble()
        self.working.add(name)
        try:
            await self.gate.wait()
            if "/" in name and not int(name.rpartition("/")[2]) % 2:
                await self.frozen_gate.wait()
        finally:
            self.working.discard(name)
        self._meet_trouble()

    def _meet_trouble(self) -> None:
        if self.trouble is not None:
            raise self.trouble


def _without_staging(files: Files) -> Files:
    return {path: content for path, content in files.items() if not path.startswith(STAGING.encode())}


def _sum(files: Mapping[bytes, bytes]) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


def _below(path: bytes, paths: Sequence[bytes]) -> bool:
    return any(path == one or path.startswith(one + b"/") for one in paths)

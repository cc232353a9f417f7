"""A sandbox's volumes as directories of this machine: taken into a repository, and brought back into their place.

For whoever has them mounted, a child of the service as well as a Job in a cluster. What is in a volume is the
freelancer's: no link of it is followed, and nothing outside of its root is touched.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from sandboxd.model.backup import BackupSetId, SnapshotId, TreeComparison, Volume, VolumeSnapshot
from sandboxd.model.backup_errors import BackupDamagedError
from sandboxd.model.errors import DeadlineError
from sandboxd.model.ids import SandboxId
from sandboxd.volumes.listing import STRAYS, StraySets
from sandboxd.volumes.paths import check_path
from sandboxd.volumes.placing import clear_staging, make_staging, put_paths, put_whole
from sandboxd.volumes.ports import (
    STAGING,
    BackupProgress,
    BackupRepository,
    ForgottenSnapshots,
    RestoredTree,
    RestoreOrder,
    TakenVolumes,
    TreeSnapshot,
    VolumesProgress,
)
from sandboxd.volumes.staging import find_staged, mark_staged, staged_as, unmark_staged

_SET: Final = re.compile(r"bak-[0-9a-z]{1,26}")
"""What has another name is not ours."""


async def take_trees(
    repository: BackupRepository,
    backup: BackupSetId,
    sandbox: SandboxId,
    trees: Mapping[Volume, Path],
    *,
    timeout: timedelta,
    progress: Callable[[VolumesProgress], None],
    reading: int = 1,
) -> TakenVolumes:
    """Take each tree, or answer what is in the repository of this set; see `VolumeBackups.take`."""
    async with within(timeout) as left:
        of_set = await repository.list(tags={"set": backup}, timeout=left())
        there = [one for one in of_set if one.tags.get("reading", "1") == str(reading)]
        found = {Volume(one.tags["volume"]): one for one in there}
        if found.keys() != trees.keys():
            if there:  # of a moment that is over
                await repository.forget([one.id for one in there], timeout=left())
            found = {}
            for volume, tree in trees.items():
                found[volume] = await repository.snapshot(
                    tree,
                    source=f"{sandbox}/{volume.value}",
                    tags={"set": backup, "volume": volume.value, "reading": str(reading)},
                    timeout=left(),
                    progress=_teller(volume, progress),
                )
                _tell_end(volume, found[volume].files, found[volume].bytes, progress)
    return taken_of(found)


def taken_of(found: Mapping[Volume, TreeSnapshot]) -> TakenVolumes:
    """Say what was taken of the volumes."""
    volumes = [
        VolumeSnapshot(
            volume=volume,
            snapshot=one.id,
            tree=one.tree,
            files=one.files,
            bytes=one.bytes,
            added_bytes=one.added_bytes,
            vanished=one.vanished_count,
        )
        for volume, one in sorted(found.items(), key=lambda pair: pair[0].value)
    ]
    return TakenVolumes(take_time=min(one.take_time for one in found.values()), volumes=volumes)


async def restore_trees(
    repository: BackupRepository,
    order: RestoreOrder,
    trees: Mapping[Volume, Path],
    *,
    timeout: timedelta,
    progress: Callable[[VolumesProgress], None],
) -> RestoredTree:
    """Bring volumes back into their roots, which are there; see `VolumeBackups.restore`.

    Nothing takes its place before all of it is there. What `stage_trees` has put there is not fetched again.
    """
    paths = _paths_of(order)
    async with within(timeout) as left:
        try:
            back = await asyncio.to_thread(find_staged, _roots(order, trees), staged_as(order))
            if back is None:
                back = await _fetch(repository, order, trees, left, progress)
            else:  # it is not whole any more: who comes after a crash in the middle fetches it again
                await asyncio.to_thread(unmark_staged, _roots(order, trees))
            for volume, some in paths.items():
                await asyncio.to_thread(_put, trees[volume], trees[volume] / f"{STAGING}{order.id}", some)
        finally:
            await discard_trees(trees)
    return back


async def stage_trees(
    repository: BackupRepository,
    order: RestoreOrder,
    trees: Mapping[Volume, Path],
    *,
    timeout: timedelta,
    progress: Callable[[VolumesProgress], None],
) -> RestoredTree:
    """Put what comes back beside what is there, on the disk; whole, or nothing of it. See `VolumeBackups.stage`."""
    wanted, roots = staged_as(order), _roots(order, trees)
    async with within(timeout) as left:
        if (there := await asyncio.to_thread(find_staged, roots, wanted)) is not None:
            return there
        try:
            staged = await _fetch(repository, order, trees, left, progress)
            await asyncio.to_thread(mark_staged, roots, wanted, staged)
        except BaseException:
            await discard_trees(trees)
            raise
    return staged


async def _fetch(
    repository: BackupRepository,
    order: RestoreOrder,
    trees: Mapping[Volume, Path],
    left: Callable[[], timedelta],
    progress: Callable[[VolumesProgress], None],
) -> RestoredTree:
    """Put what comes back beside what is there."""
    await discard_trees(trees)  # also of what is not restored now
    entries = size = 0
    for volume, paths in _paths_of(order).items():
        staging = trees[volume] / f"{STAGING}{order.id}"
        await asyncio.to_thread(make_staging, trees[volume], staging)
        back = await repository.restore(
            order.snapshots[volume],
            staging,
            paths=paths,
            timeout=left(),
            progress=_teller(volume, progress),
        )
        _tell_end(volume, back.entries, back.bytes, progress)
        entries, size = entries + back.entries, size + back.bytes
    return RestoredTree(entries=entries, bytes=size)


def _roots(order: RestoreOrder, trees: Mapping[Volume, Path]) -> Sequence[Path]:
    return [trees[volume] for volume in order.snapshots]


async def discard_trees(trees: Mapping[Volume, Path]) -> None:
    """Remove what restores have put beside what is there, or moved aside."""
    for root in trees.values():
        await asyncio.shield(asyncio.to_thread(clear_staging, root))


def _paths_of(order: RestoreOrder) -> Mapping[Volume, Sequence[bytes]]:
    return {volume: _outermost(order.paths.get(volume, ())) for volume in order.snapshots}


def _put(root: Path, staging: Path, paths: Sequence[bytes]) -> None:
    if paths:
        put_paths(root, staging, paths)
    else:
        put_whole(root, staging)


async def compare_volumes(
    repository: BackupRepository,
    snapshots: Mapping[Volume, SnapshotId],
    trees: Mapping[Volume, Path],
    *,
    timeout: timedelta,
    progress: Callable[[VolumesProgress], None],
) -> Mapping[Volume, TreeComparison]:
    """Compare each volume with its snapshot; see `VolumeBackups.compare`."""
    async with within(timeout) as left:
        return {
            volume: await repository.compare(
                snapshot, trees[volume], timeout=left(), progress=_teller(volume, progress)
            )
            for volume, snapshot in snapshots.items()
        }


async def forget_sets(
    repository: BackupRepository, backups: Sequence[BackupSetId], *, prune: bool, timeout: timedelta
) -> ForgottenSnapshots:
    """Remove all snapshots of these sets; see `VolumeBackups.forget`."""
    async with within(timeout) as left:
        wanted = set(backups)
        found = [one.id for one in await repository.list(timeout=left()) if one.tags.get("set") in wanted]
        gone = await repository.forget(found, timeout=left())
        if prune:
            await repository.prune(timeout=left())
    return gone


def stray_sets(sizes: Mapping[str, int], known: Sequence[BackupSetId]) -> StraySets:
    """Leave out what is known, and what has no name of ours; see `StrayListing.strays`."""
    named = frozenset(known)
    found = sorted(one for one in sizes if one not in named and _SET.fullmatch(one))
    told = {BackupSetId(one): sizes[one] for one in found[:STRAYS]}
    return StraySets(sizes=told, more=len(found) - len(told))


async def survey_sets(repository: BackupRepository, known: Sequence[BackupSetId], *, timeout: timedelta) -> StraySets:
    """Look what a repository has of others; see `StrayListing.strays`."""
    sizes = defaultdict[str, int](int)
    for one in await repository.list(timeout=timeout):
        sizes[one.tags.get("set", "")] += one.added_bytes
    return stray_sets(sizes, known)


async def prove_trees(
    repository: BackupRepository, snapshots: Sequence[SnapshotId], *, timeout: timedelta
) -> Mapping[SnapshotId, str]:
    """Read all content of snapshots; answers the tree of each."""
    async with within(timeout) as left:
        return {one: (await repository.read(one, timeout=left())).tree for one in snapshots}


def compare_trees(volumes: Sequence[VolumeSnapshot], trees: Mapping[SnapshotId, str]) -> None:
    """Hold what was read against what was taken.

    Raises:
        BackupDamagedError: It is another tree, or nobody has read it.
    """
    for one in volumes:
        if trees.get(one.snapshot) != one.tree:
            raise BackupDamagedError(
                f"The backup of {one.volume.value} is not the tree that was taken.", snapshot=one.snapshot
            )


@asynccontextmanager
async def within(timeout: timedelta) -> AsyncIterator[Callable[[], timedelta]]:
    """Give what is left of a time, for several calls one after the other; DeadlineError where nothing is."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout.total_seconds()

    def left() -> timedelta:
        seconds = end - loop.time()
        if seconds <= 0:
            raise DeadlineError(f"The volumes were not done within {timeout.total_seconds():.0f} s.")
        return timedelta(seconds=seconds)

    yield left


def _teller(volume: Volume, progress: Callable[[VolumesProgress], None]) -> Callable[[BackupProgress], None]:
    return lambda trees: progress(VolumesProgress(volume=volume, trees=trees))


def _tell_end(volume: Volume, files: int, size: int, progress: Callable[[VolumesProgress], None]) -> None:
    """Say that all of a volume is done: what is quick has told of nothing."""
    _teller(volume, progress)(BackupProgress(files=files, total_files=files, bytes=size, total_bytes=size))


def _outermost(paths: Sequence[bytes]) -> Sequence[bytes]:
    """Leave out what comes back with a path above it."""
    for path in paths:
        check_path(path)
    return [path for path in sorted(set(paths)) if not any(path.startswith(one + b"/") for one in paths)]

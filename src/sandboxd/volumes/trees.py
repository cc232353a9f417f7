"""A sandbox's volumes as directories of this machine: taken into a repository, and brought back into their place.

For whoever has them mounted, a child of the service as well as a Job in a cluster. What is in a volume is the
freelancer's: no link of it is followed, and nothing outside of its root is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from sandboxd.model.backup import BackupSetId, Volume, VolumeSnapshot
from sandboxd.model.backup_errors import BackupIncompleteError, BackupStorageFullError
from sandboxd.model.errors import DeadlineError, InvalidRequestError, WrongStateError
from sandboxd.model.ids import SandboxId
from sandboxd.volumes.ports import (
    BackupProgress,
    BackupRepository,
    ForgottenSnapshots,
    RestoredTree,
    RestoreOrder,
    TakenVolumes,
    TreeSnapshot,
    VolumesProgress,
)

STAGING: Final = ".sandboxd-restore-"
"""What comes back is put together in a directory of this name in the volume's root, with the restore's id behind."""
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class RestorePathBlockedError(WrongStateError):
    """On the way to a path that is to come back something lies in the volume that is no directory."""

    reason = "RESTORE_PATH_BLOCKED"


async def take_trees(
    repository: BackupRepository,
    backup: BackupSetId,
    sandbox: SandboxId,
    trees: Mapping[Volume, Path],
    *,
    timeout: timedelta,
    progress: Callable[[VolumesProgress], None],
) -> TakenVolumes:
    """Take each tree, or answer what is in the repository of this set; see `VolumeBackups.take`."""
    async with within(timeout) as left:
        there = await repository.list(tags={"set": backup}, timeout=left())
        found = {Volume(one.tags["volume"]): one for one in there}
        if found.keys() != trees.keys():
            if there:  # of a moment that is over
                await repository.forget([one.id for one in there], timeout=left())
            found = {}
            for volume, tree in trees.items():
                found[volume] = await repository.snapshot(
                    tree,
                    source=f"{sandbox}/{volume.value}",
                    tags={"set": backup, "volume": volume.value},
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
    """Bring volumes back into their roots, which are there; see `VolumeBackups.restore`."""
    entries = size = 0
    async with within(timeout) as left:
        for volume, snapshot in order.snapshots.items():
            root, paths = trees[volume], _outermost(order.paths.get(volume, ()))
            staging = root / f"{STAGING}{order.id}"
            await asyncio.to_thread(clear_staging, root)
            try:
                back = await repository.restore(
                    snapshot, staging, paths=paths, timeout=left(), progress=_teller(volume, progress)
                )
                await asyncio.to_thread(_put_paths if paths else _put_whole, root, staging, paths)
            finally:
                await asyncio.shield(asyncio.to_thread(clear_staging, root))
            _tell_end(volume, back.entries, back.bytes, progress)
            entries, size = entries + back.entries, size + back.bytes
    return RestoredTree(entries=entries, bytes=size)


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


def clear_staging(root: Path) -> None:
    """Remove what a restore that broke off has put together in a volume."""
    with contextlib.suppress(FileNotFoundError):
        status = root.stat()
        left = [path for path in root.iterdir() if path.name.startswith(STAGING)]
        for path in left:
            _remove(os.fsencode(path))
        if left:
            os.utime(root, ns=(status.st_atime_ns, status.st_mtime_ns))


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
    """Leave out what comes back with a path above it.

    Raises:
        InvalidRequestError: A path names what restores put together.
    """
    for path in paths:
        if path.startswith(os.fsencode(STAGING)):
            raise InvalidRequestError(f"{path!r} was left by a restore, and is not brought back.")
    return [path for path in sorted(set(paths)) if not any(path.startswith(one + b"/") for one in paths)]


def _put_whole(root: Path, staging: Path, paths: Sequence[bytes]) -> None:
    """Let what was put together be all that there is."""
    del paths
    place, staged = os.fsencode(root), os.fsencode(staging)
    dress = staging.stat()
    attributes = {attribute: os.getxattr(staging, attribute) for attribute in os.listxattr(staging)}
    try:
        staging.chmod(0o700)
        root.chmod(0o700)
        for name in os.listdir(place):  # noqa: PTH208 - bytes
            if not name.startswith(os.fsencode(STAGING)):
                _remove(place + b"/" + name)
        for name in os.listdir(staged):  # noqa: PTH208 - bytes
            if not name.startswith(os.fsencode(STAGING)):
                _move(staged + b"/" + name, place + b"/" + name)
        _remove(staged)
        for attribute in set(os.listxattr(root)) - attributes.keys():
            os.removexattr(root, attribute)
        if (dress.st_uid, dress.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(root, dress.st_uid, dress.st_gid)
        for attribute, value in attributes.items():
            os.setxattr(root, attribute, value)
        root.chmod(stat.S_IMODE(dress.st_mode))
        os.utime(root, ns=(dress.st_atime_ns, dress.st_mtime_ns))
    except OSError as error:
        raise _unwritten(error) from error


def _put_paths(root: Path, staging: Path, paths: Sequence[bytes]) -> None:
    """Let each of these take the place of what is there."""
    try:
        for path in paths:
            _look_along(root, path)
        for path in paths:
            _put_path(root, staging, path)
    except OSError as error:
        raise _unwritten(error) from error


def _look_along(root: Path, path: bytes) -> None:
    place = os.fsencode(root)
    for part in path.split(b"/")[:-1]:
        place += b"/" + part
        try:
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                above = os.fsdecode(place[len(os.fsencode(root)) + 1 :])
                raise RestorePathBlockedError(
                    f"{os.fsdecode(path)!r} cannot come back: {above!r} is no directory now. "
                    "Move it away, or restore it too.",
                    path=os.fsdecode(path).encode("utf-8", "backslashreplace").decode(),
                )
        except FileNotFoundError:
            return


def _put_path(root: Path, staging: Path, path: bytes) -> None:
    *above, last = path.split(b"/")
    source, target = os.open(staging, _OPEN), os.open(root, _OPEN)
    try:
        for part in above:
            source = _step(source, part)
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, mode=0o700, dir_fd=target)
                like = os.fstat(source)
                os.chown(part, like.st_uid, like.st_gid, dir_fd=target, follow_symlinks=False)
                os.chmod(part, stat.S_IMODE(like.st_mode), dir_fd=target)
            target = _step(target, part)
        _remove(last, directory=target)
        _move(last, last, source=source, target=target)
    finally:
        os.close(source)
        os.close(target)


def _step(directory: int, name: bytes) -> int:
    try:
        return os.open(name, _OPEN, dir_fd=directory)
    finally:
        os.close(directory)


def _remove(path: bytes, *, directory: int | None = None) -> None:
    """Remove whatever is there, if anything is."""
    try:
        status = os.lstat(path) if directory is None else os.stat(path, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path, dir_fd=directory)
        return
    if os.geteuid() != 0:  # who is not root is stopped by directories that are closed to their owner
        for _, names, _, inside in os.fwalk(path, dir_fd=directory, topdown=True):
            os.fchmod(inside, 0o700)
            for name in names:
                _open_up(name, inside)
    shutil.rmtree(path, dir_fd=directory)


def _open_up(name: str | bytes, inside: int) -> None:
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.stat(name, dir_fd=inside, follow_symlinks=False).st_mode):
            os.chmod(name, 0o700, dir_fd=inside)


def _move(old: bytes, new: bytes, *, source: int | None = None, target: int | None = None) -> None:
    """Rename, also a directory that its owner may not write to: its `..` is changed."""
    try:
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
    except PermissionError:
        mode = stat.S_IMODE(os.stat(old, dir_fd=source, follow_symlinks=False).st_mode)
        os.chmod(old, mode | stat.S_IRWXU, dir_fd=source)
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
        os.chmod(new, mode, dir_fd=target)


def _unwritten(error: OSError) -> BackupIncompleteError | BackupStorageFullError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return BackupStorageFullError("There is no room where the backup is to be restored.")
    return BackupIncompleteError(f"What was restored could not be put into its place: {error.strerror}.")

"""Puts what a restore has put together into its place in a volume, or leaves the volume as it was.

What is there is moved aside before anything is removed: whatever fails until all is in its place is undone. The volume
is the freelancer's: no link of it is followed, and nothing outside of its root is touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog

from sandboxd.model.backup_errors import BackupIncompleteError, BackupStorageFullError
from sandboxd.model.errors import WrongStateError
from sandboxd.volumes.ports import STAGING
from sandboxd.volumes.removing import remove_tree

_ASIDE: Final = "-before"
"""Behind the name of that directory: where what is there waits until the other is in its place."""
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

log = structlog.get_logger(__name__)


class RestorePathBlockedError(WrongStateError):
    """Something in the volume is in the way of what is to come back, and has to be moved away by hand."""

    reason = "RESTORE_PATH_BLOCKED"


@contextlib.contextmanager
def keeping_times(root: Path) -> Iterator[None]:
    """Let a directory have its access and modification times again after a block that makes or removes entries."""
    status = root.stat()
    yield
    os.utime(root, ns=(status.st_atime_ns, status.st_mtime_ns))


def make_staging(root: Path, staging: Path) -> None:
    """Make the directory in a volume's root in which a restore puts together what comes back; the root's times stay.

    Raises:
        BackupStorageFullError, BackupIncompleteError: It cannot be made.
    """
    try:
        with keeping_times(root):
            staging.mkdir(mode=0o700)
    except OSError as error:
        raise _unplaced(error) from error


def clear_staging(root: Path) -> None:
    """Remove what a restore has put together in a volume, or has moved aside; what cannot be removed is logged."""
    with contextlib.suppress(FileNotFoundError):
        left = [name for name in os.listdir(os.fsencode(root)) if name.startswith(os.fsencode(STAGING))]  # noqa: PTH208
        if not left:
            return
        with keeping_times(root):
            for name in left:
                try:
                    remove_tree(os.fsencode(root) + b"/" + name)
                except OSError as error:
                    log.warning("restore.left_over", volume=root.name, path=_shown(error, name), error=error.strerror)


def put_whole(root: Path, staging: Path) -> None:
    """Let what was put together be all that there is.

    Raises:
        RestorePathBlockedError, BackupStorageFullError, BackupIncompleteError: The volume is as it was.
    """
    place, staged, aside = os.fsencode(root), os.fsencode(staging), os.fsencode(staging) + os.fsencode(_ASIDE)
    dress, before = staging.stat(), root.stat()
    attributes = {attribute: os.getxattr(staging, attribute) for attribute in os.listxattr(staging)}
    done = list[tuple[bytes, bytes]]()
    try:
        staging.chmod(0o700)
        root.chmod(0o700)
        os.mkdir(aside, mode=0o700)  # noqa: PTH102 - bytes
        for source, target in ((place, aside), (staged, place)):
            for name in os.listdir(source):  # noqa: PTH208 - bytes
                if not name.startswith(os.fsencode(STAGING)):
                    _move(source + b"/" + name, target + b"/" + name)
                    done.append((source + b"/" + name, target + b"/" + name))
        for attribute in set(os.listxattr(root)) - attributes.keys():
            os.removexattr(root, attribute)
        if (dress.st_uid, dress.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(root, dress.st_uid, dress.st_gid)
        for attribute, value in attributes.items():
            os.setxattr(root, attribute, value)
        clear_staging(root)
        root.chmod(stat.S_IMODE(dress.st_mode))
        os.utime(root, ns=(dress.st_atime_ns, dress.st_mtime_ns))
    except OSError as error:
        failed = _unplaced(error)
        try:
            for source, target in reversed(done):
                _move(target, source)
            root.chmod(stat.S_IMODE(before.st_mode))
            os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))
        except OSError as undoing:
            log.warning("restore.not_undone", volume=root.name, error=undoing.strerror)
            failed.add("The volume has only a part of it now: restore it again.", volume=root.name)
        raise failed from error


def put_paths(root: Path, staging: Path, paths: Sequence[bytes]) -> None:
    """Let each of these take the place of what is there.

    Raises:
        RestorePathBlockedError: Nothing was changed, or what stands before the path that is named.
        BackupStorageFullError, BackupIncompleteError: Each path is back, or as it was.
    """
    aside = Path(f"{staging}{_ASIDE}")
    try:
        for path in paths:
            _look_along(root, path)
        aside.mkdir(mode=0o700)
        for number, path in enumerate(paths):
            _put_path(root, staging, path, aside=os.fsencode(aside) + b"/%d" % number)
    except OSError as error:
        raise _unplaced(error) from error


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
                    path=_utf8(path),
                )
        except FileNotFoundError:
            return


def _put_path(root: Path, staging: Path, path: bytes, *, aside: bytes) -> None:
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
        was_there = True
        try:
            _move(last, aside, source=target)
        except FileNotFoundError:
            was_there = False
        try:
            _move(last, last, source=source, target=target)
        except OSError:
            if was_there:
                _move(aside, last, target=target)
            raise
    finally:
        os.close(source)
        os.close(target)


def _step(directory: int, name: bytes) -> int:
    try:
        return os.open(name, _OPEN, dir_fd=directory)
    finally:
        os.close(directory)


def _move(old: bytes, new: bytes, *, source: int | None = None, target: int | None = None) -> None:
    """Rename, also a directory that its owner may not write to: its `..` is changed."""
    try:
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
    except PermissionError as refused:
        status = os.stat(old, dir_fd=source, follow_symlinks=False)
        if os.geteuid() == 0 or not stat.S_ISDIR(status.st_mode):
            raise OSError(refused.errno, refused.strerror, os.path.basename(old)) from refused  # noqa: PTH119 - bytes
        mode = stat.S_IMODE(status.st_mode)
        os.chmod(old, mode | stat.S_IRWXU, dir_fd=source)
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
        os.chmod(new, mode, dir_fd=target)


def _unplaced(error: OSError) -> RestorePathBlockedError | BackupIncompleteError | BackupStorageFullError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return BackupStorageFullError("There is no room where the backup is to be restored.")
    if error.errno in {errno.EPERM, errno.EBUSY} and error.filename:
        path = _shown(error, b"")
        return RestorePathBlockedError(
            f"{path!r} cannot be moved away: {error.strerror}. It may be immutable (chattr -i) or a mount.", path=path
        )
    return BackupIncompleteError(f"What was restored could not be put into its place: {error.strerror}.")


def _shown(error: OSError, name: bytes) -> str:
    return _utf8(os.fsencode(error.filename)) if error.filename else _utf8(name)


def _utf8(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")

"""A repository of backups that copies trees: for tests of what uses one."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from typing_extensions import override

from sandboxd.backends.restic.trees import checked_tree, is_there, make_empty
from sandboxd.model.backup import SnapshotId, TreeComparison
from sandboxd.model.backup_errors import BackupSnapshotNotFoundError
from sandboxd.model.errors import InvalidRequestError, SandboxdError
from sandboxd.volumes.comparing import XATTR, TreeComparing
from sandboxd.volumes.paths import check_path
from sandboxd.volumes.ports import (
    STAGING,
    BackupProgress,
    BackupRepository,
    ForgottenSnapshots,
    RestoredTree,
    TreeSnapshot,
)
from tests.rootfs_trees import all_paths


@dataclass(kw_only=True)
class FakeBackupRepository(BackupRepository):
    """Keeps each snapshot as a directory of its own."""

    directory: Path
    trouble: SandboxdError | None = None
    """Raised by whatever is called."""
    snapshots: dict[SnapshotId, TreeSnapshot] = field(default_factory=dict)

    @override
    async def prepare(self, *, timeout: timedelta) -> None:
        self._meet_trouble()
        self.directory.mkdir(parents=True, exist_ok=True)

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
        self._meet_trouble()
        self._check(source, *tags, *tags.values())
        tree = checked_tree(tree)
        number = len(list(self.directory.iterdir()))
        snapshot = SnapshotId(hashlib.sha256(f"{number} {source}".encode()).hexdigest())
        _copy(tree, self.directory / snapshot)
        files, size, total = 0, 0, hashlib.sha256()
        for path in sorted(all_paths(tree)):
            place = tree / os.fsdecode(path)
            total.update(path)
            if place.is_file() and not place.is_symlink():
                files, size = files + 1, size + place.stat().st_size
                total.update(place.read_bytes())
        progress(BackupProgress(files=files, total_files=files, bytes=size, total_bytes=size))
        known = any(one.tree == total.hexdigest() for one in self.snapshots.values())
        made = TreeSnapshot(
            id=snapshot,
            source=source,
            take_time=datetime.now(UTC),
            tree=total.hexdigest(),
            files=files,
            bytes=size,
            added_bytes=0 if known else size,
            tags=dict(tags),
        )
        self.snapshots[snapshot] = made
        return made

    @override
    async def list(
        self, *, source: str | None = None, tags: Mapping[str, str] | None = None, timeout: timedelta
    ) -> Sequence[TreeSnapshot]:
        self._meet_trouble()
        wanted = (tags or {}).items()
        found = [one for one in self.snapshots.values() if source is None or one.source == source]
        return sorted((one for one in found if wanted <= one.tags.items()), key=lambda one: (one.take_time, one.id))

    @override
    async def restore(
        self,
        snapshot: SnapshotId,
        into: Path,
        *,
        paths: Sequence[bytes] = (),
        timeout: timedelta,
        progress: Callable[[BackupProgress], None],
    ) -> RestoredTree:
        self._meet_trouble()
        for path in paths:
            check_path(path)
        make_empty(into)
        if snapshot not in self.snapshots:
            raise BackupSnapshotNotFoundError("There is no such snapshot.", snapshot=snapshot)
        kept = self.directory / snapshot
        for path in paths:
            if not is_there(kept, path):
                raise BackupSnapshotNotFoundError(f"The backup has no {os.fsdecode(path)!r}.", snapshot=snapshot)
        into.rmdir()
        _copy(kept, into)
        if paths:
            _thin_out(into, paths)
        entries = len(list(all_paths(into)))
        return RestoredTree(entries=entries, bytes=self.snapshots[snapshot].bytes if not paths else 0)

    @override
    async def compare(
        self, snapshot: SnapshotId, tree: Path, *, timeout: timedelta, progress: Callable[[BackupProgress], None]
    ) -> TreeComparison:
        self._meet_trouble()
        if snapshot not in self.snapshots:
            raise BackupSnapshotNotFoundError("There is no such snapshot.", snapshot=snapshot)
        comparing = TreeComparing(tree, progress=progress)
        kept = self.directory / snapshot
        for path in (b"", *sorted(all_paths(kept))):
            status = os.lstat(os.fsencode(kept) + (b"/" + path if path else b""))
            kinds = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}
            comparing.entry(
                path,
                kind=kinds.get(stat.S_IFMT(status.st_mode), "fifo"),
                mode=stat.S_IMODE(status.st_mode),
                owner=(status.st_uid, status.st_gid),
                size=status.st_size if stat.S_ISREG(status.st_mode) else 0,
                mtime_ns=status.st_mtime_ns,
            )
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT, dereference=True) as tar:
            for path in (b"", *sorted(all_paths(kept))):
                self._pack(tar, Path(os.fsdecode(os.fsencode(kept) + (b"/" + path if path else b""))), path)
        archive.seek(0)
        comparing.archive(archive)
        return comparing.result()

    @staticmethod
    def _pack(tar: tarfile.TarFile, place: Path, path: bytes) -> None:
        status = place.lstat()
        if stat.S_ISFIFO(status.st_mode):
            return
        one = tarfile.TarInfo(os.fsdecode(b"root/" + path))
        one.mtime = status.st_mtime_ns // 10**9
        one.pax_headers = {
            f"{XATTR}{name}": os.getxattr(place, name, follow_symlinks=False).decode("utf-8", "surrogateescape")
            for name in os.listxattr(place, follow_symlinks=False)
        }
        if place.is_symlink():
            one.type, one.linkname = tarfile.SYMTYPE, str(place.readlink())
        elif place.is_dir():
            one.type = tarfile.DIRTYPE
        else:
            one.size = status.st_size
        tar.addfile(one, place.open("rb") if one.isreg() else None)

    @override
    async def verify(self, *, content: bool, timeout: timedelta) -> None:
        self._meet_trouble()

    @override
    async def read(self, snapshot: SnapshotId, *, timeout: timedelta) -> TreeSnapshot:
        self._meet_trouble()
        if snapshot not in self.snapshots:
            raise BackupSnapshotNotFoundError("There is no such snapshot.", snapshot=snapshot)
        return self.snapshots[snapshot]

    @override
    async def forget(self, snapshots: Sequence[SnapshotId], *, timeout: timedelta) -> ForgottenSnapshots:
        self._meet_trouble()
        for one in snapshots:
            self.snapshots.pop(one, None)
        return ForgottenSnapshots(snapshots=tuple(snapshots), left=len(self.snapshots))

    @override
    async def prune(self, *, timeout: timedelta) -> None:
        self._meet_trouble()
        for kept in self.directory.iterdir():
            if kept.name not in self.snapshots:
                shutil.rmtree(kept)

    def _meet_trouble(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    @staticmethod
    def _check(*words: str) -> None:
        for word in words:
            if not word or len(word) > 200 or not all(one.isalnum() or one in "_./@-" for one in word):
                raise InvalidRequestError(f"{word!r} is no source, name or value of a tag.")


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", "--", source, target], check=True, capture_output=True)
    for left in target.glob(f"{STAGING}*"):
        shutil.rmtree(left)
    for path in list(all_paths(target)):
        place = target / os.fsdecode(path)
        if place.is_socket():
            above = place.parent.stat()
            place.unlink()
            os.utime(place.parent, ns=(above.st_atime_ns, above.st_mtime_ns))


def _thin_out(root: Path, paths: Sequence[bytes]) -> None:
    """Leave only these, what is below them, and the directories above."""
    times = {path: os.lstat(os.fsencode(root) + b"/" + path) for path in (b".", *all_paths(root))}
    for path in sorted(all_paths(root), reverse=True):
        kept = any(path == one or path.startswith(one + b"/") or one.startswith(path + b"/") for one in paths)
        place = Path(os.fsdecode(os.fsencode(root) + b"/" + path))
        if not kept and (place.is_symlink() or not place.is_dir()):
            place.unlink()
        elif not kept:
            place.rmdir()
    for path, status in times.items():
        place = Path(os.fsdecode(os.fsencode(root) + b"/" + path))
        if os.path.lexists(place) and place.is_dir() and not place.is_symlink():
            os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))

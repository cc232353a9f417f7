"""Where layers lie between being written and being pushed: one directory for each build, bounded, and swept.

A build's directory goes with it, whatever happens; what a killed process has left is known by its lock, which nobody
holds any more, and goes with the next build.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.model.image_errors import SpoolFullError

WATCH_SECONDS: Final = 1.0
"""Between two looks at what is free: a disk takes 0.2 GB in this time, which `least_free_bytes` allows for."""
_LOCK: Final = "lock"
_BUILD: Final = "build-"
_NEW: Final = "new-"
_BEGINNING_SECONDS: Final = 60.0
"""A directory that has no lock yet has one within milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """A directory for builds; several processes may share it."""

    directory: Path
    size_bytes: int
    """Of everything in it together."""
    least_free_bytes: int
    """Of its file system: with less, nothing is begun, and what runs is given up."""
    watch_seconds: float = WATCH_SECONDS

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Path]:
        """Give a directory for the block, and end the block when there is no room any more.

        Raises:
            SpoolFullError: There is no room.
        """
        path, lock = await asyncio.to_thread(self._begin)
        try:
            async with self._watched():
                yield path
        finally:
            await asyncio.shield(asyncio.to_thread(_remove, path, lock))

    def _begin(self) -> tuple[Path, int]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._sweep()
            self._check()
            begun = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.directory))
            lock = os.open(begun / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = begun.rename(begun.with_name(_BUILD + begun.name.removeprefix(_NEW)))  # locked before it is seen
        except OSError as error:
            raise SpoolFullError(
                f"The spool directory of images cannot be written: {error.strerror}. Look at SANDBOXD_IMAGES_SPOOL_DIR."
            ) from error
        return path, lock

    def _sweep(self) -> None:
        """Remove what nobody holds."""
        for path in self.directory.glob(f"{_BUILD}*"):
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                else:
                    _remove(path, lock)
        for path in self.directory.glob(f"{_NEW}*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime + _BEGINNING_SECONDS < time.time():
                    shutil.rmtree(path, ignore_errors=True)

    def _check(self) -> None:
        free, used = shutil.disk_usage(self.directory).free, _size_of(self.directory)
        if free >= self.least_free_bytes and used <= self.size_bytes:
            return
        raise SpoolFullError(
            f"The spool directory of images is full: {used >> 20} MiB of {self.size_bytes >> 20} MiB are used, and "
            f"{free >> 20} MiB of its file system are free, {self.least_free_bytes >> 20} MiB are needed. Commit again "
            "when others have ended, or enlarge it and SANDBOXD_IMAGES_SPOOL_BYTES.",
            used_bytes=str(used),
            free_bytes=str(free),
        )

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                await asyncio.sleep(self.watch_seconds)
                await asyncio.to_thread(self._check)

        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watch(), name="spool")
                yield
                watching.cancel()
        except BaseExceptionGroup as both:
            first = both.exceptions[0]  # the block's, or that there is no room
            raise first from first.__cause__


def _size_of(directory: Path) -> int:
    """Bytes of all files; others come and go meanwhile."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(place) / name).lstat().st_blocks * 512
    return total


def _remove(path: Path, lock: int) -> None:
    """Remove a directory whose lock is ours, and let go of that."""
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)

"""A disk of a few megabytes, for tests of a full one: a tmpfs of a size, which takes root's right to mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_FILLER = "filler"
_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallDisk:
    """A mounted disk."""

    path: Path

    @property
    def free(self) -> int:
        """Bytes that are left."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, *, leave: int = 0) -> None:
        """Fill it, but for so many bytes."""
        with contextlib.suppress(OSError), (self.path / _FILLER).open("ab", buffering=0) as file:
            while self.free > leave:
                file.write(b"\0" * max(1, min(_CHUNK, self.free - leave)))

    def make_room(self) -> None:
        """Give back what `fill` took."""
        (self.path / _FILLER).unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, *, megabytes: int) -> Iterator[SmallDisk]:
    """Mount a disk at a directory that is made; skips the test where this user or machine cannot."""
    path.mkdir(parents=True, exist_ok=True)
    command = ("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "sandboxd-test", str(path))
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except OSError as error:
        pytest.skip(f"a small disk needs the command mount: {error}")
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs root's right to mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path=path)
    finally:
        # Lazily: what a test has started may still be ending there.
        subprocess.run(("umount", "--lazy", str(path)), capture_output=True, check=False, timeout=30)
